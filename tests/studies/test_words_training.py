"""The training of micro models on a spoken corpus, whole, on noise: two words, a few steps a stage."""

import dataclasses
import json
from pathlib import Path

import pytest
from quick import quick_compiling  # noqa: F401
from study_cases import write_clips

import jaxprune
from jaxprune.training.finetune import FineTuning
from jaxprune.training.recipes import recipe
from scripts.words import train


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Clips in the layout of Speech Commands."""
    (tmp_path / "corpus").mkdir()
    root = write_clips(tmp_path / "corpus")
    rows = [line.split(",") for line in (root / "clips.csv").read_text().splitlines()[1:]]
    for split, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        (root / name).write_text("".join(f"{path}\n" for path, _, of in rows if of == split))
    return root


def test_a_shallow_model_is_deepened_trained_and_tuned(corpus, tmp_path, capsys, monkeypatch):
    def short(name):
        made = recipe(name)
        loop, data = dataclasses.replace(made.loop, epochs=5, batch=20), dataclasses.replace(made.data, classes=2)
        return dataclasses.replace(made, loop=loop, data=data)

    monkeypatch.setattr(train, "recipe", short)
    out = tmp_path / "runs"
    asked = {"corpus": corpus, "out": out, "tuned": (1.0,), "untuned": (0.5,)}
    assert train.main("ast", **asked) == 0
    written = json.loads((out / "words.json").read_text())
    rows = written["rows"]
    assert [(row["trained_at"], row["keep_rate"], row["clips"]) for row in rows] == [
        (1.0, 1.0, 20),
        (1.0, 0.5, 20),
    ]
    saved = [row["saving"] for row in rows]
    assert saved == pytest.approx([0, 0.487], abs=0.01)  # as the results page has for the AST
    begins = {"shallow": "shallow-start", "deep": "deep-start", "tuned-1": "deep/model"}
    results = {name: json.loads((out / name / "result.json").read_text()) for name in begins}
    for name, start in begins.items():
        assert results[name]["recipe"]["start"]["checkpoint"] == str(out / start)
    assert rows[0]["accuracy"] == pytest.approx(results["tuned-1"]["scores"]["test"]["top1"])
    assert [jaxprune.load_card(out / name / "model").model.depth for name in begins] == [2, 12, 12]
    assert "ast, 20 test clips" in capsys.readouterr().out

    # The same again trains nothing, and neither does one with another seed in the same directory.
    monkeypatch.setattr(FineTuning, "carry_out", lambda *_: pytest.fail("it was trained again"))
    assert train.main("ast", **asked) == 0
    with pytest.raises(ValueError, match=r"shallow holds a finished run with other settings \(seed is 0 there, 1"):
        train.main("ast", **asked, seed=1)
