"""A spoken corpus for machines without data sets: the words of Speech Commands v2, said by espeak-ng, in noise.

`make` writes the layout of Speech Commands v0.02 that `jaxprune.data.published.SpeechCommands` reads. Everything random
in a clip is drawn from (seed, clip name), so the files depend neither on the order nor on the number of workers, and an
interrupted run goes on where it stopped. The program around it is `scripts/words/make.py`; what is said, by whom and
how, is drawn in `scripts.words.plan`.
"""

import csv
import dataclasses
import functools
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from jaxprune.features import SAMPLE_RATE
from scripts.words.plan import Corpus, Speaker, Utterance, cast, random, utterances
from scripts.words.voices import ENGLISH, SAYINGS, WORDS

INSTALL = "apt-get update && apt-get install -y espeak-ng"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # amplitude falls as frequency ** -slope
MARKER = "corpus.json"
TALKERS = 6  # in a babble
NOTE = """Synthetic speech in the layout of Speech Commands v0.02

Not recordings: every clip was spoken by espeak-ng ({version}) and mixed with artificial noise by
scripts/words/make.py of jaxprune, seed {seed}. Accuracy on it says nothing about real speech.
Made to train and compare models on machines that have no data sets. clips.csv says how each clip was made.
Licence: CC0 1.0, no rights reserved (https://creativecommons.org/publicdomain/zero/1.0/).
"""


def make(
    folder: Path, corpus: Corpus, *, workers: int = 2, watch: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Writes the corpus, or what is missing of it, and returns its facts: settings, espeak-ng's version, clips a split.

    `workers` espeak-ng processes speak at a time. `watch` is told the clips done and all clips, after each. A file
    appears under its name only when whole; `corpus.json` says "finished" only at the end. The same settings, espeak-ng,
    NumPy and soxr give the same bytes. Raises `ValueError` when espeak-ng is not installed, and for a folder that
    holds something else or a corpus of other settings.
    """
    version = espeak_version()
    facts = {"finished": False, "espeak_ng": version, "settings": json.loads(json.dumps(dataclasses.asdict(corpus)))}
    if _finished(folder, facts):
        return json.loads((folder / MARKER).read_text())
    plan = utterances(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MARKER, json.dumps(facts, indent=2).encode())
    for leftover in folder.glob("*/.*.part"):
        leftover.unlink()
    voices = cast(corpus)
    babbles = {
        split: babble(voices, split=split, seconds=corpus.background, seed=corpus.seed) for split in ("train", *LISTS)
    }
    for word in WORDS:
        (folder / word).mkdir(exist_ok=True)
    missing = [utterance for utterance in plan if not (folder / utterance.path).exists()]
    done = len(plan) - len(missing)
    watch(done, len(plan))
    with ThreadPoolExecutor(workers) as pool:  # threads: the work is done by espeak-ng's processes
        jobs = [pool.submit(_make_clip, folder, u, babbles[u.speaker.split], corpus.seed) for u in missing]
        try:
            for job in as_completed(jobs):
                job.result()
                done += 1
                watch(done, len(plan))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _write_background(folder / "_background_noise_", babbles["train"], seed=corpus.seed)
    _write_texts(folder, plan, note=NOTE.format(version=version, seed=corpus.seed))
    clips = {split: sum(u.speaker.split == split for u in plan) for split in ("train", *LISTS)}
    facts |= {"finished": True, "clips": clips, "speakers": len(voices)}
    _write(folder / MARKER, json.dumps(facts, indent=2).encode())
    return facts


def render(utterance: Utterance, *, background: Float[np.ndarray, "samples"], seed: int) -> Float[np.ndarray, "16000"]:
    """One second of a word in noise, full scale at 1; `background` is the babble to cut from."""
    word = _spoken_word(utterance)
    speech = np.zeros(SAMPLE_RATE)
    start = round(utterance.start * (SAMPLE_RATE - len(word)))
    speech[start : start + len(word)] = word / _rms(word)
    rng = random(seed, utterance.path, 1)
    if utterance.noise == "babble":
        cut = int(rng.integers(len(background) - SAMPLE_RATE))
        noise = background[cut : cut + SAMPLE_RATE]
    else:
        noise = coloured_noise(SAMPLE_RATE, slope=SLOPES[utterance.noise], rng=rng)
    clip = speech + noise / _rms(noise) * 10 ** (-utterance.snr / 20)
    return clip / np.abs(clip).max() * 10 ** (utterance.peak / 20)


def coloured_noise(samples: int, *, slope: float, rng: np.random.Generator) -> Float[np.ndarray, "{samples}"]:
    """Gaussian noise, root mean square 1, whose amplitude falls as frequency ** -slope above 20 Hz: nothing below."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum *= np.where(hertz < 20, 0, np.maximum(hertz, 20) ** -slope)
    noise = np.fft.irfft(spectrum, samples)
    return noise / _rms(noise)


def babble(speakers: tuple[Speaker, ...], *, split: str, seconds: int, seed: int) -> Float[np.ndarray, "samples"]:
    """Six voices of one split saying sentences at once, root mean square 1."""
    voices = [speaker for speaker in speakers if speaker.split == split]
    mix = np.zeros(seconds * SAMPLE_RATE)
    for talker in range(TALKERS):
        rng = random(seed, f"babble {split} {talker}", 0)
        pieces, total = [], 0
        while total < len(mix):
            voice = voices[int(rng.integers(len(voices)))]
            sentence = SAYINGS[int(rng.integers(len(SAYINGS)))]
            accent = voice.accent if voice.accent in ENGLISH else str(rng.choice(ENGLISH))
            said = speak(sentence, voice=f"{accent}+{voice.timbre}", rate=voice.rate, pitch=voice.pitch)
            pieces.append(said / _rms(said))
            total += len(said)
        mix += np.concatenate(pieces)[: len(mix)]
    return mix / _rms(mix)


def speak(text: str, *, voice: str, rate: int, pitch: int) -> Float[np.ndarray, "samples"]:
    """A word spoken by espeak-ng, at 16 kHz, without the silence around it. Raises `ValueError` if it says nothing."""
    command = ["espeak-ng", "-z", "-v", voice, "-s", str(rate), "-p", str(pitch), "--stdout", "--", text]
    said = subprocess.run(command, capture_output=True)
    if said.returncode or not said.stdout:
        reason = said.stderr.decode(errors="replace").strip() or "no sound"
        raise ValueError(f"espeak-ng could not say {text!r} as {voice}: {reason}")
    waveform, native = soundfile.read(io.BytesIO(said.stdout))
    loud = np.flatnonzero(np.abs(waveform) > 0.003 * np.abs(waveform).max())  # -50 dB
    if not len(loud) or len(loud) < native // 50:
        raise ValueError(f"espeak-ng said nothing for {text!r} as {voice}")
    return soxr.resample(waveform[loud[0] : loud[-1] + 1], native, SAMPLE_RATE, quality="VHQ")


@functools.cache
def espeak_version() -> str:
    """espeak-ng's version. Raises `ValueError`, saying how to install it, when it is missing."""
    if not shutil.which("espeak-ng"):
        raise ValueError(f"espeak-ng, which speaks the words, is not installed; on Debian or Ubuntu: {INSTALL}")
    said = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition(":")[2].split()[0]


def _spoken_word(utterance: Utterance) -> Float[np.ndarray, "samples"]:
    """The word at its rate, or faster where it would not fit into 0.95 s; cut there if it never does."""
    voice, room = utterance.speaker, round(0.95 * SAMPLE_RATE)
    text = utterance.word if voice.accent in ENGLISH else f"[[{WORDS[utterance.word]}]]"
    rate = utterance.rate
    for _ in range(4):
        word = speak(text, voice=f"{voice.accent}+{voice.timbre}", rate=rate, pitch=utterance.pitch)
        if len(word) <= room:
            break
        rate = min(450, round(1.1 * rate * len(word) / room))
    return word[:room]


def _make_clip(folder: Path, utterance: Utterance, background: Float[np.ndarray, "samples"], seed: int) -> None:
    _write_wav(folder / utterance.path, render(utterance, background=background, seed=seed))


def _finished(folder: Path, facts: dict[str, Any]) -> bool:
    """True where the folder holds this very corpus already. Raises `ValueError` for any other content."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / MARKER).exists():
        raise ValueError(f"{folder} is not empty and holds no {MARKER}; give a new folder")
    there = json.loads((folder / MARKER).read_text())
    for key in ("espeak_ng", "settings"):
        if there.get(key) != facts[key]:
            raise ValueError(
                f"{folder} holds a corpus with {key} {there.get(key)}, not {facts[key]}; give a new folder"
            )
    return bool(there["finished"])


def _write_background(folder: Path, chatter: Float[np.ndarray, "samples"], *, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    tracks = {"babble": chatter}
    for kind, slope in SLOPES.items():
        tracks[f"{kind}_noise"] = coloured_noise(len(chatter), slope=slope, rng=random(seed, f"background {kind}", 0))
    for name, track in tracks.items():
        _write_wav(folder / f"{name}.wav", track / np.abs(track).max() * 0.5)


def _write_texts(folder: Path, plan: list[Utterance], *, note: str) -> None:
    """README, LICENSE, clips.csv and, last, the two lists, without which the folder is no Speech Commands."""
    table = io.StringIO()
    columns = ("path", "split", "accent", "timbre", "rate", "pitch", "noise", "snr_db", "peak_db")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    for u in plan:
        voice = (u.speaker.split, u.speaker.accent, u.speaker.timbre, u.rate, u.pitch)
        writer.writerow((u.path, *voice, u.noise, f"{u.snr:.2f}", f"{u.peak:.2f}"))
    for name, text in {"README.md": note, "LICENSE": note, "clips.csv": table.getvalue()}.items():
        _write(folder / name, text.encode())
    for split, name in LISTS.items():
        lines = sorted(u.path for u in plan if u.speaker.split == split)
        _write(folder / name, "".join(f"{line}\n" for line in lines).encode())


def _write_wav(path: Path, waveform: Float[np.ndarray, "samples"]) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.round(waveform * 32767).astype(np.int16), SAMPLE_RATE, "PCM_16", format="WAV")
    _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Under another name first, then moved: the file is whole or absent."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def _rms(waveform: Float[np.ndarray, "samples"]) -> float:
    return float(np.sqrt(np.mean(waveform**2)))
