"""Quality and patches of every keep rate in every precision, on one set of clips: files against the float32 model.

Each pair is exported, loaded in one runtime and run on the same log-mel. The model in JAX at the same rate says which
patches float32 keeps.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxprune.amounts import Amount, in_words
from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.data.batches import Batches
from jaxprune.evaluation.metrics import ranking
from jaxprune.export.check import Answers, answering, inputs_of, share
from jaxprune.export.export import Settings, onnx_model
from jaxprune.export.runtimes import RUNTIMES, Precision, Run
from jaxprune.models import Classifier
from jaxprune.reduction.policy import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One keep rate, or other amount that was `asked` for, in one precision. `rate` is None for another amount.

    `quality` is top-1 or mean average precision, `metric` says which, as a share. `overlap` is the mean share of the
    patches kept by the float32 model at the same rate, at the last pruning block. `same_label` is the share of clips
    with the same best label, `difference` the mean absolute one of logits. `milliseconds` are a clip's, the median over
    batches: of this run, on whatever else the machine did.
    """

    asked: str
    rate: float | None
    precision: str
    macs: int
    metric: str
    quality: float
    overlap: float
    same_label: float
    difference: float
    milliseconds: float
    file_bytes: int


class _Tally:
    """The answers of one pair so far."""

    def __init__(self, run: Run, *, file_bytes: int):
        self.run, self.file_bytes = run, file_bytes
        self.logits: list[np.ndarray] = []
        self.overlaps: list[float] = []
        self.seconds: list[float] = []

    def add(self, mel: Float[np.ndarray, "b t f"], real: np.ndarray, *, expected: Answers) -> None:
        """Runs a batch, of which the `real` rows count."""
        began = time.perf_counter()
        found = self.run({"mel": mel})
        self.seconds.append((time.perf_counter() - began) / len(mel))
        self.logits.append(found["logits"][real])
        if expected.kept:
            last = max(expected.kept)
            rows = np.flatnonzero(real)
            self.overlaps += [share(expected.kept[last][row], found[f"kept_{last}"][row]) for row in rows]


def measure(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    policies: Mapping[Amount, Policy],
    precisions: Sequence[Precision],
    runtime: str,
    calibrate: Sequence[np.ndarray],
    single_label: bool,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Pair]:
    """Every pair, keep rates first. `calibrate` are the waveforms that int8 finds its ranges on.

    Raises `ValueError` for a precision that the runtime does not compute in, no clip, and scores that are not finite.
    """
    if lacking := [name for name in precisions if name not in RUNTIMES[runtime].precisions]:
        raise ValueError(f"{RUNTIMES[runtime].name} does not compute in {lacking[0]} on a CPU; choose another runtime")
    size = len(batches.blank.weights)
    with tempfile.TemporaryDirectory() as folder:
        tallies = {}
        for rate, policy in policies.items():
            for precision in precisions:
                tell(f"exporting {in_words(rate)} in {precision}")
                path = Path(folder, f"{in_words(rate)}-{precision}.onnx")
                written: Precision = "int8" if precision == "int8" else "float32"
                asked = Settings(format="onnx", precision=written, batch=size)
                graph = onnx_model(model, policy, card=card, settings=asked, facts={}, calibrate=calibrate)
                path.write_bytes(graph.SerializeToString())
                run = RUNTIMES[runtime].opens(path, precision=precision)
                tallies[rate, precision] = _Tally(run, file_bytes=path.stat().st_size)
        reference, targets = _run_all(model, batches, card=card, policies=policies, tallies=tallies)
    return [
        _pair(key, tally, reference[key[0]], targets, cost=macs(model, policies[key[0]]), single_label=single_label)
        for key, tally in tallies.items()
    ]


def _run_all(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    policies: Mapping[Amount, Policy],
    tallies: Mapping[tuple[Amount, str], _Tally],
) -> tuple[dict[Amount, np.ndarray], np.ndarray]:
    """Runs every batch through every pair. Returns the float32 model's logits by rate, and the clips' targets."""
    reference: dict[Amount, list[np.ndarray]] = {rate: [] for rate in policies}
    answers = {rate: answering(model, policy) for rate, policy in policies.items()}
    targets = []
    for batch in batches:
        real = batch.weights > 0
        waves = [wave[:length] for wave, length in zip(batch.waveforms, batch.lengths, strict=True)]
        mel = inputs_of(waves, card)["mel"]
        targets.append(batch.targets[real])
        for rate, answer in answers.items():
            expected = answer(mel)
            reference[rate].append(expected.logits[real])
            for (of_rate, _), tally in tallies.items():
                if of_rate == rate:
                    tally.add(mel, real, expected=expected)
    if not sum(map(len, targets)):
        raise ValueError("there is no clip to measure on")
    return {rate: np.concatenate(rows) for rate, rows in reference.items()}, np.concatenate(targets)


def _pair(
    key: tuple[Amount, str],
    tally: _Tally,
    reference: np.ndarray,
    targets: np.ndarray,
    *,
    cost: int,
    single_label: bool,
) -> Pair:
    """The figures of one pair."""
    logits = np.concatenate(tally.logits)
    if not np.isfinite(logits).all():
        raise ValueError(f"the scores at {in_words(key[0])} in {key[1]} are not finite numbers")
    best = logits.argmax(axis=1)
    if single_label:
        metric, quality = "top1", float((best == targets.argmax(axis=1)).mean())
    else:
        metric, quality = "mean_average_precision", ranking(logits, targets > 0).mean_average_precision
    return Pair(
        asked=in_words(key[0]),
        rate=key[0] if isinstance(key[0], float | int) else None,
        precision=key[1],
        macs=cost,
        metric=metric,
        quality=quality,
        overlap=float(np.mean(tally.overlaps)) if tally.overlaps else 1.0,
        same_label=float((best == reference.argmax(axis=1)).mean()),
        difference=float(np.abs(logits - reference).mean()),
        milliseconds=1000 * float(np.median(tally.seconds)),
        file_bytes=tally.file_bytes,
    )


def front(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that no other beats: none is at least as good and faster, or better and as fast. Fastest first."""
    found, best = [], -1.0
    for pair in sorted(pairs, key=lambda pair: (pair.milliseconds, -pair.quality)):
        if pair.quality > best:
            found.append(pair)
            best = pair.quality
    return found
