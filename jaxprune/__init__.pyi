from .amounts import Merges, Saving
from .audio import load_audio
from .checkpoint import SHIPPED, load, load_card, save
from .config import Card, ModelConfig
from .cost import macs
from .features import log_mel, model_input
from .inference import classify, classify_clips
from .learned import drawn_decisions, dynamic
from .methods import evit, grid, pool, random, tome
from .models import AST, AudioMAE, Output, build, compiled, jit_forward, masked_topk, topk
from .reduction.fusing import Fuse, MaskedFuse
from .reduction.joining import Then
from .reduction.merging import MaskedMerge, Merge
from .reduction.policy import Policy
from .reduction.pooling import PoolTime
from .reduction.scores import (
    BlockSignals,
    ClsAttention,
    Given,
    Lattice,
    Opposite,
    PatchMean,
    PatchStd,
    Random,
    RandomByClip,
    ReceivedAttention,
    Score,
)
from .reduction.selection import MaskedTopK, Selection, Stage, TopK, Within
from .reduction.tokens import Reduction, Tokens
from .streaming import Event, Listening, Segment, events, segments, stream

__all__ = [
    "AST",
    "SHIPPED",
    "AudioMAE",
    "BlockSignals",
    "Card",
    "ClsAttention",
    "Event",
    "Fuse",
    "Given",
    "Lattice",
    "Listening",
    "MaskedFuse",
    "MaskedMerge",
    "MaskedTopK",
    "Merge",
    "Merges",
    "ModelConfig",
    "Opposite",
    "Output",
    "PatchMean",
    "PatchStd",
    "Policy",
    "PoolTime",
    "Random",
    "RandomByClip",
    "ReceivedAttention",
    "Reduction",
    "Saving",
    "Score",
    "Segment",
    "Selection",
    "Stage",
    "Then",
    "Tokens",
    "TopK",
    "Within",
    "build",
    "classify",
    "classify_clips",
    "compiled",
    "drawn_decisions",
    "dynamic",
    "events",
    "evit",
    "grid",
    "jit_forward",
    "load",
    "load_audio",
    "load_card",
    "log_mel",
    "macs",
    "masked_topk",
    "model_input",
    "pool",
    "random",
    "save",
    "segments",
    "stream",
    "tome",
    "topk",
]
