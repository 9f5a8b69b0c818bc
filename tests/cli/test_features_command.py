"""The command `jaxprune features`, and librosa's log-mel beside Kaldi's."""

import functools

import librosa
import numpy as np
import pytest
import soundfile
from helpers import TESTS

import jaxprune
from jaxprune.analysis.librosa_mel import RECIPES, distances, librosa_log_mel
from jaxprune.features import FLOOR, SAMPLE_RATE

CROW = TESTS / "recordings" / "crow.wav"
PLAIN, NEAREST = RECIPES.values()


@pytest.fixture
def run(run_command):
    """Runs the command in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_command, "features")


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32) / 10


def test_the_frames_are_kaldis(noise):
    """A frame is computed alone by librosa's filters from the same 400 samples."""
    found = librosa_log_mel(noise, mels=128, recipe=PLAIN)
    assert found.shape == jaxprune.log_mel(noise).shape
    window = librosa.filters.get_window("hann", 400)
    for i in (0, 41, len(found) - 1):
        frame = np.fft.rfft(noise[160 * i : 160 * i + 400].astype(np.float64) * window, 512)
        power = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=512, n_mels=128) @ np.abs(frame) ** 2
        np.testing.assert_allclose(found[i], np.log(np.maximum(power, FLOOR)), atol=1e-4)


def test_librosa_with_kaldis_options_is_near_and_as_it_comes_is_not(noise):
    plain, nearest = distances(noise, np.asarray(jaxprune.log_mel(noise))).values()
    assert nearest.mean < 0.02
    assert plain.mean > 2
    assert plain.mean <= plain.largest
    assert abs(plain.signed) <= plain.mean


def test_equal_spectrograms_have_no_distance(noise):
    found = distances(noise, librosa_log_mel(noise, mels=128, recipe=PLAIN))
    plain, _ = found.values()
    assert (plain.largest, plain.mean, plain.signed) == (0, 0, 0)


def test_the_arrays_are_what_the_model_gets(run, tmp_path):
    code, table, notes = run(CROW, "--checkpoint", "ast-words", "--out", tmp_path / "new" / "crow.npz")
    assert code == 0, notes
    saved = np.load(tmp_path / "new" / "crow.npz")
    waveform = jaxprune.load_audio(CROW).waveform
    np.testing.assert_array_equal(saved["log_mel"], jaxprune.log_mel(waveform))
    card = jaxprune.load_card("ast-words")
    lowest = saved["log_mel"].min()
    expected = np.full((card.model.frames, card.model.mels), lowest, np.float32)
    expected[: len(saved["log_mel"])] = saved["log_mel"]
    np.testing.assert_allclose(saved["model_input"], (expected - card.mean) / (2 * card.std), atol=1e-5)
    plain = distances(waveform, saved["log_mel"])["as it comes (Slaney scale, equal areas)"]
    assert f"{plain.largest:.2f}" in table
    assert f"{plain.mean:.3f}" in table
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["crow.npz"]


def test_a_picture_is_written(run, tmp_path):
    code, _, notes = run(CROW, "--picture", tmp_path / "crow.svg", "--mels", 64)
    assert code == 0, notes
    text = (tmp_path / "crow.svg").read_text()
    assert "crow.wav" in text
    assert "frequency, Hz" in text


def test_a_long_file_is_cut_and_that_is_said(run, tmp_path, noise):
    soundfile.write(tmp_path / "long.wav", np.tile(noise, 3), SAMPLE_RATE)
    code, _, notes = run(tmp_path / "long.wav", "--seconds", 2, "--out", tmp_path / "long.npz")
    assert code == 0
    assert "long.wav is longer; the first 2.00 s are shown" in notes
    assert len(np.load(tmp_path / "long.npz")["log_mel"]) == 198


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--out", "x.npy"], "x.npy: arrays are written as .npz, not as .npy"),
        (["--picture", "x.bmp"], "pictures are written as .png, .svg, .pdf, not as .bmp"),
        (["--checkpoint", "nothing"], "there is no nothing"),
        (["--checkpoint", "ast-words", "--mels", "64"], "--mels is 64, but ast-words reads 128 bins"),
        (["--seconds", "0"], "seconds is 0; it must be at least 0.025"),
        (["--seconds", "inf"], "seconds is inf"),
        (["--seconds", "nan"], "seconds is nan; it must be at least 0.025"),
        (["--mels", "0"], "0 mel bins cannot be computed"),
    ],
)
def test_a_bad_option_is_one_sentence(run, options, why):
    code, text, err = run(CROW, *options)
    assert (code, text) == (2, "")
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1
