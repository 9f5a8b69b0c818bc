"""Clips of an extraction to look at and listen to: spectrogram, kept patches by stage, label, prediction and sound.

`examples` reads them as `jaxprune.inference.Result`s, which `jaxprune.plots.clips` draws as files; `clip_card` shows
one on a page. Spectrograms must have been extracted (--mel).
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import soundfile
from jaxtyping import Bool, Float
from matplotlib.image import imsave

from jaxprune.analysis.extraction import Extraction
from jaxprune.audio import load_audio
from jaxprune.config import ModelConfig
from jaxprune.features import HOP, SAMPLE_RATE, sample_count
from jaxprune.inference import Result
from jaxprune.plots.clips import color_range, frames_shown, left_of, mel_heights, shortened
from jaxprune.plots.style import COLORS, TICKS_HZ
from jaxprune.positions import covered
from jaxprune.report.html import Html, data_uri, tag

PANEL = (300, 190)  # an SVG's units; the plot leaves room for its labels
MARGINS = (34, 8, 4, 30)  # left, right, top, bottom


def examples(extraction: Extraction, *, count: int) -> list[Result]:
    """Picks at most `count` clips evenly spread over the split, whatever the model made of them. Raises `ValueError`
    where no spectrograms were extracted.
    """
    manifest, config = extraction.manifest, extraction.config
    chosen = np.unique(np.linspace(0, extraction.clips - 1, min(count, extraction.clips)).round().astype(int)).tolist()
    mels = extraction.rows("mel", chosen).astype(np.float32)
    paths, frames, targets, logits = (extraction.rows(name, chosen) for name in ("path", "frames", "target", "logits"))
    kept = {block: extraction.rows(f"kept_{block:02d}", chosen) for block in extraction.stages}
    groups = {block: extraction.rows(f"groups_{block:02d}", chosen) for block in extraction.grouped}
    card = manifest["checkpoint"]["card"]
    labels = manifest["data"].get("labels") or card.get("labels") or [str(y) for y in range(config.classes)]
    results = []
    for row in range(len(chosen)):
        probabilities = _probabilities(logits[row].astype(np.float64), activation=card.get("activation", "softmax"))
        best = np.argsort(-probabilities, kind="stable")[:3]
        results.append(
            Result(
                path=Path(str(paths[row])),
                start=0.0,
                seconds=sample_count(int(frames[row])) / SAMPLE_RATE,
                frames=int(frames[row]),
                top=tuple((labels[y], float(probabilities[y])) for y in best),
                kept={block: ids[row][ids[row] >= 0].astype(int) for block, ids in kept.items()},
                groups={block: tokens[row].astype(int) for block, tokens in groups.items()},
                mel=mels[row],
                truth=tuple(labels[y] for y in np.flatnonzero(targets[row])),
            )
        )
    return results


def clip_card(runs: Mapping[str, tuple[Result, ModelConfig]], *, sound: bytes | None, why: str) -> Html:
    """One clip on a page, as each of the runs saw it: a player where there is `sound` (FLAC), else `why` there is none;
    its label, and per run the prediction and the panels."""
    (first, _), *_ = runs.values()
    name = shortened("/".join(first.path.parts[-2:]), most=80)
    player = tag("p", why, class_="soft")
    if sound is not None:
        uri = data_uri(sound, kind="audio/flac")
        player = tag("audio", src=uri, controls=True, preload="metadata", aria_label=f"sound of {name}")
    label = tag("p", "label: ", tag("b", ", ".join(first.truth) or "unknown"))
    pruned = [run for run, (result, _) in runs.items() if result.kept]
    drawn = pruned or list(runs)[:1]  # an unpruned run's panel would only repeat the others' input
    seen = [
        part
        for run, (result, config) in runs.items()
        for part in (*_said(result, run=run), *([_panels(result, config)] if run in drawn else []))
    ]
    return tag("article", tag("h3", name), label, player, *seen, class_="clip")


def _said(result: Result, *, run: str) -> list[Html]:
    guesses = ", ".join(f"{label} ({probability:.2f})" for label, probability in result.top)
    verdict = "right" if result.top[0][0] in result.truth else "wrong"
    return [tag("h4", run), tag("p", f"{verdict}: ", tag("b", guesses))]


def _panels(result: Result, config: ModelConfig) -> Html:
    """The input and what each stage left of it."""
    return tag("div", input_panel(result, config), *stage_panels(result, config), class_="panels")


def input_panel(result: Result, config: ModelConfig) -> Html:
    """The spectrogram that the model reads, which the result must carry."""
    names = {"title": f"input: {config.patches} patches", "alt": f"spectrogram of {result.path.name}"}
    return _panel(result, config, visible=np.ones(result.mel.shape, bool), **names)


def stage_panels(result: Result, config: ModelConfig) -> list[Html]:
    """The spectrogram after each stage: dropped patches blank, those of one token averaged."""
    panels = []
    for block in result.kept:
        patches, mel, title = left_of(result, block, config=config)
        alt = f"spectrogram of {result.path.name}, patches dropped up to block {block} left blank"
        alt += ", those of one token averaged" if block in result.groups else ""
        seen = dataclasses.replace(result, mel=mel)
        panels.append(_panel(seen, config, visible=covered(config, patches), title=title, alt=alt))
    return panels


def sound_of(path: Path, *, frames: int) -> bytes | None:
    """The sound that a model of so many frames hears, as FLAC: 16 kHz, mono, 16 bits. None for an unreadable file."""
    try:
        waveform = load_audio(path).waveform[: sample_count(frames)]
    except (ValueError, OSError):
        return None
    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _panel(result: Result, config: ModelConfig, *, visible: Bool[np.ndarray, "t f"], title: str, alt: str) -> Html:
    """A spectrogram with its axes up to the last patch that holds sound, white in any theme where nothing is visible.
    As SVG: its text keeps a size that can be read however wide the panel is."""
    shown = frames_shown(config, frames=result.frames)
    png = _pixels(result, visible=visible)[:shown].swapaxes(0, 1)[::-1]
    left, right, top, bottom = MARGINS
    width, height = PANEL[0] - left - right, PANEL[1] - top - bottom
    seconds = shown * HOP / SAMPLE_RATE
    inside = [
        tag("rect", x=left, y=top, width=width, height=height, fill="white"),
        tag(
            "image",
            x=left,
            y=top,
            width=width,
            height=height,
            preserveAspectRatio="none",
            style="image-rendering:pixelated",
            href=data_uri(_png(png), kind="image/png"),
        ),
        tag("rect", x=left, y=top, width=width, height=height, fill="none", stroke="currentColor", stroke_width=0.6),
    ]
    for at in _ticks(seconds):
        x = left + width * at / seconds
        inside += _mark(x, top + height, x, top + height + 3)
        inside.append(_text(f"{at:g}", x, top + height + 13, anchor="middle"))
    for hertz, at in zip(TICKS_HZ, mel_heights(TICKS_HZ, mels=config.mels), strict=True):
        y = top + height * (1 - at / config.mels)
        inside += _mark(left - 3, y, left, y)
        inside.append(_text(f"{hertz / 1000:g}", left - 5, y + 3.5, anchor="end"))
    inside.append(_text("time (s)", left + width / 2, PANEL[1] - 4, anchor="middle"))
    inside.append(_text("kHz", 2, top + height / 2 + 3.5, anchor="start"))
    drawn = tag("svg", *inside, viewBox=f"0 0 {PANEL[0]} {PANEL[1]}", role="img", aria_label=alt)
    return tag("figure", drawn, tag("figcaption", title))


def _mark(x: float, y: float, to_x: float, to_y: float) -> list[Html]:
    ends = {"x1": f"{x:.1f}", "y1": f"{y:.1f}", "x2": f"{to_x:.1f}", "y2": f"{to_y:.1f}"}
    return [tag("line", **ends, stroke="currentColor", stroke_width=0.8)]


def _text(text: str, x: float, y: float, *, anchor: str) -> Html:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", fill="currentColor", font_size=10, text_anchor=anchor)


def _ticks(seconds: float) -> Sequence[float]:
    """Some round times."""
    step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if seconds / step <= 6)
    return np.arange(0, seconds + 1e-9, step).round(1).tolist()


def _pixels(result: Result, *, visible: Bool[np.ndarray, "t f"]) -> np.ndarray:
    """The spectrogram's colours (t, f, 4), transparent where nothing is visible and in padding."""
    low, high = color_range(result)
    colors = mpl.colormaps[COLORS](np.clip((result.mel - low) / (high - low), 0, 1), bytes=True)
    colors[~visible] = 0
    colors[result.frames :] = 0
    return colors


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(pixels), format="png")
    return file.getvalue()


def _probabilities(logits: Float[np.ndarray, "y"], *, activation: str) -> Float[np.ndarray, "y"]:
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
