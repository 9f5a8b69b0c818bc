"""Runs a split through a model and keeps every finding: scores, kept patches, patch statistics, logits and names.

    out/manifest.json      what was extracted: checkpoint, data set, policy, compute; `complete` once all of it is there
    out/shard-00000.npz    the first clips of the split, in its order; uncompressed, read by `numpy.load` without pickle
    out/shard-00001.npz    the next, and so on

A shard holds one row a clip in each of these arrays. n patches enter block 0, numbered in the model's own order; BB is
a 0-based block in two digits.

| array | shape and type | |
|---|---|---|
| `index` | (clips,) int32 | place among the split's clips; unusable clips are left out |
| `path` | (clips,) str | file, as the data set names it |
| `frames` | (clips,) int32 | spectrogram frames that hold sound; the rest of the model's length is padding |
| `target` | (clips, y) uint8 | 1 at each of the clip's classes |
| `logits` | (clips, y) float32 | |
| `mean`, `std` | (clips, n) float32 | of each patch's pixels of the normalised spectrogram (std with ddof 1) |
| `score_BB` | (clips, n_BB) float32 | of the patches entering block BB, for every block |
| `kept_BB` | (clips, k) int16 | original patches that are tokens of their own after BB, in token order; only where BB \
reduces tokens |
| `groups_BB` | (clips, n) int16 | the token after block BB that holds each patch, -1: none; where tokens hold several |
| `scored_BB` | (clips, n_BB) int16 | the patches of `score_BB`, where BB reduces tokens before its attention |
| `mel` | (clips, t, f) | normalised spectrogram, only where asked for |
| `state` | () str | JSON: where the data stood after the shard, and the unusable clips so far |

The patches of `score_BB` are the `kept` of the last pruning block before BB, or 0 ... n - 1 without one. In `kept_BB`,
-1 is a place that a masked stage left empty. Scores of such places mean nothing. One process fills one folder.
`jaxprune.analysis.extraction` reads it; `jaxprune extract` is the command.
"""

import functools
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Float32, Int16

from jaxprune.analysis.extraction import Extraction, read_extraction
from jaxprune.analysis.identity import SHARD_CLIPS, MelType, check_same
from jaxprune.analysis.manifest import KIND, MANIFEST, VERSION, is_extraction, read_manifest
from jaxprune.config import Card, Padding
from jaxprune.data.batches import Batch, Batches
from jaxprune.evaluation.forward_pass import Started, check_classes, finite_rows, forward_pass
from jaxprune.features import frame_count, model_input
from jaxprune.files import locked, replace_file, write_text
from jaxprune.models import Classifier, cut_patches, for_inference
from jaxprune.reduction.policy import Policy


def extract(
    model: Classifier,
    batches: Batches,
    *,
    out: str | os.PathLike[str],
    description: Mapping[str, Any],
    card: Card,
    policy: Policy,
    mel: MelType | None = None,
    shard_batches: int = SHARD_CLIPS // 32,
    place: Callable[[Any], Any] = jax.device_put,
    watch: Callable[[int], None] = lambda clips: None,
) -> Extraction:
    """Runs a split through the model and writes the arrays of the module's table to `out`. Goes on where it stopped.

    `batches` are `eval_batches` from the start of the split; `description` is `describe`'s of the same arguments. A
    shard is `shard_batches` batches. A thread writes it while the device computes the next; at most two are in memory.
    `mel` is the type in which spectrograms are kept (None: not at all). `place` and `watch` are as in `forward_pass`;
    the first call of `watch` gives the number of clips that were done before. A complete extraction is only read.

    Raises `ValueError` when `out` holds anything but an extraction of this description, when another process writes
    there, for another number of classes than the model's, and for scores that are not finite. Raises `OSError` when a
    shard cannot be written. What was written before stays, and the next call goes on after it.
    """
    out = Path(out)
    run = functools.partial(_run_through, model, batches, card=card, policy=policy, mel=mel, place=place)
    with locked(out):
        manifest = _start(out, description)
        if not manifest["complete"]:
            shards = _whole_shards(out)
            before = _go_on(batches, shards)
            watch(before)
            with _Writer(out, shards, batches=shard_batches) as writer:
                run(collect=writer.add, watch=lambda clips: watch(before + clips))
            _finish(out, manifest, shards=shards, unusable=batches.unusable)
        return read_extraction(out)


def _run_through(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    policy: Policy,
    mel: MelType | None,
    place: Callable[[Any], Any],
    collect: Callable[[dict[str, np.ndarray], dict[str, Any]], None],
    watch: Callable[[int], None],
) -> None:
    """Runs the batches that are left. `collect` gets the rows of each, and the loader's state after it."""
    check_classes(model, batches)
    graph, state = nnx.split(for_inference(model))
    program = _program(graph, _pruning_blocks(policy), padding=card.padding)

    def start(batch: Batch, placed: _Placed) -> Started[_Findings]:
        findings, finite = program(state, *placed.sound, card.mean, card.std, policy)
        _start_copies(findings, mel=mel)
        return Started(findings, {"": finite})

    forward_pass(
        batches,
        place=lambda arrays: _Placed(place(arrays[:2]), batches.get_state()),
        start=start,
        collect=lambda batch, placed, findings: collect(
            _rows(batch, findings, batches=batches, frames=model.config.frames, mel=mel), placed.state
        ),
        watch=watch,
    )


def _pruning_blocks(policy: Policy) -> tuple[int, ...]:
    """The blocks that reduce tokens: a reduction that leaves all of them is none."""
    return tuple(block for block, reduction in policy.stages.items() if not reduction.idle)


class _Placed(NamedTuple):
    """A batch's waveforms and lengths on the device, and its loader's state after it."""

    sound: tuple[Array, Array]
    state: dict[str, Any]


@struct.dataclass
class _Findings:
    """A batch's results on the device. `kept` is by pruning block; dead places are -1."""

    logits: Float[Array, "b y"]
    mean: Float32[Array, "b n"]
    std: Float32[Array, "b n"]
    scores: tuple[Float32[Array, "b _"], ...]
    kept: dict[int, Int16[Array, "b _"]]
    groups: dict[int, Int16[Array, "b n"]]
    scored: dict[int, Int16[Array, "b _"]]
    mel: Float[Array, "b t f"]


@functools.lru_cache(maxsize=8)
def _program(
    graph: nnx.GraphDef, stages: tuple[int, ...], *, padding: Padding
) -> Callable[..., tuple[_Findings, Bool[Array, "b"]]]:
    """`(state, waveforms, lengths, mean, std, policy) -> _Findings, finite`: features, model and trace in one."""

    @jax.jit
    def run(state, waveforms, lengths, mean, std, policy):
        model = nnx.merge(graph, state)
        config = model.config
        mel = model_input(
            waveforms, lengths, frames=config.frames, mean=mean, std=std, padding=padding, mels=config.mels
        )
        output = model(mel, policy)
        left = [trace.patch_ids.shape[1] for trace in output.trace]
        entering = dict(enumerate([model.config.patches, *left]))
        pixels = cut_patches(mel, model.config).astype(jnp.float32)  # the model's own: XLA computes them once
        kept = {
            block: jnp.where(output.trace[block].alive, output.trace[block].patch_ids, -1).astype(jnp.int16)
            for block in stages
        }
        traces = {block: output.trace[block] for block in stages}
        findings = _Findings(
            logits=output.logits,
            mean=pixels.mean(axis=-1),
            std=pixels.std(axis=-1, ddof=1),
            scores=tuple(block.score for block in output.trace),
            kept=kept,
            groups={block: trace.groups.astype(jnp.int16) for block, trace in traces.items() if trace.held is not None},
            scored={
                block: trace.scored_ids.astype(jnp.int16)
                for block, trace in traces.items()
                if trace.score.shape[1] != entering[block]
            },
            mel=mel,
        )
        return findings, finite_rows(output.logits)

    return run


def _start_copies(findings: _Findings, *, mel: MelType | None) -> None:
    """Starts copying the arrays that will be written, as soon as they are computed."""
    wanted = [findings.logits, findings.mean, findings.std, *findings.scores]
    wanted += [array for by_block in _by_block(findings).values() for array in by_block.values()]
    for array in [*wanted, findings.mel] if mel else wanted:
        array.copy_to_host_async()


def _by_block(findings: _Findings) -> dict[str, dict[int, Int16[Array, "b _"]]]:
    """The arrays that only some blocks have."""
    return {"kept": findings.kept, "groups": findings.groups, "scored": findings.scored}


def _rows(
    batch: Batch, findings: _Findings, *, batches: Batches, frames: int, mel: MelType | None
) -> dict[str, np.ndarray]:
    """A batch's rows of every array. Waits for the device. Rows that fill the batch or stand for bad clips are left
    out."""
    real = np.flatnonzero(batch.weights > 0)
    found = {
        "index": batch.indices,
        "frames": np.minimum(frame_count(batch.lengths), frames).astype(np.int32),
        "target": batch.targets.astype(np.uint8),
        "logits": findings.logits,
        "mean": findings.mean,
        "std": findings.std,
        **{f"score_{block:02d}": score for block, score in enumerate(findings.scores)},
        **{
            f"{name}_{block:02d}": values
            for name, by_block in _by_block(findings).items()
            for block, values in by_block.items()
        },
    }
    if mel:
        found["mel"] = np.asarray(findings.mel).astype(mel)
    rows = {name: np.asarray(values)[real] for name, values in found.items()}  # copies: the device's buffers go
    return rows | {"path": np.array(batches.names(rows["index"]), dtype=np.str_)}


class _Writer(ThreadPoolExecutor):
    """Writes shards in one thread while the caller collects the next. At most one waits for the thread.

    `shards` grows by each path that is handed over. An error shows when the next shard is handed over, or at the end.
    """

    def __init__(self, out: Path, shards: list[Path], *, batches: int):
        super().__init__(max_workers=1, thread_name_prefix="shards")
        self._out, self._shards, self._batches = out, shards, batches
        self._rows: list[dict[str, np.ndarray]] = []
        self._state: dict[str, Any] = {}
        self._pending: Future | None = None

    def add(self, rows: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Adds a batch. `state` is the loader's after it."""
        self._rows.append(rows)
        self._state = state
        if len(self._rows) == self._batches:
            self._hand_over()

    def _hand_over(self) -> None:
        path = self._out / f"shard-{len(self._shards):05d}.npz"
        self._wait()
        self._pending = self.submit(_write_shard, path, self._rows, state=self._state)
        self._shards.append(path)
        self._rows = []

    def _wait(self) -> None:
        if self._pending:
            self._pending.result()

    def __exit__(self, kind, error, traceback):
        if kind is None and self._rows:
            self._hand_over()
        super().__exit__(kind, error, traceback)  # writes what was handed over, also after an error
        if kind is None:
            self._wait()


def _write_shard(path: Path, rows: list[dict[str, np.ndarray]], *, state: dict[str, Any]) -> None:
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    replace_file(path, lambda unfinished: np.savez(unfinished, state=json.dumps(state), **arrays))


def _start(out: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the extraction in `out` if it is this one, or a new one."""
    if is_extraction(out):
        manifest = read_manifest(out)
        check_same(out, manifest, description)
        return manifest
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an extraction; choose another name")
    manifest = {"kind": KIND, "version": VERSION, "complete": False, **description}
    _write_manifest(out, manifest)
    return manifest


def _finish(out: Path, manifest: Mapping[str, Any], *, shards: list[Path], unusable: Mapping[str, str]) -> None:
    """Writes the manifest of a complete extraction."""
    complete = {"complete": True, "shards": [path.name for path in shards], "unusable": dict(unusable)}
    _write_manifest(out, dict(manifest) | complete)


def _write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    write_text(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _whole_shards(out: Path) -> list[Path]:
    """The shards in a folder, from 0. Raises `ValueError` for a gap."""
    found = {path.name: path for path in out.glob("shard-*.npz")}
    names = [f"shard-{number:05d}.npz" for number in range(len(found))]
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{out} has lost {missing[0]}; delete the shards after it to go on from there")
    return [found[name] for name in names]


def _go_on(batches: Batches, shards: list[Path]) -> int:
    """Moves the batches behind the last shard. Returns the number of clips that are done."""
    if not shards:
        return 0
    try:
        with np.load(shards[-1], allow_pickle=False) as last:
            state, clips = json.loads(last["state"].item()), int(last["index"].max(initial=-1)) + 1
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{shards[-1]} cannot be read ({error}); delete it to go on from the shard before") from error
    batches.set_state(state)
    return clips
