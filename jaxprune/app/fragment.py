"""The answer to a sound as HTML: a table of cost and labels, and the panels of what was kept after each stage."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jaxprune.app.compare import WHOLE, Bench, Compared
from jaxprune.inference import Report, Result
from jaxprune.report.clips import input_panel, stage_panels
from jaxprune.report.html import Html, join, table, tag

LABELS = 5


def answer(compared: Compared, bench: Bench, *, name: str) -> Html:
    """The part of the page under the controls. `name` is the sound's, as the user knows it."""
    whole = compared.reports[WHOLE]
    window = compared.window
    end = window.start + whole.results[0].seconds
    heard = f"{name}, {window.start:.2f} to {end:.2f} s" + (f" of {compared.seconds:.2f} s" if compared.seconds else "")
    notes = [*window.notices, *_warnings(compared, bench)]
    times = (
        f"Time of one window, features and model, on {whole.device} in {whole.dtype}: median of {whole.timed_batches} "
        "after a warm-up; other programs on the machine disturb it. GMACs are billions of multiply-accumulates."
    )
    rows = [_row(way, report, whole) for way, report in compared.reports.items()]
    columns = ("", "top label", "GMACs", "saved", "ms", "of the whole model's")
    sections = [_section(way, report, bench) for way, report in compared.reports.items()]
    told = [tag("p", note, class_="soft") for note in notes]
    return join([tag("h2", heard), *told, table(columns, rows, caption=times), *sections])


def _warnings(compared: Compared, bench: Bench) -> Iterator[str]:
    """Sentences on what the numbers do not mean."""
    card = bench.card
    if not card.trained:
        yield "This model has random weights: its labels mean nothing."
    rates = {rate for report in compared.reports.values() for rate in report.keep_rates.values()}
    if outside := [f"{rate:g}" for rate in sorted(rates) if not card.covers(rate)]:
        yield f"This model was not trained for keep rate {' and '.join(outside)}."


def _row(way: str, report: Report, whole: Report) -> tuple[str, ...]:
    label, probability = report.results[0].top[0]
    share = f"{100 * report.milliseconds / whole.milliseconds:.0f} %"
    return (
        way,
        f"{label} ({probability:.3f})",
        f"{report.macs / 1e9:.3f}",
        f"{100 * report.saving:.1f} %",
        f"{report.milliseconds:.1f}",
        share,
    )


def _section(way: str, report: Report, bench: Bench) -> Html:
    """A way's labels and panels. The whole model's panel is its input."""
    result = dataclasses.replace(report.results[0], path=Path(report.results[0].path.name))
    config = bench.card.model
    panels = [input_panel(result, config)] if way == WHOLE else stage_panels(result, config)
    body = tag("div", _labels(result), tag("div", *panels, class_="panels"), class_="answer")
    return tag("article", tag("h3", way), body, class_="clip")


def _labels(result: Result) -> Html:
    """The most likely labels, with a bar for each."""
    rows = []
    for label, probability in result.top[:LABELS]:
        bar = tag("span", class_="bar", style=f"width:{100 * probability:.1f}%")
        rows.append(tag("li", bar, tag("span", label), tag("b", f"{probability:.3f}")))
    return tag("ol", *rows, class_="labels")
