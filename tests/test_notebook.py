"""The notebook runs from top to bottom, holds no outputs that could go stale, and tells what the library computes.

`make docs` runs it once more, in a kernel.
"""

import json

from helpers import ROOT
from quick import quick_compiling  # noqa: F401

import jaxprune

NOTEBOOK = ROOT / "docs" / "first-look.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_every_cell_runs_in_order(monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    told = capsys.readouterr().out
    policy = jaxprune.topk(names["model"], 0.5)
    assert f"keep rate 0.5: {jaxprune.macs(names['model'], policy) / 1e6:.1f} MMACs" in told
    assert "['export.json', 'model.stablehlo', 'run.py']" in told
    assert max(one.difference for one in names["agreement"].values()) < 1e-4


def test_outputs_are_made_when_it_runs():
    assert not [cell["id"] for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
