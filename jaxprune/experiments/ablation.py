"""Ablations of the score: accuracy when patches are chosen by attention, by pixels, the other way round, or at random.

`score_settings` prunes by a score at keep rates, `method_settings` goes another way at the same cost. `range_settings`
keeps the patches whose mean lies in a range, and beside each range as many patches drawn at random. `ablate` measures
all of them in one pass over the data. The command is `jaxprune ablate`.

Extra tokens always stay. A clip without a patch left is answered from them alone. AudioMAE pools patches, so it then
answers from its bias alone. Such clips count in the metrics, and rows tell their number.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxprune.amounts import Saving
from jaxprune.analysis.bootstrap import DEFAULT, Bootstrap, Estimate, mean
from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.data.batches import Batches
from jaxprune.evaluation.per_clip import Answers, Kept, PolicyFor, answer
from jaxprune.models import Classifier, topk
from jaxprune.reduction.policy import Policy, stage_rates, top_k_stages
from jaxprune.reduction.scores import Opposite, PatchMean, PatchStd, RandomByClip, Score
from jaxprune.reduction.selection import MaskedTopK, TopK, Within
from jaxprune.registry import MERGING, rates_for, reduced

ScoreName = Literal["attention", "mean", "std", "lowest-attention", "lowest-mean", "lowest-std", "random"]
# Than the scores' top-k; random, loudest and varied are scores here.
OtherMethod = Literal["evit", "tome", "tome-plain", "dynamic", "grid", "pool", "hybrid"]
SCORES: Mapping[str, Callable[[Classifier], Score]] = {
    "attention": lambda model: model.score,
    "mean": lambda model: PatchMean(),
    "std": lambda model: PatchStd(),
    "lowest-attention": lambda model: Opposite(model.score),
    "lowest-mean": lambda model: Opposite(PatchMean()),
    "lowest-std": lambda model: Opposite(PatchStd()),
}
CHOOSING = (*MERGING, "pool")  # their blocks for a saving
RANDOM, RANGE, AS_MANY, UNPRUNED = "random", "range", "as many at random", "unpruned"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to prune: the score or the method, what stays at which blocks, and the seed (None: nothing is drawn).

    What stays is given by `rates`, one per block, by the `saving` of multiply-accumulates, or by the `range` of patch
    means. Methods that choose their blocks for a saving have none here. `policy_for` makes the policy for a batch.
    """

    score: str
    blocks: tuple[int, ...]
    rates: tuple[float, ...] = ()
    saving: float | None = None
    range: tuple[float, float] | None = None
    seed: int | None = None
    policy_for: PolicyFor = dataclasses.field(compare=False)

    @property
    def keep(self) -> str:
        """The share or range that is kept: 0.7, or 0.83/0.61/0.47 by block, or (-0.58, 0.11) for a range; or what is
        saved: saving 0.3."""
        if self.saving is not None:
            return f"saving {self.saving:g}"
        if self.range is not None:
            return f"({self.range[0]:g}, {self.range[1]:g})"
        every = dict.fromkeys(self.rates) if len(set(self.rates)) == 1 else self.rates
        return "/".join(f"{rate:g}" for rate in every) or "1"

    @property
    def name(self) -> str:
        """A name that no other setting has."""
        where = f" at {','.join(map(str, self.blocks))}" if self.blocks else ""
        return f"{self.score} {self.keep}{where}" + ("" if self.seed is None else f", seed {self.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The result of one setting on a model.

    `metrics` are of all clips (shares from 0 to 1). `accuracy` is top1 with its interval. `drop` is its loss against
    the unpruned model, clip by clip. Both are None if clips have several classes. `kept` has, by pruning block, the
    mean, std (ddof 1, 0 for one clip), lowest and highest number of patches left in a clip.

    `emptied` clips have no patch left. `of_emptied` holds their metrics, `of_others` those of the rest. `macs` is the
    mean cost of a clip if dropped patches are not computed. `macs_as_run` is what was computed here: a range runs
    masked at full length.
    """

    setting: Setting
    clips: int
    metrics: Mapping[str, float]
    accuracy: Estimate | None
    drop: Estimate | None
    kept: Mapping[int, tuple[float, float, int, int]]
    emptied: int
    of_emptied: Mapping[str, float]
    of_others: Mapping[str, float]
    macs: float
    macs_as_run: int


def unpruned(model: Classifier) -> Setting:
    """The setting without pruning, the reference for all others."""
    policy = topk(model, {})
    return Setting(score=UNPRUNED, blocks=(), policy_for=lambda indices, kept: policy)


def score_settings(
    model: Classifier,
    *,
    scores: Iterable[str],
    rates: Iterable[Mapping[int, float]],
    seeds: Iterable[int] = (0,),
) -> list[Setting]:
    """Every score at all `rates` (by block), and `random` once for each seed. Leaves out rates that prune nothing.

    Raises `ValueError` for an unknown score, and as `stage_rates` does.
    """
    settings = []
    every = [stage_rates(one, depth=model.config.depth) for one in rates]
    for score in scores:
        if score not in (*SCORES, RANDOM):
            raise ValueError(f"there is no score {score!r}; choose among {', '.join((*SCORES, RANDOM))}")
        for one in every:
            if all(rate == 1 for rate in one.values()):
                continue
            stages, where = top_k_stages(one), {"blocks": tuple(one), "rates": tuple(one.values())}
            for seed in seeds if score == RANDOM else (None,):
                if seed is None:
                    policy_for = functools.partial(_constant, Policy(SCORES[score](model), stages))
                else:
                    policy_for = functools.partial(_random, seed, stages)
                settings.append(Setting(score=score, **where, seed=seed, policy_for=policy_for))
    return _different(settings)


def method_settings(
    model: Classifier, *, methods: Iterable[OtherMethod], rates: Iterable[Mapping[int, float]]
) -> list[Setting]:
    """Every method at the cost that top-k has at all `rates` (by block). Leaves out rates that prune nothing.

    Raises `ValueError` for an unknown method, and as `stage_rates` does.
    """
    every = [stage_rates(one, depth=model.config.depth) for one in rates]
    return _different(
        [
            Setting(
                score=method,
                blocks=tuple(one),
                rates=tuple(one.values()),
                policy_for=functools.partial(_constant, reduced(model, method, one)),
            )
            for method in methods
            for one in every
            if any(rate < 1 for rate in one.values())
        ]
    )


def saving_settings(
    model: Classifier,
    *,
    scores: Iterable[str],
    methods: Iterable[OtherMethod],
    savings: Iterable[float],
    blocks: tuple[int, ...] = (),
    seeds: Iterable[int] = (0,),
) -> list[Setting]:
    """Every score and every method at the same savings of multiply-accumulates, each as near as its counts allow.

    `blocks` prune, those of 3, 6 and 9 that the model has unless given; merging and pooling choose their own. Raises
    `ValueError` for a saving that cannot be had, and as `score_settings` and `method_settings`.
    """
    settings = []
    for saving in savings:
        if saving <= 0:
            raise ValueError(f"saving is {saving}; it must be greater than 0 (no pruning is always measured)")
        one = rates_for(model.config, Saving(saving, blocks))
        of_scores = score_settings(model, scores=scores, rates=[one], seeds=seeds)
        settings += [dataclasses.replace(setting, saving=saving) for setting in of_scores]
        for method in methods:
            own, where = ((), ()) if method in CHOOSING else (blocks, tuple(one))
            policy_for = functools.partial(_constant, reduced(model, method, Saving(saving, own)))
            settings.append(Setting(score=method, blocks=where, saving=saving, policy_for=policy_for))
    return _different(settings)


def range_settings(
    model: Classifier, bounds: Sequence[float], *, blocks: Iterable[int], seed: int | None = 0
) -> list[Setting]:
    """Settings that keep the patches whose mean lies strictly inside a range, after each of `blocks` alone.

    The ranges are all runs of neighbouring intervals between the rising `bounds`, except the run over all. With the
    bounds of five clusters that gives each cluster alone, all but the lowest, and so on. A control follows each range:
    as many of each clip's patches, drawn at random with `seed` (None: no controls). Raises `ValueError` for fewer than
    two bounds, bounds that do not rise, and a block the model lacks.
    """
    bounds = tuple(float(bound) for bound in bounds)
    if len(bounds) < 2 or not all(low < high for low, high in itertools.pairwise(bounds)):
        raise ValueError(f"the bounds are {list(bounds)}; give at least two, rising")
    last = len(bounds) - 1
    runs = [(i, j) for width in range(1, last + 1) for i in range(last) if (j := i + width) <= last]
    settings = []
    for block in stage_rates(dict.fromkeys(blocks, 1.0), depth=model.config.depth):
        for i, j in runs:
            if (i, j) == (0, last) and last > 1:
                continue
            low, high = bounds[i], bounds[j]
            inside = Policy(PatchMean(), {block: Within(jnp.float32(low), jnp.float32(high))})
            policy_for = functools.partial(_constant, inside)
            kept_by = Setting(score=RANGE, blocks=(block,), range=(low, high), policy_for=policy_for)
            settings.append(kept_by)
            if seed is not None:
                control = functools.partial(_as_many, kept_by.name, block, seed, model.config.patches)
                settings.append(dataclasses.replace(kept_by, score=AS_MANY, seed=seed, policy_for=control))
    return _different(settings)


def ablate(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    settings: Sequence[Setting],
    single_label: bool,
    watch: Callable[[int], None] = lambda clips: None,
) -> Answers:
    """Answers every clip without pruning and under every setting, in one pass.

    Arguments and errors are as in `answer`.
    """
    asked = {setting.name: setting.policy_for for setting in [unpruned(model), *settings]}
    return answer(model, batches, card=card, policies=asked, single_label=single_label, watch=watch)


def summarize(
    model: Classifier,
    answers: Answers,
    *,
    settings: Sequence[Setting],
    base: Answers | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> list[Row]:
    """A row for the unpruned model and for each setting of `ablate`.

    Drops are against the unpruned model of `base`. It may hold another model's answers to the same clips; the default
    is `answers` itself. Raises `ValueError` if `base` has other clips.
    """
    base = answers if base is None else base
    if not np.array_equal(base.index, answers.index):
        raise ValueError(f"the models answered other clips: {base.clips} and {answers.clips} of them were usable")
    settings = [unpruned(model), *settings]
    none = unpruned(model)
    accuracies = drops = [None] * len(settings)
    if answers.ranks:
        right = np.stack([answers.ranks[setting.name] < 1 for setting in settings], axis=1).astype(float)
        before = (base.ranks[none.name] < 1).astype(float)[:, None]
        found = mean(np.concatenate([right, before - right], axis=1), bootstrap=bootstrap)
        accuracies, drops = [[found[i + start] for i in range(len(settings))] for start in (0, len(settings))]
    return [
        _row(model, answers, setting, accuracy=accuracy, drop=drop)
        for setting, accuracy, drop in zip(settings, accuracies, drops, strict=True)
    ]


def seed_spread(rows: Iterable[Row], *, metric: str) -> dict[tuple[str, str, tuple[int, ...]], tuple[float, float]]:
    """Mean and standard deviation (ddof 1) of a metric over seeds, for each (score, keep, blocks) with several."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[float]] = {}
    for row in rows:
        key = row.setting.score, row.setting.keep, row.setting.blocks
        groups.setdefault(key, []).append(row.metrics[metric])
    return {
        key: (float(np.mean(found)), float(np.std(found, ddof=1))) for key, found in groups.items() if len(found) > 1
    }


def mean_macs(model: Classifier, kept: Mapping[int, Int[np.ndarray, "clips"]]) -> float:
    """Mean multiply-accumulates of a clip, from its kept patches by pruning block. Dropped patches cost nothing."""
    if not kept:
        return float(macs(model, topk(model, {})))
    blocks = sorted(kept)
    counts, times = np.unique(np.stack([kept[block] for block in blocks], axis=1), axis=0, return_counts=True)
    each = [macs(model, Policy(model.score, _gathered(blocks, row))) for row in counts]
    return float(np.average(each, weights=times))


def clip_keys(seed: int, indices: Int[Array, "b"]) -> Key[Array, "b"]:
    """A key for each clip, by its place in the split."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)


def _row(
    model: Classifier, answers: Answers, setting: Setting, *, accuracy: Estimate | None, drop: Estimate | None
) -> Row:
    kept = answers.kept[setting.name]
    empty = np.zeros(answers.clips, bool) if not kept else kept[max(kept)] == 0
    in_range = setting.range is not None  # runs masked at full length
    as_run = macs(model, topk(model, {}) if in_range else setting.policy_for(jnp.arange(1), {}))
    return Row(
        setting=setting,
        clips=answers.clips,
        metrics=answers.metrics(setting.name),
        accuracy=accuracy,
        drop=drop,
        kept={block: _spread(counts) for block, counts in kept.items()},
        emptied=int(empty.sum()),
        of_emptied=answers.metrics(setting.name, among=empty),
        of_others=answers.metrics(setting.name, among=~empty),
        macs=mean_macs(model, kept) if in_range else float(as_run),
        macs_as_run=as_run,
    )


def _spread(counts: Int[np.ndarray, "clips"]) -> tuple[float, float, int, int]:
    std = float(counts.std(ddof=1)) if len(counts) > 1 else 0.0
    return float(counts.mean()), std, int(counts.min()), int(counts.max())


def _gathered(blocks: Sequence[int], counts: Int[np.ndarray, "stages"]) -> dict[int, Any]:
    """Stages that go on with exactly this many patches."""
    return {block: MaskedTopK(jnp.int32(count), int(count)) for block, count in zip(blocks, counts, strict=True)}


def _constant(policy: Policy, indices: Int[Array, "b"], kept: Kept) -> Policy:
    return policy


def _random(seed: int, stages: dict[int, TopK], indices: Int[Array, "b"], kept: Kept) -> Policy:
    return Policy(RandomByClip(clip_keys(seed, indices)), stages)


def _as_many(name: str, block: int, seed: int, patches: int, indices: Int[Array, "b"], kept: Kept) -> Policy:
    return Policy(RandomByClip(clip_keys(seed, indices)), {block: MaskedTopK(kept[name][block], patches)})


def _different(settings: list[Setting]) -> list[Setting]:
    """The settings. Raises `ValueError` if two are the same."""
    names = [setting.name for setting in settings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{twice[0]!r} is asked for more than once; name each score, rate, range, block and seed once")
    return settings
