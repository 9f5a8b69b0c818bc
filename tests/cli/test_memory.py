"""Training starts anew with huge pages, once, and only as a program of its own."""

import os
import subprocess
import sys

import pytest

from jaxprune.cli import main, memory

SCRIPT = """
import os, sys
from jaxprune.cli.memory import restart_with_huge_pages
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], flush=True)
restart_with_huge_pages()
"""


def without_wish() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != memory.VARIABLE}


@pytest.mark.skipif(not memory._is_glibc(), reason="without glibc nothing is asked for")
def test_a_program_starts_anew_once_as_the_same_process(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "program.py"), "one", "two three"]
    done = subprocess.run(command, env=without_wish(), capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    process = first.split()[0]
    assert first == f"{process} None one two three"
    assert second == f"{process} {memory.WISH} one two three"
    own = subprocess.run(command, env=os.environ | {memory.VARIABLE: "x=1"}, capture_output=True, text=True, check=True)
    assert own.stdout.split()[1:] == ["x=1", "one", "two", "three"]


def test_only_training_from_the_programs_own_command_line_does(monkeypatch):
    restarted, run = [], []
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    monkeypatch.setattr(memory, "_is_glibc", lambda: True)
    monkeypatch.setattr(os, "execve", lambda *arguments: restarted.append(arguments))
    monkeypatch.setattr(main, "command", lambda name, rest: run.append((name, rest)))
    for words in (["classify", "x"], ["finetune", "--help"]):
        monkeypatch.setattr(sys, "argv", ["jaxprune", *words])
        main.main()  # a test's command line is not the process's
        main.main(words)
    assert not restarted
    monkeypatch.setattr(sys, "orig_argv", ["python", "/bin/jaxprune", "finetune", "--help"])
    main.main(["finetune", "--help"])
    assert not restarted
    main.main()
    ((program, arguments, environment),) = restarted
    assert (program, arguments) == (sys.executable, sys.orig_argv)
    assert environment[memory.VARIABLE] == memory.WISH
    assert len(run) == 6  # in the test, where execve returns
