"""The main job end to end: `make demo`.

First a full-size AST-base in the authors' PyTorch layout, with random weights: converted, proven block by block to
compute the same in JAX, run on the recordings in tests/recordings at three keep rates. Labels mean nothing there; what
this proves is parity, cost and speed. Then the small AST that comes with the library, which was trained: its accuracy
on the spoken words in tests/words at falling keep rates, and again after a short fine-tuning with the keep rate falling
on the way.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxprune.convert import random_checkpoint, validate
from jaxprune.convert.mapping import to_flax
from jaxprune.convert.read import TorchCheckpoint, read_torch

from jaxprune import checkpoint
from jaxprune.audio import load_audio
from jaxprune.cli.console import print_table, run
from jaxprune.cli.progress import show
from jaxprune.config import Card, ModelConfig
from jaxprune.data.batches import eval_batches
from jaxprune.data.published import Manifest
from jaxprune.data.records import Dataset
from jaxprune.evaluation.evaluate import RateResult, evaluate, keep_policies
from jaxprune.evaluation.timing import milliseconds
from jaxprune.files import write_text
from jaxprune.inference import Report, classify_clips
from jaxprune.models import Classifier
from jaxprune.plots import clips as plots
from jaxprune.training.finetune import finetune
from jaxprune.training.recipes import recipe
from jaxprune.training.settings import Recipe

TESTS = Path(__file__).resolve().parent.parent / "tests"
RECORDINGS, WORDS = TESTS / "recordings", TESTS / "words"
FALLING = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # keep rates of the trained model
PICTURES = 8  # spoken words whose patches are drawn
FORMATS = (".flac", ".mp3", ".ogg", ".wav")


def main(*, out: Path = Path("demo"), keep_rates: tuple[float, ...] = (1.0, 0.7, 0.5), batch: int = 2) -> int:
    """Convert, prove, prune and picture a full-size model with random weights; measure and fine-tune a trained one.

    Args:
        out: directory for checkpoints, proof, pictures, the fine-tuning run and the tables.
        keep_rates: keep rates to run the full-size model at; the first is what the others are compared with.
        batch: clips of the full-size model computed together.
    """
    out.mkdir(parents=True, exist_ok=True)
    agree = full_size(out, keep_rates, batch=batch)
    trained(out)
    return 0 if agree else 1


def full_size(out: Path, keep_rates: tuple[float, ...], *, batch: int) -> bool:
    """Parity, cost and speed of an AST-base with random weights. True if PyTorch and JAX agree at every stage."""
    began = time.perf_counter()
    source = out / "ast-base-random.pth"
    read, card, model = converted(source, out / "ast-base-random")
    clips = [load_audio(path) for path in sorted(RECORDINGS.iterdir()) if path.suffix in FORMATS]
    step("3. PyTorch against JAX, stage by stage, on two of the recordings")
    sounds = validate.Sounds(tuple(clip.path.name for clip in clips[:2]), tuple(clip.waveform for clip in clips[:2]))
    rungs = validate.validate(read, sounds, source=source, keep_rates=keep_rates)
    validate.show(rungs, read, sounds)

    step(f"4. {len(clips)} recordings at keep rates {', '.join(f'{rate:g}' for rate in keep_rates)}")
    reports = {}
    for rate in keep_rates:
        reports[rate] = classify_clips(clips, model, card=card, keep_rate=rate, batch=batch, mels=4)
        if rate < 1:
            for path in plots.retained_patches(reports[rate].results, model.config, path=out / f"kept-{rate:g}.png"):
                print(f"wrote {path}")
    rows, agree = costs(reports, rungs), all(rung.passed for rung in rungs)
    base = reports[keep_rates[0]]
    print_costs(
        rows,
        title=f"AST-base, T = 1024, {len(base.results)} clips, batch {base.batch}, {base.device}, float32",
        notes=[
            f"PyTorch and JAX {'agree' if agree else 'DO NOT AGREE'} at every stage.",
            "The weights are random: parity, cost and speed are real, labels and kept patches mean nothing.",
            f"Everything is in {out}; it took {time.perf_counter() - began:.0f} s.",
        ],
    )
    result = {"rows": rows, "agree": agree, "rungs": [dataclasses.asdict(rung) for rung in rungs]}
    write_text(out / "demo.json", json.dumps(result, indent=1) + "\n")
    return agree


def converted(source: Path, target: Path) -> tuple[TorchCheckpoint, Card, Classifier]:
    """A checkpoint with random weights in the authors' layout, read, converted and loaded again."""
    step(f"1. an AST-base checkpoint in the official PyTorch layout, random weights: {source}")
    random_checkpoint.write_ast_official(source, ModelConfig.of_size("ast", "base", classes=527), seed=0)
    step(f"2. converted to JAX: {target}")
    read = read_torch(source)
    card = dataclasses.replace(read.card, source="random weights, seed 0", trained=False)
    checkpoint.save(target, to_flax(read.state, card.model), card=card, overwrite=True)
    return read, card, checkpoint.load(target)


def costs(reports: Mapping[float, Report], rungs: Sequence[validate.Rung]) -> list[dict[str, float]]:
    """A row for each keep rate; speed-up and ratio of multiply-accumulates are against the first."""
    base = next(iter(reports.values()))
    return [
        {
            "keep_rate": rate,
            "gmacs": report.macs / 1e9,
            "milliseconds": report.milliseconds,
            "speed_up": base.milliseconds / report.milliseconds,
            "mac_ratio": base.macs / report.macs,
            "max_logit_difference": max(
                rung.max_difference for rung in rungs if rung.stage.startswith("logits") and rung.keep_rate == rate
            ),
            "compile_seconds": report.compile_seconds,
        }
        for rate, report in reports.items()
    ]


def print_costs(rows: Sequence[Mapping[str, float]], *, title: str, notes: Sequence[str]) -> None:
    columns = [
        "keep rate",
        "GMACs",
        "ms per clip",
        "speed-up",
        "MAC ratio",
        "largest logit difference to PyTorch",
        "compile s",
    ]
    patterns = ["{:g}", "{:.2f}", "{:.0f}", "{:.2f}", "{:.2f}", "{:.1e}", "{:.1f}"]
    cells = [[pattern.format(value) for pattern, value in zip(patterns, row.values(), strict=True)] for row in rows]
    print_table(title, columns, cells, notes=notes)


def trained(out: Path) -> None:
    """Accuracy against cost of the model that comes with the library, before and after fine-tuning with pruning."""
    began = time.perf_counter()
    shipped, table = checkpoint.SHIPPED / "ast-words", WORDS / "words.csv"
    model, card = checkpoint.load(shipped), checkpoint.load_card(shipped)
    dataset = Manifest(path=table).read()
    step(f"5. a trained model: {card.source}, on {len(dataset.clips('test'))} spoken words it has not heard")
    speed = milliseconds(model, FALLING)
    rows = [
        words_row("as trained", rate, found=found, speed=speed)
        for rate, found in accuracies(model, card, dataset=dataset, keep_rates=FALLING).items()
    ]
    print_words(rows, dataset)
    some = [load_audio(record.path) for record in dataset.clips("test")[:: len(dataset.clips("test")) // PICTURES]]
    report = classify_clips(some, model, card=card, keep_rate=FALLING[-1], mels=len(some))
    for path in plots.retained_patches(report.results, model.config, path=out / f"words-{FALLING[-1]:g}.png"):
        print(f"wrote {path}")

    rate = FALLING[-1]
    step(f"6. two minutes of fine-tuning, the keep rate falling to {rate:g}")
    run_at = out / "words-run"
    shutil.rmtree(run_at, ignore_errors=True)
    show(finetune(short_recipe(shipped, table, keep_rate=rate), run_at, seed=0), run_at)
    tuned = checkpoint.load(run_at / "model")
    found = accuracies(tuned, card, dataset=dataset, keep_rates=(rate,))[rate]
    rows += [words_row("fine-tuned", rate, found=found, speed=speed)]
    print_words(rows, dataset, notes=[f"Steps 5 and 6 took {time.perf_counter() - began:.0f} s."])
    write_text(out / "words.json", json.dumps(rows, indent=1) + "\n")


def short_recipe(model: Path, table: Path, *, keep_rate: float) -> Recipe:
    """The recipe the model comes from, made short: a few clips many times, few sizes to compile, small steps."""
    base = recipe("ast-words")
    return dataclasses.replace(
        base,
        start=dataclasses.replace(base.start, checkpoint=str(model)),
        data=dataclasses.replace(base.data, dataset="spoken words", root=str(table)),
        optimizer=dataclasses.replace(base.optimizer, base_lr=2e-3),
        prune=dataclasses.replace(base.prune, keep_rate=keep_rate, shrink_start=4, shrink_epochs=8, buckets=2),
        loop=dataclasses.replace(base.loop, epochs=20, batch=35),
    )


def accuracies(
    model: Classifier, card: Card, *, dataset: Dataset, keep_rates: tuple[float, ...]
) -> Mapping[float, RateResult]:
    with eval_batches(dataset, "test", frames=model.config.frames, batch_size=70) as batches:
        policies = keep_policies(model, keep_rates)
        return evaluate(model, batches, card=card, policies=policies, single_label=True).rates


def words_row(name: str, keep_rate: float, *, found: RateResult, speed: Mapping[float, float]) -> dict[str, object]:
    return {
        "model": name,
        "keep_rate": keep_rate,
        "accuracy": found.metrics["top1"],
        "gmacs": found.macs / 1e9,
        "saving": found.saving,
        "milliseconds": speed[keep_rate],
        "speed_up": speed[1.0] / speed[keep_rate],
    }


def print_words(rows: list[dict[str, object]], dataset: Dataset, *, notes: Sequence[str] = ()) -> None:
    columns = ["model", "keep rate", "top-1 %", "GMACs", "saved", "ms per clip", "speed-up"]
    patterns = ["{}", "{:g}", "{:.1%}", "{:.4f}", "{:.1%}", "{:.2f}", "{:.2f}"]
    cells = [[pattern.format(value) for pattern, value in zip(patterns, row.values(), strict=True)] for row in rows]
    clips = len(dataset.clips("test"))
    title = f"AST-micro, {len(dataset.labels)} synthetic spoken words, {clips} test clips"
    print_table(title, columns, cells, notes=notes)


def step(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    run(main)
