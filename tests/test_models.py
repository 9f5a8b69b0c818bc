import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import MIXED, STAGES, random_mel, small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.models import cut_patches, deepened, for_inference
from jaxprune.ops.layers import Linear
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.scores import Given, PatchMean, Random
from jaxprune.reduction.selection import Within

FAMILIES = ("ast", "audiomae")
MODELS = {family: jaxprune.build(small(family)) for family in FAMILIES}
FORWARD = {family: jaxprune.compiled(model) for family, model in MODELS.items()}
MEL = jnp.asarray(random_mel(small("ast"), clips=3))


def run(model, policy):
    """One jitted program for each kind of policy, shared by the tests."""
    return FORWARD[model.config.family](MEL, policy)


@pytest.fixture(params=FAMILIES)
def model(request):
    return MODELS[request.param]


def alive_sets(trace_entry):
    return [
        set(np.asarray(ids)[np.asarray(real)].tolist())
        for ids, real in zip(trace_entry.patch_ids, trace_entry.alive, strict=True)
    ]


@pytest.mark.parametrize(("family", "frequency_major"), [("ast", True), ("audiomae", False)])
@pytest.mark.parametrize("stride", [16, 10])
def test_patches_are_cut_in_the_familys_order(family, frequency_major, stride):
    config = small(family, time_stride=stride, freq_stride=stride, depth=1)
    patches = cut_patches(MEL, config)
    (nt, nf), index = config.grid, 0
    order = (
        ((t, f) for f in range(nf) for t in range(nt))
        if frequency_major
        else ((t, f) for t in range(nt) for f in range(nf))
    )
    for t, f in order:
        expected = MEL[:, t * stride : t * stride + 16, f * stride : f * stride + 16].reshape(3, -1)
        assert (patches[:, index] == expected).all()
        index += 1
    assert index == patches.shape[1] == config.patches


def test_the_original_ast_has_1212_overlapping_patches():
    assert small("ast", frames=1024, time_stride=10, freq_stride=10).grid == (101, 12)


def test_rate_one_changes_nothing(model):
    plain, whole = run(model, jaxprune.topk(model, {})), run(model, jaxprune.topk(model, 1.0))
    assert (plain.logits == whole.logits).all()
    assert (whole.trace[-1].patch_ids == jnp.arange(64)[None, :].repeat(3, axis=0)).all()


@pytest.mark.parametrize("keep", [0.9, 0.5, MIXED])
def test_kept_patches_are_unique_in_range_and_nested(model, keep):
    trace = run(model, jaxprune.topk(model, keep)).trace
    before = [set(range(64))] * 3
    for entry in trace:
        kept = alive_sets(entry)
        assert all(len(ids) == entry.patch_ids.shape[1] for ids in kept)
        assert all(now <= past for now, past in zip(kept, before, strict=True))
        assert entry.tokens.shape[1] == model.config.extra_tokens + entry.patch_ids.shape[1]
        before = kept


def test_kept_patches_are_those_of_highest_score_in_falling_order(model):
    trace = run(model, jaxprune.topk(model, 0.7)).trace
    for block in STAGES:
        entry = trace[block]
        for score, ids, kept in zip(entry.score, entry.scored_ids, entry.patch_ids, strict=True):
            order = sorted(range(len(ids)), key=lambda i: (-float(score[i]), i))
            assert kept.tolist() == [int(ids[i]) for i in order[: len(kept)]]


@pytest.mark.parametrize("multiple", [None, 16])
@pytest.mark.parametrize("keep", [0.9, 0.5, MIXED])
def test_masked_mode_equals_gathering(model, keep, multiple):
    gathered = run(model, jaxprune.topk(model, keep))
    masked = run(model, jaxprune.masked_topk(model, keep, multiple=multiple))
    np.testing.assert_allclose(masked.logits, gathered.logits, atol=1e-5)
    for a, b in zip(gathered.trace, masked.trace, strict=True):
        assert alive_sets(a) == alive_sets(b)


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_gradients_equal_those_of_gathering(family):
    model = jaxprune.build(small(family, depth=3))
    graph, state = nnx.split(model)

    @jax.jit
    def gradient(policy):
        return jax.grad(lambda state: (nnx.merge(graph, state)(MEL, policy).logits ** 2).sum())(state)

    stages = {0: 0.7, 1: 0.6}
    exact, masked = gradient(jaxprune.topk(model, stages)), gradient(jaxprune.masked_topk(model, stages))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(masked), strict=True):
        np.testing.assert_allclose(b, a, atol=3e-6 * max(1.0, float(jnp.abs(a).max())))


def test_forty_keep_rates_cost_one_compilation_in_masked_mode(model):
    traces = 0

    def read(output):
        nonlocal traces
        traces += 1
        return output.logits

    forward = jaxprune.compiled(model, read)
    logits = [forward(MEL, jaxprune.masked_topk(model, rate)) for rate in np.linspace(0.25, 1.0, 40).tolist()]
    assert traces == 1
    assert len({np.asarray(values).tobytes() for values in logits}) > 35


def test_static_rates_retrace_once_each_and_new_values_never():
    model, traces = jaxprune.build(small("ast", depth=2)), 0

    def read(output):
        nonlocal traces
        traces += 1
        return output.logits

    forward = jaxprune.compiled(model, read)
    for _ in range(2):
        forward(MEL, jaxprune.topk(model, {1: 0.7}))
        forward(MEL, jaxprune.topk(model, {1: 0.5}))
    assert traces == 2
    for seed in range(3):
        forward(MEL, jaxprune.topk(model, {1: 0.5}, score=Given(jax.random.uniform(jax.random.key(seed), (3, 64)))))
        forward(MEL, jaxprune.topk(model, {1: 0.5}, score=Random(jax.random.key(seed))))
    assert traces == 4


def test_forcing_a_models_own_choice_gives_its_logits_back(model):
    free = run(model, jaxprune.topk(model, 0.5))
    ranks = jnp.zeros((12, 3, 64))
    for block in STAGES:
        kept = free.trace[block].patch_ids
        ranks = ranks.at[block, jnp.arange(3)[:, None], kept].set(jnp.arange(kept.shape[1], 0, -1.0)[None, :])
    forced = run(model, jaxprune.topk(model, 0.5, score=Given(ranks)))
    np.testing.assert_allclose(forced.logits, free.logits, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_intensity_range_equals_dropping_the_patches_clip_by_clip(family):
    model, low, high = jaxprune.build(small(family, depth=2)), -0.05, 0.08
    forward = jaxprune.compiled(model)
    masked = forward(MEL, Policy(PatchMean(), {0: Within(low, high)}))
    for clip in range(3):
        pixels = np.asarray(cut_patches(MEL[clip : clip + 1], model.config))[0].astype(np.float64).mean(axis=1)
        inside = (pixels > low) & (pixels < high)
        assert alive_sets(masked.trace[-1])[clip] == set(np.flatnonzero(inside).tolist())
        keep = jaxprune.topk(model, {0: inside.sum() / 64}, score=Given(jnp.asarray(inside[None], jnp.float32)))
        alone = forward(MEL[clip : clip + 1], keep)
        np.testing.assert_allclose(masked.logits[clip], alone.logits[0], atol=1e-5)


def test_a_clip_that_loses_every_patch_still_has_finite_logits(model):
    output = run(model, Policy(PatchMean(), {3: Within(50.0, 51.0)}))
    assert not output.trace[-1].alive.any()
    assert jnp.isfinite(output.logits).all()


def test_patch_statistics_use_the_unbiased_deviation(model):
    from jaxprune.reduction.scores import PatchStd

    for score, reduce in ((PatchMean(), lambda x: x.mean(-1)), (PatchStd(), lambda x: x.std(-1, ddof=1))):
        trace = run(model, jaxprune.topk(model, {}, score=score)).trace
        np.testing.assert_allclose(
            trace[0].score, reduce(np.asarray(cut_patches(MEL, model.config), np.float64)), atol=1e-6
        )


def test_bfloat16_products_come_near_float32_with_float32_parameters_tokens_scores_and_logits(model):
    half = jaxprune.build(model.config, dtype=jnp.bfloat16)
    nnx.update(half, nnx.state(model))
    whole = jaxprune.topk(model, {})
    output, full = jaxprune.compiled(half)(MEL, whole), run(model, whole)
    assert half.encoder.blocks[0].mlp(output.tokens_in).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    first = output.trace[0]
    assert output.logits.dtype == first.tokens.dtype == first.score.dtype == jnp.float32
    np.testing.assert_allclose(output.logits, full.logits, atol=0.05 * float(jnp.abs(full.logits).max()))


def test_weights_rounded_once_give_the_numbers_of_weights_rounded_in_every_call(model):
    half = jaxprune.build(model.config, dtype=jnp.bfloat16)
    ready, policy = for_inference(half), jaxprune.topk(half, 0.7)
    kernels = [layer.kernel[...].dtype for _, layer in nnx.iter_modules(ready) if isinstance(layer, Linear)]
    assert kernels.count(jnp.bfloat16) == 4 * model.config.depth + 1  # the patches', not the head's
    assert kernels.count(jnp.float32) == 1
    graph, state = nnx.split(half)
    expected = jax.jit(lambda state: nnx.merge(graph, state)(MEL, policy).logits)(state)
    np.testing.assert_array_equal(jaxprune.compiled(half)(MEL, policy).logits, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    assert for_inference(model) is model


@pytest.mark.parametrize("family", FAMILIES)
def test_jit_computes_what_eager_computes(family):
    model = jaxprune.build(small(family, depth=2))
    policy = jaxprune.topk(model, {0: 0.7})
    jitted, eager = jaxprune.compiled(model)(MEL, policy), model(MEL, policy)
    np.testing.assert_allclose(jitted.logits, eager.logits, atol=1e-6)
    assert (jitted.trace[-1].patch_ids == eager.trace[-1].patch_ids).all()


def test_the_position_table_of_audiomae_is_not_a_parameter():
    assert "positions" not in nnx.to_pure_dict(nnx.state(MODELS["audiomae"], nnx.Param))
    assert "positions" in nnx.to_pure_dict(nnx.state(MODELS["ast"], nnx.Param))


@pytest.mark.parametrize("shape", [(3, 127, 128), (3, 128, 64)])
def test_a_spectrogram_of_another_size_is_refused(model, shape):
    with pytest.raises(ValueError, match="this model reads"):
        model(jnp.zeros(shape))


def test_a_policy_for_a_deeper_model_is_refused(model):
    with pytest.raises(ValueError, match=r"blocks \[12\]"):
        model(MEL, Policy(PatchMean(), {12: Within(0.0, 1.0)}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 5}, "cannot be split"),
        ({"frames": 8}, "smaller than one patch"),
        ({"depth": 0}, "from 1 to"),
    ],
)
def test_a_geometry_that_does_not_fit_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        small("ast", **change)


@pytest.mark.parametrize("own", [1, 3])
def test_a_deepened_model_computes_the_same_and_its_fresh_blocks_can_learn(own, model):
    shallow = jaxprune.build(small(model.config.family, depth=own), seed=1)
    deep = deepened(shallow, 4, seed=2)
    logits = jaxprune.compiled(shallow, lambda output: output.logits)(MEL, jaxprune.topk(shallow, {}))
    assert deep.config.depth == len(deep.encoder.blocks) == 4
    spread = nnx.jit(nnx.value_and_grad(lambda model: ((found := model(MEL).logits).std(), found), has_aux=True))
    (_, found), gradient = spread(deep)
    np.testing.assert_allclose(found, logits, atol=1e-6)
    assert all(jnp.abs(block.mlp.fc2.kernel[...]).max() > 0 for block in gradient.encoder.blocks.values())


def test_a_model_is_not_deepened_to_fewer_blocks(model):
    with pytest.raises(ValueError, match="more than 4; blocks can only be added"):
        deepened(model, 4)


@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_a_program_is_exported_for_any_number_of_clips(family):
    config = small(family, depth=4)
    model = jaxprune.build(config)
    graph, state = nnx.split(model)
    run = jax.jit(lambda mel: nnx.merge(graph, state)(mel, jaxprune.topk(model, 0.7)).logits)
    (clips,) = jax.export.symbolic_shape("clips")
    exported = jax.export.export(run)(jax.ShapeDtypeStruct((clips, config.frames, config.mels), jnp.float32))
    for count in (1, 3):
        mel = random_mel(config, clips=count)
        np.testing.assert_allclose(exported.call(mel), run(mel), rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", [2, 4, 6, 12])
def test_a_shallow_model_prunes_at_those_of_the_published_blocks_that_it_has(depth):
    model = jaxprune.build(small("ast", depth=depth))
    blocks = [block for block in (3, 6, 9) if block < depth]
    assert list(jaxprune.topk(model, 1.0).stages) == blocks
    if blocks:
        assert list(jaxprune.topk(model, 0.5).stages) == blocks
    else:
        with pytest.raises(ValueError, match=r"a model of 2 blocks has none of \(3, 6, 9\); name its blocks"):
            jaxprune.topk(model, 0.5)
