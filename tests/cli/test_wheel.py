"""The wheel in an environment of its own: no checkout on the path, no PyTorch installed."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, TESTS

from jaxprune.cli.main import main

ABSENT = ("torch", "functorch", "safetensors", "transformers", "tensorboard", "av", "jaxprune", "__editable__")
SPOKEN = sorted((TESTS / "words" / "cat").glob("*.flac"))[:3]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing built before gets in."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("jaxprune", "convert"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The environment's folder of programs. It holds the wheel, and links to its dependencies but for the extras'."""
    home, packages = (tmp_path_factory.mktemp(name) for name in ("environment", "dependencies"))
    for entry in Path(np.__file__).parents[1].iterdir():
        if not entry.name.startswith((*ABSENT, "_distutils")) and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    venv.create(home, with_pip=False, symlinks=True)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    pip("--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = home.glob("**/site-packages")
    (site / "dependencies.pth").write_text(f"{packages}\n")
    return programs


def pip(*arguments) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def run(programs: Path, cwd: Path, name: str, *arguments) -> subprocess.CompletedProcess:
    """Runs a program of the environment outside the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [programs / name, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_every_module_and_no_package_named_convert(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"jaxprune"}
    here = {f"jaxprune/{path.relative_to(ROOT / 'jaxprune')}" for path in (ROOT / "jaxprune").rglob("*.py*")}
    here |= {f"jaxprune/convert/{path.relative_to(ROOT / 'convert')}" for path in (ROOT / "convert").rglob("*.py")}
    here |= {f"jaxprune/{path.relative_to(ROOT / 'jaxprune')}" for path in files(ROOT / "jaxprune" / "shipped")}
    assert {name for name in here if "__pycache__" not in name} <= names


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("model", "rate"), [("ast-words", "0.7"), ("audiomae-arabic-words", "1")])
def test_recordings_are_labelled_as_in_the_checkout_without_torch(installed, tmp_path, capsys, model, rate):
    clips = [shutil.copy(path, tmp_path) for path in SPOKEN]
    options = ["classify", model, *clips, "--keep-rate", rate, "--json"]
    done = run(installed, tmp_path, "jaxprune", *options)
    assert done.returncode == 0, done.stderr
    with pytest.raises(SystemExit, match="0"):
        main(options)
    found, expected = (json.loads(text)["windows"] for text in (done.stdout, capsys.readouterr().out))
    assert len(found) == len(SPOKEN)
    for one, other in zip(found, expected, strict=True):
        assert one["kept"] == other["kept"]
        assert [guess["label"] for guess in one["top"]] == [guess["label"] for guess in other["top"]]
        assert one["top"][0]["probability"] == pytest.approx(other["top"][0]["probability"], abs=1e-5)
    seen = "import jaxprune, sys; print(jaxprune.__file__); import jaxprune.models; print('torch' in sys.modules)"
    file, torch = run(installed, tmp_path, "python", "-c", seen).stdout.split()
    assert Path(file).is_relative_to(installed.parent)
    assert torch == "False"


@pytest.mark.parametrize("command", ["convert source.pth out", "validate source.pth out", "benchmark --quick"])
def test_a_command_that_needs_torch_names_the_extra(installed, tmp_path, command):
    done = run(installed, tmp_path, "jaxprune", *command.split())
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == 'error: torch is not installed; this needs it: pip install "jaxprune[convert]"\n'


def test_no_package_named_convert_is_installed(installed, tmp_path):
    done = run(installed, tmp_path, "python", "-c", "import convert")
    assert "ModuleNotFoundError: No module named 'convert'" in done.stderr


def test_help_and_version_come_from_the_wheel(installed, tmp_path):
    assert "classify" in run(installed, tmp_path, "jaxprune", "--help").stdout
    assert run(installed, tmp_path, "jaxprune", "--version").stdout.startswith("jaxprune 0.")
