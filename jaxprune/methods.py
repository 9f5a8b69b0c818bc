"""The ways to reduce tokens, each as the policy that a model is called with.

What each computes is in `jaxprune.reduction`; here are its published settings, and what is refused. `topk` is
`jaxprune.models`', DynamicViT is `jaxprune.learned`'s. `jaxprune.registry` has all of them by name.
"""

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.config import ModelConfig
from jaxprune.cost import macs_of_stages
from jaxprune.families import FAMILIES
from jaxprune.models import Classifier, topk
from jaxprune.positions import patch_corners
from jaxprune.reduction.fusing import Fuse
from jaxprune.reduction.joining import in_turn
from jaxprune.reduction.merging import Merge, schedule
from jaxprune.reduction.policy import Policy, stage_rates
from jaxprune.reduction.pooling import PoolTime
from jaxprune.reduction.scores import ClsAttention, Lattice, Random, Score
from jaxprune.reduction.tokens import Reduction

FAR = 0.02  # from the saving that was asked for
MOST_POOLED = 3  # blocks, where a saving chooses them


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
    share of the unpruned model's multiply-accumulates to save: the nearest that counts of tokens allow, spread evenly
    over the blocks, one more in the first ones. With `proportional`, attention takes a token's size into account; the
    authors advise it but for an AudioMAE that was trained without merging.

    Raises `ValueError` for both or neither of the two, an r below 0 or above half of the patches, a list that is longer
    than the model is deep, and a saving that cannot be had.
    """
    if (r is None) == (saving is None):
        raise ValueError("merging needs either r, the tokens that leave each block, or a saving; give one of them")
    config = model.config
    counts = merges_for(config, saving) if r is None else schedule(r, depth=config.depth)
    if (largest := max(counts)) > config.patches // 2:
        raise ValueError(
            f"r is {largest}, but a block can merge at most half of its tokens, {config.patches // 2} of this model's "
            f"{config.patches} patches"
        )
    return Policy(model.score, {block: Merge(count, proportional) for block, count in enumerate(counts)})


def pool(
    model: Classifier,
    blocks: Sequence[int] | None = None,
    *,
    saving: float | None = None,
    proportional: bool = True,
) -> Policy:
    """Average pooling of neighbours in time: each of some blocks leaves half of the tokens, and decides nothing.

    Blocks are block 3 alone unless given. Instead of them, `saving` is as in `tome`: the nearest that up to three
    blocks reach. `proportional` is as in `tome`. Raises `ValueError` for both of the two, a saving outside [0, 1), and
    a block that the model does not have or that is named twice.
    """
    if blocks is not None and saving is not None:
        raise ValueError("pooling was given blocks and a saving; choose one of them")
    config = model.config
    if saving is not None:
        return Policy(model.score, pools_for(config, saving, proportional=proportional))
    blocks = (3,) if blocks is None else tuple(blocks)
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"the blocks are {list(blocks)}; name each once")
    stage_rates(dict.fromkeys(blocks, 1.0), depth=config.depth)
    return Policy(model.score, _pools(config, blocks, proportional=proportional))


def grid(model: Classifier, keep_rate: float | Mapping[int, float]) -> Policy:
    """Top-k of a fixed order of patches, of which any first part is spread evenly over the spectrogram.

    The order is a lattice in time and frequency (`lattice`), so that a keep rate needs no grid of its own. Raises
    `ValueError` as `topk`.
    """
    return topk(model, keep_rate, score=lattice(model.config))


def random(model: Classifier, keep_rate: float | Mapping[int, float], *, seed: int = 0) -> Policy:
    """Top-k of patches drawn at random, anew in each block. Raises `ValueError` as `topk`."""
    return topk(model, keep_rate, score=Random(jax.random.key(seed)))


def lattice(config: ModelConfig) -> Lattice:
    """The score that keeps the patches t, f of lowest frac(0.7549 t + 0.5698 f), in steps of the patch grid.

    Source: Roberts 2018, "The unreasonable effectiveness of quasirandom sequences", in two dimensions.
    """
    places = patch_corners(config) / np.array([config.time_stride, config.freq_stride])
    return Lattice(jnp.asarray(-((places @ np.array([0.7548776662466927, 0.5698402910980532])) % 1), jnp.float32))


def rate_for(
    config: ModelConfig,
    stages: Callable[[float], Mapping[int, Reduction]],
    saving: float,
    *,
    lowest: float = 0.001,
) -> float:
    """The keep rate, in steps of 0.001, whose stages save this share of the multiply-accumulates, or nearest to it.

    Rates below `lowest` are not tried. Raises `ValueError` as `tome` for a saving that cannot be had.
    """
    steps = round(1000 * (1 - lowest))
    step = _nearest(config, lambda step: stages(round(1 - step / 1000, 3)), steps=steps, saving=saving)
    return round(1 - step / 1000, 3)


def merges_for(
    config: ModelConfig,
    saving: float,
    *,
    visible: int | None = None,
    pruned: Mapping[int, Reduction] = MappingProxyType({}),
) -> tuple[int, ...]:
    """The tokens to merge in each block for a saving, as `tome` has them. `visible` patches enter block 0 (None: all).

    `pruned` are reductions that go before merging and count as saved. Raises `ValueError` as `tome`.
    """

    def spread(total: int) -> tuple[int, ...]:
        each, more = divmod(total, config.depth)
        return tuple(each + (block < more) for block in range(config.depth))

    def stages(total: int) -> dict[int, Reduction]:
        return in_turn(pruned, {block: Merge(count) for block, count in enumerate(spread(total))})

    patches = config.patches if visible is None else visible
    steps = config.depth * (patches // 2)
    return spread(_nearest(config, stages, steps=steps, saving=saving, visible=visible))


def pools_for(config: ModelConfig, saving: float, *, proportional: bool = True) -> dict[int, Reduction]:
    """Pooling at up to three blocks, those whose saving is nearest. Raises `ValueError` for one outside [0, 1)."""
    _check_saving(saving)
    whole = macs_of_stages(config, {})
    choices = (
        blocks for count in range(MOST_POOLED + 1) for blocks in itertools.combinations(range(config.depth), count)
    )
    every = (_pools(config, blocks, proportional=proportional) for blocks in choices)
    return min(every, key=lambda stages: abs(1 - macs_of_stages(config, stages) / whole - saving))


def _nearest(
    config: ModelConfig,
    stages: Callable[[int], Mapping[int, Reduction]],
    *,
    steps: int,
    saving: float,
    visible: int | None = None,
) -> int:
    """Finds the number from 0 to `steps` whose saving is nearest. Each is cheaper than the one before."""
    _check_saving(saving)
    whole = macs_of_stages(config, {}, visible=visible)

    def saved(step: int) -> float:
        return 1 - macs_of_stages(config, stages(step), visible=visible) / whole

    above = bisect.bisect_left(range(steps), saving, key=saved)
    step = min((step for step in (above - 1, above) if step >= 0), key=lambda step: abs(saved(step) - saving))
    if abs(saved(step) - saving) > FAR:
        raise ValueError(
            f"a saving of {saving:g} cannot be had this way; savings reach from {saved(0):.3g} to {saved(steps):.3g}, "
            f"and the nearest is {saved(step):.3g}"
        )
    return step


def _pools(config: ModelConfig, blocks: Sequence[int], *, proportional: bool) -> dict[int, Reduction]:
    """Pooling at each of the blocks, of the grid that the one before left."""
    (time, freq), fastest, stages = config.grid, FAMILIES[config.family].fastest, {}
    for block in sorted(blocks):
        stages[block] = PoolTime((time, freq), fastest, proportional)
        time = -(-time // 2)
    return stages


def _check_saving(saving: float) -> None:
    if not 0 <= saving < 1:
        raise ValueError(f"saving is {saving}; it must be a share of the cost, 0 or more and less than 1")
