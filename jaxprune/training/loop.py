"""The training loop: one jitted step that does everything from waveforms to new weights, and the run around it.

A `Training` holds a recipe's compiled programs and the present state. The host decides what a step needs fixed before
the call (`Plan`: keep rate, token counts, which augmentation is on); the device does the rest, from a key that is a
function of (seed, step), so a run is decided by its recipe, data and seed, and goes on from a saved state as if never
interrupted. Steps are updates, counted from 0; a state of step n has seen n updates. Settings are
`jaxprune.training.settings`, what is reported `jaxprune.training.events`, what is saved
`jaxprune.training.checkpoints`, where arrays lie `jaxprune.parallel.devices`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from jaxprune.checkpoint import dotted
from jaxprune.data import batches as data
from jaxprune.evaluation.evaluate import evaluate as measure
from jaxprune.evaluation.metrics import LOSSES, weighted_mean
from jaxprune.models import Classifier, abstract, topk
from jaxprune.parallel.devices import Layout, on_host
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.selection import Stage
from jaxprune.training import augment, schedules
from jaxprune.training.events import Evaluation, Metric, Step, not_finite, offenders
from jaxprune.training.optim import optimizer
from jaxprune.training.settings import Augment, Recipe
from jaxprune.vit import DropPath

Weights = dict[str, Array]  # by dotted name
# The stages for a keep rate and the patches that enter block 0.
Stages = Callable[[float, int], Mapping[int, Stage]]


@struct.dataclass
class State:
    """Everything that changes in training: trained `params` and fixed `tables` by dotted name, the optimiser's state,
    and `step`, the number of updates made."""

    params: Weights
    tables: Weights
    optimizer: Any
    step: Int[Array, ""]


@struct.dataclass
class Sound:
    """A batch on the device: `jaxprune.data.batches.Batch` without its indices."""

    waveforms: Float[Array, "b samples"]
    lengths: Int[Array, "b"]
    targets: Float[Array, "b y"]
    weights: Float[Array, "b"]


@struct.dataclass
class Measured:
    """What a step reports: the mean loss, each clip's (in the batch's order), the gradient's global norm, and the
    learning rate."""

    loss: Float[Array, ""]
    losses: Float[Array, "b"]
    gradient: Float[Array, ""]
    lr: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the host decides for one step; another structure of `policy` or share of `hidden` patches compiles anew."""

    keep_rate: float
    policy: Policy
    augment: Augment


class Training:
    """A run of a recipe: its compiled programs, and the `state` that `fit` moves on.

    `steps_per_epoch` is the loader's (`Batches.steps`). The devices of `layout` (default: all, each with all weights)
    share each batch; a batch, and each of its `accumulate` parts, must divide by their number. `stages` maps a keep
    rate to stages: by default `schedules.stages_at`, whose whole run compiles at most ten sizes.

    Of several processes each has such a training and its rows of every batch, and all call the same methods.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Classifier,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        layout: Layout | None = None,
        stages: Stages | None = None,
    ):
        check_fit(recipe, model)
        self.layout = Layout() if layout is None else layout
        self.layout.check(recipe.loop.batch // recipe.loop.accumulate)
        self.recipe, self.config, self.score, self.seed = recipe, model.config, model.score, seed
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = recipe.loop.epochs * steps_per_epoch
        self.compilations = 0  # sizes the step has been traced for
        self._stages = stages or (lambda rate, patches: schedules.stages_at(rate, recipe.prune, patches=patches))
        self._keep_rate = schedules.keep_rate(recipe.prune, steps_per_epoch=steps_per_epoch)
        self._lr = schedules.learning_rate(recipe, steps_per_epoch=steps_per_epoch)
        self._optimizer = optimizer(recipe.optimizer, self._lr, depth=model.config.depth)
        self._graph, shapes = nnx.split(abstract(model.config, dtype=model.dtype))
        self._leaves = list(nnx.to_flat_state(shapes))
        # Copies, because the step reuses its buffers: the caller's model stays whole.
        params, tables = (
            self.layout.put({dotted(path): on_host(leaf[...]) for path, leaf in nnx.to_flat_state(part)})
            for part in nnx.state(model, nnx.Param, ...)
        )
        moments = jax.jit(lambda params: self.layout.lay(self._optimizer.init(params)))(params)
        self.state = State(params, tables, moments, self.layout.put(jnp.int32(0)))
        # The seed is not part of the program: runs share it.
        self._key = jax.jit(jax.random.key, out_shardings=self.layout.whole)(seed)
        self._step = jax.jit(self._update, static_argnames="hidden", donate_argnums=0)

    def plan(self, step: int) -> Plan:
        """What the step is to do. From shrink start on SpecAugment and patch masking are off, if the base is below
        1."""
        settings = self.recipe.augment
        if self._keep_rate.shrinking(step):
            settings = settings.while_shrinking()
        entering = augment.visible_count(self.config, hidden=settings.patch_mask)
        rate = self._keep_rate(step)
        return Plan(keep_rate=rate, policy=Policy(self.score, dict(self._stages(rate, entering))), augment=settings)

    def step(self, batch: data.Batch) -> Measured:
        """One update with a batch (this process's rows): changes `state`, and returns before the device is done."""
        return self._run(batch, self.plan(int(self.state.step)))

    def fit(
        self,
        batches: data.Batches,
        *,
        evaluate: Callable[[], Evaluation] | None = None,
        save: Callable[[int, Evaluation | None], Any] | None = None,
        save_every: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step | Evaluation]:
        """Trains from the present state to the end of the recipe, yielding each update and each epoch's evaluation.

        `batches` stand where the state does. `save(step, evaluation)` is called after each epoch, every `save_every`
        steps, and before leaving because `stop()` is true, which is asked after each update; all updates until then
        have been yielded and were finite. An update is yielded while the next one runs. Raises `NotFinite` with the
        clips whose loss is not finite (all of the batch, if only the gradient is not), before anything of it is saved.
        """
        first, began, waited = int(self.state.step), time.perf_counter(), batches.waited
        pending = None  # the update that is still running

        def finish(step: int, plan: Plan, indices: np.ndarray, measured: Measured, compiled: bool, wait: float) -> Step:
            nonlocal began
            loss, gradient = float(measured.loss), float(measured.gradient)
            if not (math.isfinite(loss) and math.isfinite(gradient)):
                losses, clips = map(on_host, (measured.losses, self.layout.share(indices)))
                raise not_finite(step, loss, clips=batches.names(offenders(losses, clips)))
            now = time.perf_counter()
            seconds, began = now - began, now
            return Step(
                step=step,
                epoch=step // self.steps_per_epoch,
                loss=loss,
                gradient=gradient,
                lr=float(measured.lr),
                keep_rate=plan.keep_rate,
                seconds=seconds,
                clips_per_second=self.recipe.loop.batch / seconds,
                waiting=min(1.0, wait / seconds),
                compiled=compiled,
            )

        for step in range(first, self.total_steps):
            batch, plan, sizes = next(batches), self.plan(step), self.compilations
            wait, waited = batches.waited - waited, batches.waited
            measured = self._run(batch, plan)
            compiled = self.compilations > sizes
            if pending is not None:
                *facts, meanwhile, waiting = pending
                yield finish(*facts, meanwhile or compiled, waiting)
            pending = (step, plan, batch.indices, measured, compiled, wait)
            done, stopping = step + 1, stop()
            epoch_ends = done % self.steps_per_epoch == 0
            if epoch_ends or stopping or (save_every and done % save_every == 0):
                yield finish(*pending)
                pending = None
                evaluation = evaluate() if epoch_ends and evaluate is not None else None
                if evaluation is not None:
                    yield evaluation
                if save is not None:
                    save(done, evaluation)
                began = time.perf_counter()
            if stopping:
                return

    def evaluate(
        self, batches: data.Batches, *, keep_rate: float, metric: Metric, params: Weights | None = None
    ) -> Evaluation:
        """The present weights (or `params`) on every clip of the batches, without augmentation, at exactly a rate.

        They stay where they are; `jaxprune.evaluation.evaluate` does the work and raises what it raises.
        """
        model = self._merged((self.state.params if params is None else params) | self.state.tables)
        policy = topk(model, dict.fromkeys(self.recipe.prune.blocks, keep_rate), score=self.score)
        found = measure(
            model,
            batches,
            card=self.recipe.card(self.config),
            policies={keep_rate: policy},
            single_label=metric == "accuracy",
            layout=self.layout,
        )
        measured = found.rates[keep_rate]
        names = ("top1", "top5", "mean_average_precision", "auc", "d_prime")
        return Evaluation(
            step=int(self.state.step),
            keep_rate=keep_rate,
            clips=found.clips,
            loss=measured.loss,
            **{name: measured.metrics.get(name) for name in names},
            metric=metric,
            score=next(iter(measured.metrics.values())),
        )

    def model(self, params: Weights | None = None) -> Classifier:
        """The model with the present weights (or `params`), as copies."""
        weights = (self.state.params if params is None else params) | self.state.tables
        return self._merged({name: jnp.array(on_host(leaf), copy=True) for name, leaf in weights.items()})

    def put(self, state: State) -> None:
        """Takes a restored state as the present one."""
        self.state = self.layout.put(state)

    def lowered(self, sound: Sound, plan: Plan) -> jax.stages.Lowered:
        """The step's program for a batch of this kind, given by shapes that say where they lie, before XLA has it."""
        key = jax.ShapeDtypeStruct(self._key.shape, self._key.dtype, sharding=self.layout.whole)
        return _ask(self._step.lower, self.layout.describe(self.state), key, sound, plan)

    def _run(self, batch: data.Batch, plan: Plan) -> Measured:
        self.state, measured = _ask(self._step, self.state, self._key, self._send(batch), plan)
        return measured

    def _send(self, batch: data.Batch) -> Sound:
        return Sound(*self.layout.share((batch.waveforms, batch.lengths, batch.targets, batch.weights)))

    def _merged(self, weights: Weights) -> Classifier:
        leaves = [(path, leaf.replace(weights[dotted(path)])) for path, leaf in self._leaves]
        return nnx.merge(self._graph, nnx.from_flat_state(leaves))

    def _update(
        self,
        state: State,
        key: Key[Array, ""],
        sound: Sound,
        policy: Policy,
        amounts: augment.Amounts,
        drop_path: Float[Array, ""],
        *,
        hidden: float,
    ) -> tuple[State, Measured]:
        """The jitted step: gradients of the batch's parts averaged, one update."""
        self.compilations += 1
        key = jax.random.fold_in(key, state.step)

        def of_part(params: Weights, key: Key[Array, ""], part: Sound) -> tuple[Array, Array]:
            losses = self._losses(params | state.tables, key, part, policy, amounts, drop_path, hidden=hidden)
            return weighted_mean(losses, part.weights), losses

        gradient_of = jax.value_and_grad(of_part, has_aux=True)
        parts = self.recipe.loop.accumulate
        if parts == 1:
            (loss, losses), gradient = gradient_of(state.params, key, sound)
        else:

            def add(total: Any, part: Int[Array, ""]) -> tuple[Any, Array]:
                # Part i has rows i, i + parts ...: each device keeps its own rows.
                rows = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:])[:, part], sound)
                (loss, losses), gradient = gradient_of(state.params, jax.random.fold_in(key, part), rows)
                return jax.tree.map(jnp.add, total, (loss, gradient)), losses

            nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
            total, losses = jax.lax.scan(add, nothing, jnp.arange(parts))
            loss, gradient = jax.tree.map(lambda x: x / parts, total)
            losses = losses.T.reshape(-1)
        updates, moments = self._optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        losses = jax.lax.with_sharding_constraint(losses, self.layout.rows)
        measured = Measured(loss, losses, optax.tree.norm(gradient), jnp.float32(self._lr(state.step)))
        return self.layout.lay(State(params, state.tables, moments, state.step + 1)), measured

    def _losses(
        self,
        weights: Weights,
        key: Key[Array, ""],
        sound: Sound,
        policy: Policy,
        amounts: augment.Amounts,
        drop_path: Float[Array, ""],
        *,
        hidden: float,
    ) -> Float[Array, "b"]:
        """Each clip's loss, augmented and with patches masked out before the blocks."""
        for_input, for_mask, for_drop = jax.random.split(key, 3)
        facts = self.recipe.data
        clips = len(sound.waveforms)
        batch = augment.training_input(
            for_input,
            sound.waveforms,
            lengths=sound.lengths,
            labels=sound.targets,
            amounts=amounts,
            frames=facts.frames,
            mean=facts.mean,
            std=facts.std,
            mels=self.config.mels,
        )
        visible = None
        if hidden:
            visible = augment.visible_patches(for_mask, clips=clips, config=self.config, hidden=hidden)
        output = self._merged(self.layout.gathered(weights))(
            batch.mel, policy, visible=visible, drop_path=DropPath(for_drop, drop_path)
        )
        return LOSSES[self.recipe.loop.loss](output.logits, batch.labels)


def _ask(step: Callable[..., Any], state: Any, key: Any, sound: Sound, plan: Plan) -> Any:
    """Calls the jitted step, or what else takes its arguments, as a plan says."""
    settings = plan.augment
    amounts, drop_path = augment.amounts(settings), jnp.float32(settings.drop_path)
    return step(state, key, sound, plan.policy, amounts, drop_path, hidden=settings.patch_mask)


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
