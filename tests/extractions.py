"""Extractions of random numbers, in the documented format but of no model: for the analysis' tests and times."""

import json
from pathlib import Path

import numpy as np

from jaxprune.analysis.manifest import KIND, VERSION
from jaxprune.config import ModelConfig
from jaxprune.reduction.selection import keep_count


def write_random(
    out: Path,
    config: ModelConfig,
    *,
    clips: int,
    keep: dict[int, float],
    seed: int = 0,
    shard: int = 500,
    weights: str = "a",
    data: str = "noise",
    frames: int | None = None,
) -> Path:
    """Scores that lean on intensity, some of them tied; kept patches are those of highest score. Equal seeds give equal
    sounds whatever the model."""
    out.mkdir(parents=True)
    sound, attention = np.random.default_rng(seed), np.random.default_rng([seed, *weights.encode()])
    n, names = config.patches, []
    for number, first in enumerate(range(0, clips, shard)):
        b = min(shard, clips - first)
        mean = sound.standard_normal((b, n)).astype(np.float32)
        std = sound.gamma(2, 0.3, (b, n)).astype(np.float32) + 0.1 * np.abs(mean)
        target = sound.integers(0, config.classes, b)
        logits = attention.standard_normal((b, config.classes)).astype(np.float32)
        logits[np.arange(b), target] += 2
        arrays = {
            "index": np.arange(first, first + b, dtype=np.int32),
            "path": np.array([f"clip-{i}.wav" for i in range(first, first + b)]),
            "frames": sound.integers(config.frames // 2, config.frames, b).astype(np.int32),
            "target": np.eye(config.classes, dtype=np.uint8)[target],
            "logits": logits,
            "mean": mean,
            "std": std,
            "state": "{}",
        }
        ids = np.broadcast_to(np.arange(n, dtype=np.int16), (b, n))
        for block in range(config.depth):
            here = np.take_along_axis(mean, ids.astype(int), axis=1)
            score = np.exp(0.3 * here + attention.standard_normal(here.shape)).astype(np.float32) / n
            score[:, :3] = score[:, :1]  # ties
            arrays[f"score_{block:02d}"] = score
            if block in keep:
                best = np.argsort(-score, axis=1, kind="stable")[:, : keep_count(keep[block], score.shape[1])]
                ids = arrays[f"kept_{block:02d}"] = np.take_along_axis(ids, best, axis=1)
        names.append(f"shard-{number:05d}.npz")
        np.savez(out / names[-1], **arrays)
    about = {"name": data, "split": "test", "clips": clips, "single_label": True, "sha256": f"{data}-{seed}"}
    manifest = _manifest(config, keep=keep, weights=weights, data=about, shards=names)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def _manifest(config: ModelConfig, *, keep: dict[int, float], weights: str, data: dict, shards: list[str]) -> dict:
    """The documented manifest of a finished extraction."""
    return {
        "kind": KIND,
        "version": VERSION,
        "complete": True,
        "checkpoint": {"path": "", "weights_sha256": weights * 64, "card": {}},
        "model": {name: getattr(config, name) for name in config.__dataclass_fields__},
        "data": data,
        "policy": {
            "score": {"kind": "ReceivedAttention"},
            "stages": {str(block): {"kind": "TopK", "rate": rate} for block, rate in keep.items()},
        },
        "compute": {},
        "shards": shards,
        "unusable": {},
    }
