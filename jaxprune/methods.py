"""The ways to reduce tokens, each as the policy that a model is called with.

What each computes is in `jaxprune.reduction`; here are its published settings, and what is refused. `topk` is
`jaxprune.models`', DynamicViT is `jaxprune.learned`'s.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxprune.config import ModelConfig
from jaxprune.cost import macs
from jaxprune.families import FAMILIES
from jaxprune.models import Classifier, topk
from jaxprune.positions import patch_corners
from jaxprune.reduction.fusing import Fuse
from jaxprune.reduction.merging import Merge, schedule
from jaxprune.reduction.policy import Policy, stage_rates
from jaxprune.reduction.pooling import PoolTime
from jaxprune.reduction.scores import ClsAttention, Lattice, Random, Score

FAR = 0.02  # from the saving that was asked for


def evit(model: Classifier, keep_rate: float | Mapping[int, float], *, score: Score | None = None) -> Policy:
    """EViT (Liang et al. 2022): top-k, whose dropped patches live on as one token.

    `keep_rate` is as in `topk`; a block's count takes in the token fused before. The score is the published one, the
    attention of the CLS query, in both families; `topk`'s own for AudioMAE is `ReceivedAttention()`. Raises
    `ValueError` as `topk`.
    """
    rates = stage_rates(keep_rate, depth=model.config.depth)
    return Policy(ClsAttention() if score is None else score, {block: Fuse(rate) for block, rate in rates.items()})


def tome(
    model: Classifier,
    r: int | tuple[int, float] | Sequence[int] | None = None,
    *,
    proportional: bool = True,
    saving: float | None = None,
) -> Policy:
    """ToMe (Bolya et al. 2023): every block merges the tokens that are most alike.

    `r` tokens leave each block: one number for all, a pair (r, inflection), or a list with one number a block
    (`jaxprune.reduction.merging.schedule`). A block merges half of its patches at most. Instead of r, `saving` is the
    share of the unpruned model's multiply-accumulates to save; the nearest that counts of tokens allow is taken, spread
    evenly over the blocks, one more in the first ones. With `proportional`, attention takes a token's size into
    account; the authors advise it but for an AudioMAE that was trained without merging.

    Raises `ValueError` for both or neither of the two, an r below 0 or above half of the patches, a list that is longer
    than the model is deep, and a saving that cannot be had.
    """
    if (r is None) == (saving is None):
        raise ValueError("merging needs either r, the tokens that leave each block, or a saving; give one of them")
    depth, patches = model.config.depth, model.config.patches
    if saving is not None:
        return for_saving(
            model,
            lambda total: tome(model, _spread(total, depth=depth), proportional=proportional),
            steps=depth * (patches // 2),
            saving=saving,
        )
    counts = schedule(r, depth=depth)
    if (largest := max(counts)) > patches // 2:
        raise ValueError(
            f"r is {largest}, but a block can merge at most half of its tokens, {patches // 2} of this model's "
            f"{patches} patches"
        )
    return Policy(model.score, {block: Merge(r, proportional) for block, r in enumerate(counts)})


def pool(model: Classifier, blocks: Sequence[int] = (3,), *, proportional: bool = True) -> Policy:
    """Average pooling of neighbours in time: each of these blocks leaves half of the tokens, and decides nothing.

    `proportional` is as in `tome`. Raises `ValueError` for a block that the model does not have or that is named twice.
    """
    blocks = sorted(stage_rates(dict.fromkeys(blocks, 1.0), depth=model.config.depth))
    (time, freq), fastest, stages = model.config.grid, FAMILIES[model.config.family].fastest, {}
    for block in blocks:
        stages[block] = PoolTime((time, freq), fastest, proportional)
        time = -(-time // 2)
    return Policy(model.score, stages)


def grid(model: Classifier, keep_rate: float | Mapping[int, float]) -> Policy:
    """Top-k of a fixed order of patches, of which any first part is spread evenly over the spectrogram.

    The order is that of frac(0.7549 t + 0.5698 f), a lattice in time and frequency (Roberts 2018, "The unreasonable
    effectiveness of quasirandom sequences"), so that a keep rate needs no grid of its own. Raises `ValueError` as
    `topk`.
    """
    return topk(model, keep_rate, score=Lattice(jnp.asarray(_lattice(model.config), jnp.float32)))


def random(model: Classifier, keep_rate: float | Mapping[int, float], *, seed: int = 0) -> Policy:
    """Top-k of patches drawn at random, anew in each block. Raises `ValueError` as `topk`."""
    return topk(model, keep_rate, score=Random(jax.random.key(seed)))


def for_saving(model: Classifier, make: Callable[[int], Policy], *, steps: int, saving: float) -> Policy:
    """Of the policies `make(0)` to `make(steps)`, each cheaper than the one before, the nearest to a saving.

    `saving` is the share of the unpruned model's multiply-accumulates. Raises `ValueError` for one outside [0, 1), and
    for one that lies more than 0.02 from what the policies reach.
    """
    if not 0 <= saving < 1:
        raise ValueError(f"saving is {saving}; it must be a share of the cost, 0 or more and less than 1")
    whole = macs(model, topk(model, {}))

    def saved(step: int) -> float:
        return 1 - macs(model, make(step)) / whole

    above = bisect.bisect_left(range(steps), saving, key=saved)
    step = min((step for step in (above - 1, above) if step >= 0), key=lambda step: abs(saved(step) - saving))
    if abs(saved(step) - saving) > FAR:
        raise ValueError(
            f"a saving of {saving:g} cannot be had this way; it reaches from {saved(0):.3g} to {saved(steps):.3g}, and "
            f"comes nearest with {saved(step):.3g}"
        )
    return make(step)


def _spread(total: int, *, depth: int) -> list[int]:
    """So many tokens over the blocks as evenly as whole numbers can be, one more in the first ones."""
    each, more = divmod(total, depth)
    return [each + (block < more) for block in range(depth)]


def _lattice(config: ModelConfig) -> Float[np.ndarray, "n"]:
    """Each patch's place in the fixed order, from 0 (last to stay) to 1, in the family's patch order."""
    corners = patch_corners(config) / np.array([config.time_stride, config.freq_stride])
    return 1 - (corners @ np.array([0.7548776662466927, 0.5698402909980532])) % 1
