"""The command `jaxprune listen` in this process: files, pipes, a microphone that is a stand-in, and what it refuses."""

import csv
import functools
import io
import json
import sys
import types

import numpy as np
import pytest
import soundfile
from helpers import TESTS

from jaxprune.audio import load_audio
from jaxprune.streaming import Listening, stream

CROWS = np.tile(load_audio(TESTS / "recordings" / "crow.wav").waveform, 6)  # 2.9 s
OPTIONS = ("--hop", "0.2", "--threshold", "0.1")


@pytest.fixture
def run(run_command):
    """Runs the command in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_command, "listen")


@pytest.fixture(scope="module")
def crows(tmp_path_factory):
    """A file of the crows, of the samples that the pipe and the microphone give."""
    path = tmp_path_factory.mktemp("sound") / "crows.wav"
    soundfile.write(path, CROWS, 16_000, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def expected():
    found = list(stream("ast-words", [CROWS], keep_rate=0.7, listening=Listening(hop=0.2, threshold=0.1)))
    assert len(found) > 1
    return found


def test_a_files_events_are_printed_and_written_in_every_format(run, crows, expected, tmp_path):
    for suffix in (".jsonl", ".csv", ".txt"):
        out = tmp_path / f"events{suffix}"
        code, said, told = run("ast-words", crows, "--keep-rate", "0.7", *OPTIONS, "--events", out)
        assert code == 0
        assert len(said.splitlines()) == len(expected)
        assert "real-time factor" in told
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(r["begin"], r["end"], r["label"]) for r in rows] == [(e.begin, e.end, e.label) for e in expected]
    table = list(csv.DictReader((tmp_path / "events.csv").open()))
    assert [(float(r["begin"]), r["label"]) for r in table] == [(round(e.begin, 3), e.label) for e in expected]
    track = [line.split("\t") for line in (tmp_path / "events.txt").read_text().splitlines()]
    assert [(float(begin), float(end), label) for begin, end, label in track] == [
        (round(e.begin, 6), round(e.end, 6), e.label) for e in expected
    ]


def test_raw_samples_of_a_pipe_are_the_same_sound(run, expected, monkeypatch):
    pipe = types.SimpleNamespace(buffer=io.BytesIO(CROWS.astype("<f4").tobytes()))
    monkeypatch.setattr(sys, "stdin", pipe)
    code, said, _ = run("ast-words", "-", "--keep-rate", "0.7", *OPTIONS, "--samples", "f32le", "--json")
    assert code == 0
    found = [json.loads(line) for line in said.splitlines()]
    assert [(e["begin"], e["end"], e["label"]) for e in found] == [(e.begin, e.end, e.label) for e in expected]


class Microphone:
    """A stand-in for `sounddevice.InputStream` that hands over two seconds of crows and is gone."""

    active = False

    def __init__(self, *, device, samplerate, channels, dtype, blocksize, callback):
        if device == "nowhere":
            raise ValueError("No input device matching 'nowhere'")
        assert (samplerate, channels, dtype) == (16_000, 1, "float32")
        self._blocks = CROWS[: blocksize * 20].reshape(20, blocksize, 1)
        self._callback = callback

    def __enter__(self):
        for block in self._blocks:
            self._callback(block, len(block), None, None)
        return self

    def __exit__(self, *exception):
        pass


@pytest.fixture
def sounddevice(monkeypatch):
    stand_in = types.ModuleType("sounddevice")
    stand_in.InputStream, stand_in.PortAudioError = Microphone, type("PortAudioError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "sounddevice", stand_in)
    return stand_in


def test_a_microphone_that_goes_away_is_a_sentence(run, sounddevice, monkeypatch):
    monkeypatch.setattr("jaxprune.live_sound.SILENT_SECONDS", 0.01)
    code, _, told = run("ast-words", *OPTIONS)
    assert code == 2
    assert told.splitlines()[-1] == (
        "error: the system's microphone is gone; check that it is plugged in, and start again"
    )


def test_an_interrupt_ends_the_sound_and_tells_what_was_heard(run, sounddevice, monkeypatch, tmp_path):
    asked = iter([*[False] * 15, True])
    monkeypatch.setattr("jaxprune.cli.listen.StopOnSignal.__call__", lambda self: next(asked, True))
    code, said, told = run("ast-words", "--hop", "0.2", "--threshold", "0.01", "--events", tmp_path / "e.jsonl")
    assert code == 0
    assert "heard 1.5 s" in told
    assert (tmp_path / "e.jsonl").read_text().count("\n") == said.count("\n") > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("microphone", "--device", "nowhere"), "the microphone 'nowhere' cannot be listened to"),
        (("-", "--rate", "10"), "rate is 10 Hz; it must be from 1000 to 1000000"),
        (("crows.wav", "--events", "events.eaf"), "events.eaf: events are written as .jsonl, .csv, .txt"),
        (("crows.wav", "--hop", "30"), "hop is 30 s; it must be from 0.01 s"),
        (("missing.wav",), "missing.wav"),
    ],
)
def test_what_cannot_be_listened_to_is_one_sentence(run, sounddevice, monkeypatch, arguments, sentence):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    code, _, told = run("ast-words", *arguments)
    assert code == 2
    assert sentence in told
    assert "Traceback" not in told


def test_a_missing_package_is_named_with_its_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, told = run("ast-words")
    assert code == 2
    assert 'sounddevice is not installed; this needs it: pip install "jaxprune[listen]"' in told


def test_a_pipe_that_ends_inside_a_sample_is_refused(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"\0" * 20_001)))
    code, _, told = run("ast-words", "-", *OPTIONS)
    assert code == 2
    assert "the pipe ended inside a sample; raw s16le was expected, 2 bytes a sample" in told
