"""A whole pretraining run in one directory, on the loop and in the layout of a fine-tuning run.

`pretrain` yields what happens, as `jaxprune.training.finetune` does, and now and then `Pictures` of the prediction on
held-out clips. The task is `jaxprune.training.masked`'s, the settings are `jaxprune.training.pretraining_settings`'.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from jaxprune import checkpoint
from jaxprune.config import ModelConfig
from jaxprune.data.batches import eval_batches
from jaxprune.evaluation.reconstruction import mask_keys
from jaxprune.features import model_input
from jaxprune.parallel.processes import by_first, is_first
from jaxprune.pretraining import checkpoint as pretraining_checkpoint
from jaxprune.pretraining.cost import decoder_macs, encoder_macs
from jaxprune.pretraining.model import Pretraining
from jaxprune.training.events import Evaluation
from jaxprune.training.loop import Training
from jaxprune.training.masked import MaskedPrediction
from jaxprune.training.pretraining_settings import PretrainingRecipe
from jaxprune.training.run import Event, Options, Run
from jaxprune.training.run_directory import MODEL, padding_of
from jaxprune.training.start import Sources, folds_named, padded

SHOWN = 4  # clips in a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingOptions(Options):
    """Settings of carrying a pretraining run out."""

    # Epochs between pictures of the prediction; 0: only after the last epoch.
    pictures_every: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The prediction of a few held-out clips after `step` updates.

    `mel` is normalised. `prediction` holds the pixels of every patch, in the scale of the recipe's target: with
    `normalised` that is each patch less its mean and over its deviation. `visible` are the patches that were not
    predicted but seen.
    """

    step: int
    names: tuple[str, ...]
    config: ModelConfig
    mel: Float[np.ndarray, "b t f"]
    visible: Int[np.ndarray, "b k"]
    prediction: Float[np.ndarray, "b n pixels"]
    normalised: bool


def pretrain(
    recipe: PretrainingRecipe,
    out: str | os.PathLike,
    *,
    seed: int,
    sources: Sources = Sources(),  # noqa: B008, both are frozen
    options: PretrainingOptions = PretrainingOptions(),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event | Pictures]:
    """Pretrains by a recipe in the directory `out`, or goes on with the run that is there, yielding what happens.

    Labels are not used. After each epoch the loss on the validation clips is measured, or where there are none on the
    test clips. The model saved is the last, as published. Otherwise as `jaxprune.training.finetune.finetune`.
    """
    dataset = sources.of(recipe, labelled=False).read()
    recipe, notes = folds_named(recipe, dataset), dataset.notices
    recipe, more = padded(recipe, begun=padding_of(out))
    recipe, also = _of_checkpoint(recipe)
    run = _Pretraining(recipe=recipe, dataset=dataset, out=Path(out), seed=seed, options=options)
    yield from run.events((*notes, *more, *also), stop)


class _Pretraining(Run):
    """A run of the masked prediction."""

    recipe: PretrainingRecipe
    options: PretrainingOptions
    chooses = False
    each_epoch: ClassVar[dict[str, Any]] = {}
    at_end: ClassVar[dict[str, Any]] = {}

    def starting_model(self) -> tuple[Pretraining, tuple[str, ...]]:
        return starting_pretraining(self.recipe, seed=self.seed)

    def prepared(self, model: Pretraining, *, steps_per_epoch: int) -> tuple[Pretraining, MaskedPrediction]:
        return model, MaskedPrediction(self.recipe, model, steps_per_epoch=steps_per_epoch)

    def also(self, training: Training, evaluation: Evaluation) -> Iterator[Pictures]:
        """Pictures, every few epochs and after the last."""
        epoch, every = evaluation.step // training.steps_per_epoch, self.options.pictures_every
        if evaluation.step < training.total_steps and (not every or epoch % every):
            return
        model = training.model()  # all processes ask for the weights
        if is_first():
            yield self._pictures(model, step=evaluation.step)

    def costs(self, model: Pretraining, task: MaskedPrediction) -> dict[str, int]:
        """Multiply-accumulates of one clip's forward pass: with the mask, and if the encoder saw all patches."""
        config, visible = model.settings, self.recipe.mask.count(model.config)
        seen, all_seen = (encoder_macs(config.encoder, visible=count) for count in (visible, model.config.patches))
        behind = decoder_macs(config, visible=visible)
        return {
            "macs": seen + behind,
            "unpruned_macs": all_seen + decoder_macs(config, visible=model.config.patches),
            "encoder_macs": seen,
            "unmasked_encoder_macs": all_seen,
            "decoder_macs": behind,
        }

    def save_model(self, model: Pretraining, *, step: int) -> None:
        recipe = self.recipe
        card = recipe.card(
            model.config,
            source=f"pretrained by jaxprune without labels: recipe {recipe.name}, seed {self.seed}, step {step}, "
            f"from {recipe.start.checkpoint or 'scratch'}",
        )
        by_first(lambda: str(pretraining_checkpoint.save(self.out / MODEL, model, card=card, overwrite=True)))

    def _pictures(self, model: Pretraining, *, step: int) -> Pictures:
        facts, config = self.recipe.data, model.config
        held_out = self.dataset.clips(self.selects_on)
        spread = held_out[:: max(1, len(held_out) // SHOWN)][:SHOWN]
        few = dataclasses.replace(self.dataset, records=spread)
        with eval_batches(few, self.selects_on, frames=facts.frames, batch_size=len(spread)) as clips:
            batch = next(clips)
            real = batch.weights > 0
            names = clips.names(batch.indices[real])
        mel = model_input(
            batch.waveforms,
            batch.lengths,
            frames=facts.frames,
            mean=facts.mean,
            std=facts.std,
            padding=facts.fill,
            mels=config.mels,
        )
        visible = self.recipe.mask.draw(mask_keys(jnp.asarray(batch.indices)), config)
        prediction = _predict(model, mel, visible)
        return Pictures(
            step=step,
            names=tuple("/".join(Path(name).parts[-2:]) for name in names),
            config=config,
            mel=np.asarray(mel)[real],
            visible=np.asarray(visible)[real],
            prediction=np.asarray(prediction)[real],
            normalised=self.recipe.normalise,
        )


@nnx.jit
def _predict(model: Pretraining, mel: jax.Array, visible: jax.Array) -> jax.Array:
    return model(mel, visible).prediction


def starting_pretraining(recipe: PretrainingRecipe, *, seed: int) -> tuple[Pretraining, tuple[str, ...]]:
    """The recipe's model, and the changes to the checkpoint, in words.

    It comes from `start.checkpoint`, decoder included, with its position tables fitted to the recipe's frames, or from
    random weights. Raises `ValueError` for a checkpoint that is none of pretraining.
    """
    start, facts, dtype = recipe.start, recipe.data, recipe.precision.compute
    if not start.checkpoint:
        return Pretraining(recipe.model(), dtype=dtype, rngs=nnx.Rngs(seed)), ("the model starts from random weights",)
    loaded = pretraining_checkpoint.load(start.checkpoint)
    before = loaded.config.frames
    fitted = f"the position tables were fitted from {before} frames to {facts.frames}"
    model = pretraining_checkpoint.of_length(loaded, frames=facts.frames, dtype=dtype)
    return model, () if before == facts.frames else (fitted,)


def _of_checkpoint(recipe: PretrainingRecipe) -> tuple[PretrainingRecipe, tuple[str, ...]]:
    """The recipe with the decoder of the checkpoint that it starts from, and a note where that is another."""
    if not recipe.start.checkpoint:
        return recipe, ()
    try:
        decoder = pretraining_checkpoint.decoder_of(checkpoint.load_card(recipe.start.checkpoint))
    except ValueError as error:
        raise ValueError(f"pretraining cannot go on from {recipe.start.checkpoint}: {error}") from error
    if decoder == recipe.decoder:
        return recipe, ()
    return dataclasses.replace(recipe, decoder=decoder), (
        f"the decoder is that of {recipe.start.checkpoint}: {decoder}",
    )
