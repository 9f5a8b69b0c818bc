"""Fine-tuning as a task: labelled clips, and a keep rate that falls, or is drawn, from step to step.

The host plans each update (`Plan`): the keep rate, the sizes that it gives and the augmentation that is on. The loss of
a clip is computed on the device. Schedules are `jaxprune.training.schedules`, augmentation is
`jaxprune.training.augment`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxprune.data.batches import Batches
from jaxprune.evaluation.evaluate import evaluate as measure
from jaxprune.evaluation.metrics import LOSSES
from jaxprune.models import Classifier, Output
from jaxprune.parallel.devices import Layout
from jaxprune.reduction.policy import Policy
from jaxprune.registry import by_name, reduced
from jaxprune.training import augment, schedules
from jaxprune.training.events import AtRate, Evaluation, Metric
from jaxprune.training.optim import Pace, finetuning_decay
from jaxprune.training.settings import Recipe
from jaxprune.training.task import Sound
from jaxprune.training.variation import Augment
from jaxprune.vit import DropPath


@struct.dataclass
class Plan:
    """The host's decisions for one update. Another structure of `policy`, or another `hidden`, compiles anew.

    `policy` keeps patches at the rate `keep_rate_now`, which is there to be reported. `hidden` is the share of patch
    rows and columns masked out before the blocks.
    """

    keep_rate_now: augment.Number
    policy: Policy
    amounts: augment.Amounts
    drop_path: Float[Array, ""]
    hidden: float = struct.field(pytree_node=False)


def augmentation(settings: Augment) -> dict[str, Any]:
    """The part of a plan that augmentation decides, by field.

    Make it once a run: new arrays for each update took a fifth of a GPU host's time (docs/performance.md).
    """
    return {
        "amounts": augment.amounts(settings),
        "drop_path": jnp.float32(settings.drop_path),
        "hidden": settings.patch_mask,
    }


@struct.dataclass
class Seen:
    """The input of the model in one update: augmented clips, and the patches that enter block 0 (None: all)."""

    mel: Float[Array, "b t f"]
    labels: Float[Array, "b y"]
    visible: Int[Array, "b n"] | None
    drop_path: DropPath


class Classification:
    """A recipe's fine-tuning of models like the given one. A whole run compiles at most ten sizes
    (`schedules.stages_at`). Keep rates that are drawn follow from `seed`.

    Raises `ValueError` where the model is not the one that the recipe trains.
    """

    decayed = staticmethod(finetuning_decay)
    pace: Pace | None = None  # all parameters have the same learning rate, but for the optimiser's layers

    def __init__(self, recipe: Recipe, model: Classifier, *, steps_per_epoch: int, seed: int = 0):
        check_fit(recipe, model)
        self.recipe, self.config, self.score = recipe, model.config, model.score
        self.steps_per_epoch = steps_per_epoch
        self._schedule = schedules.keep_rate_schedule(recipe.prune, steps_per_epoch=steps_per_epoch, seed=seed)
        self._augmented, self._shrinking = map(augmentation, (recipe.augment, recipe.augment.while_shrinking()))

    @classmethod
    def begin(cls, recipe: Recipe, model: Classifier, labels: tuple[str, ...]) -> Classifier:
        """The model as it is trained, made of the recipe's starting model."""
        return model

    @classmethod
    def end(cls, model: Classifier) -> Classifier:
        """The trained model as it is used."""
        return model

    def plan(self, step: int) -> Plan:
        """An update's plan. From shrink start on SpecAugment and patch masking are off, if the target is below 1.

        Where keep rates are drawn, they stay on.
        """
        prune, now = self.recipe.prune, self._schedule(step)
        fixed = self._shrinking if self._schedule.shrinking(step) else self._augmented
        entering = augment.visible_count(self.config, hidden=fixed["hidden"])
        score = by_name(prune.method).score(self.config, step)
        policy = Policy(score, schedules.stages_at(now, prune, config=self.config, patches=entering))
        return Plan(keep_rate_now=now, policy=policy, **fixed)

    def losses(self, model: Classifier, key: Key[Array, ""], sound: Sound, plan: Plan) -> Float[Array, "b"]:
        """Each clip's loss, augmented and with patches masked out before the blocks."""
        seen = self.seen(key, sound, plan)
        output = model(seen.mel, plan.policy, visible=seen.visible, drop_path=seen.drop_path)
        return self.of_classes(output, seen)

    def seen(self, key: Key[Array, ""], sound: Sound, plan: Plan) -> Seen:
        """The model's input in one update, everything random drawn from `key`."""
        for_input, for_mask, for_drop = jax.random.split(key, 3)
        facts = self.recipe.data
        clips = len(sound.waveforms)
        batch = augment.training_input(
            for_input,
            sound.waveforms,
            lengths=sound.lengths,
            labels=sound.targets,
            amounts=plan.amounts,
            frames=facts.frames,
            mean=facts.mean,
            std=facts.std,
            padding=facts.fill,
            mels=self.config.mels,
        )
        visible = None
        if plan.hidden:
            visible = augment.visible_patches(for_mask, clips=clips, config=self.config, hidden=plan.hidden)
        return Seen(batch.mel, batch.labels, visible, DropPath(for_drop, plan.drop_path))

    def of_classes(self, output: Output, seen: Seen) -> Float[Array, "b"]:
        """Each clip's loss of its classes."""
        loop = self.recipe.loop
        return LOSSES[loop.loss](output.logits, optax.smooth_labels(seen.labels, loop.label_smoothing))

    def policy(self, model: Classifier, keep_rate: float) -> Policy:
        """The policy that the model is evaluated with."""
        prune = self.recipe.prune
        return reduced(model, prune.method, dict.fromkeys(prune.blocks, keep_rate))

    def evaluate(
        self,
        model: Classifier,
        batches: Batches,
        *,
        step: int,
        layout: Layout,
        keep_rates: Sequence[float],
        metric: Metric,
    ) -> Evaluation:
        """The model on every clip of the batches at exactly some keep rates.

        `jaxprune.evaluation.evaluate` does the work and raises what it raises.
        """
        found = measure(
            model,
            batches,
            card=self.recipe.card(self.config),
            policies={rate: self.policy(model, rate) for rate in keep_rates},
            single_label=metric == "accuracy",
            layout=layout,
        )
        names = ("top1", "top5", "mean_average_precision", "auc", "d_prime")
        rates = [
            AtRate(
                keep_rate=rate,
                macs=measured.macs,
                loss=measured.loss,
                **{name: measured.metrics.get(name) for name in names},
                score=next(iter(measured.metrics.values())),
            )
            for rate, measured in found.rates.items()
        ]
        return Evaluation.of(rates, step=step, clips=found.clips, metric=metric)


def check_fit(recipe: Recipe, model: Classifier) -> None:
    """Raises `ValueError` where the model is not the one the recipe trains."""
    config, facts = model.config, recipe.data
    pairs = {
        "family": (config.family, recipe.start.family),
        "frames": (config.frames, facts.frames),
        "classes": (config.classes, facts.classes),
        "compute dtype": (str(model.dtype), recipe.precision.compute),
    }
    for name, (has, wants) in pairs.items():
        if has != wants:
            raise ValueError(f"the model's {name} is {has}, but the recipe {recipe.name} calls for {wants}")
    if beyond := [block for block in recipe.prune.blocks if block >= config.depth]:
        raise ValueError(f"blocks {beyond} cannot prune: the model has blocks 0 to {config.depth - 1}")
