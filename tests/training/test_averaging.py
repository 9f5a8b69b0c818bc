"""Averaged weights and smoothed labels, against plain numpy and PyTorch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from quick import quick_compiling  # noqa: F401
from training.run_cases import RECIPE_OF_TEST
from training_runs import BATCH, CLASSES, FRAMES, batches, corpus, recipe, training

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.data.batches import Batch, eval_batches
from jaxprune.features import model_input, sample_count
from jaxprune.training.checkpoints import Checkpoints, named_arrays
from jaxprune.training.finetune import finetune
from jaxprune.training.run import Options
from jaxprune.training.settings import Augment, Loop
from jaxprune.training.step import averaged


def test_the_average_is_polyaks_with_a_warm_up():
    rng, average, expected = np.random.default_rng(0), {"a": jnp.float32(5)}, 5.0
    for step in range(60):
        value = rng.normal()
        average = averaged(average, {"a": jnp.float32(value)}, step=jnp.int32(step), decay=0.8)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(average["a"], expected, rtol=1e-5)
    assert decay == 0.8
    assert averaged({}, {"a": jnp.float32(1)}, step=jnp.int32(0), decay=0.0) == {}


def test_the_average_is_what_is_evaluated_and_becomes_the_model(tmp_path):
    dataset, made = corpus(tmp_path), RECIPE_OF_TEST
    trained = training(made)
    average = {name: np.asarray(leaf, np.float64) for name, leaf in trained.state.params.items()}
    with batches(dataset, made) as loader:
        for step, batch in zip(range(4), loader, strict=False):
            trained.step(batch)
            decay = min(made.loop.ema, (1 + step) / (10 + step))
            average = {name: decay * average[name] + (1 - decay) * p for name, p in trained.state.params.items()}
    apart = 0.0
    for name, leaf in leaves(trained.model()).items():
        if name in average:
            np.testing.assert_allclose(leaf[...], average[name], rtol=1e-4, atol=1e-6)
            apart = max(apart, np.abs(np.asarray(trained.state.params[name]) - average[name]).max())
    assert apart > 1e-4

    def loss(params=None):
        with eval_batches(dataset, frames=FRAMES, batch_size=BATCH) as loader:
            return trained.evaluate(loader, keep_rates=(1.0,), metric="accuracy", params=params).loss

    assert loss() == loss(trained.state.average) != loss(trained.state.params)


def test_a_finished_run_saves_the_average_and_says_so(tmp_path):
    """The model is the average in the checkpoint of the chosen step, and scored as such. The run has background noise
    from a folder, and one without noise in it is refused."""
    corpus(tmp_path / "flat", tests=0)
    for i, path in enumerate(sorted((tmp_path / "flat").iterdir())):
        home = tmp_path / "tones" / ("train" if i < 10 else "validation") / CLASSES[i % 3]
        home.mkdir(parents=True, exist_ok=True)
        path.rename(home / path.name)
    made = dataclasses.replace(
        RECIPE_OF_TEST,
        data=dataclasses.replace(RECIPE_OF_TEST.data, root=str(tmp_path / "tones")),
        loop=dataclasses.replace(RECIPE_OF_TEST.loop, epochs=2),
    )
    model = training(made).model()
    jaxprune.save(tmp_path / "start", model, card=made.card(model.config))
    made = dataclasses.replace(made, start=dataclasses.replace(made.start, checkpoint=str(tmp_path / "start")))
    noise = dataclasses.replace(made.augment, background=str(tmp_path / "tones" / "train" / CLASSES[0]))
    made = dataclasses.replace(made, augment=noise)
    nothing = dataclasses.replace(noise, background=str(tmp_path / "start"))
    with pytest.raises(ValueError, match="start: holds no sound files to take background noise from"):
        list(finetune(dataclasses.replace(made, augment=nothing), tmp_path / "run", seed=0))
    *_, end = finetune(made, tmp_path / "run", seed=0, options=Options(keep_checkpoints=True, keep=9))
    like = training(made).state
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        state, _ = checkpoints.restore(end.result["saved_step"], like)
    saved = leaves(jaxprune.load(tmp_path / "run" / "model"))
    for name, leaf in state.average.items():
        np.testing.assert_array_equal(saved[name][...], leaf, err_msg=name)
    assert any((np.asarray(state.average[name]) != np.asarray(leaf)).any() for name, leaf in state.params.items())
    assert "weights averaged (EMA 0.9)" in jaxprune.load_card(tmp_path / "run" / "model").source
    assert end.result["best_score"] == end.result["scores"]["validation"]["score"]


def test_without_an_average_the_state_is_that_of_older_runs():
    names = named_arrays(training(recipe()).state)
    assert {name.partition("/")[0] for name in names} == {"params", "tables", "optimizer", "step"}


def test_smoothed_labels_give_pytorchs_loss():
    made = dataclasses.replace(
        RECIPE_OF_TEST, augment=Augment(), loop=dataclasses.replace(RECIPE_OF_TEST.loop, label_smoothing=0.1)
    )
    trained, rng = training(made), np.random.default_rng(0)
    clips = rng.normal(0, 0.1, (BATCH, sample_count(FRAMES))).astype(np.float32)
    lengths = np.full(BATCH, clips.shape[1], np.int32)
    own = rng.integers(0, len(CLASSES), BATCH)
    facts = made.data
    mel = model_input(clips, lengths, frames=FRAMES, mean=facts.mean, std=facts.std, padding="minimum")
    logits = jaxprune.compiled(trained.model(trained.state.params))(mel, jaxprune.topk(trained.model(), {})).logits
    targets = np.eye(len(CLASSES), dtype=np.float32)[own]
    batch = Batch(clips, lengths, targets, np.ones(BATCH, np.float32), np.arange(BATCH, dtype=np.int32))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)), torch.tensor(own), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(trained.step(batch).losses, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ema": 1.0}, "ema is 1.0; it must be at least 0 and below 1"),
        ({"ema": -0.1}, "ema is -0.1"),
        ({"ema": float("nan")}, "ema is nan"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be at least 0 and below 1"),
        ({"label_smoothing": 0.1, "loss": "bce"}, "labels are smoothed with ce alone"),
    ],
)
def test_values_out_of_range_are_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Loop(epochs=1, batch=8, **changes)
