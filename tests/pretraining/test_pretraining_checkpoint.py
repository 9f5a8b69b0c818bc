"""The checkpoint of a pretraining model: whole, told apart from a classifier's, and a start for one."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from pretraining.pretraining_cases import DECODERS, ENCODER, model, saved
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.checkpoint import CARD, leaves
from jaxprune.config import Card
from jaxprune.models import build
from jaxprune.pretraining import Pretraining
from jaxprune.pretraining import checkpoint as pretraining_checkpoint


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_model_is_saved_and_loaded_whole(tmp_path, decoder):
    back = pretraining_checkpoint.load(saved(tmp_path, decoder=decoder))
    made = model(decoder)
    assert back.settings == made.settings
    ours, theirs = leaves(back), leaves(made)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name][...], theirs[name][...], err_msg=name)


def test_the_encoder_is_read_for_a_classifier_of_another_length(tmp_path):
    path, frames = saved(tmp_path), 2 * ENCODER.frames
    card, weights = pretraining_checkpoint.encoder_weights(path, frames=frames)
    assert card.model == dataclasses.replace(ENCODER, frames=frames)
    classifier = leaves(build(card.model))
    assert weights.keys() == {name for name in classifier if not name.startswith("head")}
    assert {name: leaf.shape for name, leaf in weights.items()} == {name: classifier[name].shape for name in weights}
    np.testing.assert_array_equal(
        weights["encoder.blocks.1.mlp.fc1.kernel"], leaves(model())["encoder.blocks.1.mlp.fc1.kernel"][...]
    )


def test_either_kind_is_refused_where_the_other_is_wanted(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(ValueError, match=f"{path}: this is a pretraining model, which has no classes: fine-tune it"):
        jaxprune.load(path)
    classifier = build(ENCODER)
    jaxprune.save(tmp_path / "c", classifier, card=Card(model=ENCODER, mean=0.0, std=1.0, activation="sigmoid"))
    with pytest.raises(ValueError, match="this is no pretraining model that can be used: it is a classifier"):
        pretraining_checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 3}, "width 16 cannot be split over 3 heads"),
        ({"kind": "recurrent"}, "its decoder is of kind 'recurrent'; it must be one of plain, window"),
        ({"depth": 10**9}, "depth is 1000000000; it must be at least 1 and at most 128"),
        ({"depth": 3}, "missing: decoder.blocks.2"),
        ({"width": "wide"}, "Expected `int`"),
    ],
)
def test_a_card_with_another_decoder_is_refused_in_a_sentence(tmp_path, changes, said):
    path = saved(tmp_path)
    card = json.loads((path / CARD).read_text())
    card["decoder"] |= changes
    card = {name: value for name, value in card.items() if "sha256" not in name}  # as in cards older than digests
    (path / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=said) as error:
        pretraining_checkpoint.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_both_tables_are_those_of_another_length_and_the_rest_stays(decoder):
    made, frames = model(decoder), 2 * ENCODER.frames
    longer = pretraining_checkpoint.of_length(made, frames=frames)
    config = dataclasses.replace(made.settings, encoder=dataclasses.replace(ENCODER, frames=frames))
    new, old, ours = leaves(Pretraining(config, rngs=nnx.Rngs(0))), leaves(made), leaves(longer)
    for name in ours:
        if "positions" in name:
            np.testing.assert_allclose(ours[name][...], new[name][...], atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(ours[name][...], old[name][...], err_msg=name)
