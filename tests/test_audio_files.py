"""Odd, damaged and foreign sound files: each is read whole, says what is missing, or is refused in one sentence."""

import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_cases import FOLDER, chirp

from jaxprune import ogg, sound_containers
from jaxprune.audio import load_audio, sound_header


def test_a_truncated_mp3_gives_what_it_holds_and_says_so(tmp_path):
    whole = (FOLDER / "drum_loop.mp3").read_bytes()
    (tmp_path / "half.mp3").write_bytes(whole[: len(whole) // 2])
    clip = load_audio(tmp_path / "half.mp3")
    assert clip.notices[0].startswith("half.mp3: is truncated, ")
    assert 0.4 < clip.seconds / load_audio(FOLDER / "drum_loop.mp3").seconds < 0.6


def mp3_frames(content: bytes) -> list[int]:
    """The places of an mp3's frames after its first, which holds the Xing header."""
    places, at = [], 0
    while frame := sound_containers._mpeg(content, at):
        places.append(at)
        at += frame.size
    return places[1:]


def test_joined_mp3_is_read_to_its_end(tmp_path):
    """Two files of varying bitrate, with and without their Xing headers: a decoder alone stops at the first's end."""
    sound = chirp(3.0, 16000) * np.linspace(0, 1, 48000) ** 4
    soundfile.write(tmp_path / "one.mp3", sound, 16000, bitrate_mode="VARIABLE")
    one = (tmp_path / "one.mp3").read_bytes()
    places = mp3_frames(one)
    assert len({one[at + 2] >> 4 for at in places}) > 1, "the bitrate varies"
    bare, whole = one[places[0] :], len(places) * 576
    for name, content, count in (
        ("xing.mp3", one, 48000),
        ("bare.mp3", bare, whole),
        ("xing-xing.mp3", one + one, 48000 + whole),
        ("bare-bare.mp3", bare + bare, 2 * whole),
        ("xing-bare.mp3", one + bare, 48000 + whole),
        ("bare-xing.mp3", bare + one, 2 * whole),
        ("tagged.mp3", one + b"ID3\4\0\0\0\0\1\0" + b"\xff\xfb" * 64 + one, 48000 + whole),
    ):
        (tmp_path / name).write_bytes(content)
        clip = load_audio(tmp_path / name)
        assert count - 2 * 529 <= len(clip.waveform) <= count, name  # the decoder's delay, at most once a sound
        assert not any("truncated" in notice for notice in clip.notices)
        last = clip.waveform[-12000:-4000]
        assert np.sqrt(np.mean(last**2)) > 0.05, f"{name}: the sound at the very end is there"
        assert sound_header(tmp_path / name).frames == len(clip.waveform)
    assert load_audio(tmp_path / "xing-xing.mp3").notices == (
        "xing-xing.mp3: holds 2 sounds one after the other, read as one",
    )


@pytest.mark.parametrize("size", [1, 300])
def test_bytes_between_the_frames_of_an_mp3_are_said_and_left_out(tmp_path, size):
    whole = (FOLDER / "guitar.mp3").read_bytes()
    at = mp3_frames(whole)[20]
    junk = b"junk" * (size // 4) + b"j" * (size % 4)
    (tmp_path / "junk.mp3").write_bytes(whole[:at] + junk + whole[at:])
    clip, before = load_audio(tmp_path / "junk.mp3"), load_audio(FOLDER / "guitar.mp3")
    assert f"junk.mp3: {size} bytes between its frames are no sound and are left out" in clip.notices
    assert abs(len(clip.waveform) - len(before.waveform)) <= 576 + 529
    (tmp_path / "much.mp3").write_bytes(whole[:at] + b"much" * 1000 + whole[at:])
    with pytest.raises(ValueError, match="is damaged"):  # libmpg123 gives up
        load_audio(tmp_path / "much.mp3")
    (tmp_path / "tagged.mp3").write_bytes(whole + b"TAG" + bytes(125))
    assert not any("no sound" in notice for notice in load_audio(tmp_path / "tagged.mp3").notices)


@pytest.mark.parametrize("extension", ["ogg", "flac", "wav", "aiff", "w64"])
def test_joined_files_of_any_kind_and_rate_are_read_to_the_end(tmp_path, extension):
    soundfile.write(tmp_path / f"a.{extension}", chirp(1.0, 16000), 16000)
    soundfile.write(tmp_path / f"b.{extension}", np.stack(2 * [chirp(1.5, 8000)], axis=1), 8000)
    joined = tmp_path / f"joined.{extension}"
    joined.write_bytes(b"".join((tmp_path / f"{name}.{extension}").read_bytes() for name in "ab"))
    clip = load_audio(joined)
    parts = [load_audio(tmp_path / f"{name}.{extension}").waveform for name in "ab"]
    np.testing.assert_array_equal(clip.waveform, np.concatenate(parts))
    assert clip.notices == tuple(
        f"{joined.name}: {text}"
        for text in (
            "holds 2 sounds one after the other, read as one",
            "averaged 2 channels into one",
            "resampled from 8000 Hz to 16000 Hz",
        )
    )


def test_flac_without_a_length_is_read_whole(tmp_path):
    sound = chirp(3.0, 16000)
    soundfile.write(tmp_path / "x.flac", sound, 16000)
    content = bytearray((tmp_path / "x.flac").read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO: the number of samples
    content[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(content)
    clip = load_audio(tmp_path / "piped.flac")
    np.testing.assert_array_equal(clip.waveform, load_audio(tmp_path / "x.flac").waveform)
    assert clip.notices == ()
    assert sound_header(tmp_path / "piped.flac").frames == 48000


def riff(content: bytes, *, form: int, rate: int, declared: int | None = None) -> bytes:
    """A wav around encoded sound."""
    fmt = struct.pack("<HHIIHHHHIHHH", form, 1, rate, 4000, 1, 0, 12, 1, 2, 576, 1, 1393)
    data = b"data" + struct.pack("<I", len(content) if declared is None else declared) + content
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"fact\4\0\0\0\xff\xff\0\0" + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def test_mp3_in_a_wav_is_whole_unless_it_is_cut(tmp_path):
    soundfile.write(tmp_path / "x.mp3", chirp(2.0, 16000), 16000, bitrate_mode="CONSTANT")
    content = (tmp_path / "x.mp3").read_bytes()
    frames = mp3_frames(content)
    bare = content[frames[0] :]
    (tmp_path / "x.wav").write_bytes(riff(bare, form=0x55, rate=16000))
    clip = load_audio(tmp_path / "x.wav")
    assert clip.notices == ()
    assert len(clip.waveform) == 576 * len(frames) - 529  # the decoder's delay
    (tmp_path / "cut.wav").write_bytes(riff(bare, form=0x55, rate=16000)[: -len(bare) // 2])
    assert "is truncated" in load_audio(tmp_path / "cut.wav").notices[0]


@pytest.mark.parametrize("extension", ["wav", "aiff", "au", "caf", "w64", "ogg", "mp3", "opus"])
def test_a_file_cut_in_half_always_says_so(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    kind = {"format": "OGG", "subtype": "OPUS"} if extension == "opus" else {}
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160000)
    soundfile.write(path, noise, 16000, **kind)
    assert load_audio(path).notices == ()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = load_audio(path)
    assert 0.3 < clip.seconds / 10 < 0.6
    assert re.match(rf"x\.{extension}: is truncated, (only )?{len(clip.waveform)} ", clip.notices[0])


@pytest.mark.parametrize("size", [0, 2**32 - 1, 2**31, 0x7FFFF000])
def test_a_wav_that_was_written_to_a_pipe_is_not_truncated(tmp_path, size):
    """Its writer could not know the length, and left one of these in the header."""
    soundfile.write(tmp_path / "x.wav", chirp(1.0, 16000), 16000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    struct.pack_into("<I", content, 40, size)
    struct.pack_into("<I", content, 4, min(size + 36, 2**32 - 1))
    (tmp_path / "x.wav").write_bytes(content)
    clip = load_audio(tmp_path / "x.wav")
    assert (len(clip.waveform), clip.notices) == (16000, ())


@pytest.mark.parametrize(
    ("at", "form", "value", "said"),
    [
        (24, "<I", 1, "its header says 1 Hz; rates from 1000 to 1000000 Hz are read"),
        (24, "<I", 2**31 - 1, "its header says 2147483647 Hz"),
        (22, "<H", 1000, "its header says 1000 channels; at most 256 are read"),
    ],
)
def test_implausible_headers_are_refused_before_memory_is_asked_for(tmp_path, at, form, value, said):
    soundfile.write(tmp_path / "x.wav", chirp(1.0, 16000), 16000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    struct.pack_into(form, content, at, value)
    if form == "<H":
        struct.pack_into("<H", content, 32, 2 * value)  # the bytes of all channels
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(ValueError, match=f"x.wav: {said}"):
        load_audio(tmp_path / "x.wav")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_and_devices_are_refused_without_opening(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path(os.devnull)):
        with pytest.raises(ValueError, match=rf"^{path}: cannot be opened \(Is a pipe or device\); give the path of"):
            load_audio(path)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the system's file names are Unicode")
def test_names_that_are_not_utf_8_are_read_and_shown(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    soundfile.write(os.fsencode(path), chirp(1.0, 8000), 8000, format="WAV")
    assert load_audio(path).notices == ("caf\\xe9.wav: resampled from 8000 Hz to 16000 Hz",)
    path.write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"caf\\xe9\.wav: is not recognised as sound") as caught:
        load_audio(path)
    str(caught.value).encode()  # any console can print it


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
        whole = bytearray((FOLDER / "choir.flac").read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    elif path.name != "missing.wav":
        samples = {
            "no_samples.wav": sound[:0],
            "silent.wav": 0 * sound,
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


def ogg_checksum(page: bytes) -> int:
    """The checksum of Ogg's specification, bit by bit: polynomial 0x04c11db7 from the highest bit, starting at 0."""
    crc = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc


def test_an_oggs_pages_are_held_against_their_checksums(tmp_path):
    content = (FOLDER / "drum_roll.ogg").read_bytes()
    found = list(ogg.pages(content))
    assert len(found) > 5
    assert all(page.intact for page in found)
    page = content[found[2].start : found[2].end]
    assert ogg_checksum(page) == int.from_bytes(page[22:26], "little")
    middle, mark = (found[5].start + found[5].end) // 2, found[5].start
    for name, at, said in (
        ("payload.ogg", middle, "1 fail their checksum, and 0 do not follow the one before"),
        ("mark.ogg", mark, "0 fail their checksum, and 1 do not follow the one before"),
    ):
        (tmp_path / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match=rf"{name}: is damaged \(of its \d+ pages {said}\); give a complete"):
            load_audio(tmp_path / name)
