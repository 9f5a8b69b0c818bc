"""Decoded clips kept in memory: the same batches, decoded once, within the room that there is."""

from collections import Counter

import numpy as np
import pytest
from batches_cases import THREADS, corpus, train

from jaxprune.data import batches, held
from jaxprune.data.held import Held, compact
from jaxprune.data.records import Record
from jaxprune.data.shard_files import waveform


@pytest.fixture
def decoded(monkeypatch):
    """Counts how often each file is decoded."""
    counts, load = Counter(), Record.load

    def counted(self):
        counts[self.path] += 1
        return load(self)

    monkeypatch.setattr(Record, "load", counted)
    return counts


def rows(loader):
    with loader:
        return [np.copy(batch.waveforms) for batch in loader]


def test_clips_are_decoded_once_and_batches_stay_the_same(tmp_path, decoded):
    dataset = corpus(tmp_path)
    anew = rows(train(dataset, workers=batches.Workers(held=0)))
    assert max(decoded.values()) == 3  # epochs
    decoded.clear()
    kept = rows(train(dataset, workers=batches.Workers(threads=1, held=64)))
    assert set(decoded.values()) == {1}
    assert len(anew) == len(kept)
    assert all((one == other).all() for one, other in zip(anew, kept, strict=True))


def test_no_more_is_kept_than_there_is_room_for(tmp_path, decoded):
    clips = corpus(tmp_path).clips("train")
    sizes = [record.load().nbytes for record in clips]  # float32 files
    decoded.clear()
    megabyte, few = 10**6, Held(clips, megabytes=1)
    few._room = sum(sizes[:3]) + min(sizes[3:]) - 1
    for _ in range(2):
        for i in range(len(clips)):
            few.load(i)
    assert list(decoded.values()) == [1, 1, 1] + [2] * (len(clips) - 3)
    assert few._room >= 0
    assert Held(clips, megabytes=2)._room == 2 * megabyte


def test_sound_of_16_bits_is_kept_as_such_and_comes_back_exactly():
    rng = np.random.default_rng(0)
    steps = np.append(rng.integers(-(2**15), 2**15, 1000), [-(2**15), 2**15 - 1, 0])
    whole = (steps / 2**15).astype(np.float32)
    for sound, kind in ((whole, np.int16), (whole + np.float32(1e-6), np.float32), (whole * 2, np.float32)):
        found = compact(sound)
        assert found.dtype == kind
        assert (waveform(found) == sound).all()


def test_a_clip_that_cannot_be_used_is_refused_each_time(tmp_path):
    clips = corpus(tmp_path, silent=(0,)).clips("train")
    kept = held.Held(clips, megabytes=64)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"00\.wav"):
            kept.load(0)


def test_a_negative_room_is_refused():
    with pytest.raises(ValueError, match="processes and held at least 0"):
        batches.Workers(held=-1)
    assert THREADS.held > 0
