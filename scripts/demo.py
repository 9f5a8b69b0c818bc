"""The main job end to end, on real recordings: `make demo`.

Builds a full-size AST-base checkpoint in the authors' PyTorch layout, converts it, proves block by block that JAX
computes the same, classifies the recordings in tests/recordings at three keep rates, and draws what was kept. The
weights are random, so the labels mean nothing: what this proves is parity, cost and speed.
"""

import dataclasses
import json
import time
from pathlib import Path

from convert import random_checkpoint, validate
from convert.checkpoints import read_torch
from convert.mapping import to_flax
from jaxprune import checkpoint, plots
from jaxprune.classify import classify, load_clips
from jaxprune.cli import print_table, run
from jaxprune.config import ModelConfig
from jaxprune.files import write_text

RECORDINGS = Path(__file__).resolve().parent.parent / "tests" / "recordings"
FORMATS = (".flac", ".mp3", ".ogg", ".wav")


def main(*, out: Path = Path("demo"), keep_rates: tuple[float, ...] = (1.0, 0.7, 0.5), batch: int = 2) -> int:
    """Convert, prove, prune and picture a full-size model with random weights.

    Args:
        out: directory for the checkpoint, the proof, the pictures and the table.
        keep_rates: keep rates to run at; the first is what the others are compared with.
        batch: clips computed together.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    source = out / "ast-base-random.pth"
    step(f"1. an AST-base checkpoint in the official PyTorch layout, random weights: {source}")
    random_checkpoint.write_ast_official(source, ModelConfig.of_size("ast", "base", classes=527), seed=0)

    step(f"2. converted to JAX: {out / 'ast-base-random'}")
    read = read_torch(source)
    card = dataclasses.replace(read.card, source="random weights, seed 0")
    checkpoint.save(out / "ast-base-random", to_flax(read.state, card.model), card=card, overwrite=True)
    model = checkpoint.load(out / "ast-base-random")

    clips = load_clips(sorted(path for path in RECORDINGS.iterdir() if path.suffix in FORMATS))
    step("3. PyTorch against JAX, stage by stage, on two of the recordings")
    sounds = validate.Sounds(tuple(clip.path.name for clip in clips[:2]), tuple(clip.waveform for clip in clips[:2]))
    rungs = validate.validate(read, sounds, source=source, keep_rates=keep_rates)
    validate.show(rungs, read, sounds)

    step(f"4. {len(clips)} recordings at keep rates {', '.join(f'{rate:g}' for rate in keep_rates)}")
    reports = {}
    for rate in keep_rates:
        reports[rate] = classify(clips, model, card=card, keep_rate=rate, batch=batch, mels=4)
        if rate < 1:
            for path in plots.retained_patches(reports[rate].results, model.config, path=out / f"kept-{rate:g}.png"):
                print(f"wrote {path}")

    base, rows = reports[keep_rates[0]], []
    for rate, report in reports.items():
        logits = [rung.max_difference for rung in rungs if rung.stage.startswith("logits") and rung.keep_rate == rate]
        row = {
            "keep_rate": rate,
            "gmacs": report.macs / 1e9,
            "milliseconds": report.milliseconds,
            "speed_up": base.milliseconds / report.milliseconds,
            "mac_ratio": base.macs / report.macs,
            "max_logit_difference": max(logits),
            "compile_seconds": report.compile_seconds,
        }
        rows.append(row)
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
    agree = all(rung.passed for rung in rungs)
    print_table(
        f"AST-base, T = 1024, {len(base.results)} clips, batch {base.batch}, {base.device}, float32",
        columns,
        [[pattern.format(value) for pattern, value in zip(patterns, row.values(), strict=True)] for row in rows],
        notes=[
            f"PyTorch and JAX {'agree' if agree else 'DO NOT AGREE'} at every stage.",
            "The weights are random: parity, cost and speed are real, labels and kept patches mean nothing.",
            f"Everything is in {out}; it took {time.perf_counter() - began:.0f} s.",
        ],
    )
    result = {"rows": rows, "agree": agree, "rungs": [dataclasses.asdict(rung) for rung in rungs]}
    write_text(out / "demo.json", json.dumps(result, indent=1) + "\n")
    return 0 if agree else 1


def step(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    run(main)
