"""Additions of training to the one forward pass: dropped branches and patches masked out before the blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import random_mel, small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.models import cut_patches
from jaxprune.reduction.scores import PatchMean
from jaxprune.reduction.selection import MaskedTopK, keep_count
from jaxprune.vit import DropPath

DEPTH = 3
MODELS = {family: jaxprune.build(small(family, depth=DEPTH)) for family in ("ast", "audiomae")}
MEL = jnp.asarray(random_mel(small("ast"), clips=3))
RNG = np.random.default_rng(0)
VISIBLE = jnp.asarray(np.stack([np.sort(RNG.permutation(64)[:40]) for _ in range(3)]).astype(np.int32))
KEEP = {0: 0.7, 1: 0.5}
KEY = jax.random.key(0)


def compiled(model):
    """A jitted `(policy, *, visible, drop_path) -> Output` of `MEL`: rates and keys are values, so tests share it."""
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state, policy, visible, drop_path):
        return nnx.merge(graph, state)(MEL, policy, visible=visible, drop_path=drop_path)

    return lambda policy, *, visible=None, drop_path=None: forward(state, policy, visible, drop_path)


FORWARD = {family: compiled(model) for family, model in MODELS.items()}
EVERYTHING = jaxprune.topk(MODELS["audiomae"], {})
run = FORWARD["audiomae"]


def drop(rate: float, *, key=KEY) -> DropPath:
    return DropPath(key, jnp.float32(rate))


@pytest.fixture
def model():
    return MODELS["audiomae"]


def test_a_drop_rate_of_zero_is_evaluation_exactly(model):
    policy = jaxprune.topk(model, KEEP)
    plain, dropped = run(policy), run(policy, drop_path=drop(0))
    assert (plain.logits == dropped.logits).all()
    assert (plain.trace[-1].patch_ids == dropped.trace[-1].patch_ids).all()


def test_shares_are_zero_at_a_rate_that_rises_over_depth_and_one_on_average():
    clips, depth, rate = 20_000, 12, 0.4
    shares = np.stack([np.asarray(DropPath(KEY, rate).shares(i, depth=depth, clips=clips)) for i in range(depth)])
    assert (shares[0] == 1).all()
    for i in range(depth):
        dropped = rate * i / (depth - 1)
        zero = (shares[i] == 0).mean()
        assert abs(zero - dropped) < 4 * np.sqrt(max(dropped * (1 - dropped), 1e-12) / (2 * clips))
        np.testing.assert_allclose(np.unique(shares[i][shares[i] > 0]), 1 / (1 - dropped), rtol=1e-6)
    assert abs(shares.mean() - 1) < 0.005
    flat = shares[1:].reshape(-1, clips) == 0
    correlation = np.corrcoef(flat)  # branches and blocks are drawn apart
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.05


def test_a_dropped_branch_is_skipped_and_the_others_are_divided(model):
    """Against a loop over blocks and clips that leaves the branches out."""
    drop_path = drop(0.6)
    output = run(EVERYTHING, drop_path=drop_path)
    attend = nnx.jit(lambda block, tokens: block.attend(tokens, queries=slice(0, 1), mask=None)[0])
    feed_forward = nnx.jit(lambda block, tokens: block.feed_forward(tokens))
    tokens = output.tokens_in
    skipped = 0
    for i, block in enumerate(model.encoder.blocks):
        shares = np.asarray(drop_path.shares(i, depth=DEPTH, clips=3))
        skipped += (shares == 0).sum()
        rows = []
        for clip in range(3):
            one = tokens[clip : clip + 1]
            if shares[0, clip]:
                one = one + (attend(block, one) - one) / (1 - 0.6 * i / (DEPTH - 1))
            if shares[1, clip]:
                one = one + (feed_forward(block, one) - one) / (1 - 0.6 * i / (DEPTH - 1))
            rows.append(one)
        tokens = jnp.concatenate(rows)
        np.testing.assert_allclose(output.trace[i].tokens, tokens, atol=1e-5)
    assert 0 < skipped < 3 * 2 * DEPTH


def test_drop_path_keeps_tokens_float32_and_new_keys_and_rates_compile_nothing(model):
    half, traces = jaxprune.build(model.config, dtype=jnp.bfloat16), 0
    graph, state = nnx.split(half)

    @jax.jit
    def run(state, drop_path):
        nonlocal traces
        traces += 1
        return nnx.merge(graph, state)(MEL, drop_path=drop_path).trace[-1].tokens

    some = run(state, DropPath(KEY, jnp.float32(0.9)))
    none = run(state, DropPath(jax.random.key(1), jnp.float32(0.0)))
    assert traces == 1
    assert some.dtype == jnp.float32
    assert (some != none).any()


def test_the_key_decides_which_branches_drop():
    first, again, other = (run(EVERYTHING, drop_path=drop(0.5, key=jax.random.key(seed))).logits for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(("family", "shorter"), [("audiomae", {"frames": 64}), ("ast", {"mels": 64})])
def test_masking_patches_out_equals_a_model_of_the_smaller_picture(family, shorter):
    """The first 32 patches are the first half in time (AudioMAE) or in frequency (AST): what a model of that half,
    with the first half of the position table, sees."""
    model = MODELS[family]
    half = jaxprune.build(dataclasses.replace(model.config, **shorter))
    state = nnx.state(model)
    state["positions"] = state["positions"].replace(state["positions"][...][: model.config.extra_tokens + 32])
    nnx.update(half, state)
    visible = jnp.broadcast_to(jnp.arange(32, dtype=jnp.int32), (3, 32))
    masked = FORWARD[family](jaxprune.topk(model, KEEP), visible=visible)
    picture = MEL[:, : half.config.frames, : half.config.mels]
    small_picture = jaxprune.compiled(half)(picture, jaxprune.topk(half, KEEP))
    np.testing.assert_allclose(masked.logits, small_picture.logits, atol=1e-6)
    assert masked.tokens_in.shape == small_picture.tokens_in.shape
    assert (masked.trace[-1].patch_ids == small_picture.trace[-1].patch_ids).all()


def test_all_patches_visible_is_evaluation_exactly():
    everything = jnp.broadcast_to(jnp.arange(64, dtype=jnp.int32), (3, 64))
    assert (run(EVERYTHING, visible=everything).logits == run(EVERYTHING).logits).all()


def test_the_order_of_visible_patches_does_not_matter(model):
    policy = jaxprune.topk(model, KEEP)
    shuffled = VISIBLE[:, RNG.permutation(40)]
    a, b = run(policy, visible=VISIBLE), run(policy, visible=shuffled)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)


def test_traces_name_original_positions_and_counts_start_from_the_visible(model):
    output = run(jaxprune.topk(model, KEEP, score=PatchMean()), visible=VISIBLE)
    means = np.asarray(cut_patches(MEL, model.config)).mean(axis=2)
    assert (output.trace[0].scored_ids == VISIBLE).all()
    for entry in output.trace:
        np.testing.assert_allclose(
            entry.score, np.take_along_axis(means, np.asarray(entry.scored_ids), axis=1), atol=1e-6
        )
    first = keep_count(0.7, 40)
    assert [entry.patch_ids.shape[1] for entry in output.trace] == [first, *[keep_count(0.5, first)] * 2]
    for kept, visible, mean in zip(output.trace[0].patch_ids, VISIBLE, means, strict=True):
        best = np.asarray(visible)[np.argsort(-mean[np.asarray(visible)], kind="stable")]
        assert np.asarray(kept).tolist() == best[:first].tolist()


def test_masked_stages_count_from_the_visible(model):
    exact = run(jaxprune.topk(model, KEEP), visible=VISIBLE)
    policy = jaxprune.masked_topk(model, KEEP, multiple=8, patches=40)
    assert all(isinstance(stage, MaskedTopK) for stage in policy.stages.values())
    masked = run(policy, visible=VISIBLE)
    np.testing.assert_allclose(masked.logits, exact.logits, atol=1e-6)


def test_cost_counts_the_visible_patches_in_the_blocks_and_all_in_the_embedding(model):
    policy = jaxprune.topk(model, {})
    config, tokens = model.config, 40 + model.config.extra_tokens
    block = 4 * tokens * 48**2 + 2 * tokens**2 * 48 + 2 * tokens * 48 * 192
    assert jaxprune.macs(model, policy, visible=40) == 64 * 256 * 48 + DEPTH * block + 48 * config.classes
    assert jaxprune.macs(model, policy, visible=64) == jaxprune.macs(model, policy)
