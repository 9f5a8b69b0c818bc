"""Clips as other microphones would have recorded them: each mel bin louder or quieter, inside the jitted step.

A filter multiplies a sound's spectrum, so it adds to the log-mel (FilterAugment, Nam, Kim and Park 2022).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxprune.features import at_floor
from jaxprune.training.tempo import Number

DECIBEL = math.log(10) / 10  # in what log-mel is in: the natural logarithm of power
FEWEST_BENDS, MOST_BENDS = 2, 5


def random_filter(key: Key[Array, ""], mel: Float[Array, "b t f"], *, most: Number) -> Float[Array, "b t f"]:
    """Each clip's log-mel through a filter of its own: `draw_gain`, added to all frames.

    Bins at the floor stay there: silence is silence through any filter. A `most` of 0 returns the input bit for bit.
    """
    gain = draw_gain(key, clips=mel.shape[0], bins=mel.shape[2], most=most)
    return jnp.where(at_floor(mel), mel, mel + DECIBEL * gain[:, None, :])


def draw_gain(key: Key[Array, ""], *, clips: int, bins: int, most: Number) -> Float[Array, "{clips} {bins}"]:
    """The gain of each mel bin in dB: straight lines between both ends and 2 to 5 bends, the paper's linear filters.

    At each of these points the gain is uniform in -`most` to `most`. Bends may lie anywhere; the paper has them 6 bins
    apart at least.
    """
    for_count, for_place, for_gain = jax.random.split(key, 3)
    bends = jax.random.randint(for_count, (clips, 1), FEWEST_BENDS, MOST_BENDS + 1)
    place = (bins - 1) * jax.random.uniform(for_place, (clips, MOST_BENDS))
    place = jnp.where(jnp.arange(MOST_BENDS)[None] < bends, place, 0)  # those left over lie at the low end
    points = jnp.pad(jnp.sort(place, axis=1), ((0, 0), (1, 1)), constant_values=((0, 0), (0, bins - 1)))
    gain = most * jax.random.uniform(for_gain, points.shape, minval=-1, maxval=1)
    return jax.vmap(lambda x, y: jnp.interp(jnp.arange(bins, dtype=jnp.float32), x, y))(points, gain)
