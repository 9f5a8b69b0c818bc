import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from quick import quick_compiling  # noqa: F401

from jaxprune.features import model_input
from jaxprune.training.augment import (
    Amounts,
    amounts,
    mixup,
    noise_and_roll,
    roll_and_scale,
    spec_augment,
    training_input,
    visible_count,
    visible_patches,
)
from jaxprune.training.recipes import RECIPES

RNG = np.random.default_rng(0)
B, SAMPLES, CLASSES = 32, 300, 5
LENGTHS = jnp.asarray(RNG.integers(40, SAMPLES + 1, B).astype(np.int32))
WAVEFORMS = jnp.asarray(RNG.standard_normal((B, SAMPLES)).astype(np.float32) + 0.5)  # noise beyond the lengths, too
LABELS = jnp.asarray(np.eye(CLASSES, dtype=np.float32)[RNG.integers(0, CLASSES, B)])
MEL = jnp.asarray(RNG.standard_normal((B, 60, 40)).astype(np.float32))
KEY = jax.random.key(3)
ON, OFF = jnp.float32(1), jnp.float32(0)

mix = jax.jit(lambda key, probability: mixup(key, WAVEFORMS, lengths=LENGTHS, labels=LABELS, probability=probability))
turn = jax.jit(lambda key, probability: roll_and_scale(key, WAVEFORMS, lengths=LENGTHS, probability=probability))
mask = jax.jit(lambda key, time, freq: spec_augment(key, MEL, time_mask=time, freq_mask=freq))
disturb = jax.jit(lambda key, probability: noise_and_roll(key, MEL, probability=probability))


def fit(target, *columns):
    """Least squares coefficients of float64 columns, and the greatest error."""
    table = np.stack(columns, axis=1).astype(np.float64)
    found = np.linalg.lstsq(table, np.asarray(target, np.float64), rcond=None)[0]
    return found, np.abs(table @ found - target).max()


def test_mixing_nothing_returns_the_very_input():
    waveforms, labels = mix(KEY, OFF)
    assert (waveforms == WAVEFORMS).all()
    assert (labels == LABELS).all()


def test_a_mixture_is_two_clips_of_the_batch_with_the_labels_weights():
    """Every mixture is explained, by brute force, as lambda of itself and 1 - lambda of one other clip, cut or
    followed by silence, means removed before and after; the labels carry the same lambda."""
    mixed, labels = (np.asarray(x) for x in mix(KEY, ON))
    waveforms, lengths = np.asarray(WAVEFORMS, np.float64), np.asarray(LENGTHS)
    partners = []
    for i, length in enumerate(lengths):
        own = waveforms[i, :length] - waveforms[i, :length].mean()
        best = (np.inf, None, None)
        for j in range(B):
            if j == i:
                continue
            other = np.zeros(length)
            shared = min(length, lengths[j])
            other[:shared] = waveforms[j, :shared] - waveforms[j, : lengths[j]].mean()
            weights, error = fit(mixed[i, :length], own, other - other.mean())
            best = min(best, (error, j, weights[0]))
        error, partner, weight = best
        assert error < 1e-5
        partners.append(partner)
        expected = weight * np.asarray(LABELS[i]) + (1 - weight) * np.asarray(LABELS[partner])
        np.testing.assert_allclose(labels[i], expected, atol=1e-5)
        np.testing.assert_allclose(mixed[i, :length].mean(), 0, atol=1e-6)
        assert (mixed[i, length:] == WAVEFORMS[i, length:]).all()
    assert partners == [*range(1, B), 0]


def test_mixing_happens_with_its_probability_and_weights_are_beta():
    changed, weights = [], []
    for seed in range(80):
        waveforms, labels = mix(jax.random.key(seed), jnp.float32(0.3))
        mixed = np.asarray((waveforms != WAVEFORMS).any(axis=1))
        assert (np.asarray((labels != LABELS).any(axis=1)) <= mixed).all()
        changed.extend(mixed)
        top = np.asarray(labels)[np.asarray((labels > 0).sum(axis=1) == 2)]
        weights.extend(top[top > 0])
    assert abs(np.mean(changed) - 0.3) < 4 * np.sqrt(0.21 / len(changed))
    assert abs(np.mean(weights) - 0.5) < 1e-6
    assert abs(np.var(weights) - 1 / 84) < 0.15 / 84  # Beta(10, 10) has variance 1 / (4 * 21)


def test_turning_nothing_returns_the_very_input():
    assert (turn(KEY, OFF) == WAVEFORMS).all()


def test_a_turned_clip_is_a_roll_of_its_own_samples_times_a_factor():
    turned, waveforms = np.asarray(turn(KEY, ON)), np.asarray(WAVEFORMS)
    offsets = []
    for i, length in enumerate(np.asarray(LENGTHS)):
        best = (np.inf, None, None)
        for offset in range(length):
            factor, error = fit(turned[i, :length], np.roll(waveforms[i, :length], offset))
            best = min(best, (error, offset, factor[0]))
        error, offset, factor = best
        assert error < 1e-5
        assert 0.5 < factor < 1.5
        assert (turned[i, length:] == waveforms[i, length:]).all()
        offsets.append(offset / length)
    assert abs(np.mean(offsets) - 0.5) < 4 * np.sqrt(1 / 12 / B)
    assert max(offsets) > 0.9
    assert min(offsets) < 0.1


def test_half_of_the_clips_are_turned_at_one_half():
    share = np.mean(
        [np.asarray((turn(jax.random.key(s), jnp.float32(0.5)) != WAVEFORMS).any(axis=1)) for s in range(60)]
    )
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / (60 * B))


def test_masking_nothing_returns_the_very_input():
    assert (mask(KEY, OFF, OFF) == MEL).all()


def masked_stretches(time, freq, seeds):
    """(start, width) of each clip's hidden frames and bins; everything else must be untouched."""
    in_time, in_freq = [], []
    for seed in seeds:
        out = np.asarray(mask(jax.random.key(seed), jnp.float32(time), jnp.float32(freq)))
        hidden = out == 0
        assert (out[~hidden] == np.asarray(MEL)[~hidden]).all()
        for clip in hidden:
            frames, bins = np.flatnonzero(clip.all(axis=1)), np.flatnonzero(clip.all(axis=0))
            cross = np.zeros_like(clip)
            cross[frames], cross[:, bins] = True, True
            assert (clip == cross).all()
            for found, stretches in ((frames, in_time), (bins, in_freq)):
                assert len(found) == 0 or found[-1] - found[0] + 1 == len(found)
                stretches.append((found[0] if len(found) else -1, len(found)))
    return np.asarray(in_time), np.asarray(in_freq)


def test_masks_are_one_stretch_of_frames_and_one_of_bins_uniform_below_their_widths():
    in_time, in_freq = masked_stretches(24, 8, range(60))
    for stretches, widest, size in ((in_time, 24, 60), (in_freq, 8, 40)):
        starts, widths = stretches.T
        counts = np.bincount(widths, minlength=widest)
        assert len(counts) == widest  # never the greatest width itself
        expected = len(widths) / widest
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
        wide = widths > 0
        assert starts[wide].min() == 0
        assert (starts + widths).max() <= size
        # The start is uniform over what the width leaves.
        place = starts[wide] / (size - widths[wide])
        assert abs(place.mean() - 0.5) < 0.05


def test_torchaudios_arithmetic_is_followed_draw_by_draw():
    """The same two uniform numbers through torchaudio's published formula (width u * mask, start v * (size - width),
    both rounded down) hide the same frames."""
    in_time, _ = jax.random.split(KEY)
    u, v = np.asarray(jax.random.uniform(in_time, (2, B, 1)))[..., 0]
    out = np.asarray(mask(KEY, jnp.float32(24), OFF))
    for clip in range(B):
        width = u[clip] * 24
        start = int(v[clip] * (60 - width))
        assert np.flatnonzero((out[clip] == 0).all(axis=1)).tolist() == list(range(start, start + int(width)))


def test_a_mask_wider_than_the_clip_stays_inside():
    out = mask(KEY, jnp.float32(1000), OFF)
    assert ((out == 0).all(axis=2).sum(axis=1) < 60).all()


def test_no_noise_returns_the_very_input():
    assert (disturb(KEY, OFF) == MEL).all()


def test_noise_is_uniform_under_a_tenth_and_frames_roll_by_less_than_ten():
    shifts, levels = [], []
    for seed in range(16):
        out = np.asarray(disturb(jax.random.key(seed), ON))
        for clip, mel in zip(out, np.asarray(MEL), strict=True):
            added = {shift: np.roll(clip, -shift, axis=0) - mel for shift in range(-12, 13)}
            shift = min(added, key=lambda s: np.abs(added[s]).max())
            noise = added[shift]
            assert noise.min() > -1e-6
            assert noise.max() < 0.1
            shifts.append(shift)
            levels.append(noise.max())
            np.testing.assert_allclose(noise.mean(), noise.max() / 2, atol=0.003)
    assert set(shifts) == set(range(-10, 10))
    assert abs(np.mean(levels) - 0.05) < 0.005


@pytest.mark.parametrize("family", ["ast", "audiomae"])
@pytest.mark.parametrize(("frames", "kept"), [(128, 25), (512, 110), (1024, 220)])
def test_patch_masking_keeps_whole_columns_and_rows(family, frames, kept):
    config = small(family, frames=frames)
    (nt, nf), found = config.grid, np.asarray(visible_patches(KEY, clips=50, config=config, hidden=0.3))
    assert found.shape == (50, kept)
    assert visible_count(config, hidden=0.3) == kept
    sets = set()
    for ids in found:
        time, freq = (ids % nt, ids // nt) if family == "ast" else (ids // nf, ids % nf)
        columns, rows = set(time.tolist()), set(freq.tolist())
        assert (len(columns), len(rows)) == (int(nt * 0.7), int(nf * 0.7))
        assert len(set(zip(time.tolist(), freq.tolist(), strict=True))) == kept
        assert (np.diff(ids) > 0).all()
        sets.add(tuple(ids))
    assert len(sets) > 45  # clips differ
    share = np.bincount(found.ravel(), minlength=config.patches) / 50
    assert abs(share.mean() - kept / config.patches) < 1e-12
    assert share.min() > 0.1  # every patch has its turn


def test_masking_no_patches_names_them_all_in_order():
    config = small("ast")
    assert (visible_patches(KEY, clips=2, config=config, hidden=0.0) == jnp.arange(64)[None]).all()


@pytest.mark.parametrize("hidden", [-0.1, 0.9, 1.0])
def test_masking_all_patches_is_refused(hidden):
    with pytest.raises(ValueError, match="leaves no patch"):
        visible_count(small("ast"), hidden=hidden)


@pytest.mark.parametrize("function", [mix, turn, disturb], ids=["mix", "turn", "disturb"])
def test_the_key_decides_everything(function):
    first, again, other = function(KEY, ON), function(KEY, ON), function(jax.random.key(4), ON)
    for a, b, c in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        assert (a == b).all()
        assert (a != c).any()


CLIPS = jnp.asarray(RNG.standard_normal((3, 16_000)).astype(np.float32) * 0.1)
TRUE_LENGTHS = jnp.asarray([16_000, 9_000, 400], jnp.int32)


@jax.jit
def train(key, how, clips):
    return training_input(
        key,
        clips,
        lengths=TRUE_LENGTHS,
        labels=jnp.eye(3),
        amounts=how,
        frames=64,
        mean=-6.8,
        std=5.5,
        padding="minimum",
    )


def augmented(key, how):
    return train(key, how, CLIPS)


def test_with_everything_off_the_input_is_that_of_evaluation_exactly():
    plain = jax.jit(lambda clips: model_input(clips, TRUE_LENGTHS, frames=64, mean=-6.8, std=5.5, padding="minimum"))(
        CLIPS
    )
    made = augmented(KEY, jax.tree.map(jnp.float32, Amounts()))
    assert float(jnp.abs(made.mel - plain).max()) == 0
    assert (made.labels == jnp.eye(3)).all()


def test_switching_off_compiles_nothing():
    before = dataclasses.replace(RECIPES["audiomae-speechcommands"].augment, mixup=1.0)
    first = augmented(KEY, amounts(before))
    compiled = train._cache_size()
    second = augmented(KEY, amounts(before.while_shrinking()))
    assert train._cache_size() == compiled
    assert (first.labels == second.labels).all()  # mixing goes on
    assert (first.mel != second.mel).any()


def test_masks_are_zero_before_normalising():
    how = jax.tree.map(jnp.float32, Amounts(time_mask=40.0))
    made = augmented(KEY, how).mel
    assert (np.asarray(made) == np.float32(6.8) / np.float32(11.0)).all(axis=2).any()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_amounts_are_its_settings(name):
    """As float32, or None where the program is to be without the part; masks, which may stop, are always numbers."""
    settings, made = RECIPES[name].augment, amounts(RECIPES[name].augment)
    assert (made.speed is None) is (settings.speed == (1, 1))
    assert (made.time_shift is None) is (settings.time_shift == 0)
    numbers = [] if made.speed is None else list(zip(settings.speed, made.speed, strict=True))
    numbers += [] if made.time_shift is None else [(settings.time_shift, made.time_shift)]
    assert all(found == jnp.float32(value) and found.dtype == jnp.float32 for value, found in numbers)
    for part in ("mixup", "roll", "noise", "time_mask", "freq_mask"):
        value, found = getattr(settings, part), getattr(made, part)
        assert (found is None) is (value == 0 and part in ("mixup", "roll", "noise"))
        assert found is None or (found == jnp.float32(value) and found.dtype == jnp.float32)


def test_a_program_without_a_part_equals_one_with_none_of_it():
    zero = Amounts(mixup=OFF, roll=OFF, noise=OFF, time_mask=jnp.float32(30), freq_mask=OFF)
    without = zero.replace(mixup=None, roll=None, noise=None)
    for one, other in zip(augmented(KEY, zero), augmented(KEY, without), strict=True):
        assert (one == other).all()
