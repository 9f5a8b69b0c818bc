"""Speed and time shift of training clips, against plain numpy in float64 and against tones whose samples are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_compiling  # noqa: F401

from jaxprune.training.augment import Amounts, amounts, training_input
from jaxprune.training.tempo import REACH, change_speed, shift_in_time
from jaxprune.training.variation import Augment

RNG = np.random.default_rng(0)
B, SAMPLES, RATE = 24, 3000, 16_000
LENGTHS = np.concatenate([[SAMPLES, 400], RNG.integers(400, SAMPLES + 1, B - 2)]).astype(np.int32)
WAVEFORMS = RNG.standard_normal((B, SAMPLES)).astype(np.float32)  # noise beyond the lengths, too
KEY = jax.random.key(3)

CLIPS, COUNTS = jnp.asarray(WAVEFORMS), jnp.asarray(LENGTHS)

play = jax.jit(lambda key, clips, low, high: change_speed(key, clips, lengths=COUNTS, factors=(low, high)))
move = jax.jit(lambda key, most: shift_in_time(key, CLIPS, lengths=COUNTS, most=most))


def played(key, clips, low, high):
    return tuple(np.asarray(x) for x in play(key, clips, jnp.float32(low), jnp.float32(high)))


def silent_outside(clips):
    return np.where(np.arange(SAMPLES) < LENGTHS[:, None], clips, 0)


def factors(low, high):
    """The draws of each clip, from the key that the function is documented to use."""
    return np.float64(low) + (high - low) * np.asarray(jax.random.uniform(KEY, (B, 1)), np.float64)[:, 0]


def test_a_factor_of_one_and_a_shift_of_nothing_change_no_bit():
    sound, lengths = played(KEY, WAVEFORMS, 1, 1)
    assert (sound == silent_outside(WAVEFORMS)).all()
    assert (lengths == LENGTHS).all()
    sound, lengths = move(KEY, jnp.float32(0))
    assert (sound == silent_outside(WAVEFORMS)).all()
    assert (lengths == LENGTHS).all()


def resampled(clip, length, factor):
    """A clip at another speed: doubled by a sinc under a Hann window, then linear; the middle of what is too long."""
    offsets = np.arange(-REACH, REACH) + 0.5
    taps = np.sinc(offsets) * np.hanning(4 * REACH + 1)[1::2]  # the window's zeros are REACH away
    padded = np.concatenate([np.zeros(REACH), clip[:length], np.zeros(REACH + SAMPLES - length)])
    halves = np.array([padded[i + 1 : i + 1 + 2 * REACH] @ taps for i in range(SAMPLES)]) / taps.sum()
    whole = np.append(clip[:length], np.zeros(SAMPLES - length))
    doubled = np.append(np.stack([whole, halves], axis=1), 0)
    lost = max(0.0, length - SAMPLES * factor) / 2
    count = int(np.clip(np.ceil((length - 2 * lost) / factor - 1e-4), 400, SAMPLES))
    heard = np.interp(2 * (lost + np.arange(count) * factor), np.arange(2 * SAMPLES + 1), doubled)
    return np.append(heard, np.zeros(SAMPLES - count)), count


@pytest.mark.parametrize(("low", "high"), [(0.85, 1.15), (0.5, 0.6), (1.8, 2.0)])
def test_speed_equals_plain_numpy(low, high):
    sound, lengths = played(KEY, WAVEFORMS, low, high)
    for i, factor in enumerate(factors(low, high)):
        expected, count = resampled(WAVEFORMS[i].astype(np.float64), LENGTHS[i], factor)
        assert abs(lengths[i] - count) <= 1  # where the division comes out whole, float32 may round up
        both = min(lengths[i], count)
        np.testing.assert_allclose(sound[i, :both], expected[:both], atol=2e-3)
        assert not sound[i, lengths[i] :].any()


@pytest.mark.parametrize(("hertz", "error"), [(500, 0.003), (1000, 0.006), (2000, 0.025), (4000, 0.08)])
def test_a_tone_becomes_higher_and_shorter_by_its_factor(hertz, error):
    """The very samples of the tone of the new pitch, away from the ends of the clip."""
    tone = np.sin(2 * np.pi * hertz / RATE * np.arange(SAMPLES)).astype(np.float32)
    sound, lengths = played(KEY, np.broadcast_to(tone, (B, SAMPLES)), 0.85, 1.15)
    for i, factor in enumerate(factors(0.85, 1.15)):
        lost = max(0.0, LENGTHS[i] - SAMPLES * factor) / 2
        expected = np.sin(2 * np.pi * hertz / RATE * (lost + np.arange(SAMPLES) * factor))
        middle = slice(20, int(min(SAMPLES, LENGTHS[i] / factor)) - 20)
        assert np.abs(sound[i] - expected)[middle].max() < error
        assert abs(lengths[i] - min(SAMPLES, max(400, LENGTHS[i] / factor))) <= 1


def test_factors_fill_their_range():
    ratios = []
    for seed in range(20):
        _, lengths = played(jax.random.key(seed), WAVEFORMS, 0.9, 1.1)
        inner = (LENGTHS > 600) & (LENGTHS < 2500)
        ratios.extend(LENGTHS[inner] / lengths[inner])
    assert min(ratios) < 0.91
    assert max(ratios) > 1.09
    assert abs(np.mean(ratios) - 1) < 4 * np.sqrt(0.04 / 12 / len(ratios))


def test_a_shift_moves_the_sound_and_silence_moves_in():
    shifts = []
    for seed in range(20):
        sound, lengths = (np.asarray(x) for x in move(jax.random.key(seed), jnp.float32(0.05)))
        for i, clip in enumerate(silent_outside(WAVEFORMS)):
            furthest = min(800, LENGTHS[i] // 2)
            fits = [
                by
                for by in range(-furthest, furthest + 1)
                if (sound[i, max(0, by) : SAMPLES + min(0, by)] == clip[max(0, -by) : SAMPLES - max(0, by)]).all()
            ]
            (by,) = fits
            assert not sound[i, : max(0, by)].any()
            assert not sound[i, SAMPLES + min(0, by) :].any()
            assert lengths[i] == min(SAMPLES, LENGTHS[i] + max(0, by))
            if LENGTHS[i] >= 1600:
                shifts.append(by / 800)
    assert abs(np.mean(shifts)) < 4 * np.sqrt(1 / 3 / len(shifts))
    assert min(shifts) < -0.95
    assert max(shifts) > 0.95


def test_a_recipe_without_them_has_a_program_without_them():
    off = amounts(Augment())
    assert jax.tree.structure(off) == jax.tree.structure(Amounts())
    on = amounts(Augment(time_shift=0.1, speed=(0.9, 1.1)))
    assert [float(x) for x in (*on.speed, on.time_shift)] == [float(np.float32(x)) for x in (0.9, 1.1, 0.1)]


def test_features_are_those_of_the_new_sound_and_its_new_length():
    """A clip moved earlier keeps its length, so its spectrogram ends in silence; one played faster ends in padding."""

    def mel(how):
        made = training_input(
            KEY, CLIPS, lengths=COUNTS, labels=jnp.eye(B), amounts=how, frames=16, mean=0.0, std=0.5,
            padding="zero",
        )  # fmt: skip
        return np.asarray(made.mel)

    faster = mel(Amounts(speed=(jnp.float32(1.9), jnp.float32(2.0))))
    _, lengths = change_speed(jax.random.fold_in(KEY, 4), CLIPS, lengths=COUNTS, factors=(1.9, 2.0))
    padding = (faster == 0).all(axis=2)
    valid = np.clip(1 + (np.asarray(lengths) - 400) // 160, 1, 16)
    assert (padding == (np.arange(16) >= valid[:, None])).all()
    assert (mel(Amounts(time_shift=jnp.float32(0.1))) != mel(Amounts())).any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"time_shift": -0.1}, "time_shift is -0.1; it must be 0 seconds or more"),
        ({"time_shift": float("nan")}, "time_shift is nan"),
        ({"speed": (1.1, 0.9)}, "speed is 1.1 to 0.9; it must be two factors from 0.5 to 2, the lower one first"),
        ({"speed": (0.0, 1.0)}, "speed is 0.0 to 1.0"),
        ({"speed": (float("nan"), 1.0)}, "speed is nan"),
    ],
)
def test_values_out_of_range_are_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Augment(**changes)
