"""FLAC streams are read whole, called truncated where they are cut, and refused where a checksum of theirs fails."""

import hashlib
import random

import numpy as np
import pytest
import soundfile

from jaxprune import flac
from jaxprune.audio import load_audio, sound_header
from tests.audio_cases import chirp

BLOCK = 4096  # samples of a frame as libsndfile writes them
KINDS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """A stream of three frames and a part of a fourth, of two channels."""
    path = tmp_path_factory.mktemp("flac") / "x.flac"
    noise = 0.05 * np.random.default_rng(0).standard_normal((3 * BLOCK + 1000, 2))
    soundfile.write(
        path, noise + chirp((3 * BLOCK + 1000) / 16000, 16000)[: len(noise), None], 16000, subtype=request.param
    )
    return path


def places(content: bytes) -> list[int]:
    """The places where frames begin, by the fixed first bytes of these files' frames."""
    first = content.index(b"\xff\xf8")
    mark = content[first : first + 4]
    found = [at for at in range(first, len(content)) if content[at : at + 3] == mark[:3]]
    assert len(found) in (3, 4), found
    return [*found, content.rindex(b"\xff\xf8")] if len(found) == 3 else found


def read(tmp_path, content: bytes):
    (tmp_path / "y.flac").write_bytes(content)
    return load_audio(tmp_path / "y.flac")


def test_the_checksum_is_that_of_the_whole_samples(whole):
    (stream,) = flac.streams(whole.read_bytes(), 0)
    header = stream.header
    info = soundfile.info(whole)
    assert (header.rate, header.channels, header.samples) == (info.samplerate, info.channels, info.frames)
    assert header.bits == KINDS[info.subtype]
    samples, _ = soundfile.read(whole, dtype="int32", always_2d=True)
    size = header.bits // 8
    packed = samples.astype("<i4").view("u1").reshape(-1, 4)[:, 4 - size :]  # whole numbers stand in the upper bytes
    assert hashlib.md5(packed.tobytes()).digest() == header.md5
    check = flac.Check(stream)
    for block in soundfile.blocks(whole, 1000, dtype="float32", always_2d=True):
        check.add(block)
    assert not check.damage()
    check.add(np.zeros((1, 2), np.float32))
    assert check.damage()


def test_a_cut_at_any_place_is_called_truncated_with_the_whole_frames(whole, tmp_path):
    content = whole.read_bytes()
    starts = places(content)
    before = load_audio(whole).waveform
    for number, (begin, end) in enumerate(zip(starts, [*starts[1:], len(content)], strict=True)):
        for cut in (begin, begin + 1, begin + 9, (begin + end) // 2, end - 1):
            if number == 0:
                with pytest.raises(ValueError, match=r"is cut short, and nothing of it can be decoded|not recognised"):
                    read(tmp_path, content[:cut])
                continue
            clip = read(tmp_path, content[:cut])
            assert clip.notices[0] == f"y.flac: is truncated, {number * BLOCK} of {len(before)} samples could be read"
            np.testing.assert_array_equal(clip.waveform, before[: number * BLOCK])


def test_a_cut_is_seen_where_the_header_does_not_know_the_length(whole, tmp_path):
    content = bytearray(whole.read_bytes())
    content[21] &= 0xF0
    content[22:42] = bytes(20)
    np.testing.assert_array_equal(read(tmp_path, content).waveform, load_audio(whole).waveform)
    clip = read(tmp_path, content[: places(bytes(content))[2] + 500])
    assert clip.notices[0] == f"y.flac: is truncated, only {2 * BLOCK} samples could be read"


@pytest.mark.parametrize(
    ("tag", "known"),
    [(tag, known) for tag in (b"TAG" + bytes(125), b"APETAGEX" + bytes(200)) for known in (True, False)]
    + [(bytes(1000), True), (b"something else", True)],
)
def test_a_tag_behind_or_in_front_is_no_damage(whole, tmp_path, tag, known):
    content = bytearray(whole.read_bytes())
    if not known:
        content[21] &= 0xF0
        content[22:42] = bytes(20)
    before = load_audio(whole).waveform
    for tagged in (content + tag, b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + content):
        clip = read(tmp_path, tagged)
        np.testing.assert_array_equal(clip.waveform, before)
        assert clip.notices == ("y.flac: averaged 2 channels into one",)


def test_frames_that_are_gone_or_moved_are_refused(whole, tmp_path):
    """Each frame is whole then, and libFLAC plays on with silence or out of order."""
    content = whole.read_bytes()
    one, two, three, *_ = places(content)
    for changed in (
        content[:one] + content[two:],
        content[:one] + content[two:three] + content[one:two] + content[three:],
        content[:three] + content[two:],
    ):
        with pytest.raises(ValueError, match="is damaged"):
            read(tmp_path, changed)


def test_a_header_that_contradicts_its_frames_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    wrong = bytearray(content)
    wrong[18:20] = (22050 << 4).to_bytes(3, "big")[:2]
    wrong[20] = (22050 << 4 & 0xFF) | content[20] & 0x0F
    with pytest.raises(ValueError, match="its header says 22050 Hz, its frames say 16000"):
        read(tmp_path, wrong)
    fewer = bytearray(content)
    fewer[24] ^= 0x10  # 4096 samples less
    with pytest.raises(ValueError, match="it has frames up to sample 13288, of which 9192 could be decoded"):
        read(tmp_path, fewer)
    assert sound_header(whole).samplerate == 16000


def test_one_bit_in_the_sound_never_passes(whole, tmp_path):
    content, rng = whole.read_bytes(), random.Random(0)
    first, *_, last = places(content)
    for _ in range(40):
        changed = bytearray(content)
        changed[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        with pytest.raises(ValueError, match="is damaged"):
            read(tmp_path, changed)


def test_a_frame_whose_checksum_ends_in_zero_is_whole(tmp_path):
    """Its bytes but the last then look whole as well."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(600):
        soundfile.write(tmp_path / "x.flac", rng.uniform(-0.1, 0.1, 500), 16000)
        content = (tmp_path / "x.flac").read_bytes()
        if content[-1] == 0:
            found += 1
            assert [stream.end for stream in flac.streams(content, 0)] == [len(content)]
    assert found


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_remainders_are_those_of_the_bitwise_crc(size):
    data = random.Random(size).randbytes(size)
    found = 0
    for byte in data:
        found ^= byte << 8
        for _ in range(8):
            found = (found << 1 ^ 0x8005 if found & 0x8000 else found << 1) & 0xFFFF
    left = flac._remainders(data + found.to_bytes(2, "big"))
    assert left[-1] == 0
    assert np.count_nonzero(left == 0) <= 1 + size / 1000
