"""The paper's statistics of an extraction: does attention follow intensity, and which patches does pruning keep?

jaxprune analyze extracted/esc50-0.7 --out analysis/esc50-0.7
jaxprune analyze extracted/esc50-0.7 --unpruned extracted/esc50-1 --others extracted/esc50-0.5 --out both

Prints tables and writes analysis.json with everything, each table whole as CSV, and pictures as PNG and SVG.
`jaxprune extract` makes extractions, with --mel also what pictures of clips need; `jaxprune report` makes a page.
"""

import math
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from jaxprune import files
from jaxprune.analysis.analyze import Analysis, analyze
from jaxprune.analysis.bootstrap import DEFAULT, Bootstrap, Estimate
from jaxprune.analysis.clusters import CLUSTERS, SEED
from jaxprune.analysis.extraction import Extraction, read_extraction
from jaxprune.analysis.saved import save_analysis
from jaxprune.analysis.tables import tables
from jaxprune.cli import console as cli
from jaxprune.plots.analysis import pictures
from jaxprune.plots.clips import retained_patches, save
from jaxprune.report.clips import examples

SUFFIXES = (".png", ".svg")


def main(
    extraction: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EXTRACTION")],
    *,
    out: Path,
    unpruned: Path | None = None,
    others: tuple[Path, ...] = (),
    clusters: int = CLUSTERS,
    seed: int = SEED,
    top: float = 0.5,
    bootstrap: Bootstrap = DEFAULT,
    clips: int = 6,
) -> None:
    """Statistics of an extraction, with confidence intervals over clips.

    Args:
        extraction: a folder that jaxprune extract has written.
        out: the folder for analysis.json, the CSV files and the pictures.
        unpruned: an extraction of the same weights and clips at keep rate 1, whose attention tells retained from
            pruned patches in every block.
        others: extractions of the same clips, at other keep rates or by other models, to compare kept patches with.
        clusters: of k-means; the ranks of Kendall's correlation.
        seed: of k-means.
        top: the share of patches, best first, on which blocks are compared.
        bootstrap: how intervals are made.
        clips: how many clips to draw with their kept patches, where spectrograms were extracted.
    """
    if clips < 0:
        raise ValueError(f"clips is {clips}; it must be at least 0")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    with files.locked(out):
        began = time.perf_counter()
        read = read_extraction(extraction)
        found = analyze(
            read,
            unpruned=None if unpruned is None else read_extraction(unpruned),
            others=[read_extraction(other) for other in others],
            clusters=clusters,
            seed=seed,
            top=top,
            bootstrap=bootstrap,
        )
        seconds = time.perf_counter() - began
        print_analysis(found)
        if found.kept is None:
            cli.notice(f"{extraction} was extracted without pruning: there is nothing to say on kept patches")
        facts = {
            "command": shlex.join(sys.argv),
            "seconds": seconds,
            "unpruned": None if unpruned is None else str(unpruned),
            "others": [str(other) for other in others],
        }
        save_analysis(found, extraction=read, out=out, facts=facts)
        made = tables(found)
        for name, table in made.items():
            files.write_text(out / f"{name}.csv", table.to_csv())
        drawn = draw(found, read, out=out, clips=clips)
        cli.notice(
            f"{seconds:.1f} s; saved {out}/analysis.json, {len(made)} tables as CSV, {drawn} pictures as PNG and SVG"
        )


def draw(found: Analysis, extraction: Extraction, *, out: Path, clips: int) -> int:
    """Writes every picture and returns their number."""
    figures = pictures(found, extraction.config)
    for name, figure in figures.items():
        for suffix in SUFFIXES:
            save(figure, out / f"{name}{suffix}")
    if not clips or not extraction.has_mel:
        cli.notice(f"no clips are drawn: {'--clips is 0' if not clips else 'extract with --mel to see some'}")
        return len(figures)
    results = examples(extraction, count=clips)
    pages = [retained_patches(results, extraction.config, path=out / f"kept{suffix}") for suffix in SUFFIXES]
    return len(figures) + len(pages[0])


def print_analysis(found: Analysis) -> None:
    """Prints the tables that fit a terminal, with intervals in brackets."""
    right = "" if found.top1 is None else f", top-1 {100 * found.top1:.2f} %"
    sure = f"In brackets: {100 * found.bootstrap.confidence:g} % intervals over {found.clips} clips"
    notes = [f"{sure}, {found.bootstrap.resamples} resamples, seed {found.bootstrap.seed}."]
    columns = [(signal, definition) for signal in found.kendall for definition in ("published", "tau_b")]
    every = [getattr(found.kendall[signal], definition) for signal, definition in columns]
    rows = [(block, *(shown(one[block]) for one in every)) for block in range(len(every[0].value))]
    means = [getattr(found.kendall[signal], f"{definition}_mean") for signal, definition in columns]
    headings = [f"{signal}, {definition.replace('_', '-')}" for signal, definition in columns]
    title = (
        f"Kendall of {found.score} with the rank of a patch's mean and std: {found.name}, {found.clips} clips{right}"
    )
    chances = ", ".join(f"{one.chance.mean():.3f} ({signal})" for signal, one in found.kendall.items())
    notes.append(f"Published counts ties as agreement: scores that know nothing of the ranks would get {chances}.")
    cli.print_table(title, ["block", *headings], [*rows, ("mean", *map(shown, means))], notes=notes)
    if found.kept:
        print_kept(found)
    for other, by_block in found.overlaps.items():
        rows = [
            ("last" if block == -1 else block, shown(one.shared), f"{one.chance:.3f}", shown(one.jaccard))
            for block, one in by_block.items()
        ]
        cli.print_table(f"Kept patches shared with {other}", ["block", "shared", "by chance", "Jaccard"], rows)


def print_kept(found: Analysis) -> None:
    """Prints the tables that only a pruned model has."""
    kept, blocks = found.kept, found.stages
    rows = [
        (
            f"{i} (lowest)" if i == 0 else i,
            f"{centre:+.4f}",
            count,
            *(f"{kept.clusters.kept[stage, i]} {shown(kept.clusters.share[stage, i])}" for stage in range(len(blocks))),
        )
        for i, (centre, count) in enumerate(
            zip(found.values["mean"].clusters.centres, kept.clusters.entering, strict=True)
        )
    ]
    headings = ["cluster", "centre", "patches", *(f"kept after block {block}, share" for block in blocks)]
    two = ", ".join(map(str, kept.clusters.two_lowest))
    notes = [f"Of the two lowest clusters {two} patches are kept."]
    cli.print_table("Patches kept of each of the intensity clusters", headings, rows, notes=notes)
    contrast = kept.attention
    rows = [
        (block, shown(contrast.retained[block]), shown(contrast.pruned[block]), shown(contrast.auc[block]))
        for block in range(len(contrast.auc.value))
    ]
    notes = [f"In multiples of a clip's mean, in {kept.attention_of}; AUC 0.5: the two are not to be told apart."]
    title = f"{found.score} of patches retained to the end and of the others"
    cli.print_table(title, ["block", "retained", "pruned", "AUC"], rows, notes=notes)
    last = kept.places[blocks[-1]]
    rows = [(band, shown(last.by_band[band])) for band in range(len(last.by_band.value))]
    notes = [f"Of patches that hold sound {shown(last.sound)}, of those in padding {shown(last.padding)}."]
    cli.print_table("Share kept to the end", ["mel band, low to high", "share"], rows, notes=notes)


def shown(estimate: Estimate) -> str:
    """A value and its interval."""
    if math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
