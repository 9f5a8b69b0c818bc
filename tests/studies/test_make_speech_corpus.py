"""The synthetic corpus: its layout, that it is a function of its seed, and that it can be interrupted."""

import csv
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import ROOT

from jaxprune.data.published import SpeechCommands
from scripts.words import corpus
from scripts.words.voices import ACCENTS, ENGLISH, TIMBRES, WORDS

SCRIPT = ROOT / "scripts" / "words" / "make.py"
TINY = corpus.Corpus(seed=3, speakers=3, takes=1, background=3)
spoken = pytest.mark.skipif(
    not shutil.which("espeak-ng"), reason=f"espeak-ng, which speaks the corpus, is not installed: {corpus.INSTALL}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "tiny"
    corpus.make(folder, TINY)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_default_plan_is_large_and_keeps_voices_apart():
    plan = corpus.utterances(corpus.Corpus())
    assert len(plan) >= 10_000
    assert len({u.path for u in plan}) == len(plan)
    assert {u.word for u in plan} == set(WORDS)
    assert len(WORDS) == 35
    assert all(re.fullmatch(r"[a-z]+/[0-9a-f]{8}_nohash_[01]\.wav", u.path) for u in plan)
    splits = {split: [u.speaker for u in plan if u.speaker.split == split] for split in ("train", "validation", "test")}
    families = {timbre: row for row in TIMBRES for timbre in row}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not {s.name for s in splits[one]} & {s.name for s in splits[other]}
        assert not {families[s.timbre] for s in splits[one]} & {families[s.timbre] for s in splits[other]}
    shares = [len(splits[split]) / len(plan) for split in splits]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert {s.accent for s in splits["train"]} == {*ENGLISH, *ACCENTS}
    for values, low, high in (([u.snr for u in plan], 10, 30), ([u.peak for u in plan], -20, -1)):
        assert low <= min(values) < low + 0.1 * (high - low) < high - 0.1 * (high - low) < max(values) <= high


def test_timbres_stand_in_one_row_each():
    names = [name for row in TIMBRES for name in row]
    assert len(names) == len(set(names))


@spoken
def test_layout_is_that_of_speech_commands(made):
    dataset = SpeechCommands(root=made).read()
    assert dataset.labels == tuple(sorted(WORDS))
    assert dataset.sizes() == {"train": 35, "validation": 35, "test": 35}
    for record in dataset.records:
        info = soundfile.info(record.path)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 16000)
    backgrounds = sorted((made / "_background_noise_").iterdir())
    assert [path.stem for path in backgrounds] == ["babble", "brown_noise", "pink_noise", "white_noise"]
    assert all(soundfile.info(path).duration == 3 for path in backgrounds)
    assert "Not recordings" in (made / "README.md").read_text()
    assert json.loads((made / "corpus.json").read_text())["finished"] is True
    assert not list(made.rglob("*.part"))


@spoken
def test_levels_and_noise_are_what_the_table_says(made):
    plan = {u.path: u for u in corpus.utterances(TINY)}
    with (made / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == set(plan)
    rng = np.random.default_rng(0)
    babble = rng.standard_normal(20 * 16000)
    for row in rows[::9]:
        clip, _ = soundfile.read(made / row["path"])
        assert 20 * np.log10(np.abs(clip).max()) == pytest.approx(float(row["peak_db"]), abs=0.01)
        # With next to no noise the word is left, between the two silences around it; the rest of the clip was noise.
        u = plan[row["path"]]
        quiet = dataclasses.replace(u, snr=200.0, noise="babble")
        speech = corpus.render(quiet, background=babble, seed=TINY.seed)
        on = np.flatnonzero(np.abs(speech) > 1e-6)[[0, -1]]
        assert 0.05 * 16000 < on[1] - on[0] <= 0.95 * 16000
        if row["noise"] != "babble":
            gain = np.dot(clip, speech) / np.dot(speech, speech)  # noise is all but orthogonal to speech
            noise = clip - gain * speech
            span = slice(on[0], on[1] + 1)
            snr = 10 * np.log10(np.mean((gain * speech[span]) ** 2) / np.mean(noise**2))
            assert snr == pytest.approx(float(row["snr_db"]), abs=1.0)


def test_noise_has_its_colour():
    for kind, slope in corpus.SLOPES.items():
        noise = corpus.coloured_noise(160_000, slope=slope, rng=np.random.default_rng(1))
        assert np.mean(noise**2) == pytest.approx(1)
        power = np.abs(np.fft.rfft(noise)) ** 2
        octave = [power[10 * hertz : 20 * hertz].mean() for hertz in (250, 500, 1000, 2000)]
        falls = -np.diff(10 * np.log10(octave))
        np.testing.assert_allclose(falls, 20 * slope * np.log10(2), atol=0.5, err_msg=kind)


@spoken
def test_same_seed_same_bytes_also_after_an_interruption(made, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 105
        if done >= 40:
            raise Stop

    folder = tmp_path / "again"
    with pytest.raises(Stop):
        corpus.make(folder, TINY, workers=1, watch=stop)
    assert not (folder / "testing_list.txt").exists()
    assert json.loads((folder / "corpus.json").read_text())["finished"] is False
    (folder / "bed" / ".x_nohash_0.wav.part").write_bytes(b"half")
    calls = []
    corpus.make(folder, TINY, workers=3, watch=lambda done, total: calls.append(done))
    assert 40 <= calls[0] < 50
    assert calls[-1] == 105
    assert contents(folder) == contents(made)
    before = os.stat(folder / "bed").st_mtime_ns
    assert corpus.make(folder, TINY)["clips"] == {"train": 35, "validation": 35, "test": 35}
    assert os.stat(folder / "bed").st_mtime_ns == before


@spoken
def test_other_seeds_speak_otherwise():
    one, other = (corpus.utterances(corpus.Corpus(seed=seed, speakers=3, takes=1)) for seed in (3, 4))
    assert not {u.path for u in one} & {u.path for u in other}
    background = np.random.default_rng(0).standard_normal(32000)
    a, b = (corpus.render(u, background=background, seed=0) for u in (one[0], other[0]))
    assert np.abs(a - b).max() > 0.01


@spoken
def test_every_voice_says_every_word_in_its_own_way():
    """One foreign and one English voice: no word is silent, and no two words sound the same."""
    for accent in ("de", "en-us-nyc"):
        said = {}
        for word, phonemes in WORDS.items():
            text = word if accent in ENGLISH else f"[[{phonemes}]]"
            waveform = corpus.speak(text, voice=f"{accent}+m3", rate=170, pitch=50)
            assert len(waveform) > 0.1 * 16000, word
            assert said.setdefault(waveform.tobytes(), word) == word


@spoken
def test_refuses_a_folder_of_something_else(made, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no corpus.json; give a new folder"):
        corpus.make(tmp_path, TINY)
    with pytest.raises(ValueError, match=r"holds a corpus with settings .*'seed': 3.*, not .*'seed': 4.*; give a new"):
        corpus.make(made, dataclasses.replace(TINY, seed=4))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"speakers": 2}, "at least 3 speakers"),
        ({"test": 0.0}, "must be positive shares"),
        ({"validation": 0.5, "test": 0.5}, "must be positive shares"),
        ({"snr": (5.0, -5.0)}, "snr runs from 5.0 to -5.0 dB; give the lower end first"),
        ({"peak": (-3.0, 1.0)}, "peak reaches 1.0 dB, above full scale"),
    ],
)
def test_refuses_impossible_settings(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        corpus.Corpus(**changes)


def test_without_espeak_one_sentence_and_code_2(tmp_path, monkeypatch, run_script):
    monkeypatch.setenv("PATH", str(tmp_path))
    corpus.espeak_version.cache_clear()
    code, _, said = run_script(SCRIPT, tmp_path / "out")
    assert code == 2
    assert (
        said.strip()
        == f"error: espeak-ng, which speaks the words, is not installed; on Debian or Ubuntu: {corpus.INSTALL}"
    )
    assert not (tmp_path / "out").exists()
