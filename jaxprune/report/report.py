"""One page about one or several runs: summary, cost against accuracy, rank correlation, kept patches, clips to hear.

`read_runs` of `jaxprune.report.inputs` says what a run is. The page needs nothing else and no network;
`jaxprune.report.html` escapes whatever comes from files. Equal runs make equal pages.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from jaxprune.analysis.analyze import SIGNALS
from jaxprune.analysis.bootstrap import Estimate
from jaxprune.analysis.extraction import Extraction
from jaxprune.analysis.saved import SavedAnalysis
from jaxprune.cost import macs_of_counts
from jaxprune.files import write_text
from jaxprune.json_files import read_bounded
from jaxprune.plots.analysis import kendall_figure, pictures
from jaxprune.report.clips import clip_card, examples, sound_of
from jaxprune.report.html import Html, join, page, picture, table, tag
from jaxprune.report.inputs import TABLES, Runs

PIXELS = 160  # an inch, in our pictures
LARGEST_TABLE, LARGEST_PICTURE = 16 * 2**20, 32 * 2**20  # bytes
STATIC = {"TopK", "Fuse", "Merge", "PoolTime", "Predicted", "Then"}  # reductions that leave every clip as many tokens
LONG = 30  # rows; a longer table is folded
NO_SOUND = {
    True: "No sound: the file is not there, or the page's cap on sound was reached.",
    False: "No sound: the file is not below the data set's folder (--sound-from FOLDER allows another).",
}
CAPTIONS = {
    "clusters": "Patches by intensity cluster (k-means over all patches, quietest first): how many enter the model, "
    "how many each pruning block keeps, and their share.",
    "places": "Where patches are kept: the share of clips that keep each place after each pruning block; below, the "
    "same by frequency and by time, with intervals.",
    "histograms": "Patches by the mean and std of their pixels, before pruning and after its last stage, and the share "
    "kept. White: no patch. Vertical dots: bounds of the intensity clusters.",
    "attention": "Attention of the patches kept to the end and of those pruned, in multiples of their clip's mean; "
    "below, the chance that a kept patch of a clip scores above a pruned one of it.",
    "block_overlap": "How far every two blocks agree on which patches are best.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """A page's `size` in bytes, its number of `clips`, and of `sounding` ones among them."""

    size: int
    clips: int
    sounding: int
    notes: tuple[str, ...]


def write_report(
    runs: Runs,
    *,
    out: Path,
    title: str,
    clips: int = 8,
    sound_megabytes: float = 8.0,
    sound_from: Path | None = None,
) -> Written:
    """Writes the page, whole or not at all: `clips` of each data set, with sound until that is as large as said.

    A page is sent to others, and an extraction may name any file. So sound comes only from below the root of the data
    set that the extraction is of, or from below `sound_from`.

    Raises `ValueError` for an extraction without spectrograms, and where analyses or sweeps cannot be read.
    """
    if clips < 0 or sound_megabytes < 0:
        raise ValueError(f"clips is {clips} and sound megabytes {sound_megabytes:g}; neither may be negative")
    roots = {name: _sound_root(one, sound_from) for name, one in runs.extractions.items()}
    cards, sounding = _cards(runs.extractions, clips=clips, sound=int(sound_megabytes * 1e6), roots=roots)
    sections: dict[str, Html] = {}
    if runs.analyses:
        sections["Summary"] = _summary(runs.analyses)
    for path in runs.measured:
        sections[f"{TABLES[path.name]}: {path.parent.name}"] = _measured(path)
    if runs.analyses:
        sections["Attention and intensity"] = _kendall(runs.analyses)
        sections |= {f"Kept patches: {name}": _kept(saved) for name, saved in runs.analyses.items()}
    if cards:
        about = (
            f"{len(cards)} clips, evenly spread over each data set, not chosen for what the model made of them; "
            f"{sounding} with sound (as the model hears it: 16 kHz, mono). White: dropped patches, and the rest of the "
            "last patch beyond a clip's end. One colour scale a clip, dark is quiet."
        )
        sections["Clips"] = join([tag("p", about, class_="soft"), *cards])
    anchors = {heading: f"part-{number}" for number, heading in enumerate(sections)}
    links = [tag("a", heading, href=f"#{anchor}") for heading, anchor in anchors.items()]
    content = [tag("section", tag("h2", heading, id=anchors[heading]), body) for heading, body in sections.items()]
    notes = [tag("p", note, class_="soft") for note in runs.notes]
    whole = page(tag("h1", title), tag("nav", *links, aria_label="parts"), *notes, tag("main", *content), title=title)
    write_text(out, whole)
    return Written(size=len(whole.encode()), clips=len(cards), sounding=sounding, notes=runs.notes)


def _summary(analyses: Mapping[str, SavedAnalysis]) -> Html:
    columns = ["run", "clips", "patches", "GMACs", "top-1", "Kendall, mean (chance)", "Kendall, std (chance)"]
    columns += ["quiet kept", "AUC"]
    rows, intervals = [], set()
    for name, saved in analyses.items():
        found, kept = saved.analysis, saved.analysis.kept
        intervals.add(f"{100 * found.bootstrap.confidence:g} %")
        row = [name, f"{found.clips:,}", _counts(saved), _gmacs(saved)]
        row.append("-" if found.top1 is None else f"{100 * found.top1:.2f} %")
        for signal in SIGNALS:
            estimate, chance = found.kendall[signal].published_mean, found.kendall[signal].chance.mean()
            row.append(f"{_shown(estimate)} ({chance:.3f})")
        if kept is None:
            row += ["-", "-"]
        else:
            quiet = kept.clusters.entering[:2].sum()
            known = [value for value in kept.attention.auc.value if not math.isnan(value)]
            row.append(f"{100 * kept.clusters.two_lowest[-1] / quiet:.1f} %" if quiet else "-")
            row.append(f"{sum(known) / len(known):.3f}" if known else "-")
        rows.append(row)
    caption = (
        "Patches: entering the model, and left after each pruning block. Kendall, as published: of the score with the "
        f"ranks of mean and std, mean over blocks, with {' or '.join(sorted(intervals))} intervals over clips. Quiet "
        "kept: of the two quietest clusters, the share kept to the end. AUC: of the score, patches kept to the end "
        "against the others, mean over the blocks that have both."
    )
    trained = [
        tag("p", f"{name}: {_trained(saved)}", class_="soft") for name, saved in analyses.items() if _trained(saved)
    ]
    return join([table(columns, rows, caption=caption), *trained])


def _trained(saved: SavedAnalysis) -> str:
    """The method and the keep rates that a run's model was trained for, in a sentence, top-k not being mentioned;
    nothing where its card does not know."""
    card = saved.manifest["checkpoint"]["card"]
    rates, method = [f"{rate:g}" for rate in card.get("keep_rates", ())], card.get("method", "topk")
    if not rates:
        return ""
    by = "" if method == "topk" else f"{method} at "
    return f"the model was trained for {by}keep rate{'s' if len(rates) > 1 else ''} {', '.join(rates)}."


def _measured(path: Path) -> Html:
    """A table of measurements as it is, with the pictures of its name beside it."""
    parts = []
    for found in sorted(path.parent.glob(f"{path.stem}*.png")):
        png = read_bounded(found, largest=LARGEST_PICTURE)
        inches = min(9.0, _png_width(png, found) / PIXELS)
        alt = f"{TABLES[path.name].lower()}, {path.parent.name}"
        parts.append(picture(png, inches=inches, alt=alt, caption=found.stem.replace("_", " ")))
    try:
        text = read_bounded(path, largest=LARGEST_TABLE).decode("utf-8")
        columns, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"its rows are not all of {len(columns)} cells")
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from error
    rows = [[_number(cell) for cell in row] for row in rows]
    whole = table(columns, rows, caption=f"Every setting, as in {path.name}")
    if len(rows) > LONG:
        whole = tag("details", tag("summary", f"All {len(rows)} settings"), whole)
    return join([*parts, whole])


def _png_width(png: bytes, path: Path) -> int:
    """Pixels in a row, from the header alone."""
    if len(png) < 24 or not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{path} is not a PNG picture; delete it or draw it again")
    return int.from_bytes(png[16:20], "big")


def _kendall(analyses: Mapping[str, SavedAnalysis]) -> Html:
    about = (
        "Does attention follow intensity? Kendall's rank correlation of each block's score with the rank of a patch's "
        "mean, and of its standard deviation, among the patches that enter the block. The published definition counts "
        "ties as agreement, so its chance level is not zero but the dotted line; tau-b's is zero."
    )
    figure = kendall_figure({name: saved.analysis.kendall for name, saved in analyses.items()})
    columns = ["run", *(f"{signal}, {what}" for signal in SIGNALS for what in ("published", "chance", "tau-b"))]
    rows = [
        [name, *(cell for signal in SIGNALS for cell in _kendall_cells(saved, signal))]
        for name, saved in analyses.items()
    ]
    drawn = _drawn(figure, alt="Kendall's rank correlation per block, for each run", caption="Kendall per block.")
    return join([tag("p", about), drawn, table(columns, rows, caption="Means over the blocks, with intervals.")])


def _kendall_cells(saved: SavedAnalysis, signal: str) -> list[str]:
    found = saved.analysis.kendall[signal]
    return [_shown(found.published_mean), f"{found.chance.mean():.3f}", _shown(found.tau_b_mean)]


def _kept(saved: SavedAnalysis) -> Html:
    """One run's own pictures."""
    figures = pictures(saved.analysis, saved.config)
    parts = [
        _drawn(figures[name], alt=f"{name.replace('_', ' ')}, {saved.analysis.name}", caption=caption)
        for name, caption in CAPTIONS.items()
        if name in figures
    ]
    if saved.analysis.kept is None:
        parts.insert(0, tag("p", "This model did not prune, so there are no kept patches to speak of."))
    if saved.analysis.overlaps:
        rows = [
            [
                other,
                "last" if block == -1 else str(block),
                _shown(one.shared),
                f"{float(one.chance):.3f}",
                _shown(one.jaccard),
            ]
            for other, by_block in saved.analysis.overlaps.items()
            for block, one in by_block.items()
        ]
        columns = ["other run", "block", "shared", "by chance", "Jaccard"]
        parts.append(table(columns, rows, caption="Kept patches shared with other runs."))
    parts.append(tag("p", "Made by ", tag("code", saved.command), class_="soft"))
    return join(parts)


def _sound_root(extraction: Extraction, asked: Path | None) -> Path | None:
    """The folder below which an extraction's sound may lie, None where there is none."""
    if asked is not None:
        return asked.resolve()
    source = extraction.manifest["data"].get("source", {})
    root = source.get("root")
    if root is None and isinstance(source.get("path"), str):  # a list of sounds: they lie beside it
        root = str(Path(source["path"]).parent)
    # The root of the disk would allow everything.
    return Path(root).resolve() if isinstance(root, str) and len(Path(root).resolve().parts) > 1 else None


def _cards(
    extractions: Mapping[str, Extraction], *, clips: int, sound: int, roots: Mapping[str, Path | None]
) -> tuple[list[Html], int]:
    """A card for each clip, in which all runs that saw it stand below each other; how many have sound, of which there
    may be `sound` bytes, from files below `roots`."""
    seen: dict[Path, dict] = {}
    allowed: set[Path] = set()
    for name, extraction in extractions.items() if clips else ():
        for result in examples(extraction, count=clips):
            seen.setdefault(result.path, {})[name] = (result, extraction.config)
            if roots[name] is not None and result.path.resolve().is_relative_to(roots[name]):
                allowed.add(result.path)
    cards, sounding = [], 0
    for path, by_run in seen.items():
        frames = max(config.frames for _, config in by_run.values())
        heard = sound_of(path, frames=frames) if sound and path in allowed else None
        if heard is not None and len(heard) <= sound:
            sound -= len(heard)
            sounding += 1
        else:
            heard = None
        cards.append(clip_card(by_run, sound=heard, why=NO_SOUND[path in allowed]))
    return cards, sounding


def _counts(saved: SavedAnalysis) -> str:
    """Patches of a clip after each stage, on average."""
    found = saved.analysis
    if found.kept is None:
        return str(found.patches)
    return " → ".join(
        [str(found.patches), *(f"{count / found.clips:g}" for count in found.kept.clusters.kept.sum(axis=1))]
    )


def _gmacs(saved: SavedAnalysis) -> str:
    """The GMACs of one clip, where every clip keeps the same number of patches."""
    found, counts = saved.analysis, {}
    if found.kept is not None:
        kinds = {stage["kind"] for stage in saved.manifest["policy"]["stages"].values()}
        counted = saved.manifest.get("macs")  # not in older ones
        if kinds <= STATIC and isinstance(counted, int):
            return f"{counted / 1e9:.3g}"
        if kinds != {"TopK"}:
            return "-"
        kept = found.kept.clusters.kept.sum(axis=1) // found.clips
        counts = dict(zip(found.stages, kept.tolist(), strict=True))
    return f"{macs_of_counts(saved.config, counts) / 1e9:.3g}"


def _drawn(figure: Figure, *, alt: str, caption: str) -> Html:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160)
    return picture(file.getvalue(), inches=figure.get_figwidth(), alt=alt, caption=caption)


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _number(cell: str) -> str:
    """A cell, four digits of it where it is a number with more."""
    try:
        return cell if len(cell) < 7 else f"{float(cell):.4g}"
    except ValueError:
        return cell
