import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import fftconvolve, firwin2

from jaxprune.features import at_floor, log_mel
from jaxprune.training.augment import Amounts, amounts, training_input
from jaxprune.training.filters import draw_gain, random_filter
from jaxprune.training.variation import Augment

RNG = np.random.default_rng(0)
KEY = jax.random.key(5)
MEL = jnp.asarray(RNG.standard_normal((16, 30, 128)).astype(np.float32) - 6)
NOISE = jnp.asarray(RNG.standard_normal((1, 16_000)).astype(np.float32) * 0.1)

filtered = jax.jit(lambda key, most: random_filter(key, MEL, most=most))


def test_a_filter_of_nothing_returns_the_very_input():
    assert (filtered(KEY, jnp.float32(0)) == MEL).all()


def test_a_filter_is_one_gain_a_bin_and_clip_the_same_in_all_frames():
    added = np.asarray(filtered(KEY, jnp.float32(6)) - MEL)
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1], added.shape), atol=2e-6)
    assert len({tuple(np.round(row, 3)) for row in added[:, 0]}) == 16


def test_its_decibels_are_those_of_a_filtered_waveform():
    """scipy designs the same gain as a filter of 4,001 taps; noise through it has the log-mel that is made here."""
    gain = np.asarray(draw_gain(KEY, clips=1, bins=128, most=12.0))[0]
    made = np.asarray(random_filter(KEY, log_mel(NOISE), most=12.0))[0]
    mel = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), 130)[1:-1]
    hertz = 700 * np.expm1(mel / 1127)
    taps = firwin2(4001, [0, *hertz / 8000, 1], 10 ** (np.asarray([gain[0], *gain, gain[-1]]) / 20), nfreqs=2**15 + 1)
    heard = fftconvolve(np.asarray(NOISE[0]), taps, mode="same")[None].astype(np.float32)
    error = (np.asarray(log_mel(jnp.asarray(heard)))[0] - made).mean(axis=0) * 10 / np.log(10)
    heard_bins = ~np.asarray(at_floor(made)).all(axis=0)
    assert heard_bins.sum() > 120
    assert np.ptp(gain) > 5
    assert np.abs(error[heard_bins]).max() < 0.5


def test_a_gain_has_two_to_five_bends_and_is_uniform_at_its_ends():
    drawn = np.asarray(draw_gain(jax.random.key(0), clips=400, bins=128, most=6.0))
    assert np.abs(drawn).max() <= 6
    bent = np.abs(np.diff(drawn, n=2)) > 1e-4  # a bend between two bins shows at both
    starts = (bent & ~np.pad(bent, ((0, 0), (1, 0)))[:, :-1]).sum(axis=1)
    assert starts.min() >= 1  # two bends may meet
    assert starts.max() == 5
    for count in (2, 3, 4, 5):
        assert np.mean(starts == count) > 0.12
    for end in drawn[:, 0], drawn[:, -1]:
        assert abs(end.mean()) < 4 * 6 / np.sqrt(3 * len(end))
        np.testing.assert_allclose(np.quantile(end, (0.1, 0.5, 0.9)), (-4.8, 0, 4.8), atol=0.8)


@pytest.mark.parametrize("ulps", [-2, 0, 2])
def test_silence_stays_silence(ulps):
    """Also where a device's logarithm of the floor is another in its last bits."""
    silent = log_mel(jnp.zeros((16, 16_000)))[:, 10:20] * (1 + ulps * jnp.finfo(jnp.float32).eps)
    quiet = MEL.at[:, 10:20].set(silent)
    made = random_filter(KEY, quiet, most=6.0)
    assert (made[:, 10:20] == silent).all()
    assert (made[:, :10] != quiet[:, :10]).any(axis=(1, 2)).all()


@jax.jit
def mel_of(how):
    """The log-mel of a second of noise, padded to 120 frames, masked at 0."""
    one = {"labels": jnp.eye(1), "frames": 120, "mean": 0.0, "std": 0.5, "padding": "zero"}
    return training_input(KEY, NOISE, lengths=jnp.asarray([16_000]), amounts=how, **one).mel[0]


def test_training_clips_are_filtered_before_they_are_padded_and_masked():
    plain, made = mel_of(Amounts()), mel_of(Amounts(filter=jnp.float32(6)))
    assert (made[98:] == plain[98:]).all()
    assert jnp.abs(made[:98] - plain[:98]).max() > 0.3
    masked = mel_of(Amounts(time_mask=60, freq_mask=60)) != plain
    assert 0.02 < masked.mean() < 0.98
    both = mel_of(Amounts(time_mask=60, freq_mask=60, filter=jnp.float32(6)))
    assert (both == jnp.where(masked, 0, made)).all()


def test_a_recipe_without_a_filter_has_a_program_without_it():
    assert (mel_of(Amounts(filter=jnp.float32(0))) == mel_of(Amounts())).all()
    assert jax.tree.structure(amounts(Augment())) == jax.tree.structure(Amounts())
    assert float(amounts(Augment(filter=6.0)).filter) == 6


@pytest.mark.parametrize("most", [-1.0, float("nan"), 101.0])
def test_an_impossible_filter_is_refused(most):
    with pytest.raises(ValueError, match=f"filter is {most}; it must be from 0 to 100 dB"):
        Augment(filter=most)
