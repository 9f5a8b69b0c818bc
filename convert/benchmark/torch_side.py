"""PyTorch's contestants: the table `TORCH` of its variants, a forward pass and a training step.

torch is imported only to measure, so the parent process can read the table without it.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxprune.families import FAMILIES, Family

from . import machine
from .job import ADAMW, DEVICES, Job, Unavailable

Logits = Callable[[Any, Mapping[int, float]], Any]  # (mel, {block: keep rate}) -> logits
Build = Callable[[Any, Mapping[str, Any]], tuple[Any, Logits]]  # (config, official state) -> (module, logits)


def as_written(call: Callable[..., Any]) -> Callable[..., Any]:
    return call


def compiled(call: Callable[..., Any], *, backend: str = "inductor") -> Callable[..., Any]:
    """`torch.compile`, the whole model in one graph, for one keep rate and one shape."""
    import torch

    torch._dynamo.config.recompile_limit = 64  # of keep rates
    return torch.compile(call, backend=backend, dynamic=False, fullgraph=True)


def eager(config: Any, state: Mapping[str, Any]) -> tuple[Any, Logits]:
    """The authors' way: every block forms its softmax matrix."""
    from ..torch_reference import build

    model = build(config)
    model.load_state_dict(state)
    return model, model.logits


def sdpa(config: Any, state: Mapping[str, Any]) -> tuple[Any, Logits]:
    """Fused attention in the blocks that need no score. The others need the softmax matrix and stay eager."""
    import torch.nn.functional as F

    from ..torch_reference import unscored

    def fused(attention: Any, score_eagerly: Callable[..., Any]) -> Callable[..., Any]:
        def forward(tokens, patch_ids, score):
            if score is not unscored:
                return score_eagerly(tokens, patch_ids, score)
            b, s, d = tokens.shape
            q, k, v = attention.qkv(tokens).reshape(b, s, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v)  # b h s c; the default scale is c ** -0.5
            return attention.proj(mixed.transpose(1, 2).reshape(b, s, d)), None

        return forward

    model, logits = eager(config, state)
    for block in model.blocks:
        block.attn.forward = fused(block.attn, block.attn.forward)
    return model, logits


def transformers(config: Any, state: Mapping[str, Any]) -> tuple[Any, Logits]:
    """Hugging Face's AST as it comes, with fused attention. Its one LayerNorm eps is the encoder's."""
    import dataclasses

    from transformers import ASTConfig, ASTForAudioClassification

    from ..huggingface import config_json, to_huggingface

    settings = config_json(dataclasses.replace(config, head_norm_eps=config.norm_eps))
    model = ASTForAudioClassification(ASTConfig(**settings)).eval()
    model.load_state_dict(to_huggingface(state, layout="v5").state)
    return model, lambda mel, rates: model(mel).logits


def no_torch() -> str:
    """The sentence for a missing PyTorch, or nothing."""
    if importlib.util.find_spec("torch"):
        return ""
    return 'torch is not installed; this needs it: pip install "jaxprune[convert]"'


def no_compiler() -> str:
    """The sentence for a missing PyTorch or compiler, or nothing. torch.compile looks for the same names."""
    if lacks := no_torch():
        return lacks
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler):
        return ""
    return f"torch.compile needs a C++ compiler, and there is no {compiler} here; install one or name it in CXX"


def no_transformers() -> str:
    """The sentence for a missing PyTorch or transformers, or nothing."""
    if lacks := no_torch():
        return lacks
    if importlib.util.find_spec("transformers"):
        return ""
    return "the transformers variant needs that package; pip install transformers"


@dataclass(frozen=True)
class Variant:
    """A way to run PyTorch.

    `build` makes the model, `ready` prepares its call for one keep rate. `missing` is a sentence on the package or tool
    that it lacks here, or empty. `covers` is true for the families and keep rates that it has; `remark` says it in
    words.
    """

    build: Build
    ready: Callable[[Callable[..., Any]], Callable[..., Any]] = as_written
    missing: Callable[[], str] = no_torch
    covers: Callable[[Family, float], bool] = lambda family, keep_rate: True
    remark: str = ""


TORCH: Mapping[str, Variant] = {
    "eager": Variant(eager),
    "sdpa": Variant(sdpa),
    "compile": Variant(eager, ready=compiled, missing=no_compiler),
    "compile-sdpa": Variant(sdpa, ready=compiled, missing=no_compiler),
    "transformers": Variant(
        transformers,
        missing=no_transformers,
        covers=lambda family, keep_rate: FAMILIES[family].in_transformers and keep_rate == 1,
        remark="transformers has AST and no pruning: it is measured there, at keep rate 1, and nowhere else.",
    ),
}


class Torch:
    """The forward pass. bfloat16 is autocast. As in JAX, parameters and softmax stay float32."""

    def __init__(self, job: Job):
        import torch

        from jaxprune.reduction.policy import stage_rates

        from ..random_checkpoint import random_state

        device = DEVICES[job.device]
        if not getattr(torch, device.torch).is_available():
            raise Unavailable(f"PyTorch {torch.__version__} has no {job.device} here")
        self.memory_before = machine.resident_bytes()
        torch.set_num_threads(len(job.cores))
        torch.set_float32_matmul_precision(device.float32)
        config, variant = job.config(), TORCH[job.contestant.removeprefix("torch-")]
        self.model, self.logits = variant.build(config, random_state(config, seed=job.seed))
        self.model.to(device.torch)
        self.ready, self.calls = variant.ready, {}
        self.rates = lambda keep_rate: stage_rates(keep_rate, depth=config.depth)
        self.mel = torch.from_numpy(job.mel()).to(device.torch)
        self.torch, self.device, self.dtype = torch, device.torch, getattr(torch, job.dtype)
        self.name = self.device
        self.synchronize = getattr(torch, device.torch).synchronize
        self.watched = {"cpu": self.process_peak, "cuda": self.device_peak}[device.torch]

    def prepare(self, keep_rate: float) -> dict[str, Any]:
        logits, rates = self.logits, self.rates(keep_rate)
        self.calls[keep_rate] = self.ready(lambda mel: logits(mel, rates))
        return {}

    def numbers(self, keep_rate: float) -> Any:
        torch = self.torch
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.calls[keep_rate](self.mel).float()

    def call(self, keep_rate: float) -> Any:
        with self.torch.inference_mode():
            numbers = self.numbers(keep_rate)
        self.synchronize()
        return numbers

    def peak(self, keep_rate: float) -> tuple[Any, int | None]:
        return self.watched(keep_rate)

    def process_peak(self, keep_rate: float) -> tuple[Any, int | None]:
        return machine.process_peak(lambda: self.call(keep_rate), before=self.memory_before)

    def device_peak(self, keep_rate: float) -> tuple[Any, int | None]:
        """The most its allocator gave out."""
        self.torch.cuda.reset_peak_memory_stats()
        return self.call(keep_rate), self.torch.cuda.max_memory_allocated()

    def product(self, side: int) -> Callable[[], Any]:
        matrix = self.torch.randn(side, side).to(self.device, self.dtype)

        def multiply():
            with self.torch.inference_mode():
                matrix @ matrix
            self.synchronize()

        return multiply


class TorchStep(Torch):
    """The same model learning."""

    def __init__(self, job: Job):
        super().__init__(job)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = self.torch.optim.AdamW(
            trained, lr=ADAMW["learning_rate"], betas=(ADAMW["b1"], ADAMW["b2"]), weight_decay=ADAMW["weight_decay"]
        )
        self.targets = self.torch.from_numpy(job.targets()).to(self.device)

    def call(self, keep_rate: float) -> Any:
        loss = self.torch.nn.functional.binary_cross_entropy_with_logits
        losses = loss(self.numbers(keep_rate), self.targets, reduction="none").mean(1)
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()
        self.synchronize()
        return losses.detach()
