"""Distillation as a task: beside its labels a clip has a teacher's answers, softened (Hinton et al. 2015).

The teacher is a checkpoint, usually the same model unpruned (`Distillation`), or the pass of the same weights at the
highest keep rate (`Sandwich`). A clip's loss is (1 - weight) times that of its labels, plus weight times that of the
teacher's answers. Settings are `jaxprune.training.learning.Distill`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from jaxprune import checkpoint
from jaxprune.config import PADDING_IN_WORDS
from jaxprune.data.batches import Batches
from jaxprune.evaluation.metrics import binary_cross_entropy
from jaxprune.models import Classifier, Output
from jaxprune.parallel.devices import Layout
from jaxprune.reduction.policy import Policy
from jaxprune.training import augment, schedules
from jaxprune.training.classification import Classification, Plan, Seen
from jaxprune.training.dynamic_losses import divergence
from jaxprune.training.events import Evaluation
from jaxprune.training.settings import Recipe
from jaxprune.training.task import Sound
from jaxprune.training.teacher import with_teacher, without_teacher

SoftLoss = Callable[..., Float[Array, "b"]]


def softmax_distance(
    student: Float[Array, "b y"], teacher: Float[Array, "b y"], *, temperature: float
) -> Float[Array, "b"]:
    """T^2 KL(teacher || student) of the softmaxes of logits / T, in nats (Hinton et al. 2015, section 2).

    T^2 keeps the gradient's size whatever the temperature T. No gradient goes to the teacher.
    """
    return temperature**2 * divergence(student / temperature, teacher / temperature)


def sigmoid_distance(
    student: Float[Array, "b y"], teacher: Float[Array, "b y"], *, temperature: float
) -> Float[Array, "b"]:
    """T^2 times the binary cross-entropy of sigmoid(teacher / T) and sigmoid(student / T), averaged over classes.

    No gradient goes to the teacher.
    """
    soft = jax.nn.sigmoid(jax.lax.stop_gradient(teacher) / temperature)
    return temperature**2 * binary_cross_entropy(student / temperature, soft)


SOFT_LOSSES: dict[str, SoftLoss] = {"ce": softmax_distance, "bce": sigmoid_distance}


class Distillation(Classification):
    """A recipe's fine-tuning with `model.teacher` (`jaxprune.training.teacher`), which a checkpoint holds.

    The teacher sees the same augmented clips and the same patches, unpruned and without drop-path.
    """

    @classmethod
    def begin(cls, recipe: Recipe, model: Classifier, labels: tuple[str, ...]) -> Classifier:
        """The model with its teacher. Raises as `teacher_of`."""
        return with_teacher(model, teacher_of(recipe, model, labels=labels))

    @classmethod
    def end(cls, model: Classifier) -> Classifier:
        """The model without the teacher."""
        return without_teacher(model)

    def losses(self, model: Classifier, key: Key[Array, ""], sound: Sound, plan: Plan) -> Float[Array, "b"]:
        """Each clip's loss by its labels and by the teacher."""
        seen = self.seen(key, sound, plan)
        output = model(seen.mel, plan.policy, visible=seen.visible, drop_path=seen.drop_path)
        teacher = model.teacher(seen.mel, visible=seen.visible).logits
        return taught(self, output, seen, teacher=teacher)

    def evaluate(
        self, model: Classifier, batches: Batches, *, step: int, layout: Layout, **asked: object
    ) -> Evaluation:
        """Evaluates as `Classification.evaluate` does. The teacher takes no part."""
        return super().evaluate(without_teacher(model), batches, step=step, layout=layout, **asked)


@struct.dataclass
class SandwichPlan(Plan):
    """`Plan` of several passes: those of `before` come first, that of `policy` last."""

    before: tuple[Policy, ...]


class Sandwich(Classification):
    """Training at several keep rates in each step, the highest of which teaches the others (Yu and Huang 2019).

    A step makes a pass at the highest keep rate, one at the lowest, and one at the rate that is drawn, if that is
    neither. The first learns from the labels. Its answers, without gradient, teach the others. A clip's loss is the
    mean over the passes. Each of them draws its own drop-path.
    """

    def plan(self, step: int) -> SandwichPlan:
        """An update's plan. Its keep rate is the one that is drawn."""
        plan, prune = super().plan(step), self.recipe.prune
        entering = augment.visible_count(self.config, hidden=plan.hidden)
        highest, lowest = (
            Policy(plan.policy.score, schedules.stages_at(rate, prune, config=self.config, patches=entering))
            for rate in (prune.highest, prune.lowest)
        )
        # So all steps that draw one of the ends share a program.
        at_an_end = plan.keep_rate_now in (prune.highest, prune.lowest)
        before, last = ((highest,), lowest) if at_an_end else ((highest, lowest), plan.policy)
        return SandwichPlan(**{**vars(plan), "policy": last}, before=before)

    def losses(self, model: Classifier, key: Key[Array, ""], sound: Sound, plan: SandwichPlan) -> Float[Array, "b"]:
        """Each clip's mean loss over the passes."""
        seen = self.seen(key, sound, plan)
        first, *others = (
            model(
                seen.mel,
                policy,
                visible=seen.visible,
                drop_path=seen.drop_path.replace(key=jax.random.fold_in(seen.drop_path.key, number)),
            )
            for number, policy in enumerate((*plan.before, plan.policy))
        )
        losses = [taught(self, output, seen, teacher=first.logits) for output in others]
        return jnp.mean(jnp.stack([self.of_classes(first, seen), *losses]), axis=0)


def taught(task: Classification, output: Output, seen: Seen, *, teacher: Float[Array, "b y"]) -> Float[Array, "b"]:
    """Each clip's loss by its labels and by the teacher's logits, in the recipe's shares."""
    settings = task.recipe.distill
    soft = SOFT_LOSSES[task.recipe.loop.loss](output.logits, teacher, temperature=settings.temperature)
    return (1 - settings.weight) * task.of_classes(output, seen) + settings.weight * soft


def teacher_of(recipe: Recipe, model: Classifier, *, labels: tuple[str, ...]) -> Classifier:
    """The recipe's teacher for a model and its classes.

    Raises `ValueError` for a teacher of random weights, of other classes, and of other features or patches than the
    model's: it hears the input that the model hears.
    """
    path, facts = recipe.distill.teacher, recipe.data
    card = checkpoint.load_card(path)
    if not card.trained:
        raise ValueError(f"the teacher {path} has random weights, so it has nothing to teach")
    if card.model.classes != facts.classes:
        raise ValueError(
            f"the teacher {path} has {card.model.classes} classes, but the clips have {facts.classes}; choose a "
            "teacher of the same classes"
        )
    if card.labels not in ((), labels):
        raise ValueError(f"the teacher {path} knows other classes than the clips', or in another order")
    pairs = {
        "family": (card.model.family, model.config.family),
        "number of frames": (card.model.frames, facts.frames),
        "number of mel bins": (card.model.mels, model.config.mels),
        "grid of patches": (card.model.grid, model.config.grid),
        "padding": (PADDING_IN_WORDS[card.padding], PADDING_IN_WORDS[facts.fill]),
    }
    differ = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    for name in ("mean", "std"):
        pair = (getattr(card, name), getattr(facts, name))
        if not math.isclose(*pair, rel_tol=1e-6):
            differ[f"feature {name}"] = pair
    for name, (has, wants) in differ.items():
        raise ValueError(
            f"the teacher {path} hears other input: its {name} is {has}, the run's {wants}; a teacher needs the run's "
            "features"
        )
    return checkpoint.load(path, dtype=recipe.precision.compute)
