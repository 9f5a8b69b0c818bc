"""Clips played faster or slower, earlier or later: waveforms resampled and moved, inside the jitted step.

Every function is pure and draws for each clip on its own. It takes `waveforms` of 16 kHz with their true `lengths` in
samples, and returns both anew: silence lies beyond the new lengths. Mixing, scaling and everything that acts on
spectrograms is `jaxprune.training.augment`'s matter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from jaxprune.features import SAMPLE_RATE, WINDOW

Number = float | int | Num[Array, ""]

REACH = 8  # samples on either side that a value between two samples is made of


def change_speed(
    key: Key[Array, ""],
    waveforms: Float[Array, "b samples"],
    *,
    lengths: Int[Array, "b"],
    factors: tuple[Number, Number],
) -> tuple[Float[Array, "b samples"], Int[Array, "b"]]:
    """Each clip played at its own speed, uniform between the two `factors`. Pitch moves along, as on a tape.

    At 1.1 a clip lasts 1 / 1.1 as long and sounds 1.1 times as high (Ko et al. 2015, "Audio Augmentation for Speech
    Recognition", who draw from 0.9, 1 and 1.1). A clip that outgrows its row loses as much at its beginning as at its
    end; one that shrinks ends earlier. At least 400 samples remain. At factors of 1 the sound is the very input.

    Values between samples come from twice the rate, where a windowed sinc puts them, and are linear in between: tones
    up to 4 kHz come out within 8 % of their amplitude. What a factor above 1 lifts beyond 8 kHz folds back.
    """
    clips, samples = waveforms.shape
    low, high = factors
    factor = low + (high - low) * jax.random.uniform(key, (clips, 1))
    lengths = lengths[:, None]
    lost = jnp.maximum(lengths - samples * factor, 0) / 2  # at either end
    played = jnp.clip(jnp.ceil((lengths - 2 * lost) / factor).astype(jnp.int32), WINDOW, samples)
    # Sample i comes from i + ahead. float32 holds this small part of the place more finely than the place.
    i = jnp.arange(samples)[None]
    ahead = lost + i * (factor - 1)
    whole = jnp.floor(ahead)
    halves = 2 * (ahead - whole)  # of a sample, in [0, 2)
    left = 2 * (i + whole.astype(jnp.int32)) + (halves >= 1)
    doubled = twice_the_rate(jnp.where(inside(waveforms, lengths[:, 0]), waveforms, 0))
    one, other = (jnp.take_along_axis(doubled, at, axis=1, mode="fill", fill_value=0) for at in (left, left + 1))
    return jnp.where(i < played, one + (halves % 1) * (other - one), 0), played[:, 0]


def shift_in_time(
    key: Key[Array, ""], waveforms: Float[Array, "b samples"], *, lengths: Int[Array, "b"], most: Number
) -> tuple[Float[Array, "b samples"], Int[Array, "b"]]:
    """Each clip moved by a time uniform in [-`most`, `most`] seconds, and by half its length at most. Silence moves in.

    Nothing is rolled round: what passes either end is lost, as in TensorFlow's example for Speech Commands (Warden
    2018), which shifts by up to 0.1 s. A clip that moves later grows, up to the end of its row, and one that moves
    earlier keeps its length. At 0 seconds the sound is the very input.
    """
    clips, samples = waveforms.shape
    furthest = jnp.minimum(most * SAMPLE_RATE, lengths / 2)
    later = jnp.round(jax.random.uniform(key, (clips,), minval=-1, maxval=1) * furthest).astype(jnp.int32)
    padded = jnp.pad(jnp.where(inside(waveforms, lengths), waveforms, 0), [(0, 0), (samples, samples)])
    moved = jax.vmap(lambda row, start: jax.lax.dynamic_slice(row, (start,), (samples,)))(padded, samples - later)
    return moved, jnp.minimum(lengths + jnp.maximum(later, 0), samples)


def twice_the_rate(waveforms: Float[Array, "b samples"]) -> Float[Array, "b twice"]:
    """The samples with a value put between each and the next, twice as many: silence follows the last."""
    padded = jnp.pad(waveforms, [(0, 0), (REACH - 1, REACH)])
    samples = waveforms.shape[1]
    between = sum(weight * padded[:, k : k + samples] for k, weight in enumerate(_half_way().tolist()))
    return jnp.stack([waveforms, between], axis=2).reshape(len(waveforms), 2 * samples)


@functools.cache
def _half_way() -> np.ndarray:
    """Weights of the `REACH` samples before and after a point half-way: a sinc under a Hann window, of sum 1."""
    away = np.arange(2 * REACH) - (REACH - 0.5)
    weights = np.sinc(away) * np.cos(np.pi * away / (2 * REACH)) ** 2
    return weights / weights.sum()


def inside(waveforms: Float[Array, "b samples"], lengths: Int[Array, "b"]) -> Bool[Array, "b samples"]:
    """True on each row's own samples."""
    return jnp.arange(waveforms.shape[1])[None] < lengths[:, None]
