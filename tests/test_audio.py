"""Recordings of every format at any rate, windows of long ones, and batches."""

import subprocess
import sys

import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile
from audio_cases import FOLDER, chirp

from jaxprune import audio
from jaxprune.audio import load_audio, pad_batch, windows, windows_of

RECORDINGS = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")


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


def test_channels_that_cancel_leave_the_first(tmp_path):
    sound = chirp(1.0, 16000)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    for name, left, right in (
        ("exact.wav", sound, -sound),
        ("rounded.wav", sound, -sound + np.random.default_rng(0).integers(-1, 2, 16000) / 2**15),
        ("offset.wav", sound / 2 + 0.2, -sound / 2 + 0.2),
    ):
        soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 16000)
        clip = load_audio(tmp_path / name)
        assert clip.notices == (f"{name}: its 2 channels cancel each other out, so only the first (left) is used",)
        np.testing.assert_allclose(clip.waveform, left, atol=2**-14)
    soundfile.write(tmp_path / "late.wav", np.stack([0 * sound, sound, -sound], axis=1), 16000)
    clip = load_audio(tmp_path / "late.wav")
    assert clip.notices == ("late.wav: its 3 channels cancel each other out, so only channel 2 is used",)
    np.testing.assert_allclose(clip.waveform, sound, atol=2**-14)
    for name, right in (("one.wav", 0 * sound), ("other.wav", noise), ("quiet.wav", -0.9 * sound)):
        soundfile.write(tmp_path / name, np.stack([sound, right], axis=1), 16000)
        clip = load_audio(tmp_path / name)
        assert clip.notices == (f"{name}: averaged 2 channels into one",)
        np.testing.assert_allclose(clip.waveform, (sound + right) / 2, atol=2**-14)


def test_channels_that_cancel_but_for_a_codecs_noise_leave_the_first(tmp_path):
    """Vorbis codes each channel for itself: 20 dB below them there is noise that does not cancel."""
    sound = chirp(1.0, 16000) + np.random.default_rng(0).standard_normal(16000) / 50
    faint = np.rint(sound * 50) / 2**15  # 16 bits: rounding is not small beside it
    steps = np.random.default_rng(1).integers(-1, 2, 16000) / 2**15
    for name, left, right in (("x.ogg", sound, -sound), ("x.mp3", sound, -sound), ("faint.wav", faint, steps - faint)):
        soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 16000)
        mean = soundfile.read(tmp_path / name)[0].mean(axis=1)
        assert name == "x.mp3" or mean.std() > 0.01 * left.std()
        clip = load_audio(tmp_path / name)
        assert clip.notices == (f"{name}: its 2 channels cancel each other out, so only the first (left) is used",)
        assert np.corrcoef(clip.waveform, left)[0, 1] > 0.99
    soundfile.write(tmp_path / "wide.ogg", np.stack([sound, -0.5 * sound], axis=1), 16000)
    assert load_audio(tmp_path / "wide.ogg").notices == ("wide.ogg: averaged 2 channels into one",)


def test_integers_written_as_floats_are_scaled_and_other_loud_floats_are_not(tmp_path):
    sound = chirp(1.0, 16000)
    for name, values, expected, said in (
        ("int16.wav", np.rint(sound * 32767), sound, "taken for 16-bit integers and divided by 32768"),
        ("resampled.wav", sound * 32767.3, sound, "taken for 16-bit integers and divided by 32768"),
        ("loud.wav", 6 * sound, 6 * sound, "used as they are"),
    ):
        soundfile.write(tmp_path / name, values, 16000, "FLOAT")
        clip = load_audio(tmp_path / name)
        np.testing.assert_allclose(clip.waveform, expected, atol=1e-4)
        peak = np.abs(values.astype(np.float32)).max()
        assert clip.notices == (f"{name}: its samples reach {peak:.4g} where full scale is 1; {said}",)
    soundfile.write(tmp_path / "int32.wav", sound * 2.0**31, 16000, "FLOAT")
    with pytest.raises(ValueError, match=r"its samples reach 1\.07374e\+09; write them so that full scale is 1"):
        load_audio(tmp_path / "int32.wav")


def test_resampling_is_that_of_librosa(tmp_path):
    for rate in (8000, 22050, 44100, 48000):
        soundfile.write(tmp_path / "x.wav", chirp(1.3, rate), rate, "FLOAT")
        other = librosa.resample(
            soundfile.read(tmp_path / "x.wav", dtype="float32")[0], orig_sr=rate, target_sr=16000, res_type="soxr_vhq"
        )
        waveform = load_audio(tmp_path / "x.wav").waveform
        assert abs(len(waveform) - len(other)) <= 1  # librosa rounds the length up
        length = min(len(waveform), len(other))
        np.testing.assert_array_equal(waveform[:length], other[:length])


@pytest.mark.parametrize(("extension", "rate"), [("wav", 44100), ("flac", 16000), ("mp3", 22050), ("ogg", 48000)])
def test_windows_of_a_file_are_those_of_the_whole(tmp_path, monkeypatch, extension, rate):
    path = tmp_path / f"x.{extension}"
    sound = chirp(7.3, rate)
    soundfile.write(path, np.stack([sound, -0.3 * sound], axis=1), rate)
    clip = load_audio(path)
    monkeypatch.setattr(audio, "_HELD_SECONDS", 1)  # as if it were long
    monkeypatch.setattr("jaxprune.decoding._BLOCK", 10007)
    for samples, hop in ((16000, 16000), (16000, 15900), (5000, 700), (400, 1), (200000, 200000)):
        hop = max(hop, 300) if samples == 400 else hop
        whole = windows(clip.waveform, samples=samples, hop=hop)
        streamed = list(windows_of(path, samples=samples, hop=hop))
        assert [window.start for window in streamed] == [window.start for window in whole]
        for one, other in zip(streamed, whole, strict=True):
            np.testing.assert_array_equal(one.waveform, other.waveform)
            assert one.notices == clip.notices


def test_a_long_file_says_and_refuses_what_a_short_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_HELD_SECONDS", 1)
    sound = chirp(3.0, 16000)
    soundfile.write(tmp_path / "x.wav", np.stack([sound, -sound], axis=1) * 32768, 16000, "FLOAT")
    found = next(windows_of(tmp_path / "x.wav", samples=16000, hop=16000))
    clip = load_audio(tmp_path / "x.wav")
    np.testing.assert_array_equal(found.waveform, clip.waveform[:16000])
    assert found.notices == clip.notices
    assert len(found.notices) == 2
    soundfile.write(tmp_path / "silent.wav", 0 * sound, 16000)
    with pytest.raises(ValueError, match=r"silent\.wav: is silent, every sample equals 0"):
        windows_of(tmp_path / "silent.wav", samples=16000, hop=16000)
    with pytest.raises(ValueError, match="hop is 0"):
        windows_of(tmp_path / "x.wav", samples=16000, hop=0)


def test_a_clip_of_many_hours_is_refused_whole_and_read_in_windows(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "x.flac", chirp(3.0, 16000), 16000)
    monkeypatch.setattr(audio, "_HELD_SECONDS", 1)
    monkeypatch.setattr(audio, "LONGEST_HOURS", 2 / 3600)
    with pytest.raises(ValueError, match=r"lasts more than .* hours; cut it into shorter files"):
        load_audio(tmp_path / "x.flac")
    assert len(list(windows_of(tmp_path / "x.flac", samples=16000, hop=16000))) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through Linux' /proc")
def test_a_long_file_takes_little_memory(tmp_path):
    """The peak of a process of its own: libsndfile's and soxr's memory, and that of a mapped file, is not Python's."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (60 * 44100, 2))
    with soundfile.SoundFile(tmp_path / "x.flac", "w", samplerate=44100, channels=2) as file:
        for _ in range(4):
            file.write(noise)
    assert (tmp_path / "x.flac").stat().st_size > 40e6
    program = (
        "import re, sys; from pathlib import Path; from jaxprune import audio\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "audio._HELD_SECONDS = 1  # as if it were long\n"
        "before = peak()\n"
        "count = sum(1 for _ in audio.windows_of(sys.argv[1], samples=163840, hop=163840))\n"
        "print(count, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.flac"], capture_output=True, text=True, check=True, timeout=120
    )
    count, grown = map(int, done.stdout.split())
    assert count == 24
    assert grown < 35_000  # KiB; the file has 41,000, its samples 83,000 as they are decoded


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
