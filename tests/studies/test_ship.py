"""Shipping a run's model, on noise: small, without paths of the machine, with its data and its accuracy on the card."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from quick import quick_compiling  # noqa: F401
from study_cases import write_clips

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.models import build
from jaxprune.training.recipes import recipe
from scripts.studies.pieces import located
from scripts.words import ship

NAME = "audiomae-arabic-words-tome"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The directory of a run that was trained for ToMe, from a model that a pretrained one had become."""
    home = tmp_path_factory.mktemp("home")
    made = located(recipe("audiomae-arabic-words"), write_clips(tmp_path_factory.mktemp("clips")))
    prune = dataclasses.replace(made.prune, method="tome", sample=("1", "0.5"))
    made = dataclasses.replace(made, name=NAME, prune=prune)
    config = small("audiomae", width=24, frames=98, classes=2)
    card = dataclasses.replace(made.card(config, labels=("no", "yes")), method="topk")  # older than the method
    sources = {
        "first": "pretrained by jaxprune without labels: recipe p, seed 0, step 9, from scratch",
        "second": f"fine-tuned by jaxprune: recipe q, seed 1, from {home / 'first'}, weights averaged (EMA 0.9)",
        "third": f"fine-tuned by jaxprune: recipe {NAME}, seed 2, from {home / 'second' / 'model'}",
    }
    for name, source in sources.items():
        jaxprune.save(home / name / "model", build(config), card=dataclasses.replace(card, source=source))
    (home / "third" / "recipe.json").write_text(json.dumps({"seed": 2} | made.to_json()))
    return home / "third"


def test_a_shipped_model_is_the_runs_in_half_precision(run, tmp_path):
    ship.main(run, "little", shipped=tmp_path, savings=(0.2,))
    there, here = (leaves(jaxprune.load(path)) for path in (run, tmp_path / "little"))
    for name, leaf in there.items():
        np.testing.assert_array_equal(here[name][...], jnp.float32(jnp.float16(leaf[...])))
    before, after = (sum(file.stat().st_size for file in path.rglob("*")) for path in (run, tmp_path / "little"))
    assert after < 0.7 * before


def test_its_card_tells_the_method_the_data_and_what_was_measured_and_no_path(run, tmp_path):
    ship.main(run, "little", shipped=tmp_path, savings=(0.2,))
    card = jaxprune.load_card(tmp_path / "little")
    assert (card.method, card.keep_rates) == ("tome", (1.0, 0.5))
    past, data, measured = card.source.split(". ", 1)[0], *card.source.split("Data: ", 1)[1].rsplit(". ", 1)
    assert past == (
        f"fine-tuned by jaxprune: recipe {NAME}, seed 2; it began as a model fine-tuned by jaxprune: recipe q, seed 1, "
        "weights averaged (EMA 0.9); it began as a model pretrained by jaxprune without labels: recipe p, seed 0, "
        "step 9, from scratch"
    )
    assert data.startswith("Arabic Speech Commands by Ghandoura, Hjabo and Al Dakkak (2021)")
    assert data.endswith("CC BY 4.0")
    right = accuracy(run, tmp_path / "little")
    assert measured.startswith(f"Accuracy on its 20 test clips by tome: {100 * right:.1f} % at 0 % saved, ")
    assert measured.endswith(" % at 20 % saved")
    for file in (tmp_path / "little").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content
            assert str(run.parent).encode() not in content


def accuracy(run: Path, shipped: Path) -> float:
    """The share of test clips that the shipped model labels right, file by file."""
    root = Path(json.loads((run / "recipe.json").read_text())["data"]["root"])
    rows = [row.split(",") for row in (root / "clips.csv").read_text().splitlines()]
    test = {str(root / path): label for path, label, split in rows if split == "test"}
    results = jaxprune.classify(list(test), shipped, keep_rate=1.0, top=1).results
    return sum(result.top[0][0] == test[str(result.path)] for result in results) / len(test)


def test_a_model_that_half_precision_changes_is_not_shipped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "WORSE", -1)  # nothing is as good as this
    with pytest.raises(ValueError, match="half precision changes the accuracy of the validation clips"):
        ship.main(run, "little", shipped=tmp_path, savings=(0.2,))
    assert not list(tmp_path.iterdir())


def test_data_that_are_not_known_are_asked_for(run):
    with pytest.raises(ValueError, match="the data of the recipe ast-esc50 and their licence are not known here"):
        ship.origin(recipe("ast-esc50"))
