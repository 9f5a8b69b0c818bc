"""Token pruning for audio transformers on JAX: AST and AudioMAE with TopK pruning of a size fixed at trace time."""

from jaxprune.checkpoint import SHIPPED, load, load_card, save
from jaxprune.config import Card, ModelConfig
from jaxprune.cost import macs
from jaxprune.features import log_mel
from jaxprune.models import AST, AudioMAE, Output, build, compiled, masked_topk, topk
from jaxprune.reduction.policy import Policy

__all__ = [
    "AST",
    "SHIPPED",
    "AudioMAE",
    "Card",
    "ModelConfig",
    "Output",
    "Policy",
    "build",
    "compiled",
    "load",
    "load_card",
    "log_mel",
    "macs",
    "masked_topk",
    "save",
    "topk",
]
