"""Formats that libsndfile cannot read: decoded by PyAV, called truncated where they are, or the extra is named."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_cases import chirp

from jaxprune.audio import load_audio, sound_header


def encode(path: Path, *, container: str, codec: str, rate: int, sound: np.ndarray, options=None) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container, options=options or {}) as file:
        track = file.add_stream(codec, rate=rate, layout="stereo")
        track.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(np.float32([sound, sound]), format="fltp", layout="stereo")
        frame.rate = rate
        fifo = av.AudioFifo()
        fifo.write(frame)
        resampler = av.AudioResampler(format=track.format, layout="stereo", rate=rate, frame_size=track.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(track.encode(part))
        file.mux(track.encode(None))


@pytest.mark.parametrize(
    ("name", "container", "codec", "rate"),
    [("x.m4a", "mp4", "aac", 44100), ("x.webm", "webm", "libopus", 48000), ("x.aac", "adts", "aac", 44100)],
)
def test_other_formats_are_read_through_pyav_or_name_the_extra(tmp_path, monkeypatch, name, container, codec, rate):
    encode(tmp_path / name, container=container, codec=codec, rate=rate, sound=chirp(2.0, rate))
    clip = load_audio(tmp_path / name)
    assert abs(clip.seconds - 2) < 0.1
    heard = np.abs(np.fft.rfft(clip.waveform[4000:28000]))
    meant = np.abs(np.fft.rfft(chirp(2.0, 16000)[4000:28000]))
    assert np.corrcoef(heard, meant)[0, 1] > 0.95
    assert clip.notices[0] == f"{name}: averaged 2 channels into one"
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"which needs the extra audio: pip install \"jaxprune\[audio\]\"$"):
        load_audio(tmp_path / name)


CUT = [
    ("x.m4a", "mp4", "aac", {"movflags": "faststart"}),
    ("x.webm", "webm", "libopus", {}),
    ("x.aac", "adts", "aac", {}),
    ("x.wma", "asf", "wmav2", {}),
]


@pytest.mark.parametrize(("name", "container", "codec", "options"), CUT)
def test_a_file_that_is_cut_is_read_to_there_and_says_so(tmp_path, name, container, codec, options):
    rate, path = 48000, tmp_path / name
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * rate) * (np.arange(4 * rate) > rate)  # first silence
    encode(path, container=container, codec=codec, rate=rate, sound=loud, options=options)
    assert not any("truncated" in notice for notice in load_audio(path).notices)
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        clip = load_audio(path)
        assert re.match(rf"{name}: is truncated, (only )?\d+ ", clip.notices[0])
        assert 0.3 < clip.seconds / 4 < (0.75 if size < len(content) - 1 else 1.02)


def test_a_file_that_is_cut_before_what_describes_it_says_so(tmp_path):
    """An m4a as most are written: the description comes last."""
    encode(tmp_path / "x.m4a", container="mp4", codec="aac", rate=48000, sound=chirp(2.0, 48000))
    content = (tmp_path / "x.m4a").read_bytes()
    soundfile.write(tmp_path / "x.ogg", chirp(2.0, 16000), 16000)
    for name, part in (("half.m4a", content[: len(content) // 2]), ("x.ogg", (tmp_path / "x.ogg").read_bytes()[:500])):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=rf"{name}: is cut short, and nothing of it can be decoded$"):
            load_audio(tmp_path / name)


def test_aac_behind_a_tag_is_read_and_its_length_is_counted(tmp_path):
    encode(tmp_path / "x.aac", container="adts", codec="aac", rate=48000, sound=chirp(2.0, 48000))
    (tmp_path / "tagged.aac").write_bytes(b"ID3\4\0\0\0\0\1\0" + bytes(128) + (tmp_path / "x.aac").read_bytes())
    plain, tagged = load_audio(tmp_path / "x.aac"), load_audio(tmp_path / "tagged.aac")
    np.testing.assert_array_equal(tagged.waveform, plain.waveform)
    header = sound_header(tmp_path / "tagged.aac")
    assert (header.samplerate, header.frames % 1024, round(header.frames / 48000)) == (48000, 0, 2)


def test_a_playlist_is_no_sound(tmp_path):
    """FFmpeg would open the files and addresses that one names."""
    soundfile.write(tmp_path / "x.wav", chirp(1.0, 16000), 16000)
    for name, text in (
        ("x.m3u8", "#EXTM3U\n#EXTINF:1,\nx.wav\n"),
        ("x.ffconcat", "ffconcat version 1.0\nfile x.wav\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="is not recognised as sound"):
            load_audio(tmp_path / name)
