"""DynamicViT's two ways through a model, against plain PyTorch written from the paper's rules."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import random_mel, small
from jaxprune.convert.mapping import to_torch
from quick import quick_compiling  # noqa: F401
from reduction.torch_dynamic import Reference, gumbel, total_loss

import jaxprune
from jaxprune.analysis.identity import describe
from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.data.records import Dataset, Record
from jaxprune.evaluation.metrics import cross_entropy
from jaxprune.learned import drawn_decisions
from jaxprune.models import deepened
from jaxprune.reduction.predictors import Predictor
from jaxprune.training.dynamic_losses import ratio_loss

BLOCKS, RATIOS, CLIPS = (3, 6, 9), (0.7, 0.49, 0.343), 3
COUNTS = (44, 31, 21)


def made(family: str):
    """Width 24, depth 12, every number drawn: predictors that decide, and a head that speaks."""
    config = small(family, width=24, predictors=BLOCKS)
    model = jaxprune.build(config, seed=1)
    rng = np.random.default_rng(2)

    def lively(path, leaf):
        spread = 0.3 if "predictors" in path else 0.1
        return leaf.replace(leaf[...] + spread * rng.standard_normal(leaf.shape).astype(np.float32))

    drawn = [(path, lively(path, leaf)) for path, leaf in nnx.to_flat_state(nnx.state(model)) if path[0] != "positions"]
    nnx.update(model, nnx.from_flat_state(drawn))
    return model


MODEL = made("audiomae")
MEL = random_mel(MODEL.config, clips=CLIPS)
NOISE = np.random.default_rng(3).gumbel(size=(3, CLIPS, 64, 2)).astype(np.float32)
LABELS = np.array([1, 4, 7])


def reference():
    return Reference({key: np.asarray(value) for key, value in to_torch(MODEL).items()}, heads=3)


def test_inference_keeps_what_pytorch_keeps_in_its_order():
    logits, stages = reference().inference(torch.tensor(MEL), RATIOS)
    output = jaxprune.jit_forward(MODEL)(jnp.asarray(MEL), jaxprune.dynamic(MODEL, RATIOS))
    for block, count, (_, kept) in zip(BLOCKS, COUNTS, stages, strict=True):
        assert kept.shape == (CLIPS, count)
        np.testing.assert_array_equal(output.trace[block].patch_ids, kept)
        assert output.trace[block].tokens.shape == (CLIPS, 1 + count, 24)
    np.testing.assert_allclose(output.logits, logits.detach().numpy(), atol=1e-5)
    assert output.trace[2].patch_ids.shape == (CLIPS, 64)
    assert (np.sort(output.trace[9].groups, axis=1)[:, :-21] == -1).all()


def test_a_stage_that_keeps_all_it_gets_costs_nothing_and_changes_no_logits():
    unpruned, at_six, at_all = (jaxprune.dynamic(MODEL, ratios) for ratios in (1.0, (1, 0.5, 0.5), 0.7))
    assert macs(MODEL, unpruned) == macs(MODEL, jaxprune.topk(MODEL, {}))
    assert (list(at_six.stages), list(at_all.stages)) == ([6], [3, 6, 9])
    logits, stages = reference().inference(torch.tensor(MEL), (1, 0.5, 0.5))
    output = jaxprune.jit_forward(MODEL)(jnp.asarray(MEL), at_six)
    np.testing.assert_array_equal(np.sort(output.trace[6].patch_ids), np.sort(stages[1][1]))
    np.testing.assert_allclose(output.logits, logits.detach().numpy(), atol=1e-5)


def test_training_decides_and_learns_as_pytorch():
    theirs = reference()
    logits, _, stages = theirs.training(torch.tensor(MEL), gumbel(torch.tensor(NOISE)))
    decisions = [decision for _, decision in stages]
    loss = total_loss(logits, torch.tensor(LABELS), decisions, ratios=RATIOS)
    loss.backward()

    graph, params, tables = nnx.split(MODEL, nnx.Param, ...)

    @jax.jit
    def ours(params):
        def of(params):
            model = nnx.merge(graph, params, tables)
            output = model(jnp.asarray(MEL), drawn_decisions(model, jnp.asarray(NOISE)))
            found = jnp.stack([output.trace[block].decision for block in BLOCKS])
            classes = cross_entropy(output.logits, jax.nn.one_hot(LABELS, 10))
            return (classes + 2 * ratio_loss(found, RATIOS) / 3).mean(), (output.logits, found)

        return jax.value_and_grad(of, has_aux=True)(params)

    (value, (found, chosen)), gradient = ours(params)
    np.testing.assert_array_equal(np.asarray(chosen) > 0.5, torch.stack(decisions).detach().numpy() > 0.5)
    assert 0 < np.mean(np.asarray(chosen) > 0.5) < 1
    np.testing.assert_allclose(found, logits.detach().numpy(), atol=1e-5)
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-5)
    gradients = to_torch(nnx.merge(graph, gradient, tables))
    for name, tensor in theirs.state.items():
        if name != "pos_embed":
            expected = np.linalg.norm(tensor.grad.numpy())
            np.testing.assert_allclose(gradients[name], tensor.grad.numpy(), atol=2e-5 * expected + 1e-8, err_msg=name)


@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_masking_what_inference_drops_gives_its_logits(family):
    """Noise so strong that it decides makes the training path follow the inference path."""
    model = made(family)
    forward = jaxprune.jit_forward(model)
    dropped = forward(jnp.asarray(MEL), jaxprune.dynamic(model, RATIOS))
    noise = np.zeros((3, CLIPS, 64, 2), np.float32)
    for stage, block in enumerate(BLOCKS):
        stays = np.zeros((CLIPS, 64), bool)
        np.put_along_axis(stays, np.asarray(dropped.trace[block].patch_ids), True, axis=1)
        noise[stage, :, :, 0] = np.where(stays, 1e4, -1e4)
    masked = forward(jnp.asarray(MEL), drawn_decisions(model, jnp.asarray(noise)))
    assert [int(masked.trace[block].decision.sum()) for block in BLOCKS] == [CLIPS * count for count in COUNTS]
    np.testing.assert_allclose(masked.logits, dropped.logits, atol=1e-5)


def test_a_clip_that_loses_every_patch_stays_finite():
    noise = np.zeros((3, CLIPS, 64, 2), np.float32)
    noise[1, 0, :, 0] = -1e4

    def loss(model):
        return model(jnp.asarray(MEL), drawn_decisions(model, jnp.asarray(noise))).logits.sum()

    value, gradient = nnx.jit(nnx.value_and_grad(loss))(MODEL)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_other_predictors_need_no_other_program():
    traced = 0

    @jax.jit
    def run(mel, policy):
        nonlocal traced
        traced += 1
        return MODEL(mel, policy).trace[9].patch_ids

    others = [Predictor(24, dtype=jnp.float32, rngs=nnx.Rngs(seed)) for seed in range(3)]
    kept = [np.sort(run(jnp.asarray(MEL), jaxprune.dynamic(MODEL, 0.7, some))) for some in (None, others, others[::-1])]
    assert traced == 1
    assert not np.array_equal(kept[0], kept[1])


def test_what_the_predictors_keep_can_be_merged():
    policy = jaxprune.dynamic(MODEL, RATIOS) | jaxprune.tome(MODEL, 2)
    sizes = [62, 60, 58, 42, 40, 38, 29, 27, 25, 19, 17, 15]  # two less a block, and no more than 44, 31, 21
    left = jax.eval_shape(lambda mel: [trace.tokens for trace in MODEL(mel, policy).trace], jnp.asarray(MEL))
    assert [leaf.shape[1] - 1 for leaf in left] == sizes
    merging, learned = jaxprune.tome(MODEL, 2), jaxprune.dynamic(MODEL, RATIOS)
    assert macs(MODEL, policy) < min(macs(MODEL, merging), macs(MODEL, learned))


def test_an_extraction_tells_predictors_apart():
    dataset = Dataset(
        name="one", labels=tuple("abcdefghij"), records=(Record(path="a.wav", labels=(0,), split="test"),)
    )
    card = Card(model=MODEL.config, mean=0.0, std=1.0, activation="softmax")
    others = [Predictor(24, dtype=jnp.float32, rngs=nnx.Rngs(seed)) for seed in range(3)]
    told = []
    for some in (None, others, others[::-1], others):
        policy = jaxprune.dynamic(MODEL, RATIOS, some)
        described = describe(MODEL, dataset, split="test", card=card, policy=policy, batch=1)
        told.append(json.dumps(described["policy"]))
    assert '"count": 44' in told[0]
    assert len(set(told)) == 3
    assert told[1] == told[3]


def test_the_cost_counts_the_predictors_and_attention_on_what_is_left():
    config = MODEL.config
    plain = jaxprune.build(dataclasses.replace(config, predictors=()))
    width, blocks = config.width, 0
    for block in range(12):
        tokens = 1 + ([64, *COUNTS][sum(block >= stage for stage in BLOCKS)])
        blocks += 4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2
    layers = 24 * 24 + 24 * 12 + 12 * 6 + 6 * 2
    expected = blocks + layers * (64 + 44 + 31) + 64 * 256 * 24 + 24 * config.classes
    assert macs(MODEL, jaxprune.dynamic(MODEL, RATIOS)) == expected
    assert macs(MODEL, jaxprune.topk(MODEL, {})) == macs(plain, jaxprune.topk(plain, {}))


@pytest.mark.parametrize(
    ("ratios", "predictors", "said"),
    [
        ((0.5, 0.7, 0.3), None, "rise, but a dropped patch never returns"),
        (1.5, None, r"ratio 1.5 is not allowed; it must be greater than 0 and at most 1"),
        ((0.5, 0.4), None, r"2 ratios \(0.5, 0.4\) were given for 3 predictors; give one for each"),
        (0.7, [24, 24], r"2 predictors were given for blocks \[3, 6, 9\]; give one for each"),
        (0.7, [24, 32, 24], "the predictor of block 6 is for width 32, but the model's is 24"),
        (0.7, {12: 24}, "block 12 cannot have a predictor: the model's blocks are 0 to 11"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(ratios, predictors, said):
    def built(width):
        return Predictor(width, dtype=jnp.float32, rngs=nnx.Rngs(0))

    if isinstance(predictors, dict):
        predictors = {block: built(width) for block, width in predictors.items()}
    elif predictors:
        predictors = [built(width) for width in predictors]
    with pytest.raises(ValueError, match=said) as refused:
        jaxprune.dynamic(MODEL, ratios, predictors)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_bfloat16_computes_both_ways(family):
    model = jaxprune.build(MODEL.config if family == "audiomae" else made("ast").config, dtype=jnp.bfloat16)
    for policy in (jaxprune.dynamic(model, RATIOS), drawn_decisions(model, jnp.asarray(NOISE))):

        def read(mel, policy=policy):
            output = model(mel, policy)
            return output.logits, output.trace[9].tokens

        assert {leaf.dtype for leaf in jax.eval_shape(read, jnp.asarray(MEL))} == {jnp.dtype("float32")}
    assert model.predictors[0](jnp.zeros((1, 4, 24), jnp.bfloat16), jnp.ones((1, 4))).dtype == jnp.float32


def test_a_deepened_model_has_its_predictors_before_the_same_blocks():
    shallow = jaxprune.build(small("audiomae", width=24, depth=3, predictors=(1, 2)), seed=1)
    deep = deepened(shallow, 5)
    assert deep.config.predictors == (2, 4)
    for one, other in zip(deep.predictors, shallow.predictors, strict=True):
        np.testing.assert_array_equal(one.embed.kernel[...], other.embed.kernel[...])


def test_a_model_without_predictors_says_what_to_do():
    with pytest.raises(ValueError, match="the model has no predictors, which learned pruning needs; train them"):
        jaxprune.dynamic(jaxprune.build(small("ast", depth=2)), 0.7)
