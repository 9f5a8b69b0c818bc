"""Saving and loading in our own format, and what happens to damaged directories."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_mel, small

import jaxprune
from jaxprune import checkpoint

CONFIG = small("ast", depth=2)
CARD = jaxprune.Card(model=CONFIG, mean=-4.2, std=4.5, activation="sigmoid", labels=tuple("abcdefghij"), source="test")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return jaxprune.save(tmp_path_factory.mktemp("saved") / "model", jaxprune.build(CONFIG, seed=5), card=CARD)


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_saved_model_comes_back_bit_for_bit(saved):
    expected = checkpoint.leaves(jaxprune.build(CONFIG, seed=5))
    found = checkpoint.leaves(jaxprune.load(saved))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name][...], leaf[...]) for name, leaf in expected.items())


def test_the_card_comes_back_whole(saved):
    assert jaxprune.load_card(saved) == CARD


@pytest.mark.parametrize(
    ("source", "trained"), [("ast.pth; random weights in its new head", False), ("Random weights", False), ("a", True)]
)
def test_an_older_card_says_in_words_that_its_weights_are_random(source, trained):
    older = dataclasses.replace(CARD, source=source).to_json()
    del older["trained"]
    assert jaxprune.Card.from_json(older).trained is trained


def test_it_loads_for_another_dtype_and_length(saved):
    model = jaxprune.load(saved, dtype=jnp.bfloat16, frames=256)
    output = model(jnp.asarray(random_mel(dataclasses.replace(CONFIG, frames=256))))
    assert model.encoder.blocks[0].mlp(output.embedded).dtype == jnp.bfloat16
    assert output.embedded.shape == (2, 2 + 16 * 8, 48)


def test_an_existing_directory_is_not_overwritten_unasked(saved):
    with pytest.raises(ValueError, match="already exists"):
        jaxprune.save(saved, jaxprune.build(CONFIG), card=CARD)


def test_a_failed_save_leaves_the_old_checkpoint_and_no_debris(copy, monkeypatch):
    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, "save", full)
    with pytest.raises(OSError, match="No space"):
        jaxprune.save(copy, jaxprune.build(CONFIG, seed=6), card=CARD, overwrite=True)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert checkpoint.leaves(jaxprune.load(copy)).keys() == checkpoint.leaves(jaxprune.build(CONFIG)).keys()


def test_a_card_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the card describes"):
        jaxprune.save(tmp_path / "x", jaxprune.build(small("ast", depth=1)), card=CARD)


def test_missing_unexpected_and_misshapen_weights_are_all_listed():
    model = jaxprune.build(CONFIG)
    weights = {name: np.asarray(leaf[...]) for name, leaf in checkpoint.leaves(model).items()}
    del weights["norm.bias"]
    weights["head.bias"] = weights["head.bias"][:-1]
    weights["surplus"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"missing: norm\.bias.*unexpected: surplus.*wrong shape: head\.bias"):
        checkpoint.fill(model, weights, source="test")


def test_a_card_that_does_not_fit_the_weights_is_refused(copy):
    card = json.loads((copy / "card.json").read_text())
    card["model"]["depth"] = 3
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"missing: encoder\.blocks\.2\.attention"):
        jaxprune.load(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": 3, "mean": 1}'])
def test_a_damaged_card_is_named(copy, content):
    (copy / "card.json").write_text(content)
    with pytest.raises(ValueError, match=r"card\.json cannot be read"):
        jaxprune.load(copy)


def test_a_directory_without_a_card_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"jaxprune convert"):
        jaxprune.load(tmp_path)


def test_a_shipped_model_is_loaded_by_its_name(tmp_path, monkeypatch):
    assert jaxprune.load_card("ast-words") == jaxprune.load_card(jaxprune.SHIPPED / "ast-words")
    assert jaxprune.load("ast-words").config == jaxprune.load_card("ast-words").model
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ast-words").mkdir()  # a folder of that name comes first
    with pytest.raises(ValueError, match="ast-words is not a jaxprune checkpoint"):
        jaxprune.load("ast-words")


def test_damaged_weights_are_one_sentence(copy):
    for path in (copy / "weights").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="missing or damaged"):
        jaxprune.load(copy)
    shutil.rmtree(copy / "weights")
    with pytest.raises(ValueError, match="missing or damaged"):
        jaxprune.load(copy)


def test_half_precision_is_read_back_as_float32(tmp_path):
    model = jaxprune.build(CONFIG, seed=5)
    found = checkpoint.leaves(jaxprune.load(jaxprune.save(tmp_path / "half", model, card=CARD, dtype=jnp.float16)))
    for name, leaf in checkpoint.leaves(model).items():
        assert found[name][...].dtype == jnp.float32
        assert np.array_equal(found[name][...], np.asarray(leaf[...]).astype(np.float16).astype(np.float32))
