"""DynamicViT as policies: patches that learned predictors keep, at inference and in training (Rao et al. 2021).

A model that has predictors brings them along (`ModelConfig.predictors`); others can be given. The parts are in
`jaxprune.reduction.dynamic`, the recipe that trains them is `jaxprune.training.dynamic`'s.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from jaxtyping import Array, Float

from jaxprune.config import ModelConfig
from jaxprune.methods import rate_for
from jaxprune.models import Classifier
from jaxprune.reduction.dynamic import Counted, Drawn, Predicted, Undecided
from jaxprune.reduction.policy import Policy, default_blocks
from jaxprune.reduction.predictors import Predictor, ratio_count, stage_ratios

Predictors = Sequence[Predictor] | Mapping[int, Predictor]


def dynamic(model: Classifier, ratios: float | Sequence[float], predictors: Predictors | None = None) -> Policy:
    """Learned pruning with static counts: a stage keeps trunc(ratio * n) of the model's n patches.

    The patches of highest probability stay, chosen before the block's attention. `ratios` are shares of all patches,
    one a stage, falling; one number r stands for r, r ** 2, r ** 3, as published. `predictors` are the model's own
    unless given: one a stage for blocks 3, 6 and 9, or a mapping from 0-based block to predictor. A stage that would
    keep all patches that reach it is left out: its predictor would be computed for nothing.

    Raises `ValueError` where there are no predictors, for predictors of another width or number, and for ratios outside
    (0, 1], ratios that rise, and a ratio that keeps nothing.
    """
    stages = _stages(model, predictors)
    counts = stage_counts(model.config, tuple(stages), ratios)
    return Policy(model.score, {block: Predicted(count, stages[block]) for block, count in counts.items()})


def stage_counts(config: ModelConfig, blocks: Sequence[int], ratios: float | Sequence[float]) -> dict[int, int]:
    """The patches that each stage keeps, by its block, of rising `blocks`; stages that would keep all are left out.

    Raises `ValueError` as `dynamic` for the ratios.
    """
    counts = [ratio_count(ratio, config.patches) for ratio in stage_ratios(ratios, stages=len(blocks))]
    entering = itertools.pairwise((config.patches, *counts))
    return {block: count for block, (there, count) in zip(blocks, entering, strict=True) if count < there}


def rate_for_saving(config: ModelConfig, blocks: Sequence[int], saving: float) -> float:
    """The rate at which predictors at `blocks` save a share of the multiply-accumulates. Raises `ValueError` as
    `jaxprune.tome` for a saving that cannot be had."""

    def stages(rate: float) -> dict[int, Counted]:
        return {block: Counted(count) for block, count in stage_counts(config, sorted(blocks), rate).items()}

    rates = (step / 1000 for step in range(1, 1001))
    lowest = next(rate for rate in rates if math.trunc(config.patches * rate ** len(blocks)) > 0)
    return rate_for(config, stages, saving, lowest=lowest)


def drawn_decisions(
    model: Classifier, noise: Float[Array, "stages b n 2"], predictors: Predictors | None = None
) -> Policy:
    """Learned pruning as it is trained: every patch stays, and each stage draws who still counts.

    `noise` is Gumbel noise (`jax.random.gumbel`) for each stage, clip and patch that enters block 0. Stages' decisions
    are in the trace (`BlockTrace.decision`), 1 to keep and 0 to drop, with straight-through gradients. Logits of an
    AudioMAE are of the mean over the patches that the last stage kept. Raises `ValueError` as `dynamic`.
    """
    stages = _stages(model, predictors)
    if len(noise) != len(stages):
        raise ValueError(f"noise was given for {len(noise)} stages, but there are {len(stages)} predictors")
    reductions = {
        block: Drawn(predictor, drawn) for (block, predictor), drawn in zip(stages.items(), noise, strict=True)
    }
    return Policy(model.score, {0: Undecided()} | reductions)


def _stages(model: Classifier, predictors: Predictors | None) -> dict[int, Predictor]:
    """The predictor of each stage by its block, rising, checked against the model."""
    config = model.config
    if predictors is None:
        predictors = dict(zip(config.predictors, model.predictors, strict=True))
        if not predictors:
            raise ValueError(
                "the model has no predictors, which learned pruning needs; train them (jaxprune finetune with "
                "--prune.method dynamic) or convert a checkpoint that holds them"
            )
    if not isinstance(predictors, Mapping):
        blocks = config.predictors or default_blocks(config.depth)
        if len(predictors) != len(blocks):
            raise ValueError(
                f"{len(predictors)} predictors were given for blocks {list(blocks)}; give one for each, or a mapping "
                "from block to predictor"
            )
        predictors = dict(zip(blocks, predictors, strict=True))
    for block, predictor in predictors.items():
        if block not in range(config.depth):
            raise ValueError(f"block {block!r} cannot have a predictor: the model's blocks are 0 to {config.depth - 1}")
        if predictor.width != config.width:
            raise ValueError(
                f"the predictor of block {block} is for width {predictor.width}, but the model's is {config.width}"
            )
    return {block: predictors[block] for block in sorted(predictors)}
