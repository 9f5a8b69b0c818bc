"""Runs an exported file beside the model it was made of, and compares logits and kept patches.

Pruning is discontinuous: two scores that differ by rounding alone may change places. A clip that keeps other patches
there is a tie and is set aside. Any other difference is an error.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxprune.audio import pad_batch
from jaxprune.config import Card
from jaxprune.export.programs import Program, features_of, kept, pruning_blocks
from jaxprune.export.runtimes import Run
from jaxprune.features import SAMPLE_RATE, sample_count
from jaxprune.models import Classifier, jit_forward
from jaxprune.reduction.policy import Policy

TOLERANCE = 1e-4  # of logits, float32
GAP = 1e-6  # between the last kept and the first dropped score; below it another choice is a tie


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's results for some clips: logits, and for each pruning block the patches kept and the score gap.

    The gap lies between the last kept and the first dropped score, infinite where nothing is dropped.
    """

    logits: Float[np.ndarray, "b y"]
    kept: Mapping[int, Int[np.ndarray, "b k"]]
    gaps: Mapping[int, Float[np.ndarray, "b"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """The comparison of a file with the model.

    `difference` is the largest one of logits, over the clips without the `ties`. `otherwise` counts clips that kept
    other patches though their scores lie apart. `overlap` is the mean share of kept patches in common at the last
    pruning block, `same_label` the share of clips whose best label is the same, both over all clips.
    """

    difference: float
    overlap: float
    same_label: float
    clips: int
    ties: int
    otherwise: int


def inputs_of(waveforms: Sequence[np.ndarray], card: Card) -> dict[str, np.ndarray]:
    """The inputs of any program for some sounds: the model's log-mel, the samples, and how many of them are sound."""
    samples = sample_count(card.model.frames)
    rows, lengths = pad_batch([wave[:samples] for wave in waveforms])
    rows = np.pad(rows, [(0, 0), (0, samples - rows.shape[1])])
    return {"mel": np.asarray(features_of(card)(rows, lengths)), "waveform": rows, "length": lengths}


def answering(model: Classifier, policy: Policy) -> Callable[[Float[np.ndarray, "b t f"]], Answers]:
    """The model's own way from log-mel to answers, float32, in JAX. It compiles once for each size of batch."""
    blocks = pruning_blocks(policy)
    scores = lambda output: {block: output.trace[block].score for block in blocks}  # noqa: E731
    forward = jit_forward(model, lambda output: (output.logits, kept(output, blocks), scores(output)))

    def answers(mel: Float[np.ndarray, "b t f"]) -> Answers:
        logits, chosen, scored = forward(jnp.asarray(mel), policy)
        chosen = {block: np.asarray(ids) for block, ids in chosen.items()}
        gaps = {block: _gaps(np.asarray(scored[block]), chosen[block]) for block in blocks}
        return Answers(logits=np.asarray(logits), kept=chosen, gaps=gaps)

    return answers


def compare(run: Run, made: Program, inputs: Mapping[str, np.ndarray], *, expected: Answers) -> Agreement:
    """Runs all clips in batches of the program's size and compares. Raises `ValueError` for scores that are not finite.

    A free batch is run with all clips at once and with one.
    """
    found = batches(run, inputs, batch=made.batch or len(expected.logits))
    if made.batch is None:
        alone = run({name: array[:1] for name, array in inputs.items()})
        found = {name: np.concatenate([alone[name], array[1:]]) for name, array in found.items()}
    logits = found["logits"]
    if not np.isfinite(logits).all():
        raise ValueError("its scores are not finite numbers")
    same, tied, wrong = np.ones(len(logits), bool), np.zeros(len(logits), bool), np.zeros(len(logits), bool)
    shares = np.ones(len(logits))
    for block, ids in expected.kept.items():
        shares = np.array([share(a, b) for a, b in zip(ids, found[f"kept_{block}"], strict=True)])
        tied |= same & (shares < 1) & (expected.gaps[block] <= GAP)
        wrong |= same & (shares < 1) & (expected.gaps[block] > GAP)
        same &= shares == 1
    difference = np.abs(logits - expected.logits).max(axis=1)
    return Agreement(
        difference=float(difference[~tied].max(initial=0)),
        overlap=float(shares.mean()),
        same_label=float((logits.argmax(axis=1) == expected.logits.argmax(axis=1)).mean()),
        clips=len(logits),
        ties=int(tied.sum()),
        otherwise=int(wrong.sum()),
    )


def batches(run: Run, inputs: Mapping[str, np.ndarray], *, batch: int) -> dict[str, np.ndarray]:
    """The outputs for all clips, in batches of one size. The last is filled up with clips from the beginning."""
    clips = len(next(iter(inputs.values())))
    rows = np.arange(-(-clips // batch) * batch) % clips
    found = [
        run({name: array[rows[first : first + batch]] for name, array in inputs.items()})
        for first in range(0, len(rows), batch)
    ]
    return {name: np.concatenate([one[name] for one in found])[:clips] for name in found[0]}


def check(agreement: Agreement, *, what: str, tolerance: float = TOLERANCE) -> None:
    """Raises `ValueError` unless a float32 file agrees with the model."""
    if agreement.ties == agreement.clips:
        raise ValueError(f"{what} could not be compared: every clip has scores that are equal; give other recordings")
    if agreement.otherwise:
        raise ValueError(f"{what} keeps other patches than the model, so nothing was written; please report it")
    if not agreement.difference <= tolerance:
        raise ValueError(
            f"{what} gives logits that differ from the model's by {agreement.difference:.1e}, more than "
            f"{tolerance:.0e}, so nothing was written"
        )


def share(expected: np.ndarray, found: np.ndarray) -> float:
    """Share of the expected patches that were kept. Empty places do not count."""
    expected = np.unique(expected[expected >= 0])
    return len(np.intersect1d(expected, found)) / len(expected) if len(expected) else 1.0


def sounds(samples: int) -> list[np.ndarray]:
    """Four seeded sounds as real ones are: a voice with vowels and pauses, a swelling noise, a chirp that ends early in
    silence, and knocks of which little more than the first is there."""
    rng, time = np.random.default_rng(0), np.arange(samples) / SAMPLE_RATE
    pitch = 2 * np.pi * np.cumsum(120 + 25 * np.sin(2 * np.pi * 1.3 * time)) / SAMPLE_RATE
    vowel = 2 + 1.5 * np.sin(2 * np.pi * 0.7 * time)
    voice = sum(np.sin(k * pitch) / (1 + (k - 2 * vowel) ** 2) for k in range(1, 30))
    voice = voice * np.maximum(0, np.sin(2 * np.pi * 2.1 * time)) ** 2
    noise = rng.standard_normal(samples)
    chirp = np.sin(2 * np.pi * (100 + 150 * time) * time) * np.minimum(1, 20 * time)
    knocks = noise * np.exp(-30 * (time % 0.4))
    waves = (
        0.1 * voice + 0.001 * noise,
        noise * np.linspace(0.001, 0.3, samples),
        (0.5 * chirp + 0.001 * noise)[: max(400, samples * 2 // 3)],
        (0.3 * knocks + 1e-4 * noise)[: max(400, samples // 10)],
    )
    return [wave.astype(np.float32) for wave in waves]


def _gaps(scores: Float[np.ndarray, "b n"], ids: Int[np.ndarray, "b k"]) -> Float[np.ndarray, "b"]:
    # A token that was fused from the dropped ones stands last (EViT).
    kept = ids.shape[1] - int(bool((ids[:, -1] < 0).all()))
    if kept >= scores.shape[1]:
        return np.full(len(scores), np.inf)
    falling = -np.sort(-scores, axis=1)
    return falling[:, kept - 1] - falling[:, kept]
