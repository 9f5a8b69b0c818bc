"""Background noise under training clips, against a plain mixing of the same files."""

import numpy as np
import pytest
import soundfile
from batches_cases import SAMPLES, corpus, train
from scipy import signal

from jaxprune.audio import load_audio
from jaxprune.data import shard_writer
from jaxprune.data.background import background
from jaxprune.data.batches import Workers
from jaxprune.data.shards import Shards


@pytest.fixture
def noise(tmp_path):
    """Files of 2 s, of 0.05 s (shorter than a clip) and of another rate, in a folder as Speech Commands calls its."""
    folder, rng = tmp_path / "_background_noise_", np.random.default_rng(1)
    (folder / "more").mkdir(parents=True)
    for name, samples, rate in (("a.wav", 32_000, 16_000), ("b.flac", 800, 16_000), ("more/c.wav", 20_000, 8_000)):
        soundfile.write(folder / name, rng.normal(0, 0.02, samples), rate)
    return folder


def rows(batches):
    """(index, length, waveform) of every row, in order."""
    with batches:
        return [row for b in batches for row in zip(b.indices, b.lengths, b.waveforms, strict=True)]


def added(dataset, folder, **options):
    """Each clip, and what was put under it."""
    clips = dataset.clips("train")
    vary = background(folder, **{"snr": (5.0, 15.0), "share": 1.0} | options)
    plain, noisy = rows(train(dataset)), rows(train(dataset, vary=vary))
    assert [row[0] for row in plain] == [row[0] for row in noisy]
    assert [row[1] for row in plain] == [row[1] for row in noisy]
    assert len(clips) > 3
    return [(a[2][: a[1]], b[2][: b[1]] - a[2][: a[1]]) for a, b in zip(plain, noisy, strict=True)]


def test_a_stretch_of_a_file_is_added_at_a_drawn_ratio(tmp_path, noise):
    """The stretch is found by brute force: every start of every file, wrapped round where the file is shorter."""
    sounds = [load_audio(path).waveform for path in (noise / "a.wav", noise / "b.flac", noise / "more" / "c.wav")]
    ratios, files = [], set()
    for clip, noise_of_clip in added(corpus(tmp_path), noise):
        ratios.append(10 * np.log10(np.mean(clip**2.0) / np.mean(noise_of_clip**2.0)))
        unit = noise_of_clip / np.linalg.norm(noise_of_clip)
        best = 0.0
        for number, sound in enumerate(sounds):
            wrapped = np.resize(sound, max(len(sound), len(clip)))
            energy = np.concatenate([[0.0], np.cumsum(wrapped**2.0)])  # before each sample
            norms = np.sqrt(energy[len(clip) :] - energy[: -len(clip)])  # of every stretch as long as the clip
            likeness = float((signal.correlate(wrapped, unit, mode="valid") / norms).max())
            if likeness > best:
                best, file = likeness, number
        assert best > 0.999
        files.add(file)
    assert files == {0, 1, 2}
    assert 5 <= min(ratios) < 8
    assert 12 < max(ratios) <= 15


def test_only_the_share_of_clips_is_noisy_and_padding_stays_silent(tmp_path, noise):
    found = added(corpus(tmp_path), noise, share=0.5)
    changed = np.mean([(under != 0).any() for _, under in found])
    assert abs(changed - 0.5) < 4 * np.sqrt(0.25 / len(found))
    batches = train(corpus(tmp_path), vary=background(noise, snr=(0.0, 0.0), share=1.0))
    assert all(not clip[length:].any() for _, length, clip in rows(batches))


def test_threads_interruptions_and_shards_do_not_matter(tmp_path, noise):
    dataset = corpus(tmp_path)
    vary = background(noise, snr=(0.0, 20.0), share=0.8)
    whole = rows(train(dataset, vary=vary))
    with train(dataset, vary=vary, workers=Workers(threads=3, ahead=2)) as first:
        start = [next(first) for _ in range(2)]
        place = first.get_state()
    again = train(dataset, vary=vary)
    again.set_state(place)
    rest = rows(again)
    both = [row for b in start for row in zip(b.indices, b.lengths, b.waveforms, strict=True)] + rest
    assert len(both) == len(whole)
    assert all((a[2] == b[2]).all() for a, b in zip(both, whole, strict=True))
    shard_writer.write(dataset, tmp_path / "shards", samples="float32")
    stored = rows(train(Shards(root=tmp_path / "shards").read(), vary=vary))
    assert all((a[2] == b[2]).all() for a, b in zip(stored, whole, strict=True))


def test_silent_noise_changes_nothing(tmp_path):
    (tmp_path / "noise").mkdir()
    sound = np.zeros(4 * SAMPLES)
    sound[-1] = 0.5
    soundfile.write(tmp_path / "noise" / "click.wav", sound, 16_000)
    clip = np.ones(1000, np.float32)
    vary = background(tmp_path / "noise", snr=(0.0, 0.0), share=1.0)
    silent = [vary(clip, (0, place, 1)) for place in range(20)]
    assert sum((found == clip).all() for found in silent) > 10
    assert all(np.isfinite(found).all() for found in silent)


def test_a_folder_without_noise_is_refused_in_a_sentence(tmp_path):
    def said(folder):
        with pytest.raises(ValueError, match=str(folder)) as error:
            background(folder, snr=(0.0, 20.0), share=1.0)
        return str(error.value)

    assert "cannot be read (No such file or directory)" in said(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty").endswith("holds no sound files to take background noise from")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.wav").write_text("no sound")
    assert "files cannot be read as sound (1): " in said(tmp_path / "text")
    (tmp_path / "long").mkdir()
    soundfile.write(tmp_path / "long" / "a.flac", np.zeros(601 * 1000), 1000)
    assert "files of background noise last more than 10 minutes; cut them into shorter ones (1): " in said(
        tmp_path / "long"
    )
