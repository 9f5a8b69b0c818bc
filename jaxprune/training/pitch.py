"""Clips that sound higher or lower at the speed they have: their frequency axis warped, inside the jitted step.

The spectrogram is read at other frequencies, which is all that a model hears of a pitch. The reading is
`jaxprune.features.log_mel`'s; a waveform's speed is `jaxprune.training.tempo`'s matter.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxprune.features import FFT_SIZE, SAMPLE_RATE
from jaxprune.training.tempo import Number

BEND = 4800 * FFT_SIZE / SAMPLE_RATE  # the FFT bin above which the warp bends back, to leave 8 kHz in its place
TOP = FFT_SIZE // 2  # the bin of 8 kHz


def draw_warp(key: Key[Array, ""], *, clips: int, factors: tuple[Number, Number]) -> Float[Array, "{clips} 255"]:
    """A warp of each clip, by its own factor, uniform between the two `factors`: see `warp`."""
    low, high = factors
    return warp(low + (high - low) * jax.random.uniform(key, (clips,)))


def warp(factor: Float[Array, "b"]) -> Float[Array, "b 255"]:
    """The FFT bin, with its fraction, that each of the bins 1 to 255 is read from.

    At 1.1 a tone of 1000 Hz comes out at 1100 Hz, and so does everything up to 4.8 kHz: pitch and formants together.
    Above, the axis is stretched to end at 8 kHz. This is vocal tract length perturbation (Jaitly and Hinton 2013,
    who draw from 0.9 to 1.1): a voice becomes that of a smaller or a larger speaker. The map is the inverse of theirs
    at the factor, which is theirs at 1 / factor. At a factor of 1 each bin is read from itself.
    """
    bins, factor = jnp.arange(1, TOP, dtype=jnp.float32)[None], factor[:, None]
    bend, bent = BEND * jnp.minimum(1, factor), BEND * jnp.minimum(1, 1 / factor)
    above = TOP - (TOP - bent) / (TOP - bend) * (TOP - bins)
    return jnp.where(bins <= bend, bins / factor, above)
