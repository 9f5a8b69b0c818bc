"""Mean and standard deviation of a data set against a plain computation; the command that prints them."""

import json

import numpy as np
import pytest
import soundfile
from batches_cases import CLASSES, FRAMES, SAMPLES, corpus
from helpers import ROOT

from jaxprune.audio import load_audio
from jaxprune.data.statistics import Moments, measure
from jaxprune.features import fit_frames, frame_count, log_mel

# Statistics


def test_moments_join_without_loss():
    rng = np.random.default_rng(0)
    parts = [rng.normal(5, 3, n) for n in (1, 7, 100)]
    total = Moments()
    for part in parts:
        total += Moments(count=len(part), mean=part.mean(), squares=((part - part.mean()) ** 2).sum())
    every = np.concatenate(parts)
    assert total.mean == pytest.approx(every.mean(), rel=1e-12)
    assert total.std == pytest.approx(every.std(ddof=1), rel=1e-12)


def test_statistics_equal_a_plain_computation(tmp_path):
    dataset = corpus(tmp_path, silent=(6,))
    soundfile.write(tmp_path / "01.wav", np.random.default_rng(1).uniform(-0.1, 0.1, (9000, 2)), 32000)
    calls = []
    stats = measure(
        dataset, frames=FRAMES, batch_size=4, unusable=0.1, watch=lambda done, total: calls.append((done, total))
    )
    inputs, zeros, real = [], [], []
    for i, record in enumerate(dataset.clips("train")):
        if i == 6:
            continue
        waveform = load_audio(record.path).waveform[:SAMPLES]
        padded = np.pad(waveform, (0, SAMPLES - len(waveform)))  # one shape, so that it is compiled once
        mel = np.asarray(log_mel(padded))[: frame_count(len(waveform))]
        inputs.append(np.asarray(fit_frames(mel, frames=FRAMES)))
        zeros.append(np.pad(mel, [(0, FRAMES - len(mel)), (0, 0)]))
        real.append(mel)
    for found, values in (((stats.mean, stats.std), inputs), (stats.zero_padded, zeros), (stats.unpadded, real)):
        values = np.concatenate(values).astype(np.float64)
        assert found == pytest.approx((values.mean(), values.std(ddof=1)), abs=1e-5)
    assert (stats.clips, list(stats.unusable)) == (10, [str(tmp_path / "06.wav")])
    assert calls == [(4, 11), (8, 11), (11, 11)]
    assert (stats.padding, stats.minimum_padded) == ("minimum", (stats.mean, stats.std))
    assert stats.padded == sum(len(mel) < FRAMES for mel in real)
    assert stats.sample_rates == {16000: 10, 32000: 1}
    assert stats.channels == {1: 10, 2: 1}
    assert stats.longer_than_input == 4  # 3, 5, 7 and 9; 1 is now 4500 samples
    lengths = sorted(soundfile.info(r.path).duration for r in dataset.clips("train"))
    assert stats.seconds == pytest.approx((lengths[0], lengths[5], lengths[-1]))
    labels = [label for i, r in enumerate(dataset.clips("train")) if i != 6 for label in r.labels]
    assert stats.balance == {name: labels.count(i) for i, name in enumerate(CLASSES)}
    assert stats.recipe_lines == (
        f'FeatureStats(frames=32, mean={stats.mean:.6f}, std={stats.std:.6f}, classes=3, activation="sigmoid")'
    )
    assert json.loads(stats.to_json())["recipe"] == stats.recipe_lines


def test_the_padding_decides_what_the_model_sees(tmp_path):
    dataset = corpus(tmp_path, test=0)
    one, other = (measure(dataset, frames=FRAMES, batch_size=4, padding=padding) for padding in ("minimum", "zero"))
    assert (other.mean, other.std) == other.zero_padded == one.zero_padded
    assert (one.mean, one.std) == one.minimum_padded == other.minimum_padded
    assert abs(one.mean - other.mean) > 0.1
    assert f"mean={other.mean:.6f}, std={other.std:.6f}" in other.recipe_lines


def test_statistics_choose_frames_in_whole_patches(tmp_path):
    assert measure(corpus(tmp_path, test=0, long=False), batch_size=4).frames == 32


def test_dataset_stats_prints_the_line_to_use(tmp_path, run_script):
    corpus(tmp_path, train=5, test=0)
    for i in range(5):
        (tmp_path / "own" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{i:02d}.wav").rename(tmp_path / "own" / "ab"[i % 2] / f"{i}.wav")
    script = ROOT / "scripts" / "dataset_stats.py"
    options = ["folder", "--root", tmp_path / "own", "--test", 0, "--json", tmp_path / "s.json"]
    code, printed, said = run_script(script, *options)
    assert code == 0, said
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["recipe"] in printed
    assert written["clips"] == 5
    padded = "5 clips are shorter than 80 frames and padded with"
    assert f"{padded} the clip's minimum, as a model with that padding sees them (--padding)" in said
    code, printed, said = run_script(script, *options, "--padding", "zero")
    assert code == 0, said
    assert f"{padded} log-mel 0, as" in said
    zero = json.loads((tmp_path / "s.json").read_text())
    assert zero["padding"] == "zero"
    assert [zero["mean"], zero["std"]] == written["zero_padded"]
    assert zero["recipe"] in printed
    code, _, said = run_script(script, "esc50", "--root", tmp_path)
    assert code == 2
    assert said.startswith(f"error: {tmp_path}/meta/esc50.csv: cannot be read")
