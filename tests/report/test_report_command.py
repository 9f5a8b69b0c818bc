"""The command `jaxprune report`: it writes the page, embeds pictures, and refuses bad input in one sentence."""

import json
import runpy
import sys

import pytest
from helpers import ROOT
from report_cases import Elements

from jaxprune.report.inputs import read_runs

SCRIPTS = ROOT / "scripts"


# The command line


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in this process: `run(*arguments, script="report.py") -> (exit code, stderr)`."""

    def call(*arguments, script="report.py"):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return stopped.value.code or 0, capsys.readouterr().err

    return call


def test_the_command(home, tmp_path, run):
    code, said = run(home / "ast", home / "silent", "--clips", 1, "--out", tmp_path / "new" / "a.html")
    assert code == 0, said
    assert "No clips of silent" in said
    assert "1 clips, 1 with sound" in said
    assert Elements(tmp_path / "new" / "a.html").all("audio")


def test_analyses_come_with_pictures(home, tmp_path, run):
    options = ["--bootstrap.resamples", 20, "--out", tmp_path / "a"]
    code, said = run(home / "x-mae", *options, "--clips", 2, script="analyze.py")
    assert code == 0, said
    assert "7 pictures as PNG and SVG" in said
    names = {"kendall", "block_overlap", "clusters", "places", "histograms", "attention", "kept"}
    for suffix in ("png", "svg"):
        assert {path.stem for path in (tmp_path / "a").glob(f"*.{suffix}")} == names
    assert ".wav, 0.00 to " in (drawn := (tmp_path / "a" / "kept.svg").read_text())
    assert ", label: " in drawn
    assert list(read_runs([tmp_path / "a"]).extractions) == ["audiomae noise test keep 0.5"]


def test_bad_input_is_one_sentence(home, tmp_path, run):
    unfinished, damaged, old = tmp_path / "unfinished", tmp_path / "damaged", tmp_path / "old"
    for folder in (unfinished, damaged, old):
        folder.mkdir()
    manifest = json.loads((home / "x-ast" / "manifest.json").read_text())
    (unfinished / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    content = json.loads((home / "ast" / "analysis.json").read_text())
    (damaged / "analysis.json").write_text(json.dumps({k: v for k, v in content.items() if k != "values"}))
    (old / "analysis.json").write_text("{}")
    out = ["--out", tmp_path / "a.html"]
    for arguments, why in [
        ([tmp_path / "none", *out], "none is not a folder; give folders that jaxprune analyze"),
        ([tmp_path, *out], "holds nothing to report on"),
        ([unfinished, *out], "unfinished is unfinished (0 shards so far)"),
        (
            [damaged, *out],
            "analysis.json is damaged (Object missing required field `values`); run jaxprune analyze again",
        ),
        ([old, *out], "analysis.json is not of this program's version 1; run jaxprune analyze again"),
        ([home / "x-silent", *out], "holds no mel"),
        ([home / "ast", "--out", tmp_path / "a.pdf"], "a.pdf: the page is written as .html, not as .pdf"),
        ([home / "ast", *out, "--clips", -1], "clips is -1"),
    ]:
        code, said = run(*arguments)
        assert (code, said.startswith("error: "), said.count("\n")) == (2, True, 1), said
        assert why in said
    assert not (tmp_path / "a.html").exists()
