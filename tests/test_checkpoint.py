"""Saving and loading in our own format, and what happens to damaged directories."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, limited, random_mel, small

import jaxprune
from jaxprune import checkpoint
from jaxprune.analysis.identity import model_digest
from jaxprune.files import NotWritten

CONFIG = small("ast", depth=2)
CARD = jaxprune.Card(model=CONFIG, mean=-4.2, std=4.5, activation="sigmoid", labels=tuple("abcdefghij"), source="test")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return jaxprune.save(tmp_path_factory.mktemp("saved") / "model", jaxprune.build(CONFIG, seed=5), card=CARD)


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(directory, change):
    """Changes a card's fields as JSON, in one that has no digest of itself."""
    card = json.loads((directory / "card.json").read_text())
    card.pop("card_sha256", None)
    change(card)
    (directory / "card.json").write_text(json.dumps(card))


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
    mel = jnp.asarray(random_mel(dataclasses.replace(CONFIG, frames=256)))
    output = jaxprune.jit_forward(model)(mel, jaxprune.topk(model, {}))
    assert model.encoder.blocks[0].mlp(output.tokens_in).dtype == jnp.bfloat16
    assert output.tokens_in.shape == (2, 2 + 16 * 8, 48)


def test_an_existing_directory_is_not_overwritten_unasked(saved):
    with pytest.raises(ValueError, match="already exists"):
        jaxprune.save(saved, jaxprune.build(CONFIG), card=CARD)


def test_a_failed_save_leaves_the_old_checkpoint_and_no_debris(copy, monkeypatch):
    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointer.save", full)
    with pytest.raises(OSError, match="No space"):
        jaxprune.save(copy, jaxprune.build(CONFIG, seed=6), card=CARD, overwrite=True)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert checkpoint.leaves(jaxprune.load(copy)).keys() == checkpoint.leaves(jaxprune.build(CONFIG)).keys()


def test_a_full_disk_is_one_sentence_with_the_path(tmp_path):
    with limited(20_000), pytest.raises(NotWritten, match=r"/model cannot be written: File too large$"):
        jaxprune.save(tmp_path / "model", jaxprune.build(CONFIG, seed=6), card=CARD)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_none_of_the_disk_shows_itself(tmp_path, monkeypatch):
    def wrong(*arguments, **options):
        raise TypeError("save() takes 1 argument")

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointer.save", wrong)
    with pytest.raises(TypeError, match="takes 1 argument"):
        jaxprune.save(tmp_path / "model", jaxprune.build(CONFIG, seed=6), card=CARD)
    assert list(tmp_path.iterdir()) == []


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
    rewrite(copy, lambda card: card["model"].update(depth=3))
    with pytest.raises(ValueError, match="calls for 3 blocks, the weights hold 2"):
        jaxprune.load(copy)
    rewrite(copy, lambda card: card["model"].update(depth=2, frames=48))
    with pytest.raises(ValueError, match=r"wrong shape: positions"):
        jaxprune.load(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 10**9),
        ("depth", 10**400),
        ("depth", "2"),
        ("depth", True),
        ("width", 2**40),
        ("mlp_ratio", 1e300),
        ("mlp_ratio", float("nan")),
        ("norm_eps", None),
        ("frames", [1]),
        ("family", "ast2"),
        ("surprise", 1),
    ],
)
def test_a_card_of_another_geometry_is_refused_before_anything_is_built(copy, field, value):
    rewrite(copy, lambda card: card["model"].update({field: value}))
    with pytest.raises(ValueError, match=rf"card\.json cannot be read as a model card: .*{field}"):
        jaxprune.load(copy)


@pytest.mark.parametrize("field", ["model", "mean", "std", "activation"])
def test_a_card_without_a_field_is_refused(copy, field):
    rewrite(copy, lambda card: card.pop(field))
    with pytest.raises(ValueError, match=rf"card\.json cannot be read as a model card: .*{field}"):
        jaxprune.load(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": 3, "mean": 1}', "[" * 100_000, "\xff", ""])
def test_a_damaged_card_is_named(copy, content):
    (copy / "card.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"card\.json cannot be read"):
        jaxprune.load(copy)


def test_a_card_that_is_no_file_or_too_large_is_not_read(copy):
    with open(copy / "card.json", "wb") as file:
        file.truncate(3 * 2**30)  # sparse: it takes no room
    with pytest.raises(ValueError, match="3,221,225,472 bytes large"):
        jaxprune.load(copy)
    (copy / "card.json").unlink()
    os.mkfifo(copy / "card.json")
    with pytest.raises(ValueError, match="not a regular file"):
        jaxprune.load(copy)


def test_a_directory_without_a_card_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"it has no card\.json\); make one: jaxprune convert SOURCE OUT"):
        jaxprune.load(tmp_path)
    with pytest.raises(ValueError, match="there is no"):
        jaxprune.load(tmp_path / "nothing")


def test_foreign_weights_are_to_be_converted_first(tmp_path):
    file = tmp_path / "ast.pth"
    file.write_bytes(b"any")
    with pytest.raises(ValueError, match=rf"a file of weights.*jaxprune convert {file} OUT"):
        jaxprune.load(file)
    with pytest.raises(ValueError, match=rf"jaxprune convert {tmp_path} OUT"):
        jaxprune.load_card(tmp_path)


def test_a_run_is_loaded_by_its_model(saved, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="without a finished model"):
        jaxprune.load(run)
    shutil.copytree(saved, run / "model")
    assert jaxprune.load_card(run) == CARD
    assert model_digest(jaxprune.load(run)) == model_digest(jaxprune.load(saved))


def test_a_flipped_bit_is_seen(copy):
    data = max((path for path in (copy / "weights").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = data.read_bytes()
    for place in range(100, len(whole), len(whole) // 6):
        data.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"the weights in .* are damaged"):
            jaxprune.load(copy)
    data.write_bytes(whole)
    jaxprune.load(copy)


def test_an_old_card_loads_with_a_notice_until_it_has_a_digest(copy):
    digest = json.loads((copy / "card.json").read_text())["weights_sha256"]
    rewrite(copy, lambda card: card.pop("weights_sha256"))
    with pytest.warns(UserWarning, match="no digest of the weights or of the card itself, so damage could not be seen"):
        jaxprune.load(copy)
    assert jaxprune.load_card(copy) == CARD
    before = {path: path.read_bytes() for path in (copy / "weights").rglob("*") if path.is_file()}
    assert checkpoint.add_digest(copy) == digest
    assert all(path.read_bytes() == content for path, content in before.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxprune.load(copy)
    assert jaxprune.load_card(copy) == CARD


def test_a_digest_of_other_weights_is_never_replaced(copy):
    rewrite(copy, lambda card: card.update(weights_sha256="0" * 64))
    with pytest.raises(ValueError, match="not those that its"):
        checkpoint.add_digest(copy)
    rewrite(copy, lambda card: card.update(weights_sha256=7))
    with pytest.raises(ValueError, match="weights_sha256 is 7"):
        jaxprune.load(copy)


def test_the_shipped_model_has_its_digest():
    card = json.loads((jaxprune.SHIPPED / "ast-words" / "card.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert card["weights_sha256"] == model_digest(jaxprune.load(jaxprune.SHIPPED / "ast-words"))


def test_the_digest_is_of_names_types_shapes_and_bytes():
    weights = {"b": np.arange(6, dtype=np.float32), "a": np.zeros(2, np.float32)}
    expected = hashlib.sha256(b"a float32 (2,)\n" + bytes(8) + b"b float32 (6,)\n" + weights["b"].tobytes()).hexdigest()
    assert checkpoint.weights_digest(weights) == expected
    for other in ({"c": weights["b"]}, {"b": weights["b"].reshape(2, 3)}, {"b": weights["b"].view(np.int32)}):
        assert checkpoint.weights_digest({"a": weights["a"]} | other) != expected


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_weights_that_are_not_finite_are_refused(value):
    model = jaxprune.build(CONFIG)
    weights = {name: np.asarray(leaf[...], np.float64) for name, leaf in checkpoint.leaves(model).items()}
    weights["head.bias"][3] = value
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"not all finite numbers: head\.bias"):
        checkpoint.fill(model, weights, source="test")


def test_a_model_that_is_not_finite_is_not_saved(tmp_path):
    model = jaxprune.build(CONFIG)
    model.head.bias[...] = 70_000.0  # beyond float16
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"not all finite numbers: head\.bias"):
        jaxprune.save(tmp_path / "half", model, card=CARD, dtype=jnp.float16)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
def test_a_backend_that_does_not_start_says_so_itself(saved, platform):
    if platform == "cuda" and any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has the device")
    # A process of its own: a backend is chosen once.
    code = f"import jaxprune; jaxprune.load({str(saved)!r})"
    environment = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert f"OSError: JAX does not start with JAX_PLATFORMS={platform}: " in done.stderr
    assert "damaged" not in done.stderr


def test_damaged_weights_are_one_sentence(copy):
    for path in (copy / "weights").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="are damaged"):
        jaxprune.load(copy)
    shutil.rmtree(copy / "weights")
    with pytest.raises(ValueError, match="are missing"):
        jaxprune.load(copy)


def test_a_file_of_weights_far_too_large_or_a_pipe_is_not_read(copy):
    with open(copy / "weights" / "surplus", "wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(ValueError, match="bytes large"):
        jaxprune.load(copy)
    (copy / "weights" / "surplus").unlink()
    os.mkfifo(copy / "weights" / "surplus")
    with pytest.raises(ValueError, match="not a regular file"):
        jaxprune.load(copy)


def test_half_precision_is_read_back_as_float32(tmp_path):
    model = jaxprune.build(CONFIG, seed=5)
    found = checkpoint.leaves(jaxprune.load(jaxprune.save(tmp_path / "half", model, card=CARD, dtype=jnp.float16)))
    for name, leaf in checkpoint.leaves(model).items():
        assert found[name][...].dtype == jnp.float32
        assert np.array_equal(found[name][...], np.asarray(leaf[...]).astype(np.float16).astype(np.float32))


def test_a_head_of_one_class_has_the_sigmoid_whatever_its_card_says():
    card = jaxprune.Card(model=small("ast", classes=1), mean=-4.0, std=4.0, activation="softmax")
    assert card.activation == "sigmoid"
    assert jaxprune.Card.from_json(card.to_json() | {"activation": "softmax"}).activation == "sigmoid"
