"""Learned pruning as a task: predictors that learn which patches to keep, beside the classes (Rao et al. 2021).

In each update every stage draws which patches still count, and nothing is removed. A clip's loss is that of its
classes, the distance of its kept share from the ratio, and its distance from the teacher's classes and tokens.
Evaluation removes patches for good, in fixed numbers. Settings are `jaxprune.training.dynamic_settings`', the single
losses `jaxprune.training.dynamic_losses`'.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from jaxprune.data.batches import Batches
from jaxprune.learned import drawn_decisions, dynamic
from jaxprune.models import Classifier, Output
from jaxprune.parallel.devices import Layout
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.predictors import stage_ratios
from jaxprune.training import augment, dynamic_losses
from jaxprune.training.classification import Classification, Plan
from jaxprune.training.events import Evaluation
from jaxprune.training.optim import NEVER_DECAYED
from jaxprune.training.settings import Recipe
from jaxprune.training.start import same_classes
from jaxprune.training.task import Sound
from jaxprune.training.teacher import with_teacher, without_teacher

NOISE = 3  # folded into an update's key; `Classification` splits it


@struct.dataclass
class Taught:
    """The results of one update that losses read.

    `decisions` are the stages', 1 to keep and 0 to drop. Patch tokens are those after the final norm. The teacher's
    results are None where no loss reads them.
    """

    decisions: Float[Array, "stages b n"]
    logits: Float[Array, "b y"]
    patches: Float[Array, "b n d"]
    teacher_logits: Float[Array, "b y"] | None
    teacher_patches: Float[Array, "b n d"] | None


Loss = Callable[[Taught], Float[Array, "b"]]


class LearnedPruning(Classification):
    """A recipe's training of a model that has predictors, at the ratios that its keep rate stands for.

    `model.teacher` (`jaxprune.training.teacher`) teaches. The step compiles in one size. Raises `ValueError` where the
    model is not the one that the recipe trains.
    """

    def __init__(self, recipe: Recipe, model: Classifier, *, steps_per_epoch: int, seed: int = 0):
        super().__init__(recipe, model, steps_per_epoch=steps_per_epoch, seed=seed)
        if model.config.predictors != recipe.prune.predictors:
            raise ValueError(
                f"the model has predictors at blocks {list(model.config.predictors)}, but the recipe {recipe.name} "
                f"calls for {list(recipe.prune.predictors)}"
            )
        ratios = stage_ratios(recipe.prune.keep_rate, stages=len(model.config.predictors))
        self._losses = weighted_losses(recipe, ratios=ratios)

    @classmethod
    def begin(cls, recipe: Recipe, model: Classifier, labels: tuple[str, ...]) -> Classifier:
        """The model with itself as the teacher. Raises `ValueError` where that has nothing to teach."""
        if not recipe.dynamic.taught:
            return model
        if not recipe.start.checkpoint:
            raise ValueError(
                "the teacher would be the model that the run starts from, whose weights are random; start from a "
                "trained one (--start.checkpoint) or do without (--dynamic.classes-weight 0 --dynamic.tokens-weight 0)"
            )
        if recipe.dynamic.classes_weight and not same_classes(recipe, labels):
            raise ValueError(
                "the teacher would be the model that the run starts from, whose head is new; fine-tune that first, or "
                "do without its classes (--dynamic.classes-weight 0)"
            )
        return with_teacher(model, model)

    @classmethod
    def end(cls, model: Classifier) -> Classifier:
        """The model without the teacher."""
        return without_teacher(model)

    def plan(self, step: int) -> Plan:
        """An update's plan, the same for every step: all augmentation stays on."""
        return Plan(keep_rate_now=self.recipe.prune.keep_rate, policy=Policy(self.score, {}), **self._augmented)

    def losses(self, model: Classifier, key: Key[Array, ""], sound: Sound, plan: Plan) -> Float[Array, "b"]:
        """Each clip's loss, augmented and with patches masked out before the blocks."""
        seen = self.seen(key, sound, plan)
        clips, patches = len(seen.mel), augment.visible_count(self.config, hidden=plan.hidden)
        blocks = self.config.predictors
        noise = jax.random.gumbel(jax.random.fold_in(key, NOISE), (len(blocks), clips, patches, 2))
        output = model(seen.mel, drawn_decisions(model, noise), visible=seen.visible, drop_path=seen.drop_path)
        taught = Taught(
            decisions=jnp.stack([output.trace[block].decision for block in blocks]),
            logits=output.logits,
            patches=patch_codes(model, output),
            teacher_logits=None,
            teacher_patches=None,
        )
        if self.recipe.dynamic.taught:
            teacher = model.teacher(seen.mel, visible=seen.visible)
            taught = taught.replace(teacher_logits=teacher.logits, teacher_patches=patch_codes(model.teacher, teacher))
        return self.of_classes(output, seen) + sum(weight * loss(taught) for weight, loss in self._losses)

    def pace(self, name: str, step: Array) -> Array | float:
        """The factor on a parameter's learning rate in an update: 1 for predictors, less for all others."""
        settings, part = self.recipe.dynamic, name.partition(".")[0]
        if part == "predictors":
            return 1.0
        if part in NEVER_DECAYED and not settings.embeddings:
            return 0.0
        return jnp.where(step < settings.alone * self.steps_per_epoch, 0.0, settings.slow)

    def policy(self, model: Classifier, keep_rate: float) -> Policy:
        """Learned pruning with fixed numbers of patches."""
        return dynamic(model, keep_rate)

    def evaluate(
        self, model: Classifier, batches: Batches, *, step: int, layout: Layout, **asked: object
    ) -> Evaluation:
        """Evaluates as `Classification.evaluate` does, with patches removed for good."""
        return super().evaluate(without_teacher(model), batches, step=step, layout=layout, **asked)


def weighted_losses(recipe: Recipe, *, ratios: tuple[float, ...]) -> list[tuple[float, Loss]]:
    """The losses beside that of the labels, each with its weight. Weights of 0 are left out."""
    settings = recipe.dynamic
    of_classes = {"ce": dynamic_losses.divergence, "bce": dynamic_losses.binary_divergence}[recipe.loop.loss]
    of_ratio = {"clip": dynamic_losses.ratio_loss, "batch": dynamic_losses.batch_ratio_loss}[settings.bound]
    of_tokens = {"square": dynamic_losses.token_square_error, "divergence": dynamic_losses.token_divergence}[
        settings.tokens
    ]
    losses: list[tuple[float, Loss]] = [
        (settings.ratio_weight / len(ratios), lambda taught: of_ratio(taught.decisions, ratios)),
        (settings.classes_weight, lambda taught: of_classes(taught.logits, taught.teacher_logits)),
        (
            settings.tokens_weight,
            lambda taught: of_tokens(taught.patches, taught.teacher_patches, kept=taught.decisions[-1]),
        ),
    ]
    return [(weight, loss) for weight, loss in losses if weight]


def patch_codes(model: Classifier, output: Output) -> Float[Array, "b n d"]:
    """The patch tokens after the last block and the model's final norm, which AudioMAE has behind its mean."""
    return model.final_norm(output.trace[-1].tokens)[:, model.config.extra_tokens :]
