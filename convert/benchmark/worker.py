"""One timed process: loads one model in one framework, then does what the parent says, a JSON line at a time.

Run by `convert.benchmark.referee` as `python -m convert.benchmark.worker JOB`. PyTorch and JAX each get a process of
their own, so that thread pools, allocators and peak memory do not mix. Both draw the same weights and the same
spectrogram from the job's seed, so that their logits can be compared. Memory allocators are the frameworks' defaults.

A contestant offers `prepare(keep_rate) -> facts` (compile, if that is its way) and `call(keep_rate) -> numbers`, which
returns when they are there: logits of a forward pass, or each clip's loss in a training step (forward, backward and an
AdamW update). Steps go on from each other, and both frameworks have taken as many when their numbers are compared.
PyTorch's variants are the table `TORCH`, what is timed the table `CONTESTANTS`.
"""

import dataclasses
import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from convert.benchmark import machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker measures. `contestant` is `jax` or `torch-VARIANT`, `work` is forward or step; a sample lasts
    `min_seconds` at least."""

    contestant: str
    work: str
    family: str
    size: str
    frames: int
    batch: int
    dtype: str
    classes: int
    cores: list[int]
    min_seconds: float
    seed: int = 0

    def config(self):
        from jaxprune.config import ModelConfig

        return ModelConfig.of_size(self.family, self.size, frames=self.frames, classes=self.classes)

    def mel(self):
        import numpy as np

        config = self.config()
        shape = (self.batch, config.frames, config.mels)
        return np.random.default_rng(self.seed).standard_normal(shape, np.float32)

    def targets(self):
        """What a training step learns: a class in a hundred is there, at random."""
        import numpy as np

        return (np.random.default_rng(self.seed + 1).random((self.batch, self.classes)) < 0.01).astype(np.float32)


class Contestant(Protocol):
    def prepare(self, keep_rate: float) -> dict[str, Any]: ...

    def call(self, keep_rate: float) -> Any: ...


class Jax:
    """`jaxprune`'s model, one executable a keep rate; of the forward pass the logits alone are read."""

    def __init__(self, job: Job):
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from convert.mapping import to_flax
        from convert.random_checkpoint import random_state
        from jaxprune.checkpoint import fill, leaves
        from jaxprune.models import abstract, topk

        self.memory_before = machine.resident_bytes()
        jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured, not remembered
        config = job.config()
        weights = leaves(to_flax(random_state(config, seed=job.seed), config))
        weights = {name: leaf[...] for name, leaf in weights.items()}
        model = fill(abstract(config, dtype=jnp.dtype(job.dtype)), weights, source="random weights")
        self.graph, self.state = nnx.split(model)
        self.policy = lambda keep_rate: topk(model, keep_rate)
        self.mel = jax.device_put(job.mel())
        self.compiled = {}
        self.program = jax.jit(lambda state, mel, policy: nnx.merge(self.graph, state)(mel, policy).logits)

    def prepare(self, keep_rate: float) -> dict[str, Any]:
        began = time.perf_counter()
        executable = self.program.lower(self.state, self.mel, self.policy(keep_rate)).compile()
        seconds = time.perf_counter() - began
        self.compiled[keep_rate] = executable, self.policy(keep_rate)
        analysis = executable.memory_analysis()
        return {"compile_seconds": seconds, "temp_bytes": analysis and analysis.temp_size_in_bytes}

    def call(self, keep_rate: float) -> Any:
        executable, policy = self.compiled[keep_rate]
        return executable(self.state, self.mel, policy).block_until_ready()


class JaxStep(Jax):
    """The same model learning: `state` is its parameters with the optimiser's moments, which each step replaces."""

    def __init__(self, job: Job):
        super().__init__(job)
        import jax
        import jax.numpy as jnp
        import optax
        from flax import nnx

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


class Torch:
    """`convert.torch_reference`'s model, made into a variant. bfloat16 is autocast: like JAX's, parameters stay float32
    and softmax runs in it."""

    def __init__(self, job: Job):
        import torch

        from convert.random_checkpoint import random_state
        from convert.torch_reference import build
        from jaxprune.prune import stage_rates

        self.memory_before = machine.resident_bytes()
        torch.set_num_threads(len(job.cores))
        config = job.config()
        model = build(config)
        model.load_state_dict(random_state(config, seed=job.seed))
        self.torch, self.model = torch, model
        self.logits = TORCH[job.contestant.removeprefix("torch-")](model)
        self.rates = lambda keep_rate: stage_rates(keep_rate, depth=config.depth)
        self.mel = torch.from_numpy(job.mel())
        self.bfloat16 = job.dtype == "bfloat16"

    def prepare(self, keep_rate: float) -> dict[str, Any]:
        return {}

    def call(self, keep_rate: float) -> Any:
        torch = self.torch
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            return self.logits(self.mel, self.rates(keep_rate)).float()


class TorchStep(Torch):
    """The same model learning."""

    def __init__(self, job: Job):
        super().__init__(job)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = self.torch.optim.AdamW(
            trained, lr=ADAMW["learning_rate"], betas=(ADAMW["b1"], ADAMW["b2"]), weight_decay=ADAMW["weight_decay"]
        )
        self.targets = self.torch.from_numpy(job.targets())

    def call(self, keep_rate: float) -> Any:
        torch = self.torch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.logits(self.mel, self.rates(keep_rate)).float()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, self.targets, reduction="none").mean(1)
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()
        return losses.detach()


ADAMW = {"learning_rate": 1e-5, "b1": 0.9, "b2": 0.95, "weight_decay": 1e-4}


def eager(model: Any) -> Callable[..., Any]:
    """The authors' way: every block forms its softmax matrix."""
    return model.logits


def sdpa(model: Any) -> Callable[..., Any]:
    """Fused attention in the blocks that need no score; the others need the softmax matrix and stay eager."""
    import torch.nn.functional as F

    from convert.torch_reference import unscored

    def fused(attention: Any, score_eagerly: Callable[..., Any]) -> Callable[..., Any]:
        def forward(tokens, patch_ids, score):
            if score is not unscored:
                return score_eagerly(tokens, patch_ids, score)
            b, s, d = tokens.shape
            q, k, v = attention.qkv(tokens).reshape(b, s, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v)  # b h s c; the default scale is c ** -0.5
            return attention.proj(mixed.transpose(1, 2).reshape(b, s, d)), None

        return forward

    for block in model.blocks:
        block.attn.forward = fused(block.attn, block.attn.forward)
    return model.logits


# To add one: model -> callable (mel, {block: rate}) -> logits.
TORCH: Mapping[str, Callable[[Any], Callable[..., Any]]] = {"eager": eager, "sdpa": sdpa}
CONTESTANTS: Mapping[str, Mapping[str, type]] = {
    "forward": {"jax": Jax, "torch": Torch},
    "step": {"jax": JaxStep, "torch": TorchStep},
}


def measure_once(contestant: Contestant, keep_rate: float, *, min_seconds: float) -> dict[str, Any]:
    """Everything but the timing: compile time, memory of one call, its numbers, and how many calls make a sample.

    `peak_bytes` counts from before the weights were loaded, so it holds weights, input and working memory, and not
    what importing the libraries takes.
    """
    facts = contestant.prepare(keep_rate)
    contestant.call(keep_rate)  # what is set up lazily is not the forward pass's memory
    gc.collect()
    machine.reset_peak()
    numbers = contestant.call(keep_rate)
    peak, before = machine.peak_bytes(), contestant.memory_before
    began = time.perf_counter()
    contestant.call(keep_rate)
    calls = max(1, math.ceil(min_seconds / (time.perf_counter() - began)))
    facts |= {"peak_bytes": None if peak is None else peak - before, "calls": calls, "numbers": numbers.tolist()}
    return facts


def sample(contestant: Contestant, keep_rate: float, *, calls: int) -> dict[str, Any]:
    """Seconds for one call, the mean of `calls` in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        contestant.call(keep_rate)
    return {"seconds": (time.perf_counter() - began) / calls}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")  # the real stdout; whatever a library prints goes to stderr
    os.dup2(2, 1)
    try:
        job = Job(**json.loads(sys.argv[1]))
        machine.pin(job.cores)
        contestant = CONTESTANTS[job.work][job.contestant.partition("-")[0]](job)
        print(json.dumps({}), file=replies, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "prepare":
                reply = measure_once(contestant, order["keep_rate"], min_seconds=job.min_seconds)
            else:
                reply = sample(contestant, order["keep_rate"], calls=order["calls"])
            print(json.dumps(reply), file=replies, flush=True)
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=replies, flush=True)


if __name__ == "__main__":
    main()
