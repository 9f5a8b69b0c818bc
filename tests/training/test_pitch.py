"""Pitch of training clips at the same speed, against the map of the paper and against tones of the new pitch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_compiling  # noqa: F401

from jaxprune.features import log_mel
from jaxprune.training.augment import Amounts, amounts, training_input
from jaxprune.training.pitch import draw_warp, warp
from jaxprune.training.variation import Augment

RATE, STEP = 16_000, 16_000 / 512  # Hz, and Hz between FFT bins
KEY = jax.random.key(3)


def theirs(hertz, factor):
    """Jaitly and Hinton 2013, section 3: the frequency that one becomes, with F_hi = 4800 and S = 16000."""
    edge = 4800 * min(factor, 1)
    slope = (RATE / 2 - edge) / (RATE / 2 - edge / factor)
    return np.where(hertz <= edge / factor, hertz * factor, RATE / 2 - slope * (RATE / 2 - hertz))


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.7, 2.0])
def test_bins_are_read_where_the_papers_map_takes_them_from(factor):
    read = np.asarray(warp(jnp.float32([factor])))[0] * STEP
    np.testing.assert_allclose(theirs(read, factor), np.arange(1, 256) * STEP, rtol=1e-5)


def tones(*hertz):
    return jnp.float32(np.sin(2 * np.pi * np.outer(hertz, np.arange(1040)) / RATE))


@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_a_tone_becomes_the_tone_of_the_new_pitch_and_no_shorter(factor):
    """Power, in the mel bins that hold it; linear between FFT bins, a warp blurs a line by less than a fifth."""
    hertz = np.array([300, 1000, 2500, 4000])
    made = np.exp(log_mel(tones(*hertz), warp=warp(jnp.full(4, factor))))
    higher = np.exp(log_mel(tones(*hertz * factor)))
    assert made.shape == higher.shape
    assert (np.abs(made.argmax(axis=2) - higher.argmax(axis=2)) <= 1).all()
    np.testing.assert_allclose(made.sum(axis=2), higher.sum(axis=2), rtol=0.5)


def test_power_is_linear_between_bins():
    """Against numpy in float64: one triangle a bin, so that the log-mel shows the spectrum."""
    sound = np.random.default_rng(0).standard_normal((2, 560)).astype(np.float32)
    read = np.stack([np.linspace(-3, 200, 255), np.linspace(30, 260, 255)]).astype(np.float32)
    frames = np.stack([sound[:, :400], sound[:, 160:]], axis=1).astype(np.float64)
    frames -= frames.mean(axis=2, keepdims=True)
    frames -= 0.97 * np.concatenate([frames[..., :1], frames[..., :-1]], axis=2)
    power = np.abs(np.fft.rfft(frames * np.hanning(400), 512)) ** 2
    moved = [
        [np.interp(row, np.arange(1, 256), frame[1:-1]) for frame in clip]
        for row, clip in zip(read, power, strict=True)
    ]
    mels = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), 42)
    bins = 1127 * np.log1p(np.arange(1, 256) * STEP / 700)
    triangles = np.stack([np.interp(bins, mels[i : i + 3], [0, 1, 0]) for i in range(40)], axis=1)
    np.testing.assert_allclose(log_mel(sound, mels=40, warp=read), np.log(moved @ triangles), atol=2e-4)


CLIPS = jnp.asarray(np.random.default_rng(1).standard_normal((24, 2800)).astype(np.float32))


@jax.jit
def mel(key, how):
    lengths = jnp.full(len(CLIPS), 2800)
    labels = jnp.eye(len(CLIPS))
    shape = {"frames": 16, "mean": 0.0, "std": 0.5, "padding": "zero"}
    return training_input(key, CLIPS, lengths=lengths, labels=labels, amounts=how, **shape).mel


def test_a_factor_of_one_changes_no_bit_and_a_recipe_without_has_a_program_without():
    plain = mel(KEY, Amounts())
    assert (mel(KEY, Amounts(pitch=(jnp.float32(1), jnp.float32(1)))) == plain).all()
    assert jax.tree.structure(amounts(Augment())) == jax.tree.structure(Amounts())
    on = amounts(Augment(pitch=(0.9, 1.1)))
    assert [float(x) for x in on.pitch] == [float(np.float32(x)) for x in (0.9, 1.1)]
    assert (mel(KEY, on) != plain).any(axis=(1, 2)).all()
    assert (mel(KEY, on) == mel(KEY, on)).all()
    assert (mel(jax.random.key(4), on) != mel(KEY, on)).any(axis=(1, 2)).all()


def test_each_clip_draws_its_own_factor_uniformly():
    factors = 1 / np.asarray(draw_warp(KEY, clips=4000, factors=(0.9, 1.1)))[:, 0]
    assert 0.9 <= factors.min() < 0.901
    assert 1.099 < factors.max() <= 1.1 + 1e-6
    assert abs(factors.mean() - 1) < 4 * np.sqrt(0.04 / 12 / 4000)


@pytest.mark.parametrize("pair", [(1.1, 0.9), (0.0, 1.0), (float("nan"), 1.0), (1.0, 3.0)])
def test_values_out_of_range_are_refused_in_a_sentence(pair):
    with pytest.raises(ValueError, match=r"pitch is .* to .*; it must be two factors from 0.5 to 2, the lower one"):
        Augment(pitch=pair)
