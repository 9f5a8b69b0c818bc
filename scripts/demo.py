"""The main job end to end, in the commands that a user types: `make demo`.

First a full-size AST-base in the authors' PyTorch layout, with random weights: converted, proven block by block to
compute the same in JAX, and run on the recordings in tests/recordings at three keep rates. Its labels mean nothing;
what this shows is parity, cost and speed. Then a small model that comes with the library, which was trained: its
accuracy, cost and time on the spoken words in tests/words at falling keep rates, and the patches that it keeps, by the
method that it was trained for. If asked, a smaller one is tuned here, and compared with itself before.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jaxprune.convert.random_checkpoint import write_ast_official

from jaxprune.checkpoint import load_card
from jaxprune.cli.console import run
from jaxprune.config import ModelConfig

TESTS = Path(os.path.relpath(Path(__file__).parent.parent / "tests"))  # as short as a user would type it
RECORDINGS, WORDS = TESTS / "recordings", TESTS / "words"
FORMATS = (".flac", ".mp3", ".ogg", ".wav")
FALLING = ("0.9", "0.8", "0.7", "0.6", "0.5", "0.4")
MODEL = "audiomae-english-words"  # the shipped one that knows these words best
SMALLER = "ast-words"  # the shipped one that two minutes can tune, and its recipe's name
BATCH = "32"  # clips timed together; merging compiles for long, so one size must do
PICTURES = 30  # every so many-th spoken word has its patches drawn


def main(*, out: Path = Path("demo"), fine_tune: bool = False) -> int:
    """Convert, prove, prune and time a full-size model with random weights; measure and picture a trained one.

    Args:
        out: folder for checkpoints, proof, tables and pictures.
        fine_tune: train a smaller model for two minutes, too, while its keep rate falls to 0.5.
    """
    began = time.perf_counter()
    source = out / "ast-base-random.pth"
    out.mkdir(parents=True, exist_ok=True)
    print(f"an AST-base checkpoint in the official PyTorch layout, with random weights: {source}", flush=True)
    write_ast_official(source, ModelConfig.of_size("ast", "base", classes=527), seed=0)
    steps = [*full_size(source, out), *trained(out), *(tuned(out) if fine_tune else ())]
    for number, words in enumerate(steps, start=1):
        print(f"\n{number}/{len(steps)} $ jaxprune {shlex.join(words)}", flush=True)
        status = subprocess.run([sys.executable, "-m", "jaxprune", *words], check=False).returncode
        if status:
            return status
    print(f"\nThat took {time.perf_counter() - began:.0f} s. The pictures to open first:")
    print(f"{out / 'sweep' / 'sweep.png'}  accuracy against cost and time\n{out / 'kept.png'}  the patches kept")
    return 0


def full_size(source: Path, out: Path) -> Iterator[list[str]]:
    """Parity, cost and speed of the model with random weights."""
    target = str(out / "ast-base-random")
    clips = sorted(str(path) for path in RECORDINGS.iterdir() if path.suffix in FORMATS)
    yield ["convert", str(source), target, "--overwrite"]
    yield ["validate", str(source), *clips[:2], "--keep-rates", "1", "0.5", "--out", str(out / "validate.json")]
    for rate in ("1", "0.7", "0.5"):
        yield ["classify", target, *clips, "--keep-rate", rate, "--top", "1"]


def trained(out: Path) -> Iterator[list[str]]:
    """Accuracy, cost and time of the model that comes with the library, and the patches that it keeps."""
    yield accuracy(MODEL, out / "sweep")
    some = sorted(str(path) for path in WORDS.rglob("*.flac"))[::PICTURES]
    yield ["classify", MODEL, *some, "--keep-rate", "0.7", "--top", "1", "--picture", str(out / "kept.png")]


def tuned(out: Path) -> Iterator[list[str]]:
    """Two minutes of fine-tuning on a few clips, many times, in small steps and few sizes, and what it gave."""
    run = out / "run"
    yield shlex.split(
        f"finetune {SMALLER} --start.checkpoint {SMALLER} --data.dataset spoken-words --data.root {WORDS / 'words.csv'}"
        f" --prune.method {load_card(SMALLER).method} --prune.keep-rate 0.5 --prune.shrink-start 4"
        " --prune.shrink-epochs 8 --prune.buckets 2 --optimizer.base-lr 2e-3 --loop.epochs 20 --loop.batch 35"
        f" --out {run}"
    )
    yield accuracy(SMALLER, out / "sweep-tuned", "--also", str(run))


def accuracy(model: str, out: Path, *options: str) -> list[str]:
    """The sweep of a model over falling keep rates on the words that come with the project."""
    rates = ["--keep-rates", *FALLING, "--batch", BATCH, *options]
    return ["sweep", model, "--out", str(out), *rates, "manifest", "--path", str(WORDS / "words.csv")]


if __name__ == "__main__":
    run(main)
