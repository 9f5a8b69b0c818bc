"""`jaxprune validate SOURCE [audio...]`: proof on your own checkpoint that JAX computes what PyTorch does.

It climbs from the sound to logits and compares at every rung. The first are log-mel, then the input and the logits that
each side makes of the sound with its own features and padding, then patch embedding, block 0 and the unpruned encoder.
At each keep rate follow the pruning stages. First the JAX model is forced to keep the reference's patches. So a tie can
neither hide nor fake an error. Then it runs free. The reference is `torch_reference.py`, and for a Hugging Face
checkpoint `transformers` as well. `rungs.py` compares.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from jaxprune.audio import load_audio, pad_batch
from jaxprune.cli.console import notice, print_table, run
from jaxprune.features import SAMPLE_RATE, log_mel, model_input, sample_count
from jaxprune.files import write_text
from jaxprune.models import jit_forward, topk
from jaxprune.reduction.policy import default_blocks
from jaxprune.reduction.scores import Given

from . import torch_features, torch_reference
from .about import Facts
from .mapping import to_flax
from .read import TorchCheckpoint, read_torch
from .rungs import Rung, compare, compare_tokens, forced_rungs, free_rungs, ranks

NOTHING_TOLD = Facts()


@dataclass(frozen=True)
class Sounds:
    """The sounds to validate on: their names and waveforms."""

    names: tuple[str, ...]
    waveforms: tuple[np.ndarray, ...]


def main(
    source: Annotated[Path, tyro.conf.Positional],
    audio: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    *,
    keep_rates: tuple[float, ...] = (1.0, 0.9, 0.7, 0.5),
    blocks: tuple[int, ...] = (),
    tolerance: float = 1e-4,
    facts: Annotated[Facts, tyro.conf.arg(name="")] = NOTHING_TOLD,
    out: Path | None = None,
) -> int:
    """Compare a PyTorch checkpoint in PyTorch and in JAX, stage by stage; exit code 1 when out of tolerance.

    Args:
        source: the PyTorch checkpoint, as for jaxprune convert.
        audio: recordings to compare on (their first window); synthetic sounds if none are given.
        keep_rates: keep rates to compare at.
        blocks: 0-based blocks that prune; those of 3, 6 and 9 that the model has unless given.
        tolerance: largest difference allowed in logits; in tokens it grows with the largest value, if that exceeds 1;
            log-mel has its own.
        facts: facts about the source, as for jaxprune convert.
        out: write the comparison as JSON here.
    """
    checkpoint = read_torch(source, **vars(facts))
    for note in checkpoint.notes:
        notice(note)
    if checkpoint.missing:
        raise ValueError(
            f"{source} has no classifier ({', '.join(checkpoint.missing)}), so it has no logits to compare"
        )
    sounds = recordings(audio) if audio else synthetic(checkpoint.card.model.frames)
    with jax.default_matmul_precision("highest"):
        rungs = validate(checkpoint, sounds, source=source, keep_rates=keep_rates, blocks=blocks, tolerance=tolerance)
    passed = all(rung.passed for rung in rungs)
    show(rungs, checkpoint, sounds)
    print(f"{'agrees' if passed else 'DOES NOT AGREE'}: {source} on {len(sounds.names)} clips")
    if out is not None:
        result = {
            "source": str(source),
            "layout": checkpoint.layout,
            "model": asdict(checkpoint.card.model),
            "clips": sounds.names,
            "blocks": blocks or default_blocks(checkpoint.card.model.depth),
            "passed": passed,
            "rungs": [asdict(rung) for rung in rungs],
        }
        write_text(out, json.dumps(result, indent=1) + "\n")
    return 0 if passed else 1


def validate(
    checkpoint: TorchCheckpoint,
    sounds: Sounds,
    *,
    source: Path,
    keep_rates: Sequence[float],
    blocks: Sequence[int] = (),
    tolerance: float = 1e-4,
) -> list[Rung]:
    """Every rung for one checkpoint, in the order it is climbed.

    Without `blocks`, those of 3, 6 and 9 that the model has prune. `source` is read again by `transformers` alone.
    """
    card = checkpoint.card
    blocks = blocks or default_blocks(card.model.depth)
    model = to_flax(checkpoint.state, card.model)
    policies = {rate: topk(model, dict.fromkeys(blocks, rate)) for rate in keep_rates}  # refuses what cannot be
    reference = torch_reference.build(card.model)
    reference.load_state_dict({key: torch.tensor(value) for key, value in checkpoint.state.items()})
    waveforms, lengths = pad_batch([wave[: sample_count(card.model.frames)] for wave in sounds.waveforms])
    mel = model_input(
        waveforms,
        lengths,
        frames=card.model.frames,
        mean=card.mean,
        std=card.std,
        padding=card.padding,
        mels=card.model.mels,
    )
    forward = jit_forward(model)

    rungs = feature_rungs(sounds, mels=card.model.mels)
    theirs = run_reference(reference, mel, {})
    ours = forward(mel, topk(model, {}))
    rungs += sound_rungs(
        checkpoint, sounds, source=source, reference=reference, mel=mel, logits=ours.logits, tolerance=tolerance
    )
    pairs = {
        "patch embedding": (theirs.embedded, ours.tokens_in),
        "block 0": (theirs.blocks[0], ours.trace[0].tokens),
        "encoder, unpruned": (theirs.blocks[-1], ours.trace[-1].tokens),
    }
    rungs += [compare_tokens(*pair, stage=stage, keep_rate=1.0, tolerance=tolerance) for stage, pair in pairs.items()]
    logits = {"logits, unpruned": theirs.logits}
    if checkpoint.huggingface is not None:
        logits["logits, unpruned, transformers"] = transformers_logits(source, mel)
    rungs += [
        compare(found, ours.logits, stage=stage, keep_rate=1.0, tolerance=tolerance) for stage, found in logits.items()
    ]
    for rate, policy in policies.items():
        if rate == 1:
            continue  # nothing is selected: the rungs above are it
        theirs = run_reference(reference, mel, dict.fromkeys(blocks, rate))
        forced = forward(mel, topk(model, dict.fromkeys(blocks, rate), score=Given(ranks(theirs, card.model.patches))))
        rungs += forced_rungs(theirs, forced, blocks=blocks, keep_rate=rate, tolerance=tolerance)
        rungs += free_rungs(theirs, forward(mel, policy), blocks=blocks, keep_rate=rate, tolerance=tolerance)
    return rungs


def sound_rungs(
    checkpoint: TorchCheckpoint,
    sounds: Sounds,
    *,
    source: Path,
    reference: torch.nn.Module,
    mel: jax.Array,
    logits: jax.Array,
    tolerance: float,
) -> list[Rung]:
    """Input and logits from the sound, each side with its own features and padding.

    The features err by up to 6e-4 away from the floor, which moves logits by more than `tolerance`.
    """
    card = checkpoint.card
    if checkpoint.huggingface:
        theirs = extractor_input(source, sounds)
    else:
        facts = {"frames": card.model.frames, "mean": card.mean, "std": card.std, "mels": card.model.mels}
        theirs = np.stack(
            [
                torch_features.model_input(torch.tensor(wave), padding=card.padding, **facts).float().numpy()
                for wave in sounds.waveforms
            ]
        )
    heard = run_reference(reference, theirs, {}).logits
    return [
        compare(theirs, mel, stage="input, from the sound", keep_rate=1.0, tolerance=2e-3 / (2 * card.std)),
        compare(heard, logits, stage="logits, from the sound", keep_rate=1.0, tolerance=max(tolerance, 1e-3)),
    ]


def extractor_input(source: Path, sounds: Sounds) -> np.ndarray:
    """The input from a Hugging Face directory's own `ASTFeatureExtractor`; without one, by the published settings.

    Raises `ValueError` where `transformers` is not installed.
    """
    kind = of_transformers("ASTFeatureExtractor")
    folder = source if source.is_dir() else source.parent
    found = any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    extract = kind.from_pretrained(folder, local_files_only=True) if found else kind()
    waveforms = list(sounds.waveforms)
    return extract(waveforms, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"]


def feature_rungs(sounds: Sounds, *, mels: int) -> list[Rung]:
    """Log-mel of every clip against float64: everywhere, and away from the floor."""
    pairs = [
        (
            torch_features.log_mel(torch.tensor(wave), mels=mels).numpy(),
            np.asarray(log_mel(jnp.asarray(wave), mels=mels)),
        )
        for wave in sounds.waveforms
    ]
    theirs, ours = (np.concatenate(values) for values in zip(*pairs, strict=True))
    loud = theirs > -10
    rungs = [compare(theirs, ours, stage="log-mel", keep_rate=1.0, tolerance=2e-3)]
    if loud.any():
        stage = "log-mel where above -10"
        rungs.append(compare(theirs[loud], ours[loud], stage=stage, keep_rate=1.0, tolerance=6e-4))
    return rungs


def run_reference(
    model: torch.nn.Module, mel: jax.Array | np.ndarray, keep: dict[int, float]
) -> torch_reference.Reference:
    with torch.inference_mode():
        return model(torch.tensor(np.asarray(mel)), keep)


def transformers_logits(source: Path, mel: jax.Array) -> np.ndarray:
    """Logits that `transformers` itself makes of a Hugging Face checkpoint, unpruned.

    Raises `ValueError` if it is not installed.
    """
    folder = source if source.is_dir() else source.parent
    model = of_transformers("ASTForAudioClassification").from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        return model(torch.tensor(np.asarray(mel))).logits.numpy()


def of_transformers(name: str) -> type:
    """A class of `transformers`. Raises `ValueError` if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError("comparing a Hugging Face checkpoint needs transformers: pip install transformers") from error
    return getattr(transformers, name)


def recordings(paths: Sequence[Path]) -> Sounds:
    """The recordings. A notice tells each thing that was changed on the way."""
    clips = [load_audio(path) for path in paths]
    for clip in clips:
        for text in clip.notices:
            notice(text)
    return Sounds(tuple(str(clip.path) for clip in clips), tuple(clip.waveform for clip in clips))


def synthetic(frames: int) -> Sounds:
    """Three seeded sounds: noise that swells over a model's length, a chirp that ends early, and its first tenth."""
    samples = sample_count(frames)
    rng, time = np.random.default_rng(0), np.arange(samples) / SAMPLE_RATE
    swell = rng.standard_normal(samples) * np.linspace(0.001, 0.3, samples)
    chirp = np.sin(2 * np.pi * (100 + 150 * time) * time)[: max(400, samples * 2 // 3)]
    chirp = 0.5 * chirp + 0.001 * rng.standard_normal(len(chirp))
    waves = (swell, chirp, chirp[: max(400, samples // 10)])
    names = ("synthetic: swelling noise", "synthetic: chirp", "synthetic: short chirp")
    return Sounds(names, tuple(wave.astype(np.float32) for wave in waves))


def show(rungs: Sequence[Rung], checkpoint: TorchCheckpoint, sounds: Sounds) -> None:
    """The comparison as a table."""
    rows = [
        [
            rung.stage,
            f"{rung.keep_rate:g}",
            f"{rung.max_difference:.1e}",
            f"{rung.mean_difference:.1e}",
            f"{rung.tolerance:.1e}",
            "" if rung.overlap is None else f"{100 * rung.overlap:.1f} %",
            "" if rung.gap is None else f"{rung.gap:.1e}",
            ("ok" if rung.passed else "FAILED") + (f" ({rung.remark})" if rung.remark else ""),
        ]
        for rung in rungs
    ]
    columns = ["stage", "keep rate", "max diff", "mean diff", "tolerance", "same patches", "score gap", ""]
    print_table(f"{checkpoint.layout}: PyTorch against JAX on {len(sounds.names)} clips", columns, rows)


if __name__ == "__main__":
    run(main)
