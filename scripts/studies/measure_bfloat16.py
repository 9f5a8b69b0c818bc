"""Measures what computing in bfloat16 changes: accuracy, and which patches are kept, against float32.

python -m scripts.studies.measure_bfloat16 manifest --path tests/words/words.csv
python -m scripts.studies.measure_bfloat16 speech-commands --root corpus --checkpoint jaxprune/shipped/ast-words

Both run on the same log-mel features, read once. Overlap is the share of a clip's patches kept in float32 that bfloat16
keeps, too, at each pruning block, with all that went differently in the blocks before it; its mean over clips.
"""

import functools
import json
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from jaxprune import checkpoint as checkpoints
from jaxprune.cli import console as cli
from jaxprune.cli.options import DataSource, card_for
from jaxprune.data.batches import eval_batches
from jaxprune.data.records import Split
from jaxprune.evaluation.metrics import rank_of_class
from jaxprune.features import STATIC, model_input
from jaxprune.models import topk
from jaxprune.reduction.policy import DEFAULT_BLOCKS

TYPES = ("float32", "bfloat16")


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
def main(
    data: Annotated[DataSource, tyro.conf.arg(name="")],
    *,
    checkpoint: Path = checkpoints.SHIPPED / "ast-words",
    split: Split = "test",
    keep_rates: tuple[float, ...] = (1.0, 0.7, 0.5),
    blocks: tuple[int, ...] = DEFAULT_BLOCKS,
    batch: int = 70,
) -> None:
    """Compare bfloat16 with float32 on one split of a data set with one label a clip.

    Args:
        data: which data set, and where.
        checkpoint: a directory that python -m convert or scripts/finetune.py has written.
        split: which clips.
        keep_rates: shares of the patches kept at each pruning block; 1 prunes nothing.
        blocks: the blocks that prune, counted from 0.
        batch: clips computed together.
    """
    dataset = data.read()
    card = card_for(checkpoint, dataset)
    graphs, states = zip(
        *(nnx.split(checkpoints.load(checkpoint, dtype=getattr(jnp, name))) for name in TYPES), strict=True
    )
    features = jax.jit(model_input, static_argnames=STATIC)

    @functools.partial(jax.jit, static_argnames="rate")
    def compared(states, mel, targets, *, rate):
        """A row a clip: whether each type is right, whether they answer alike, the overlap at each block."""
        models = [nnx.merge(graph, state) for graph, state in zip(graphs, states, strict=True)]
        one, other = (model(mel, topk(model, dict.fromkeys(blocks, rate))) for model in models)
        right = [rank_of_class(output.logits, targets) < 1 for output in (one, other)]
        alike = one.logits.argmax(axis=1) == other.logits.argmax(axis=1)
        overlap = [shared(one.trace[block].patch_ids, other.trace[block].patch_ids) for block in blocks]
        return jnp.stack([*right, alike, *overlap], axis=1)

    found = {rate: [] for rate in keep_rates}
    with eval_batches(dataset, split, frames=card.model.frames, batch_size=batch) as batches:
        for read in batches:
            mel = features(
                read.waveforms,
                read.lengths,
                frames=card.model.frames,
                mean=card.mean,
                std=card.std,
                padding=card.padding,
            )
            for rate, rows in found.items():
                rows.append(np.asarray(compared(states, mel, read.targets, rate=rate))[read.weights > 0])
    rows = {rate: np.concatenate(parts) for rate, parts in found.items()}
    cells = [
        (f"{rate:g}", len(values), *(f"{100 * mean:.2f}" for mean in values.mean(axis=0)))
        for rate, values in rows.items()
    ]
    headings = ["keep rate", "clips", *(f"top-1 %, {name}" for name in TYPES), "same answer %"]
    headings += [f"overlap at block {block} %" for block in blocks]
    cli.print_table(f"{dataset.name}, {split}, {jax.devices()[0].device_kind}: {checkpoint.name}", headings, cells)
    print(json.dumps({f"{rate:g}": values.mean(axis=0).tolist() for rate, values in rows.items()}))


def shared(ids, others):
    """The share of each clip's `ids` `(b, k)` that is among `others`."""
    return (ids[:, :, None] == others[:, None, :]).any(axis=2).mean(axis=1)


if __name__ == "__main__":
    cli.run(main)
