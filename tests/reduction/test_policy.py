import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reduction.policy import Policy, masked_stages, stage_counts, stage_rates
from jaxprune.reduction.scores import (
    BlockSignals,
    ClsAttention,
    Given,
    Opposite,
    PatchMean,
    PatchStd,
    Random,
    RandomByClip,
    ReceivedAttention,
)
from jaxprune.reduction.selection import MaskedTopK, TopK, Within, keep_count

SCORES = jnp.asarray(np.random.default_rng(0).standard_normal((3, 40)), jnp.float32)


def evidence(block=3, n0=12, n=5, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(n0)[:n] for _ in range(2)]).astype(np.int32)
    mean, std = rng.standard_normal((2, 2, n0)).astype(np.float32)
    return BlockSignals(jnp.zeros((2, n)), jnp.asarray(ids), jnp.asarray(mean), jnp.asarray(std), block)


@pytest.mark.parametrize(
    ("patches", "rate", "expected"),
    [
        (512, 0.9, [461, 415, 374]),
        (512, 0.7, [359, 252, 177]),
        (512, 0.5, [256, 128, 64]),
        (512, (0.83, 0.61, 0.47), [425, 260, 123]),
        (256, 0.9, [231, 208, 188]),
        (256, 0.7, [180, 126, 89]),
        (256, (0.83, 0.61, 0.47), [213, 130, 62]),
        (64, 0.7, [45, 32, 23]),
        (64, (0.83, 0.61, 0.47), [54, 33, 16]),
    ],
)
def test_counts_are_rounded_up_stage_after_stage(patches, rate, expected):
    rates = stage_rates(rate if isinstance(rate, float) else dict(zip((3, 6, 9), rate, strict=True)), depth=12)
    assert list(stage_counts(rates, patches=patches).values()) == expected


def test_a_count_is_taken_in_double_precision_as_the_original_does():
    assert keep_count(0.55, 100) == 56  # 0.55 * 100 is 55.00000000000001


@pytest.mark.parametrize("rate", [0, -0.1, 1.2, float("nan")])
def test_a_rate_outside_its_range_is_refused_with_the_range(rate):
    with pytest.raises(ValueError, match=r"keep rate .* greater than 0 and at most 1"):
        stage_rates(rate, depth=12)


@pytest.mark.parametrize("block", [12, -1, True])
def test_a_block_the_model_lacks_is_refused_with_those_it_has(block):
    with pytest.raises(ValueError, match="blocks are 0 to 11"):
        stage_rates({block: 0.5}, depth=12)


def test_top_k_orders_by_falling_score_and_breaks_ties_by_lower_index():
    index = TopK(0.5)(jnp.asarray([[1.0, 3.0, 3.0, 0.0, 5.0, 1.0]]), None).index
    assert index.tolist() == [[4, 1, 2]]


def test_rate_one_leaves_the_tokens_alone():
    assert TopK(1.0)(SCORES, None) is None


@pytest.mark.parametrize("count", [1, 17, 32])
def test_masked_top_k_keeps_exactly_what_top_k_keeps(count):
    masked = MaskedTopK(jnp.int32(count), 32)(SCORES, None)
    expected = np.argsort(-np.asarray(SCORES), axis=1)[:, :count]
    for row in range(len(SCORES)):
        assert masked.index[row][masked.alive[row]].tolist() == expected[row].tolist()


def test_masked_top_k_takes_a_count_per_clip():
    selection = MaskedTopK(jnp.asarray([2, 5, 9]), 10)(SCORES, None)
    assert selection.alive.sum(axis=1).tolist() == [2, 5, 9]


def test_a_dead_patch_never_comes_back():
    alive = jnp.arange(40)[None, :] % 2 == jnp.zeros((3, 1), int)
    for stage in (MaskedTopK(jnp.int32(30), 35), TopK(0.9), Within(-1.0, 1.0)):
        selection = stage(SCORES, alive)
        kept = selection.index[selection.alive]
        assert len(kept) > 0
        assert (kept % 2 == 0).all()


def test_within_keeps_scores_strictly_inside_in_their_place():
    score = jnp.asarray([[-1.0, 0.0, 0.5, 1.0], [2.0, 3.0, -2.0, 9.0]])
    selection = Within(-1.0, 1.0)(score, None)
    assert selection.index.tolist() == [[0, 1, 2, 3]] * 2
    assert selection.alive.tolist() == [[False, True, True, False], [False] * 4]


def test_pixel_scores_follow_the_patches_that_are_left():
    e = evidence()
    for score, values in ((PatchMean(), e.patch_mean), (PatchStd(), e.patch_std)):
        expected = [[values[b, i] for i in e.patch_ids[b]] for b in range(2)]
        assert score(e).tolist() == np.asarray(expected).tolist()


def test_random_scores_depend_on_key_block_and_patch_alone():
    score = Random(jax.random.key(1))
    a, again = score(evidence()), score(evidence())
    assert (a == again).all()
    assert (a != score(evidence(block=4))).all()
    assert (a != Random(jax.random.key(2))(evidence())).all()
    whole = evidence(n=12)
    order = jnp.argsort(whole.patch_ids, axis=1)
    by_patch = jnp.take_along_axis(score(whole), order, axis=1)
    assert (jnp.take_along_axis(by_patch, evidence().patch_ids, axis=1) == a).all()


@pytest.mark.parametrize("score", [PatchMean(), PatchStd(), Random(jax.random.key(5))])
def test_the_opposite_of_a_score_has_exactly_its_order_backwards(score):
    e = evidence(n=12)
    order, backwards = (jax.lax.top_k(one(e), 12)[1] for one in (score, Opposite(score)))
    assert backwards.tolist() == order[:, ::-1].tolist()
    best, others = (jax.lax.top_k(one(e), k)[1] for one, k in ((score, 5), (Opposite(score), 7)))
    assert all(sorted([*a, *b]) == list(range(12)) for a, b in zip(best.tolist(), others.tolist(), strict=True))


def test_the_opposite_asks_the_same_queries():
    assert Opposite(ClsAttention()).queries(2) == slice(0, 1)
    assert Opposite(ReceivedAttention()).queries(2) == slice(2, None)


def test_random_by_clip_draws_for_a_clip_whatever_its_batch():
    keys = jax.random.split(jax.random.key(3), 2)
    e = evidence()
    both = RandomByClip(keys)(e)
    alone = jax.tree.map(lambda x: x[1:], e)
    assert RandomByClip(keys[1:])(alone).tolist() == both[1:].tolist()
    assert (RandomByClip(keys)(evidence(block=4)) != both).all()
    assert (RandomByClip(keys[::-1])(e) != both).all()


def test_given_values_may_differ_by_block():
    values = jnp.arange(5 * 2 * 12, dtype=jnp.float32).reshape(5, 2, 12)
    e = evidence(block=3)
    assert (Given(values)(e) == Given(values[3])(e)).all()


def test_bucketed_capacities_cover_the_counts_and_never_grow():
    stages = masked_stages({3: 0.99, 6: 0.7, 9: 0.5}, patches=120, multiple=32)
    assert [stage.capacity for stage in stages.values()] == [120, 96, 64]
    assert [int(stage.count) for stage in stages.values()] == [119, 84, 42]
    assert [stage.capacity for stage in masked_stages({3: 0.5}, patches=120).values()] == [120]


def test_policies_of_other_types_are_told_apart_by_jit():
    """JAX compares the structures of arguments to find the program that it has compiled for them."""
    stages, values = {3: TopK(0.5)}, jnp.zeros((1, 4))
    scores = [ClsAttention(), ReceivedAttention(), PatchMean(), PatchStd(), Given(values), Random(jnp.zeros(2, int))]
    scores += [Opposite(score) for score in scores] + [RandomByClip(jax.random.split(jax.random.key(0), 3))]
    policies = [Policy(score, stages) for score in scores]
    policies += [
        Policy(PatchMean(), {3: stage})
        for stage in (MaskedTopK(jnp.int32(4), 9), Within(jnp.float32(0), jnp.float32(1)))
    ]
    policies += [Policy(PatchMean(), {4: TopK(0.5)}), Policy(PatchMean(), {3: TopK(0.6)})]
    for i, one in enumerate(policies):
        for j, other in enumerate(policies):
            assert (jax.tree.structure(one) == jax.tree.structure(other)) == (i == j)
    structure = jax.tree.structure(policies[4])
    assert structure == jax.tree.structure(Policy(Given(jnp.ones((2, 4))), stages))  # other numbers, same program
    assert structure == jax.tree.structure(jax.jit(lambda policy: policy)(policies[4]))
