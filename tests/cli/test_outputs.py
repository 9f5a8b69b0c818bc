"""Every command that writes: an output in use, a full disk and a read-only folder are told in a sentence."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from extractions import write_random
from helpers import limited, small
from quick import quick_compiling  # noqa: F401
from test_files import kill, names, process
from training.test_finetune import EPOCHS, STEPS, arguments, card, clips, start  # noqa: F401, fixtures
from training_runs import child_environment, model

import jaxprune
from jaxprune.cli.main import COMMANDS, command
from jaxprune.training.run_directory import RESULT, read_metrics

HOLD = "with locked(out):\n    WAIT"
HOLD_ALL = """
import contextlib
with contextlib.ExitStack() as held:
    for place in sys.argv[1:]:
        held.enter_context(locked(place))
    WAIT
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint with a head for the clips' classes."""
    made = model()
    return jaxprune.save(tmp_path_factory.mktemp("trained") / "small", made, card=card(made.config))


@pytest.fixture
def run(capsys):
    """Runs a command in this process: `run(name, *arguments) -> (exit code, stderr)`."""

    def call(name, *options) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            command(name, [*map(str, options)])
        return left.value.code, capsys.readouterr().err

    return call


@pytest.fixture
def commands(clips, start, trained):  # noqa: F811
    """The commands that write to `out`, by name."""
    data = ("folder", "--root", clips)

    def of(out: Path) -> dict[str, tuple]:
        trains = arguments(clips, start, out)
        return {
            "finetune": ("finetune", *trains),
            "protocol": ("protocol", *trains[: trains.index("--seed")], "--loop.seeds", 7, "--data.folds"),
            "extract": ("extract", trained, *data, "--blocks", 0, 1, "--keep-rate", 0.5, "--out", out),
            "ablate": ("ablate", trained, *data, "--blocks", 0, "--keep-rates", 0.5, "--out", out),
            "sweep": ("sweep", trained, *data, "--blocks", "0,1", "--keep-rates", 0.5, "--out", out),
            "shard": ("shard", *data, "--out", out),
            "convert": ("convert", trained, out, "--to-torch", "official"),
        }

    return of


WRITERS = ("finetune", "protocol", "extract", "ablate", "sweep", "shard", "convert")


@pytest.fixture
def others(clips, trained, tmp_path_factory):  # noqa: F811
    """The other commands with an output, by name and the output's suffix."""
    data = ("folder", "--root", clips)
    sound = next(Path(clips).rglob("*.wav"))
    table = tmp_path_factory.mktemp("table") / "clips.csv"
    table.write_text(f"path,split\n{sound},train\n")
    unlabelled = ("--data.dataset", "tones", "--data.root", table)
    extracted = write_random(tmp_path_factory.mktemp("extracted") / "x", small("ast"), clips=4, keep={3: 0.5})

    def of(out: Path) -> dict[str, tuple]:
        return {
            "features": ("features", sound, "--out", out.with_suffix(".npz")),
            "classify": ("classify", trained, sound, "--picture", out.with_suffix(".png")),
            "listen": ("listen", trained, sound, "--events", out.with_suffix(".csv")),
            "validate": ("validate", "none.pth", "--out", out.with_suffix(".json")),
            "benchmark": ("benchmark", "--quick", "--out", out.with_suffix(".json")),
            "precision": ("precision", trained, *data, "--out", out.with_suffix(".json")),
            "export": ("export", "--format", "stablehlo", trained, out),
            "pretrain": ("pretrain", "audiomae-arabic-words-pretrain", *unlabelled, "--out", out),
            "report": ("report", extracted, "--out", out.with_suffix(".html")),
            "analyze": ("analyze", extracted, "--out", out),
            "evaluate": ("evaluate", trained, *data, "--out", out.with_suffix(".json")),
            "data-stats": ("data-stats", *data, "--json", out.with_suffix(".json")),
        }

    return of


def test_every_other_output_in_use_is_told_before_the_work(others, run, tmp_path):
    made = {name: others(tmp_path / name / "out")[name] for name in others(tmp_path)}
    with process(HOLD_ALL, *(options[-1] for options in made.values())) as child:
        for name, options in made.items():
            code, said = run(*options)
            assert code == 2, name
            assert f"error: {options[-1]} is in use by process {child.pid} on " in said, name
            assert names(tmp_path / name) == [f".{options[-1].name}.lock"], name
    assert {*made, *WRITERS} == set(COMMANDS) - {"app"}  # which writes nothing


def test_an_output_in_use_is_told_with_its_process_and_nothing_is_written(commands, run, tmp_path):
    with process(HOLD, tmp_path / "out") as child:
        for name, options in commands(tmp_path / "out").items():
            code, said = run(*options)
            assert code == 2, name
            assert f"error: {tmp_path}/out is in use by process {child.pid} on " in said, name
            assert names(tmp_path) == [".out.lock"], name
    assert tuple(commands(tmp_path)) == WRITERS


@pytest.mark.parametrize("name", ["extract", "shard", "convert"])
def test_a_full_disk_is_one_sentence_with_the_path(commands, run, tmp_path, name):
    with limited(1500):
        code, said = run(*commands(tmp_path / "out")[name])
    *_, last = said.splitlines()
    assert code == 2
    assert last.startswith(f"error: {tmp_path}/out")
    assert "File too large" in last
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.unfinished-*"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_cannot_be_made_is_one_sentence_with_the_path(commands, run, tmp_path, name):
    """The folder above is a file. A read-only one, which root may write to, is in `test_files`."""
    (tmp_path / "file").write_text("")
    code, said = run(*commands(tmp_path / "file" / "out")[name])
    *_, last = said.splitlines()
    assert code == 2
    assert last.startswith("error: ")
    assert f"{tmp_path}/file/out" in last
    assert "Not a directory" in last or "File exists" in last
    assert "Traceback" not in said
    assert names(tmp_path) == ["file"]


PROGRAM = """
import quick, resource, sys  # quick: the programs are those that this process compiled
from jaxprune.cli.main import main
size, *arguments = sys.argv[1:]
if int(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
main(arguments)
"""


def program(*options, limit: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(limit), *map(str, options)]
    return subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_two_equal_runs_at_once_the_second_leaves_and_the_first_ends(commands, run, tmp_path):
    first = program(*commands(tmp_path / "run")["finetune"])
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first.poll() is None, first.stderr.read()
    first.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
    code, said = run(*commands(tmp_path / "run")["finetune"])
    assert code == 2
    assert f"run is in use by process {first.pid} on" in said
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.stderr.read()
    first.communicate()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "step"] == [*range(EPOCHS * STEPS)]
    assert names(tmp_path) == ["run"]


def test_a_run_and_a_conversion_that_fill_the_disk_say_so_once(commands, run, tmp_path):
    """In processes of their own, because Orbax's threads print on their own."""
    code, said = run(*commands(tmp_path / "x.pth")["convert"])
    assert code == 0, said
    convert = ("convert", tmp_path / "x.pth", tmp_path / "back", "--num-heads", 3)
    for options, place in ((convert, "back cannot"), (commands(tmp_path / "run")["finetune"], "run/checkpoints: a ")):
        _, said = program(*options, limit=20_000).communicate()
        errors = [line for line in said.splitlines() if not line.startswith("note: ")]
        assert len(errors) == 1, said
        assert errors[0].startswith(f"error: {tmp_path}/{place}"), said
        assert "written" in errors[0]  # and why, but for a race of Orbax's own threads
    assert not (tmp_path / "back").exists()


def test_a_run_killed_while_it_saves_its_model_leaves_nothing_that_stays(commands, run, tmp_path):
    out = tmp_path / "run"
    with process(HOLD, out) as child:  # stands for the run
        (out / f".model.unfinished-{child.pid}").mkdir(parents=True)
        (out / f".result.unfinished-{child.pid}.json").write_text("{")
        kill(child)
    (out / ".model.unfinished-1" / "weights").mkdir(parents=True)
    code, said = run(*commands(out)["finetune"])
    assert code == 0, said
    assert names(out) == ["metrics.jsonl", "model", "recipe.json", RESULT]
