"""JAX's contestants: `jaxprune`'s model in a forward pass or a training step, one executable a keep rate."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxprune.checkpoint import fill, leaves
from jaxprune.models import abstract, for_inference
from jaxprune.registry import reduced

from ..mapping import to_flax
from ..random_checkpoint import random_state
from . import machine
from .job import ADAMW, Job, Unavailable


class Jax:
    """The forward pass. Only its logits are read."""

    ready = staticmethod(for_inference)

    def __init__(self, job: Job):
        try:
            self.device = jax.devices()[0]
        except RuntimeError as error:
            raise Unavailable(f"JAX has no {job.device} here: {str(error).splitlines()[0]}") from error
        self.name = self.device.device_kind
        self.memory_before = machine.resident_bytes()
        config = job.config()
        weights = leaves(to_flax(random_state(config, seed=job.seed), config))
        weights = {name: np.asarray(leaf[...]) for name, leaf in weights.items()}
        self.dtype = jnp.dtype(job.dtype)
        model = fill(abstract(config, dtype=self.dtype), weights, source="random weights")
        self.graph, self.state = nnx.split(self.ready(model))
        # A policy of learned pruning holds predictors. They are copies, because a step gives the model's weights away.
        chooser, (graph, state) = abstract(config, dtype=self.dtype), nnx.split(model.predictors)
        chooser.predictors = nnx.merge(graph, jax.tree.map(jnp.array, state))
        self.policy = lambda keep_rate: reduced(chooser, job.method, keep_rate)
        self.mel = jax.device_put(job.mel())
        self.compiled, self.temp_bytes = {}, {}
        self.program = jax.jit(lambda state, mel, policy: nnx.merge(self.graph, state)(mel, policy).logits)
        self.watched = {"cpu": self.process_peak, "gpu": self.device_peak}[job.device]

    def prepare(self, keep_rate: float) -> dict[str, Any]:
        began = time.perf_counter()
        executable = self.program.lower(self.state, self.mel, self.policy(keep_rate)).compile()
        seconds = time.perf_counter() - began
        self.compiled[keep_rate] = executable, self.policy(keep_rate)
        facts = {"compile_seconds": seconds, "temp_bytes": None, "program_bytes": None}
        if analysis := executable.memory_analysis():
            facts["temp_bytes"] = analysis.temp_size_in_bytes
            facts["program_bytes"] = (
                analysis.argument_size_in_bytes
                + analysis.output_size_in_bytes
                - analysis.alias_size_in_bytes
                + analysis.temp_size_in_bytes
            )
        self.temp_bytes[keep_rate] = facts["temp_bytes"]
        return facts

    def call(self, keep_rate: float) -> Any:
        executable, policy = self.compiled[keep_rate]
        return executable(self.state, self.mel, policy).block_until_ready()

    def peak(self, keep_rate: float) -> tuple[Any, int | None]:
        return self.watched(keep_rate)

    def process_peak(self, keep_rate: float) -> tuple[Any, int | None]:
        return machine.process_peak(lambda: self.call(keep_rate), before=self.memory_before)

    def device_peak(self, keep_rate: float) -> tuple[Any, int | None]:
        """Bytes on the device and those the program adds. JAX's own peak cannot be started anew for each program."""
        numbers = self.call(keep_rate)
        stats, temp = self.device.memory_stats(), self.temp_bytes[keep_rate]
        return numbers, None if stats is None or temp is None else stats["bytes_in_use"] + temp

    def product(self, side: int) -> Callable[[], Any]:
        matrix = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32), self.dtype)
        multiply = jax.jit(jnp.matmul)
        return lambda: multiply(matrix, matrix).block_until_ready()


class JaxStep(Jax):
    """The same model learning. `state` is its parameters and the optimiser's moments; each step replaces it."""

    ready = staticmethod(lambda model: model)

    def __init__(self, job: Job):
        super().__init__(job)
        params, fixed = nnx.split_state(self.state, nnx.Param, ...)
        optimizer, targets = optax.adamw(**ADAMW), jnp.asarray(job.targets())

        def update(state, mel, policy):
            params, moments = state

            def loss(params):
                logits = nnx.merge(self.graph, params, fixed)(mel, policy).logits
                losses = optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=1)
                return losses.mean(), losses

            gradient, losses = jax.grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradient, moments, params)
            return losses, (optax.apply_updates(params, updates), moments)

        self.state = params, jax.jit(optimizer.init)(params)
        self.program = jax.jit(update, donate_argnums=0)

    def call(self, keep_rate: float) -> Any:
        executable, policy = self.compiled[keep_rate]
        losses, self.state = executable(self.state, self.mel, policy)
        return losses.block_until_ready()
