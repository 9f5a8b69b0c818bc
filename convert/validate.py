"""`jaxprune validate SOURCE [audio...]`: proof on your own checkpoint that JAX computes what PyTorch does.

It climbs from the sound to logits and compares at every rung. The first are log-mel, then the input and the logits that
each side makes of the sound with its own features and padding, then patch embedding, block 0 and the unpruned encoder.
At each keep rate or saving follow the pruning stages. First the JAX model is forced to keep the reference's patches. So
a tie can neither hide nor fake an error. Then it runs free. Other methods than top-k have one rung: who holds whom, and
the logits. The reference is `torch_reference.py`, and for a Hugging Face checkpoint `transformers` as well. `rungs.py`
compares. A pretrained AudioMAE with its decoder has rungs of its own, in `validate_pretraining.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import torch
import tyro

from jaxprune.amounts import in_words
from jaxprune.cli.console import notice, print_table, run
from jaxprune.cli.options import check_file, held
from jaxprune.cli.reducing import NONE_TOLD, Several, SeveralReductions
from jaxprune.features import SAMPLE_RATE
from jaxprune.files import write_text
from jaxprune.models import jit_forward, topk
from jaxprune.reduction.policy import default_blocks
from jaxprune.reduction.scores import Given

from . import torch_methods, torch_reference
from .about import Facts
from .containers import Container
from .hub import open_source
from .mapping import to_flax
from .pretraining import has_decoder
from .read import TorchCheckpoint, read_torch
from .rungs import Rung, compare, compare_tokens, forced_rungs, free_rungs, method_rung, ranks
from .sounds import Sounds, Subject, feature_rungs, input_rung, our_input, recordings, synthetic, their_input
from .validate_pretraining import pretraining

KEEP_RATES = (1.0, 0.9, 0.7, 0.5)
NOTHING_TOLD = Facts()


def main(
    source: Annotated[Path, tyro.conf.Positional],
    audio: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    *,
    how: SeveralReductions = NONE_TOLD,
    tolerance: float = 1e-4,
    mask_ratio: float = 0.8,
    decoder_heads: int | None = None,
    facts: Annotated[Facts, tyro.conf.arg(name="")] = NOTHING_TOLD,
    out: Path | None = None,
) -> int:
    """Compare a PyTorch checkpoint in PyTorch and in JAX, stage by stage; exit code 1 when out of tolerance.

    Args:
        source: the PyTorch checkpoint, as for jaxprune convert.
        audio: recordings to compare on (their first window); synthetic sounds if none are given.
        how: the reductions; the command's own keep rates are 1 0.9 0.7 0.5. random alone has nothing in PyTorch to be
            compared with.
        tolerance: largest difference allowed in logits; in tokens it grows with the largest value, if that exceeds 1;
            log-mel has its own.
        mask_ratio: share of the patches that a pretrained AudioMAE with its decoder does not see.
        decoder_heads: attention heads of its plain decoder, if not 16.
        facts: facts about the source, as for jaxprune convert.
        out: write the comparison as JSON here.
    """
    check_file(out)
    with held(out):
        decoding = {"mask_ratio": mask_ratio, "decoder_heads": decoder_heads}
        subject = _subject(source, facts=facts, tolerance=tolerance, how=how, **decoding)
        sounds = recordings(audio) if audio else synthetic(subject.card.model.frames)
        with jax.default_matmul_precision("highest"):
            rungs = subject.climb(sounds)
        passed = all(rung.passed for rung in rungs)
        show(rungs, layout=subject.layout, sounds=sounds)
        print(f"{'agrees' if passed else 'DOES NOT AGREE'}: {source} on {len(sounds.names)} clips")
        if out is not None:
            result = {
                "source": str(source),
                "layout": subject.layout,
                "model": asdict(subject.card.model),
                "clips": sounds.names,
                "blocks": subject.blocks,
                "method": how.method,
                "passed": passed,
                "rungs": [asdict(rung) for rung in rungs],
            }
            write_text(out, json.dumps(result, indent=1) + "\n")
    return 0 if passed else 1


def _subject(
    source: Path, *, facts: Facts, mask_ratio: float, decoder_heads: int | None, tolerance: float, how: Several
) -> Subject:
    """The model to compare, at reductions that are a classifier's alone."""
    container = open_source(source, key=facts.key)
    if not has_decoder(container):
        return classifier(container, source=source, facts=facts, tolerance=tolerance, how=how)
    if how != NONE_TOLD:
        notice("a pretrained AudioMAE prunes nothing: --method, --blocks and the amounts are left aside")
    return pretraining(container, facts=facts, mask_ratio=mask_ratio, decoder_heads=decoder_heads, tolerance=tolerance)


def classifier(container: Container, *, source: Path, facts: Facts, how: Several, tolerance: float) -> Subject:
    """A classifier to compare. Raises `ValueError` for one without a head, and a method that PyTorch has not."""
    checkpoint = read_torch(source, container=container, **vars(facts))
    how = how.of(checkpoint.card)
    torch_methods.check(how.method)
    for note in checkpoint.notes:
        notice(note)
    if checkpoint.missing:
        raise ValueError(
            f"{source} has no classifier ({', '.join(checkpoint.missing)}), so it has no logits to compare"
        )
    return Subject(
        card=checkpoint.card,
        layout=checkpoint.layout,
        blocks=tuple(how.blocks or default_blocks(checkpoint.card.model.depth)),
        climb=lambda sounds: validate(checkpoint, sounds, source=container.path, how=how, tolerance=tolerance),
    )


def validate(
    checkpoint: TorchCheckpoint, sounds: Sounds, *, source: Path, how: Several, tolerance: float = 1e-4
) -> list[Rung]:
    """Every rung for one checkpoint, in the order it is climbed. `source` is read again by `transformers` alone."""
    card = checkpoint.card
    model = to_flax(checkpoint.state, card.model)
    policies = how.policies(model, default=KEEP_RATES)  # refuses what cannot be
    reference = torch_reference.build(card.model)
    reference.load_state_dict({key: torch.tensor(value) for key, value in checkpoint.state.items()})
    mel = our_input(card, sounds)
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
    for amount, policy in policies.items():
        if amount == 1:
            continue  # nothing is selected: the rungs above are it
        at = {"keep_rate": amount if isinstance(amount, float) else in_words(amount), "tolerance": tolerance}
        if how.method != "topk":
            with torch.inference_mode():
                found = torch_methods.run(reference, torch.tensor(np.asarray(mel)), how.method, policy)
            rungs.append(method_rung(found, forward(mel, policy), method=how.method, **at))
            continue
        rates = {block: stage.rate for block, stage in policy.stages.items()}
        theirs = run_reference(reference, mel, rates)
        forced = forward(mel, topk(model, rates, score=Given(ranks(theirs, card.model.patches))))
        rungs += forced_rungs(theirs, forced, blocks=tuple(rates), **at)
        rungs += free_rungs(theirs, forward(mel, policy), blocks=tuple(rates), **at)
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

    The features' errors move logits by more than `tolerance`.
    """
    card = checkpoint.card
    theirs = extractor_input(source, sounds) if checkpoint.huggingface else their_input(card, sounds)
    heard = run_reference(reference, theirs, {}).logits
    return [
        input_rung(theirs, mel, card=card),
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


def show(rungs: Sequence[Rung], *, layout: str, sounds: Sounds) -> None:
    """The comparison as a table."""
    rows = [
        [
            rung.stage,
            rung.keep_rate if isinstance(rung.keep_rate, str) else f"{rung.keep_rate:g}",
            f"{rung.max_difference:.1e}",
            f"{rung.mean_difference:.1e}",
            f"{rung.tolerance:.1e}",
            "" if rung.overlap is None else f"{100 * rung.overlap:.1f} %",
            "" if rung.gap is None else f"{rung.gap:.1e}",
            ("ok" if rung.passed else "FAILED") + (f" ({rung.remark})" if rung.remark else ""),
        ]
        for rung in rungs
    ]
    rates = all(isinstance(rung.keep_rate, float) for rung in rungs)
    columns = [
        "stage",
        "keep rate" if rates else "reduction",
        "max diff",
        "mean diff",
        "tolerance",
        "same patches",
        "score gap",
        "",
    ]
    print_table(f"{layout}: PyTorch against JAX on {len(sounds.names)} clips", columns, rows)


if __name__ == "__main__":
    run(main)
