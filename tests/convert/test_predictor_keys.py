"""DynamicViT's predictors in a PyTorch file and in ours, by the original code's names."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import small
from jaxprune.convert.export import write_huggingface
from jaxprune.convert.load import load_torch
from jaxprune.convert.mapping import official_shapes, pairs, to_flax, to_torch
from jaxprune.convert.random_checkpoint import random_state
from jaxprune.convert.read import read_torch
from jaxprune.convert.torch_reference import build
from quick import quick_compiling  # noqa: F401
from read_cases import AST, AUDIOMAE, HUGGINGFACE, refused, save

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.config import Card

FAMILIES = {"ast": ("module.", "v."), "audiomae": ("", "")}


def with_predictors(config, *blocks):
    return dataclasses.replace(config, predictors=blocks or (3, 6, 9))


@pytest.fixture(params=[AST, AUDIOMAE], ids=["ast", "audiomae"])
def config(request):
    return with_predictors(request.param)


def test_the_names_and_shapes_are_those_of_a_torch_model(config):
    theirs = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    assert official_shapes(config) == theirs
    under = FAMILIES[config.family][1]
    assert theirs[f"{under}score_predictor.2.in_conv.1.weight"] == (48, 48)
    assert theirs[f"{under}score_predictor.0.out_conv.4.weight"] == (2, 12)
    assert sorted(pair.leaf for pair in pairs(config)) == sorted(leaves(jaxprune.build(config)))


def test_there_and_back_bit_for_bit(config):
    model = jaxprune.build(config, seed=3)
    again = leaves(to_flax(to_torch(model), config))
    assert all(np.array_equal(leaf[...], again[name][...]) for name, leaf in leaves(model).items())


def test_a_file_with_predictors_is_read_saved_and_loaded_whole(config, tmp_path):
    prefix, under = FAMILIES[config.family]
    state = random_state(config, seed=1)
    path = save(tmp_path / "dynamic.pth", {prefix + key: value for key, value in state.items()})
    read = read_torch(path, num_heads=3)
    assert read.card.model == config
    assert any("The 3 predictors were taken to be those of blocks 3, 6, 9" in note for note in read.notes)
    jaxprune.save(tmp_path / "ours", load_torch(path, num_heads=3), card=read.card)
    model, card = jaxprune.load(tmp_path / "ours"), jaxprune.load_card(tmp_path / "ours")
    assert card.model.predictors == (3, 6, 9)
    theirs = build(config)
    theirs.load_state_dict(state)
    module = theirs.v if under else theirs
    patches, decision = np.random.default_rng(0).standard_normal((2, 5, 48)).astype(np.float32), np.ones((2, 5))
    for ours, other in zip(model.predictors, module.score_predictor, strict=True):
        expected = other(torch.tensor(patches), torch.tensor(decision, dtype=torch.float32)).detach().numpy()
        np.testing.assert_allclose(ours(jnp.asarray(patches), jnp.asarray(decision, jnp.float32)), expected, atol=1e-5)


def test_blocks_can_be_named_and_must_be_as_many(tmp_path):
    path = save(tmp_path / "a.pth", random_state(with_predictors(AUDIOMAE, 2, 4), seed=1))
    read = read_torch(path, num_heads=3, predictors=(2, 4))
    assert read.card.model.predictors == (2, 4)
    assert not [note for note in read.notes if "predictors" in note]
    refused(path, "has 2 predictors, but 3 blocks [1, 2, 3] for them", predictors=(1, 2, 3))
    refused(path, "name blocks from 0 to 11, each once, rising", predictors=(4, 2))
    four = save(tmp_path / "b.pth", random_state(with_predictors(AUDIOMAE, 1, 3, 5, 7), seed=1))
    refused(four, "has 4 predictors, but 3 blocks [3, 6, 9] for them; name one block for each (--predictors)")


def test_a_predictor_of_another_width_or_without_a_tensor_is_refused(tmp_path):
    state = random_state(with_predictors(AUDIOMAE), seed=1)
    key = "score_predictor.1.in_conv.1.weight"
    refused(
        save(tmp_path / "a.pth", state | {key: torch.ones(24, 24)}), f"{key}: has shape (24, 24), expected (48, 48)"
    )
    rest = {name: value for name, value in state.items() if name != key}
    refused(save(tmp_path / "b.pth", rest), f"{key}: missing")


def test_hugging_face_has_no_place_for_them(tmp_path):
    config = with_predictors(HUGGINGFACE)
    state = random_state(config, seed=1)
    with pytest.raises(ValueError, match="Hugging Face's transformers has no place for predictors"):
        write_huggingface(tmp_path / "out", state, config, mean=0.0, std=1.0)


def test_a_card_without_predictors_is_as_it_was():
    config = small("ast")
    card = Card(model=config, mean=0.0, std=1.0, activation="softmax")
    assert "predictors" not in json.dumps(card.to_json())
    assert Card.from_json(card.to_json()) == card
    assert "predictors" not in repr(config)
    dynamic = dataclasses.replace(card, model=with_predictors(config))
    assert Card.from_json(json.loads(json.dumps(dynamic.to_json()))) == dynamic
    assert "predictors=(3, 6, 9)" in repr(dynamic.model)
