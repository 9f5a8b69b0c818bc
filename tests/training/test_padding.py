"""A run pads short clips as its checkpoint does unless told otherwise, and its card says so."""

import dataclasses
import json

import pytest
from helpers import small

from jaxprune import checkpoint
from jaxprune.config import Card
from jaxprune.models import build
from jaxprune.training.recipes import RECIPES
from jaxprune.training.run_directory import RECIPE, open_run, padding_of
from jaxprune.training.settings import Recipe
from jaxprune.training.start import padded

PLAIN = RECIPES["ast-esc50"]


def recipe(*, start="", padding=None):
    return dataclasses.replace(
        PLAIN,
        start=dataclasses.replace(PLAIN.start, checkpoint=str(start)),
        data=dataclasses.replace(PLAIN.data, padding=padding),
    )


@pytest.fixture(scope="module")
def zero_padded(tmp_path_factory):
    """A checkpoint whose card says zero."""
    config = small("ast", depth=1)
    card = Card(model=config, mean=-4.0, std=4.0, activation="softmax", padding="zero")
    return checkpoint.save(tmp_path_factory.mktemp("padding") / "start", build(config), card=card)


def test_from_random_weights_short_clips_get_their_minimum():
    made, notes = padded(recipe())
    assert (made.data.padding, notes) == ("minimum", ())
    assert made.card(small("ast", classes=50)).padding == "minimum"


def test_a_run_follows_its_checkpoint_and_says_so(zero_padded):
    made, (note,) = padded(recipe(start=zero_padded))
    assert made.data.padding == "zero"
    assert made.card(small("ast", classes=50)).padding == "zero"
    assert "log-mel 0" in note
    assert "--data.padding minimum" in note


def test_a_recipe_that_asks_is_followed_and_the_difference_said(zero_padded):
    made, (note,) = padded(recipe(start=zero_padded, padding="minimum"))
    assert made.data.padding == "minimum"
    assert "the clip's minimum, though" in note


def test_a_run_that_has_begun_keeps_its_padding_without_its_checkpoint():
    made, notes = padded(recipe(start="gone"), begun="zero")
    assert made.data.padding == "zero"
    assert "log-mel 0" not in "".join(notes)


def test_a_run_older_than_the_choice_goes_on_with_the_minimum(tmp_path):
    chosen = recipe(padding="minimum")
    open_run(tmp_path / "run", chosen, seed=0)
    saved = json.loads((tmp_path / "run" / RECIPE).read_text())
    del saved["data"]["padding"]
    (tmp_path / "run" / RECIPE).write_text(json.dumps(saved))
    assert padding_of(tmp_path / "run") == "minimum"
    assert open_run(tmp_path / "run", chosen, seed=0)
    del saved["seed"]
    assert Recipe.from_json(saved) == chosen
    with pytest.raises(ValueError, match="padding is 'minimum' there, 'zero' here"):
        open_run(tmp_path / "run", recipe(padding="zero"), seed=0)


def test_a_card_without_the_field_means_the_minimum():
    card = Card(model=small("ast"), mean=-4.0, std=4.0, activation="softmax", padding="zero")
    older = card.to_json()
    assert Card.from_json(older).padding == "zero"
    del older["padding"]
    assert Card.from_json(older).padding == "minimum"
    with pytest.raises(ValueError, match="padding"):
        Card.from_json(older | {"padding": "edge"})
