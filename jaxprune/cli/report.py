"""One HTML page about runs: summary, cost against accuracy, Kendall curves, kept patches, and clips to see and hear.

jaxprune report analysis/esc50-0.7 --out report.html
jaxprune report analysis/esc50-0.7 analysis/esc50-1 sweep/esc50 --out report.html

A run is a folder of jaxprune analyze, whose extraction lends its clips; of jaxprune extract, for its clips alone;
or of jaxprune sweep or jaxprune ablate. The page needs no network and no other file: send it to whom you like.
"""

from pathlib import Path
from typing import Annotated

import tyro

from jaxprune.cli import console as cli
from jaxprune.cli.options import held
from jaxprune.report.inputs import read_runs
from jaxprune.report.report import write_report


def main(
    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")],
    *,
    out: Path,
    title: str = "Token pruning: which patches matter, and what it costs",
    clips: int = 8,
    sound: float = 8.0,
    sound_from: Path | None = None,
) -> None:
    """Write one self-contained HTML page about some runs.

    Args:
        runs: folders that jaxprune analyze, extract, sweep or ablate have written.
        out: the page, an .html file; an older one is replaced.
        title: its heading.
        clips: how many clips of each extraction to show; they need spectrograms (jaxprune extract --mel float16).
        sound: megabytes of sound that the page may hold.
        sound_from: the folder below which sound may come from. By default the data set's own folder.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: the page is written as .html, not as {out.suffix or 'a file without suffix'}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; --out names a file")
    with held(out):
        written = write_report(
            read_runs(runs), out=out, title=title, clips=clips, sound_megabytes=sound, sound_from=sound_from
        )
    for note in written.notes:
        cli.notice(note)
    cli.notice(f"saved {out}: {written.size / 1e6:.1f} MB, {written.clips} clips, {written.sounding} with sound")
