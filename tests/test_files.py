"""Files appear whole or not at all, by one process at a time, and nothing of somebody else's is deleted."""

import codecs
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import limited
from training_runs import child_environment

from jaxprune.files import NotWritten, locked, replace_file, shown, whole_directory, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def read_only(folder: Path):
    """A new folder in which this process may not write: root, who may write everywhere, is another user meanwhile."""
    folder.mkdir(mode=0o555)
    for above in list(folder.parents)[:3]:
        above.chmod(0o755)
    codecs.lookup("ascii")  # which another user may not be able to import
    before = os.geteuid()
    os.seteuid(4321 if before == 0 else before)
    try:
        yield
    finally:
        os.seteuid(before)


@contextmanager
def process(body: str, *arguments):
    """Another Python process that has printed "ready" in the middle of `body` and waits to be told to go on."""
    text = "import sys\nfrom pathlib import Path\nfrom jaxprune.files import *\nout = Path(sys.argv[1])\n" + body
    text = text.replace("WAIT", 'print("ready", flush=True); sys.stdin.readline()')
    command = [sys.executable, "-c", text, *map(str, arguments)]
    child = subprocess.Popen(
        command,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        yield child
    finally:
        child.kill()
        child.communicate()


def kill(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def half(path):
        path.write_text("ha")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "a.txt", half)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_with_a_name_that_is_not_utf8_is_written_as_json_escapes_it(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write_text(tmp_path / "x.json", json.dumps({"file": name, "other": "café"}, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"file": name, "other": "café"}
    assert shown(name) == "caf\\xe9.wav"


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    seen = []
    replace_file(tmp_path / "new" / "a.png", lambda path: (seen.append(path), path.write_text("x")))
    assert seen[0].suffix == ".png"
    assert names(tmp_path / "new") == ["a.png"]


def test_a_directory_is_absent_until_it_is_complete(tmp_path):
    with whole_directory(tmp_path / "out", marker="m") as folder:
        (folder / "m").write_text("1")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    with pytest.raises(KeyError), whole_directory(tmp_path / "other", marker="m") as folder:
        raise KeyError
    assert names(tmp_path) == ["out"]


def test_an_old_directory_survives_a_failed_overwrite(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("old")
    with pytest.raises(KeyError), whole_directory(tmp_path / "out", marker="m", overwrite=True):
        raise KeyError
    assert (tmp_path / "out" / "m").read_text() == "old"
    with whole_directory(tmp_path / "out", marker="m", overwrite=True) as folder:
        (folder / "m").write_text("new")
    assert (tmp_path / "out" / "m").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_what_another_thread_still_writes_after_a_failure_is_removed_too(tmp_path, monkeypatch):
    remove, calls = shutil.rmtree, []

    def disturbed(directory, **options):
        calls.append(directory)
        if len(calls) > 2:
            remove(directory, **options)

    monkeypatch.setattr("jaxprune.files.shutil.rmtree", disturbed)
    with pytest.raises(KeyError), whole_directory(tmp_path / "out", marker="m"):
        raise KeyError
    assert names(tmp_path) == []


def test_only_an_empty_directory_or_one_of_its_kind_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_directory(tmp_path / "empty", marker="m") as folder:
        (folder / "m").write_text("1")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    for overwrite, sentence in ((False, "already exists"), (True, "holds no m")):
        with (
            pytest.raises(ValueError, match=sentence),
            whole_directory(tmp_path / "photos", marker="m", overwrite=overwrite),
        ):
            pass
    assert names(tmp_path / "photos") == ["cat.jpg"]


@pytest.mark.parametrize(("overwrite", "sentence"), [(False, "already exists"), (True, "holds no m")])
def test_a_directory_that_appears_meanwhile_stays(tmp_path, overwrite, sentence):
    def write():
        with whole_directory(tmp_path / "out", marker="m", overwrite=overwrite) as folder:
            (folder / "m").write_text("1")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "cat.jpg").write_text("")

    with pytest.raises(ValueError, match=sentence):
        write()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["cat.jpg"]


def test_a_second_process_is_told_who_writes_and_a_killed_one_holds_nothing(tmp_path):
    out = tmp_path / "out"
    with process("with locked(out):\n    WAIT", out) as child:
        told = rf"out is in use by process {child.pid} on \S+ since 20\d\d-\d\d-\d\d \d\d:\d\d; wait for its end or"
        for writer in (locked(out), whole_directory(out, marker="m")):
            with pytest.raises(ValueError, match=told), writer:
                pass
        with locked(tmp_path / "other"):
            pass
        kill(child)
        with locked(out), locked(out):  # the same thread may lock it again
            pass
    assert names(tmp_path) == []


def test_a_lock_ends_with_its_block(tmp_path):
    with process("with locked(out): pass\nWAIT", tmp_path / "out"), locked(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_where_no_lock_can_lie_beside_the_output_it_lies_elsewhere(tmp_path, monkeypatch):
    """Such as a folder that was mounted for the output alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    (tmp_path / ".out.lock").mkdir()  # no file of that name can be opened
    with process("with locked(out):\n    WAIT", tmp_path / "out") as child:
        assert len(names(tmp_path / "temporary")) == 1
        with pytest.raises(ValueError, match=f"in use by process {child.pid}"), locked(tmp_path / "out"):
            pass
    with locked(tmp_path / "out"):
        pass
    assert names(tmp_path / "temporary") == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """Killed while a directory is filled, in an output that has a file half written, too."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".result.unfinished-1.json").write_text("{")
    (run / "notes.unfinished-2").mkdir()  # not one of ours
    writing = 'with whole_directory(out, marker="m") as folder:\n    (folder / "big").write_text("1")\n    WAIT'
    with process(writing, run / "model") as child:
        kill(child)
        assert f".model.unfinished-{child.pid}" in names(run)
    with whole_directory(run / "model", marker="m") as folder:
        (folder / "m").write_text("1")
    assert names(run) == [".result.unfinished-1.json", "model", "notes.unfinished-2"]
    with locked(run):
        pass
    assert names(run) == ["model", "notes.unfinished-2"]


def test_an_old_directory_moved_aside_by_a_killed_process_comes_back(tmp_path):
    """Killed between the two renames of an overwrite."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("old")
    moved = 'import os\nout.rename(out.with_name(f".{out.name}.retired-{os.getpid()}"))\nWAIT'
    with process(moved, tmp_path / "out") as child:
        kill(child)
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / "m").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_told_with_the_path_and_leaves_what_was(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with limited(1000):
        with pytest.raises(NotWritten, match=r"/a\.txt cannot be written: File too large$"):
            write_text(tmp_path / "a.txt", "x" * 5000)
        with (
            pytest.raises(NotWritten, match=r"/out cannot be written: File too large$"),
            whole_directory(tmp_path / "out", marker="m") as folder,
        ):
            write_text(folder / "m", "x" * 5000)
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_read_only_folder_is_told_with_the_path(tmp_path):
    home = tmp_path / "home"
    with read_only(home):
        for path in (home / "a.txt", home / "new" / "a.txt"):
            with pytest.raises(NotWritten, match=r"/a\.txt cannot be written: Permission denied$"):
                write_text(path, "1")
        with (
            pytest.raises(NotWritten, match=r"/out cannot be written: Permission denied$"),
            whole_directory(home / "out", marker="m"),
        ):
            pass
    assert names(home) == []


def test_errors_of_other_files_stay_as_they_are(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"No such file or directory: .*nowhere"),
        whole_directory(tmp_path / "out", marker="m"),
    ):
        (tmp_path / "nowhere").read_text()
