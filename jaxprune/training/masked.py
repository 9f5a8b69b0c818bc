"""Pretraining as a task: clips without their labels, masks drawn anew in each update, and the error of the prediction.

The masks, decoders and the loss are `jaxprune.pretraining`'s; the loss on held-out clips is
`jaxprune.evaluation.reconstruction`'s.
"""

import jax
from flax import struct
from jaxtyping import Array, Float, Key

from jaxprune.data.batches import Batches
from jaxprune.evaluation.reconstruction import held_out_loss
from jaxprune.parallel.devices import Layout
from jaxprune.pretraining.decoders import BiasDropout
from jaxprune.pretraining.model import Pretraining
from jaxprune.training import augment
from jaxprune.training.events import Evaluation
from jaxprune.training.pretraining_settings import PretrainingRecipe
from jaxprune.training.task import Sound


@struct.dataclass
class Plan:
    """The host's decisions for one update, the same for all: the share of patches that the encoder sees, and the
    variation of the sound."""

    keep_rate_now: augment.Number
    amounts: augment.Amounts


class MaskedPrediction:
    """A recipe's pretraining of models like the given one, in one compiled size.

    Raises `ValueError` where the model is not the one that the recipe trains.
    """

    pace = None  # every parameter learns at the same rate

    def __init__(self, recipe: PretrainingRecipe, model: Pretraining, *, steps_per_epoch: int):
        pairs = {
            "frames": (model.config.frames, recipe.data.frames),
            "decoder": (model.settings.decoder, recipe.decoder),
            "compute dtype": (str(model.dtype), recipe.precision.compute),
        }
        for name, (has, wants) in pairs.items():
            if has != wants:
                raise ValueError(f"the model's {name} is {has}, but the recipe {recipe.name} calls for {wants}")
        self.recipe, self.config, self.steps_per_epoch = recipe, model.config, steps_per_epoch
        self.visible = recipe.mask.count(model.config) / model.config.patches
        self._plan = Plan(keep_rate_now=self.visible, amounts=augment.amounts(recipe.augment))

    def plan(self, step: int) -> Plan:
        """An update's plan, the same for every step."""
        return self._plan

    def losses(self, model: Pretraining, key: Key[Array, ""], sound: Sound, plan: Plan) -> Float[Array, "b"]:
        """Each clip's loss, under a mask of its own."""
        for_input, for_masks, for_bias = jax.random.split(key, 3)
        recipe = self.recipe
        batch = augment.training_input(
            for_input,
            sound.waveforms,
            lengths=sound.lengths,
            labels=sound.targets,
            amounts=plan.amounts,
            frames=recipe.data.frames,
            mean=recipe.data.mean,
            std=recipe.data.std,
            padding=recipe.data.fill,
            mels=self.config.mels,
        )
        visible = recipe.mask.draw(jax.random.split(for_masks, len(batch.mel)), self.config)
        dropout = BiasDropout(for_bias, recipe.bias_dropout) if recipe.bias_dropout else None
        return model.losses(batch.mel, visible, normalise=recipe.normalise, dropout=dropout)

    def decayed(self, name: str, ndim: int) -> bool:
        """The released code's rule: no decay of biases and norms. CLS and the mask token are decayed, because there
        they have three axes."""
        return ndim > 1 or name == "mask_token"

    def evaluate(self, model: Pretraining, batches: Batches, *, step: int, layout: Layout) -> Evaluation:
        """The loss on every clip of the batches. The score is the loss times -1: the higher, the better."""
        recipe = self.recipe
        found = held_out_loss(
            model,
            batches,
            card=recipe.card(self.config),
            mask=recipe.mask,
            normalise=recipe.normalise,
            layout=layout,
        )
        return Evaluation(
            step=step,
            keep_rate=self.visible,
            clips=found.clips,
            loss=found.loss,
            top1=None,
            top5=None,
            mean_average_precision=None,
            auc=None,
            d_prime=None,
            metric="loss",
            score=-found.loss,
        )
