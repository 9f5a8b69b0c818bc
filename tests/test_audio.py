"""Loading real and broken files, windows of long ones, and batches."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from helpers import TESTS

from jaxprune.audio import load_audio, pad_batch, windows

FOLDER = TESTS / "recordings"
RECORDINGS = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")


def chirp(seconds: float, rate: int) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 + 500 * time) * time)


def test_the_recordings_cover_the_formats_and_are_all_listed():
    assert {path.suffix for path in RECORDINGS} == {".wav", ".flac", ".ogg", ".mp3"}
    listed = (FOLDER / "SOURCES.md").read_text()
    assert all(f"`{path.name}`" in listed for path in RECORDINGS)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_recordings_load_as_16_khz_mono(path):
    info, clip = soundfile.info(path), load_audio(path)
    assert clip.waveform.dtype == np.float32
    assert clip.waveform.ndim == 1
    assert abs(clip.seconds - info.duration) < 1e-3
    assert 0.01 < np.abs(clip.waveform).max() < 1.5  # a lossy, resampled peak may pass full scale
    assert any("resampled" in notice for notice in clip.notices) == (info.samplerate != 16000)
    assert any("averaged" in notice for notice in clip.notices) == (info.channels != 1)


def test_stereo_44_khz_is_the_mono_16_khz_it_came_from(tmp_path):
    original = load_audio(FOLDER / "crow.wav")
    raised = scipy.signal.resample_poly(original.waveform.astype(np.float64), 441, 160)
    tilt = np.linspace(0.5, 1, len(raised))
    soundfile.write(tmp_path / "x.wav", np.stack([raised * tilt, raised * (2 - tilt)], axis=1), 44100, "FLOAT")
    clip = load_audio(tmp_path / "x.wav")
    assert clip.notices == ("x.wav: averaged 2 channels into one", "x.wav: resampled from 44100 Hz to 16000 Hz")
    assert len(clip.waveform) == len(original.waveform)
    error = clip.waveform - original.waveform  # the two resamplers' filters differ near 8 kHz
    assert np.sqrt(np.mean(error**2)) < 0.01 * np.sqrt(np.mean(original.waveform**2))
    assert original.notices == ()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 48000, 96000])
def test_any_rate_keeps_time_and_level(tmp_path, rate):
    soundfile.write(tmp_path / "x.flac", chirp(1.0, rate), rate)
    clip = load_audio(tmp_path / "x.flac")
    assert len(clip.waveform) == 16000
    middle = slice(800, -800)  # a resampler rings at the ends
    np.testing.assert_allclose(clip.waveform[middle], chirp(1.0, 16000)[middle], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("extension", "noise"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.02), ("mp3", 0.02)])
def test_every_format_decodes_to_the_same_sound(tmp_path, extension, noise):
    path = tmp_path / f"x.{extension}"
    soundfile.write(path, chirp(1.0, 16000), 16000)
    clip = load_audio(path)
    assert len(clip.waveform) == 16000
    assert clip.notices == ()
    middle = slice(800, -800)
    assert np.sqrt(np.mean((clip.waveform - chirp(1.0, 16000))[middle] ** 2)) < noise


def test_many_channels_are_averaged(tmp_path):
    channels = chirp(0.1, 16000)[:, None] * np.array([1.0, 0.5, 0.25, 0.0, -0.25])
    soundfile.write(tmp_path / "x.wav", channels, 16000, "FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav").waveform, 0.3 * chirp(0.1, 16000), rtol=0, atol=1e-6)


def test_a_truncated_mp3_gives_what_it_holds_and_says_so(tmp_path):
    whole = (FOLDER / "drum_loop.mp3").read_bytes()
    (tmp_path / "half.mp3").write_bytes(whole[: len(whole) // 2])
    clip = load_audio(tmp_path / "half.mp3")
    assert clip.notices[0].startswith("half.mp3: is truncated, ")
    assert 0.4 < clip.seconds / load_audio(FOLDER / "drum_loop.mp3").seconds < 0.6


def write_bad_file(path: Path):
    """Makes the file that its name describes."""
    sound = chirp(0.5, 16000)
    if path.name == "empty.wav":
        path.touch()
    elif path.stem == "text":
        path.write_text("These are words. " * 500)
    elif path.name == "folder.wav":
        path.mkdir()
    elif path.name == "damaged.flac":
        whole = (FOLDER / "choir.flac").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif path.name != "missing.wav":
        samples = {
            "no_samples.wav": sound[:0],
            "silent.wav": 0 * sound,
            "opposite.wav": np.stack([sound, -sound], axis=1),
            "constant.wav": 0 * sound + 0.25,
            "10ms.wav": sound[:160],
            "instant.wav": sound[:2],
            "nan.wav": np.where(np.arange(8000) == 7, np.nan, sound),
            "infinite.wav": np.where(np.arange(8000) < 3, np.inf, sound),
        }[path.name]
        soundfile.write(path, samples, 48000 if path.name == "instant.wav" else 16000, "FLOAT")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.wav", "cannot be opened (No such file or directory); give the path of a wav, flac, ogg or mp3 file"),
        ("folder.wav", "cannot be opened (Is a directory); give the path of a wav, flac, ogg or mp3 file"),
        ("empty.wav", "is an empty file; expected a wav, flac, ogg or mp3 recording"),
        ("text.wav", "is not recognised as sound; expected a wav, flac, ogg or mp3 file"),
        ("text.mp3", "is not recognised as sound; expected a wav, flac, ogg or mp3 file"),
        ("text.raw", "is not recognised as sound; expected a wav, flac, ogg or mp3 file"),
        ("damaged.flac", "is damaged (flac decoder lost sync); give a complete wav, flac, ogg or mp3 file"),
        ("no_samples.wav", "holds no samples; a recording of at least 25 ms (400 samples at 16000 Hz) is needed"),
        ("silent.wav", "is silent, every sample equals 0; a recording with sound in it is needed"),
        ("opposite.wav", "is silent, every sample equals 0; a recording with sound in it is needed"),
        ("constant.wav", "is silent, every sample equals 0.25; a recording with sound in it is needed"),
        ("10ms.wav", "lasts 10 ms, which is too short; at least 25 ms (400 samples at 16000 Hz) are needed"),
        ("instant.wav", "lasts 0.0625 ms, which is too short; at least 25 ms (400 samples at 16000 Hz) are needed"),
        ("nan.wav", "1 of 8000 samples are NaN or infinite; all must be finite numbers"),
        ("infinite.wav", "3 of 8000 samples are NaN or infinite; all must be finite numbers"),
    ],
)
def test_each_unusable_file_gets_its_sentence(tmp_path, name, reason):
    write_bad_file(tmp_path / name)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path / name}: {reason}')}$"):
        load_audio(tmp_path / name)


@pytest.mark.parametrize("hop", [1000, 700, 500])
def test_windows_cover_the_waveform(hop):
    waveform = np.arange(3650, dtype=np.float32)
    cuts = windows(waveform, samples=1000, hop=hop)
    assert [cut.start for cut in cuts] == [i * hop / 16000 for i in range(len(cuts))]
    assert all(len(cut.waveform) == 1000 for cut in cuts[:-1])
    assert all(cut.waveform[0] == i * hop for i, cut in enumerate(cuts))
    left = len(waveform) - (cuts[-1].waveform[-1] + 1)
    assert 0 <= left < 400


@pytest.mark.parametrize(
    ("length", "lengths"), [(400, [400]), (1000, [1000]), (1399, [1000]), (1400, [1000, 400]), (2000, [1000, 1000])]
)
def test_a_tail_too_short_for_a_frame_is_dropped(length, lengths):
    cuts = windows(np.zeros(length, np.float32), samples=1000, hop=1000)
    assert [len(cut.waveform) for cut in cuts] == lengths


@pytest.mark.parametrize(
    ("length", "samples", "hop", "message"),
    [
        (5000, 399, 100, "windows of 399 samples cannot hold one frame"),
        (399, 1000, 100, "a waveform of 399 samples cannot hold one frame"),
        (5000, 1000, 0, "hop is 0; it must be from 1 to the window's 1000 samples"),
        (5000, 1000, 1001, "hop is 1001; it must be from 1 to the window's 1000 samples"),
    ],
)
def test_impossible_windows_are_refused(length, samples, hop, message):
    with pytest.raises(ValueError, match=message):
        windows(np.zeros(length, np.float32), samples=samples, hop=hop)


def test_a_batch_keeps_each_clip_and_counts_it():
    clips = [np.arange(1, 4), np.arange(1.0, 6.0), np.ones(1)]
    batch, lengths = pad_batch([clip.astype(np.float32) for clip in clips])
    assert (batch.dtype, lengths.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(batch, [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [3, 5, 1])


@pytest.mark.parametrize(("clips", "message"), [([], "no waveforms"), ([np.zeros((2, 3), np.float32)], "shape")])
def test_what_is_not_a_row_of_samples_makes_no_batch(clips, message):
    with pytest.raises(ValueError, match=message):
        pad_batch(clips)
