"""Listens to a microphone, a pipe or a file of any length, and tells each event when it is over.

    jaxprune listen ast-words
    jaxprune listen ast-words meeting.mp3 --keep-rate 0.7 --batch 8 --events events.csv
    ffmpeg -i URL -f s16le -ac 1 -ar 16000 - | jaxprune listen ast-words -

Features are computed once a frame. A window of the model's length is scored every --hop seconds, and its scores are
taken for its middle. Ctrl-C ends a live sound; what was heard is told. Memory does not grow with the sound.
"""

import csv
import io
import json
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, TextIO

import numpy as np
import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune import files, live_sound
from jaxprune.audio import blocks_of
from jaxprune.cli import console as cli
from jaxprune.cli.reducing import UNTOLD, OneReduction
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.streaming import DEFAULT, FRAME_SECONDS, Event, Listening, Segment, events, names, segments

MICROPHONE, PIPE = "microphone", "-"


def main(
    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")],
    source: Annotated[str, tyro.conf.arg(metavar="SOURCE")] = MICROPHONE,
    /,
    *,
    how: OneReduction = UNTOLD,
    listening: Annotated[Listening, tyro.conf.arg(name="")] = DEFAULT,
    events_to: Annotated[Path | None, tyro.conf.arg(name="events")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str = "",
    rate: int = 16_000,
    samples: live_sound.SampleFormat = "s16le",
) -> None:
    """Tell the events in a sound that may go on for hours: when each begins and ends, its label and its score.

    Args:
        checkpoint: a directory of jaxprune convert or jaxprune finetune, or the name of a shipped model.
        source: a sound file, - for raw mono samples on stdin, or microphone.
        how: the reduction; none unless told.
        listening: windows and events.
        events_to: file for the events: .jsonl (JSON lines), .csv, or .txt (a label track for Audacity, and for ELAN
            as tab-delimited text).
        as_json: print JSON lines and nothing else on stdout.
        device: the microphone's name or number; `python -m sounddevice` lists them.
        rate: of raw samples, in Hz.
        samples: format of raw samples.
    """
    writer = writer_for(events_to or Path("events.csv"))
    card = checkpoints.load_card(checkpoint)
    hop = listening.hop_frames(card.model.frames)
    sound, notices = opened(source, device=device, rate=rate, samples=samples)
    for notice in notices:
        cli.notice(notice)
    if not card.trained:
        cli.notice(f"{checkpoint}: random weights: the labels mean nothing")
    how = how.of(card)
    amount = how.amount(default=1.0, depth=card.model.depth)
    for remark in how.remarks(checkpoint, card, amount):
        cli.notice(remark)
    model, asked = checkpoints.load(checkpoint), {"keep_rate": amount, "method": how.method}
    with StopOnSignal(signal.SIGINT, signal.SIGTERM) as stop:
        watch = Watch(sound, stop=stop)
        heard = segments(model, watch.blocks(), card=card, listening=listening, **asked)
        found = events(watch.timed(heard), labels=names(card), listening=listening)
        told = printed(found, show=as_json_line if as_json else in_words)
        if events_to is None:
            deque(told, maxlen=0)
        else:
            with files.locked(events_to):
                files.replace_file(events_to, lambda path: poured(told, path, writer))
            cli.notice(f"wrote {events_to}")
    cli.notice(watch.in_words(delay=(card.model.frames + hop) / 2 * FRAME_SECONDS))


def opened(
    source: str, *, device: str, rate: int, samples: live_sound.SampleFormat
) -> tuple[Iterator[np.ndarray], tuple[str, ...]]:
    """The blocks of a source, and notices about it."""
    if source == MICROPHONE:
        return live_sound.microphone(device), ()
    if source == PIPE:
        return live_sound.raw(sys.stdin.buffer, rate=rate, samples=samples), ()
    return blocks_of(source)


class Watch:
    """Measures how long the scores take, against how long the sound lasts, and ends the sound when asked to stop."""

    def __init__(self, sound: Iterator[np.ndarray], *, stop: Callable[[], bool]):
        self._sound, self._stop = sound, stop
        self._arrived = time.perf_counter()
        self._waited = self.heard = 0.0
        self._began = self._arrived
        self._latencies: list[float] = []

    def blocks(self) -> Iterator[np.ndarray]:
        """The blocks, on their way to the model."""
        while not self._stop():
            asked = time.perf_counter()
            block = next(self._sound, None)
            self._arrived = time.perf_counter()
            self._waited += self._arrived - asked
            if block is None:
                return
            yield block

    def timed(self, heard: Iterable[Segment]) -> Iterator[Segment]:
        """The segments, on their way to the events. The first one, which waits for the compiler, is not counted."""
        for number, segment in enumerate(heard):
            if number:
                self._latencies.append(time.perf_counter() - self._arrived)
                del self._latencies[:-1000]
            self.heard = segment.end
            yield segment

    def in_words(self, *, delay: float) -> str:
        """Seconds heard, the real-time factor, and the latency."""
        busy = time.perf_counter() - self._began - self._waited
        latency = statistics.median(self._latencies or [busy])
        factor = busy / max(self.heard, FRAME_SECONDS)
        return (
            f"heard {self.heard:.1f} s in {busy:.1f} s of computing (real-time factor {factor:.3f}); scores came "
            f"{1000 * latency:.0f} ms after a window's end, which is {delay:.2f} s behind what they are for"
        )


def printed(found: Iterable[Event], *, show: Callable[[Event], str]) -> Iterator[Event]:
    """The events, each printed as it passes."""
    for event in found:
        print(show(event), flush=True)
        yield event


def in_words(event: Event) -> str:
    """`12.40 to 13.10 s  dog  0.931`."""
    return f"{event.begin:.2f} to {event.end:.2f} s  {event.label}  {event.score:.3f}"


def as_json_line(event: Event) -> str:
    """An object with begin and end in seconds, label and score."""
    return json.dumps({"begin": event.begin, "end": event.end, "label": event.label, "score": event.score})


def as_csv_line(event: Event) -> str:
    """begin, end, label, score."""
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow([f"{event.begin:.3f}", f"{event.end:.3f}", event.label, event.score])
    return row.getvalue()


def as_label_line(event: Event) -> str:
    """Begin, end and label between tabs, as Audacity's label tracks are."""
    label = " ".join(event.label.split())
    return f"{event.begin:.6f}\t{event.end:.6f}\t{label}"


# The lines of a file by its suffix, and the line above them.
WRITERS: dict[str, tuple[str, Callable[[Event], str]]] = {
    ".jsonl": ("", as_json_line),
    ".csv": ("begin,end,label,score", as_csv_line),
    ".txt": ("", as_label_line),
}


def writer_for(path: Path) -> tuple[str, Callable[[Event], str]]:
    """The way to write a file of events. Raises `ValueError` for another suffix."""
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: events are written as {', '.join(WRITERS)}; choose a name with one of these")
    return WRITERS[path.suffix.lower()]


def poured(told: Iterable[Event], path: Path, writer: tuple[str, Callable[[Event], str]]) -> None:
    """Writes each event as it comes."""
    head, line = writer
    with path.open("w", encoding="utf-8", newline="\n") as out:
        _write(out, [head] if head else [])
        for event in told:
            _write(out, [line(event)])


def _write(out: TextIO, lines: Iterable[str]) -> None:
    for line in lines:
        out.write(line + "\n")
    out.flush()
