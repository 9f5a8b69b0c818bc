"""Each method against the plain one of `plain.py`, in both families."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import plain
import pytest
from helpers import random_mel, small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.reduction.fusing import Fuse, MaskedFuse
from jaxprune.reduction.merging import MaskedMerge, Merge
from jaxprune.reduction.policy import Policy

FAMILIES = ("ast", "audiomae")
MEL = jnp.asarray(random_mel(small("ast"), clips=2))


@functools.cache
def sharp(family: str, depth: int = 12) -> jaxprune.AST | jaxprune.AudioMAE:
    """A model that attends sharply enough, and answers loudly enough, for methods to differ visibly."""
    model = jaxprune.build(small(family, width=24, depth=depth), seed=3)
    for block in model.encoder.blocks:
        block.attention.qkv.kernel[...] = 2 * block.attention.qkv.kernel[...]
    model.head.kernel[...] = model.head.kernel[...] / model.head.kernel[...].std()
    return model


@functools.cache
def forward(family: str, depth: int = 12):
    return jaxprune.jit_forward(sharp(family, depth))


@pytest.fixture(params=FAMILIES)
def model(request):
    return sharp(request.param)


def run(model, policy):
    return forward(model.config.family, model.config.depth)(MEL, policy)


def members(entry, clip: int) -> list[list[int]]:
    """The patches that each living token holds, in the order of the tokens."""
    groups = np.asarray(entry.groups[clip])
    return [sorted(np.flatnonzero(groups == token)) for token in np.flatnonzero(entry.alive[clip])]


def check(model, policy, reduce, *, proportional=True):
    """The policy's logits and every block's groups are those of the plain method."""
    output = run(model, policy)
    for clip in range(len(MEL)):
        logits, trace = plain.forward(model, MEL[clip], reduce, proportional=proportional)
        np.testing.assert_allclose(output.logits[clip], logits, atol=2e-5)
        for entry, expected in zip(output.trace, trace, strict=True):
            found = members(entry, clip)
            assert found == [sorted(one) for one in expected]
            assert [len(one) for one in found] == entry.sizes[clip].tolist()
    return output


@pytest.mark.parametrize("rates", [{3: 0.7, 6: 0.7, 9: 0.7}, {0: 0.5, 1: 0.4, 3: 0.99}], ids=str)
def test_evit_keeps_the_attended_and_fuses_the_others(model, rates):
    def reduce(block, extra, tokens, weights, keys):
        return plain.evit(extra, tokens, weights, rates.get(block, 1))

    model = model if max(rates) > 3 else sharp(model.config.family, 4)
    output = check(model, jaxprune.evit(model, rates), reduce)
    first, last = output.trace[min(rates)], output.trace[-1]
    assert (first.patch_ids[:, -1] == -1).all()  # made from several
    assert (last.sizes.sum(axis=1) == 64).all()


@pytest.mark.parametrize(
    ("r", "proportional", "counts"),
    [
        (4, True, [4] * 6),
        ((8, -1), False, [16, 10, 5, 0]),
        ([0, 30, 30, 30], True, [0, 30, 30, 30]),  # the last two are capped at half
    ],
    ids=str,
)
def test_tome_merges_the_most_alike_in_every_block(model, r, proportional, counts):
    def reduce(block, extra, tokens, weights, keys):
        return plain.tome(extra, tokens, keys, counts[block])

    model = sharp(model.config.family, len(counts))
    policy = jaxprune.tome(model, r, proportional=proportional)
    output = check(model, policy, reduce, proportional=proportional)
    assert (output.trace[-1].sizes.sum(axis=1) == 64).all()
    assert output.trace[-1].sizes.max() > 2  # clusters grew


def test_pruning_then_merging_in_one_block_sees_the_tokens_that_were_kept(model):
    model = sharp(model.config.family, 4)
    policy = jaxprune.topk(model, {2: 0.6}, score=jaxprune.ClsAttention()) | jaxprune.tome(model, [0, 5, 7, 3])

    def reduce(block, extra, tokens, weights, keys):
        if block == 2:
            x, held, sizes = tokens
            score = weights[:, 0, extra:].mean(axis=0)
            order = np.argsort(-score)[: int(np.ceil(0.6 * len(score)))]
            rows = [*range(extra), *(extra + order)]
            tokens, keys = (x[rows], [held[i] for i in order], sizes[rows]), keys[rows]
        return plain.tome(extra, tokens, keys, [0, 5, 7, 3][block])

    output = check(model, policy, reduce)
    assert (output.trace[-1].groups == -1).any()


def test_pooling_averages_neighbours_in_time(model):
    time, freq = model.config.grid

    def place(t, f, steps):
        return f * steps + t if model.config.family == "ast" else t * freq + f

    def reduce(block, extra, tokens, weights, keys):
        x, held, _ = tokens
        if block not in (1, 2):
            return tokens
        steps = {1: time, 2: time // 2}[block]
        rows, members = {}, {}
        for t in range(0, steps, 2):
            for f in range(freq):
                pair = [place(u, f, steps) for u in (t, t + 1)]
                at = place(t // 2, f, steps // 2)
                rows[at] = x[[extra + i for i in pair]].mean(axis=0)
                members[at] = held[pair[0]] + held[pair[1]]
        held = [members[at] for at in range(len(members))]
        values = np.stack([*x[:extra], *(rows[at] for at in range(len(rows)))])
        return values, held, np.array([1.0] * extra + [len(one) for one in held])

    model = sharp(model.config.family, 4)
    output = check(model, jaxprune.pool(model, (1, 2)), reduce)
    assert output.trace[-1].sizes.tolist() == [[4] * 16] * 2


def test_an_odd_number_of_steps_leaves_the_last_alone():
    config = small("audiomae", width=24, depth=2, frames=48)
    model = jaxprune.build(config)
    entry = jaxprune.jit_forward(model)(MEL[:, :48], jaxprune.pool(model, (0,))).trace[0]
    assert entry.sizes[0].tolist() == [2] * 8 + [1] * 8
    assert entry.groups[0].tolist() == [*range(8), *range(8), *range(8, 16)]


@pytest.mark.parametrize(("family", "surplus"), [("ast", 0), ("audiomae", 5)])
def test_masked_fusing_equals_fusing(family, surplus):
    model = sharp(family, 4)
    exact = run(model, Policy(jaxprune.ClsAttention(), {1: Fuse(0.6), 2: Fuse(0.5)}))
    stages = {1: MaskedFuse(jnp.int32(39), 39 + surplus), 2: MaskedFuse(jnp.asarray([20, 20]), 20 + surplus)}
    masked = run(model, Policy(jaxprune.ClsAttention(), stages))
    same(masked, exact)


def test_masked_fusing_of_nothing_fuses_nothing():
    model = sharp("audiomae", 4)
    masked = run(model, Policy(jaxprune.ClsAttention(), {1: MaskedFuse(jnp.int32(64), 64)}))
    same(masked, run(model, jaxprune.topk(model, {})))


@pytest.mark.parametrize(("family", "proportional"), [("ast", True), ("audiomae", False)])
def test_masked_merging_equals_merging(family, proportional):
    model = sharp(family, 4)
    exact = run(model, Policy(model.score, {i: Merge(r, proportional) for i, r in enumerate((9, 0, 6, 30))}))
    masked = {
        0: MaskedMerge(jnp.int32(9), 12, 60, proportional),
        1: MaskedMerge(jnp.int32(0), 3, 60, proportional),
        2: MaskedMerge(jnp.asarray([6, 6]), 8, 57, proportional),
        3: MaskedMerge(jnp.int32(30), 30, 40, proportional),  # more than half of those alive
    }
    same(run(model, Policy(model.score, masked)), exact)


def same(masked, exact):
    """The same groups of the same tokens, wherever the dead ones stand."""
    np.testing.assert_allclose(masked.logits, exact.logits, atol=2e-5)
    for one, other in zip(masked.trace, exact.trace, strict=True):
        for clip in range(len(MEL)):
            assert sorted(members(one, clip)) == sorted(members(other, clip))
            assert one.sizes[clip][one.alive[clip]].sum() == other.sizes[clip].sum()


def test_merging_after_masked_pruning_equals_merging_after_pruning():
    model = sharp("ast", 4)
    tome = jaxprune.tome(model, [0, 8, 8])
    same(run(model, jaxprune.masked_topk(model, {1: 0.7}) | tome), run(model, jaxprune.topk(model, {1: 0.7}) | tome))


def test_a_score_of_a_merged_token_is_of_its_members():
    model = sharp("audiomae", 4)
    policy = dataclasses.replace(jaxprune.tome(model, [20, 20]), score=jaxprune.PatchMean())
    output = run(model, policy)
    first, second = output.trace[0], output.trace[1]
    expected = [[first.score[clip, one].mean() for one in members(first, clip)] for clip in range(len(MEL))]
    np.testing.assert_allclose(second.score, expected, atol=1e-6)


def test_the_grid_is_spread_evenly_at_every_rate():
    model = jaxprune.build(small("ast", width=24, depth=2, frames=512))
    for rate in (0.5, 0.25):
        kept = jaxprune.jit_forward(model)(jnp.zeros((1, 512, 128)), jaxprune.grid(model, {0: rate})).trace[0].patch_ids
        there = np.zeros((8, 32), int)
        there.ravel()[np.asarray(kept[0])] = 1
        counts = there.reshape(2, 4, 8, 4).sum(axis=(1, 3))
        assert np.abs(counts - 16 * rate).max() <= 2  # of 16 in each square of 4 x 4
