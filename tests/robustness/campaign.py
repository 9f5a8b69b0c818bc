"""A campaign of damaged inputs: each is read as before, refused in a sentence, or read otherwise and says so.

    python -m tests.robustness.campaign --mutations 10000 --seed 0

Case number i of a seed draws the same damage on every machine: `--only i` repeats it and shows its traceback. Orbax and
PyTorch write other bytes each time, so there the damage may hit another place. Cases run in processes forked from one
that has everything imported. Each process has 2 GB of memory beyond that, each case 20 seconds. What can become of a
case:

    equal         the same answer as from the whole input
    refused       ValueError or OSError, which the commands print as a sentence with exit code 2
    said          another answer, and a notice that the whole input does not give
    undetectable  another answer from a file without a checksum over its content: the damage made another valid file
    CHANGED       another answer from a file that has a checksum, without a word: a fault of ours
    TRACEBACK, HANG, MEMORY, CRASH   faults of ours
"""

import argparse
import collections
import contextlib
import dataclasses
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.robustness.mutate import mutations
from tests.robustness.targets import TARGETS, Answer, Target

SECONDS, MEMORY = 20, 2 * 2**30
BATCH, START = 40, 60  # cases of one process; seconds until it has begun
ROOT = Path(__file__).resolve().parent.parent.parent
FINE = "equal", "refused", "said", "undetectable"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A case: its number, the target and damage that it drew, what became of it, and the error in words."""

    number: int
    target: str
    damage: str
    became: str
    words: str = ""


def run(count: int, *, seed: int, only: int | None = None, workers: int = 2) -> list[Outcome]:
    """The outcomes of `count` cases, spread over all targets."""
    numbers = list(range(count)) if only is None else [only]
    context = multiprocessing.get_context("forkserver")  # forks from a process without threads
    context.set_forkserver_preload(["tests.robustness.targets"])
    with tempfile.TemporaryDirectory() as made, _importable(), ThreadPoolExecutor(workers) as pool:
        whole = Path(made)
        for name, target in TARGETS.items():
            (whole / name).mkdir()
            target.make(whole / name)
        shares = [numbers[i::workers] for i in range(workers)]
        parts = list(pool.map(lambda cases: _share(cases, context, whole, seed=seed), shares))
    return sorted((one for part in parts for one in part), key=lambda one: one.number)


def _share(cases: list[int], context, whole: Path, *, seed: int) -> list[Outcome]:
    """The outcomes of some cases. What a process dies of or hangs in is a fault; another goes on after it."""
    found = []
    while cases:
        batch, (mine, theirs) = cases[:BATCH], context.Pipe()
        process = context.Process(target=_work, args=(theirs, whole, batch, seed))
        process.start()
        theirs.close()
        fault = ""
        for number in batch:
            try:
                outcome = mine.recv() if mine.poll(SECONDS + (START if number == batch[0] else 0)) else None
            except EOFError:
                fault = "CRASH"
            else:
                fault = "" if outcome else "HANG"
            if fault:
                outcome = Outcome(number=number, target=draw(number, seed)[0], damage="", became=fault)
            found.append(outcome)
            cases = cases[1:]
            if fault:
                break
        process.kill() if fault else process.join()
        mine.close()
    return found


def draw(number: int, seed: int) -> tuple[str, random.Random]:
    """The target of a case, and what draws its damage."""
    return list(TARGETS)[number % len(TARGETS)], random.Random(f"{seed}-{number}")


def _work(results, whole: Path, numbers: list[int], seed: int) -> None:
    """Runs cases in a process of their own."""
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libsndfile's decoders speak there
    answers: dict[str, Answer] = {}
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            results.send(case(number, seed, whole=whole, folder=Path(folder), answers=answers))
    results.close()


def case(number: int, seed: int, *, whole: Path, folder: Path, answers: dict[str, Answer]) -> Outcome:
    """Damages one file of a target and reads it. `answers` remembers those of whole inputs."""
    name, rng = draw(number, seed)
    target: Target = TARGETS[name]
    folder = folder / name
    shutil.copytree(whole / name, folder)
    if name not in answers:
        answers[name] = target.read(folder)
    file = rng.choice(
        sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and target.damaged(path))
    )
    kinds = mutations(file.name)
    kind = rng.choice(sorted(kinds))
    data = file.read_bytes()
    file.write_bytes(kinds[kind](data, rng))
    told = {"number": number, "target": name, "damage": f"{kind}: {file.relative_to(folder)}"}
    try:
        answer, said = target.read(folder)
    except (ValueError, OSError) as error:
        return Outcome(**told, became="refused", words=str(error))
    except MemoryError:
        return Outcome(**told, became="MEMORY", words=traceback.format_exc())
    except BaseException:
        return Outcome(**told, became="TRACEBACK", words=traceback.format_exc())
    before, silence = answers[name]
    if answer == before:
        return Outcome(**told, became="equal")
    if set(said) - set(silence):
        return Outcome(**told, became="said", words="; ".join(said))
    # Records that were exchanged have checksums again: such a file is as valid as the old one.
    became = "CHANGED" if target.checked(file.relative_to(folder)) and kind != "records" else "undetectable"
    return Outcome(**told, became=became, words=f"{before[:200]} -> {answer[:200]}")


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Lets the processes import this package."""
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([old] if old else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if old:
            os.environ["PYTHONPATH"] = old


def table(outcomes: list[Outcome]) -> str:
    """The outcomes of the cases, by target."""
    counts = collections.Counter((one.target, one.became) for one in outcomes)
    columns = [*FINE, *sorted({one.became for one in outcomes} - {*FINE})]
    lines = [" | ".join(["target".ljust(14), "tried", *columns])]
    for name in [*TARGETS, "all"]:
        rows = [name] if name in TARGETS else TARGETS
        row = [sum(counts[one, column] for one in rows) for column in columns]
        cells = [str(number).rjust(len(column)) for number, column in zip(row, columns, strict=True)]
        lines.append(" | ".join([name.ljust(14), str(sum(row)).rjust(5), *cells]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeats one case")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    outcomes = run(options.mutations, seed=options.seed, only=options.only, workers=options.workers)
    faults = [one for one in outcomes if one.became not in FINE]
    for one in outcomes if options.only is not None else faults:
        print(f"case {one.number}, {one.target}, {one.damage}: {one.became}\n{one.words}\n")
    print(f"seed {options.seed}\n{table(outcomes)}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
