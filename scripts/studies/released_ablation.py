"""Measures the released code's indexing when patches are ranked by their pixels, next to the right one.

python -m scripts.studies.released_ablation CHECKPOINT esc50 --root data/ESC-50 --keep-rates 0.7 0.5

To prune by patch mean or standard deviation, the released code of Lee & Lee 2025 ranks the n patches and gathers with
these ranks from all p + n tokens without adding p (`ASTModel.forward`, `Block.forward_with_custom_rank`). So p patches
to the left of each wanted one stay in its place, and the extra tokens go, unless the first patches happen to rank high.
The counts subtract p all the same, the next stage goes on from what is left, and the head reads the first tokens as
though they were the extra ones. The published ablation by mean and by standard deviation was computed like this. The
library does not do it: this script alone holds it, to be compared with.
"""

import functools
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxprune import files
from jaxprune.analysis import bootstrap
from jaxprune.analysis.bootstrap import DEFAULT, Estimate
from jaxprune.cli import console as cli
from jaxprune.cli.options import Subject, with_data
from jaxprune.config import Card
from jaxprune.data.batches import Batches
from jaxprune.evaluation.metrics import rank_of_class
from jaxprune.features import STATIC, model_input
from jaxprune.models import Classifier, cut_patches, topk
from jaxprune.reduction.policy import DEFAULT_BLOCKS
from jaxprune.reduction.scores import PatchMean, PatchStd
from jaxprune.reduction.selection import keep_count

SCORES = {"mean": PatchMean(), "std": PatchStd()}


def released(
    model: Classifier, mel: Float[Array, "b t f"], *, signal: Float[Array, "b n"], rates: dict[int, float]
) -> tuple[Array, Array]:
    """Logits `(b, y)` as the released code computes them, and the tokens kept `(b, k)`: 0 ... p - 1 are the extra ones,
    p + i is patch i. `signal` ranks the patches, `rates` are by block."""
    p = model.config.extra_tokens
    tokens = model.embed(model.patch_embed(cut_patches(mel, model.config)))
    kept = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape[:2])
    for number, block in enumerate(model.encoder.blocks):
        tokens, _ = block.attend(tokens, queries=slice(0, 1), mask=None)
        if rates.get(number, 1.0) < 1:
            index = jax.lax.top_k(signal, keep_count(rates[number], tokens.shape[1] - p))[1]
            tokens = jnp.take_along_axis(tokens, index[:, :, None], axis=1)  # the slip: not index + p, no tokens[:, :p]
            kept, signal = (jnp.take_along_axis(values, index, axis=1) for values in (kept, signal))
        tokens = block.feed_forward(tokens)
    return model.head(model.head_norm(model.pool(tokens, None))), kept


@with_data
def main(
    on: Subject,
    *,
    keep_rates: tuple[float, ...] = (0.9, 0.7, 0.5),
    blocks: tuple[int, ...] = DEFAULT_BLOCKS,
    batch: int = 32,
    out: Path | None = None,
) -> None:
    """Compare the right and the released ranking by patch mean and patch standard deviation. One label a clip.

    Args:
        on: the checkpoint and the clips.
        keep_rates: shares of the patches kept at each of the blocks.
        blocks: the blocks that prune, counted from 0.
        batch: clips computed together.
        out: where to save the table as JSON.
    """
    dataset = on.read()
    card = on.card(dataset)
    if not dataset.single_label:
        raise ValueError(f"{dataset.name} has clips of several classes; this comparison counts right answers")
    model = on.model()
    rates = {rate: dict.fromkeys(blocks, rate) for rate in keep_rates}
    for one in rates.values():
        topk(model, one)  # refuses what cannot be
    settings = [(name, rates[rate]) for name in SCORES for rate in keep_rates if rate < 1]
    if not settings or not blocks:
        raise ValueError(f"keep rates {list(keep_rates)} at blocks {list(blocks)} prune nothing, so nothing slips")
    with on.batches(dataset, model, batch=batch) as batches, cli.progress("comparing") as progress:
        bar = progress.add_task("", total=len(dataset.clips(on.split)))
        watch = functools.partial(progress.update, bar)
        unpruned, found = compare(model, batches, card=card, settings=settings, watch=watch)
    rows = [row(name, of, values, model=model) for (name, of), values in zip(settings, found, strict=True)]
    notes = [
        f"Without pruning {100 * unpruned.mean():.2f} %. In brackets 95 % intervals over clips. Blocks {list(blocks)}.",
        "Tokens left after the last block; wanted and extra: shares of the right tokens that the slip also keeps.",
    ]
    title = f"{dataset.name}, {on.split}, {len(unpruned)} clips: {on.checkpoint}"
    cli.print_table(title, HEADINGS, [cells(one, extra=model.config.extra_tokens) for one in rows], notes=notes)
    if out is not None:
        content = {
            "command": shlex.join(sys.argv),
            "clips": len(unpruned),
            "unpruned": float(unpruned.mean()),
            "rows": rows,
        }
        files.write_text(out, json.dumps(content, default=numbers, indent=1, allow_nan=False) + "\n")
        cli.notice(f"saved {out}")


def compare(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    settings: Sequence[tuple[str, dict[int, float]]],
    watch: Callable[..., None],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The clips that the unpruned model answers right, and of every setting, a score's name and rates by block, the
    columns of `compared`."""
    features = jax.jit(model_input, static_argnames=STATIC)
    graph, state = nnx.split(model)
    whole = jax.jit(lambda state, mel, targets: rank_of_class(nnx.merge(graph, state)(mel).logits, targets) < 1)
    programs = [jax.jit(functools.partial(compared, graph, name=name, rates=rates)) for name, rates in settings]
    unpruned, found = [], [[] for _ in settings]
    size = {"frames": model.config.frames, "mels": model.config.mels}
    for read in batches:
        real = read.weights > 0
        mel = features(read.waveforms, read.lengths, mean=card.mean, std=card.std, padding=card.padding, **size)
        unpruned.append(np.asarray(whole(state, mel, read.targets))[real])
        for parts, program in zip(found, programs, strict=True):
            parts.append(np.asarray(program(state, mel, read.targets))[real])
        watch(advance=int((read.indices >= 0).sum()))
    return np.concatenate(unpruned), [np.concatenate(parts).astype(float) for parts in found]


def compared(
    graph: nnx.GraphDef,
    state: nnx.State,
    mel: Float[Array, "b t f"],
    targets: Float[Array, "b y"],
    *,
    name: str,
    rates: dict[int, float],
) -> Float[Array, "b 4"]:
    """Clips answered right when pruned rightly, and as released; shares of the wanted patches, and of the extra tokens,
    that the slip keeps."""
    model = nnx.merge(graph, state)
    p = model.config.extra_tokens
    proper = model(mel, topk(model, rates, score=SCORES[name]))
    pixels = cut_patches(mel, model.config).astype(jnp.float32)
    signal = pixels.mean(axis=-1) if name == "mean" else pixels.std(axis=-1, ddof=1)
    logits, kept = released(model, mel, signal=signal, rates=rates)
    wanted = proper.trace[max(rates)].patch_ids + p
    same = (wanted[:, :, None] == kept[:, None, :]).any(axis=2).mean(axis=1)
    extra = (kept < p).sum(axis=1) / p
    right = [rank_of_class(answers, targets) < 1 for answers in (proper.logits, logits)]
    return jnp.stack([*right, same, extra], axis=1)


HEADINGS = (
    "rank",
    "keep rate",
    "tokens",
    "released",
    "top-1 %, right",
    "top-1 %, released",
    "cost of the slip",
    "wanted kept %",
    "extra kept %",
)


def cells(one: Mapping[str, Any], *, extra: int) -> tuple[str, ...]:
    """A row of the table, for a model of so many extra tokens."""
    return (
        one["ranked_by"],
        f"{one['keep_rate']:g}",
        f"{one['right_patches']} + {extra}",
        one["released_tokens"],
        *(shown(one[key]) for key in ("right", "released", "cost_of_the_slip")),
        *(f"{100 * one[key].value:.1f}" for key in ("wanted_kept", "extra_kept")),
    )


def row(name: str, rates: dict[int, float], values: np.ndarray, *, model: Classifier) -> dict[str, Any]:
    """One setting's shares with intervals over clips, from `compared`'s columns."""
    right, released_right, same, extra = values.T
    columns = np.stack([right, released_right, right - released_right, same, extra], axis=1)
    found = bootstrap.mean(columns, bootstrap=DEFAULT)
    names = ("right", "released", "cost_of_the_slip", "wanted_kept", "extra_kept")
    patches, p = model.config.patches, model.config.extra_tokens
    tokens = patches + p
    for one in rates.values():
        patches, tokens = math.ceil(one * patches), math.ceil(one * (tokens - p))
    facts = {
        "ranked_by": name,
        "keep_rate": next(iter(rates.values())),
        "right_patches": patches,
        "released_tokens": tokens,
    }
    return facts | {key: found[i] for i, key in enumerate(names)}


def shown(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.2f} [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def numbers(estimate: Estimate) -> dict[str, float]:
    return {name: float(getattr(estimate, name)) for name in ("value", "low", "high")}


if __name__ == "__main__":
    cli.run(main)
