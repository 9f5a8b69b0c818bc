"""Batches against a brute-force reading of the same files: content, order, shards, resumption, bad clips."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from batches_cases import FRAMES, SAMPLES, THREADS, corpus, train

from jaxprune.audio import load_audio
from jaxprune.data.batches import PAD, Batch, Workers, eval_batches
from jaxprune.data.order import ProcessRows
from jaxprune.data.records import Dataset, Record, rarity
from jaxprune.data.rows import anywhere, from_start
from jaxprune.features import fit_frames, frame_count, log_mel


def collect(batches) -> list[Batch]:
    with batches:
        return list(batches)


def same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name, x, y in zip(Batch._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


def evaluate(dataset: Dataset, split="test", **changes):
    return eval_batches(dataset, split, **{"frames": FRAMES, "batch_size": 4, "workers": THREADS} | changes)


def test_evaluation_reads_every_clip_once_in_order(tmp_path):
    dataset = corpus(tmp_path)
    batches = evaluate(dataset)
    assert len(batches) == batches.steps == 2
    found = collect(batches)
    clips = dataset.clips("test")
    indices = np.concatenate([b.indices for b in found])
    np.testing.assert_array_equal(indices, [0, 1, 2, 3, 4, 5, 6, PAD])
    np.testing.assert_array_equal(np.concatenate([b.weights for b in found]), [1] * 7 + [0])
    for batch in found:
        assert [x.dtype for x in batch] == [np.float32, np.int32, np.float32, np.float32, np.int32]
        assert [x.shape for x in batch] == [(4, SAMPLES), (4,), (4, 3), (4,), (4,)]
        for row, index in enumerate(batch.indices):
            if index == PAD:
                assert not batch.waveforms[row].any()
                assert not batch.targets[row].any()
                assert batch.lengths[row] == 400
                continue
            head = load_audio(clips[index].path).waveform[:SAMPLES]
            assert batch.lengths[row] == len(head)
            np.testing.assert_array_equal(batch.waveforms[row, : len(head)], head)
            assert not batch.waveforms[row, len(head) :].any()
            np.testing.assert_array_equal(batch.targets[row], [i in clips[index].labels for i in range(3)])
    assert batches.names(found[1].indices) == [clip.path for clip in clips[4:]]
    assert not batches.unusable
    assert batches.waited > 0


def test_the_cut_keeps_exactly_the_frames_the_published_cut_keeps(tmp_path):
    """Published: log-mel of the whole clip, cut at T. Frames do not look ahead, so cutting the samples is the same."""
    dataset = corpus(tmp_path, train=1, test=2)
    batch = collect(evaluate(dataset, batch_size=2))[0]
    for row, clip in enumerate(dataset.clips("test")):
        whole = fit_frames(log_mel(load_audio(clip.path).waveform), frames=FRAMES)
        valid = np.asarray(frame_count(int(batch.lengths[row])))
        ours = fit_frames(log_mel(batch.waveforms[row]), frames=FRAMES, valid=valid)
        np.testing.assert_allclose(ours, whole, atol=1e-4)


def test_training_epochs_are_shuffles_without_repetition(tmp_path):
    dataset = corpus(tmp_path)
    batches = train(dataset, epochs=6)
    assert (len(batches), batches.steps) == (12, 2)
    found = collect(batches)
    epochs = [np.concatenate([b.indices for b in found[i : i + 2]]) for i in range(0, 12, 2)]
    for seen in epochs:
        assert len(set(seen)) == 8  # of 11: three are left out
        assert set(seen) <= set(range(11))
    assert len({tuple(seen) for seen in epochs}) == 6
    assert set(np.concatenate(epochs)) == set(range(11))
    assert all((b.weights == 1).all() for b in found)
    clips = dataset.clips("train")
    for batch in found:
        for row, index in enumerate(batch.indices):
            np.testing.assert_array_equal(batch.targets[row], [i in clips[index].labels for i in range(3)])
    same(found, collect(train(dataset, epochs=6)))
    others = np.concatenate([b.indices for b in collect(train(dataset, epochs=6, seed=6))])
    assert (others != np.concatenate(epochs)).any()


def test_balanced_training_draws_rare_classes_as_often_as_others(tmp_path):
    """Two clips of class 0 and nine of class 1. The original weighs a clip by 1 / clips of its class."""
    made = corpus(tmp_path, long=False)
    relabelled = [dataclasses.replace(one, labels=(0 if i < 2 else 1,)) for i, one in enumerate(made.records)]
    dataset = dataclasses.replace(made, records=tuple(relabelled))
    found = collect(train(dataset, epochs=200, balanced=True))
    drawn = np.concatenate([b.indices for b in found])
    assert np.isin(drawn, (0, 1)).mean() == pytest.approx(0.5, abs=0.05)  # 1,600 draws: four standard errors
    counts = np.bincount(drawn, minlength=11)
    assert counts[:2] == pytest.approx(400, rel=0.15)
    assert counts[2:] == pytest.approx(800 / 9, rel=0.4)
    same(found, collect(train(dataset, epochs=200, balanced=True)))
    plain = train(dataset, epochs=200)
    assert np.isin(np.concatenate([b.indices for b in collect(plain)]), (0, 1)).mean() == pytest.approx(
        2 / 11, abs=0.04
    )


def test_a_clip_of_two_classes_has_the_chances_of_both():
    records = [Record(path=str(i), labels=labels, split="train") for i, labels in enumerate([(0,), (0,), (0, 1), (2,)])]
    np.testing.assert_allclose(rarity(records, classes=4), np.array([1 / 3, 1 / 3, 1 / 3 + 1, 1]) / 3)


def test_training_crops_anywhere_and_evaluation_at_the_start(tmp_path):
    dataset = corpus(tmp_path)
    starts = set()
    for batch in collect(train(dataset, epochs=8)):
        for row, index in enumerate(batch.indices):
            whole = load_audio(dataset.clips("train")[index].path).waveform
            piece = batch.waveforms[row, : batch.lengths[row]]
            if len(whole) <= SAMPLES:
                np.testing.assert_array_equal(piece, whole)
                continue
            start = int(np.flatnonzero(whole == piece[0])[0])
            np.testing.assert_array_equal(piece, whole[start : start + SAMPLES])
            starts.add(start)
    assert len(starts) > 20
    heads = collect(train(dataset, crop=from_start))
    for batch in heads:
        for row, index in enumerate(batch.indices):
            whole = load_audio(dataset.clips("train")[index].path).waveform[:SAMPLES]
            np.testing.assert_array_equal(batch.waveforms[row, : len(whole)], whole)
    rng = np.random.default_rng(0)
    drawn = [anywhere(3, rng) for _ in range(200)]
    assert set(drawn) == {0, 1, 2, 3}


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_batches_do_not_depend_on_the_number_of_threads(tmp_path, threads):
    dataset = corpus(tmp_path)
    same(collect(train(dataset)), collect(train(dataset, workers=Workers(threads=threads, ahead=threads))))


def test_batches_do_not_depend_on_worker_processes(tmp_path):
    """In a program of its own: grain starts its processes anew from the main module. Also resumes in the middle."""
    dataset = corpus(tmp_path)
    expected = collect(train(dataset))
    rows = [[r.path, list(r.labels), r.split] for r in dataset.records]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from jaxprune.data.batches import Workers, train_batches\n"
        "from jaxprune.data.records import Dataset, Record\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    rows = json.loads((folder / 'records.json').read_text())\n"
        "    records = tuple(Record(path=p, labels=tuple(l), split=s) for p, l, s in rows)\n"
        "    dataset = Dataset(name='noise', labels=('a', 'b', 'c'), records=records)\n"
        f"    make = lambda: train_batches(dataset, frames={FRAMES}, batch_size=4, epochs=3, seed=5,\n"
        "        workers=Workers(threads=1, processes=2, ahead=1))\n"
        "    found = []\n"
        "    with make() as first:\n"
        "        for _ in range(3):\n"
        "            found.append(next(first))\n"
        "        state = json.loads(json.dumps(first.get_state()))\n"
        "    with make() as second:\n"
        "        second.set_state(state)\n"
        "        found += list(second)\n"
        "    columns = [np.stack(column) for column in zip(*found)]\n"
        "    np.savez(folder / 'found.npz', *columns)\n"
    )
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as file:
        found = [Batch(*rows) for rows in zip(*(file[f"arr_{i}"] for i in range(5)), strict=True)]
    same(found, expected)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_resumes_exactly(tmp_path, after):
    dataset = corpus(tmp_path, silent=(3,))
    settings = {"unusable": 0.1}
    whole = collect(train(dataset, **settings))
    with train(dataset, **settings) as first:
        for _ in range(after):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        seen = dict(first.unusable)
    with train(dataset, **settings) as second:
        second.set_state(state)
        assert second.unusable == seen
        same(list(second), whole[after:])
    with train(dataset, **settings) as third:  # also back from further on
        for _ in range(4):
            next(third)
        third.set_state(state)
        same(list(third), whole[after:])


@pytest.mark.parametrize("count", [2, 4])
def test_shards_together_are_the_batch_of_one_process(tmp_path, count):
    dataset = corpus(tmp_path)
    for make in (train, evaluate):
        alone = collect(make(dataset))
        shards = [collect(make(dataset, process=ProcessRows(index=i, count=count))) for i in range(count)]
        same([Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shards, strict=True)], alone)


def test_bad_clips_are_named_and_replaced_in_training(tmp_path):
    dataset = corpus(tmp_path, train=8, test=4, silent=(2, 3))
    (tmp_path / "05.wav").write_bytes(b"RIFFnonsense")
    batches = train(dataset, epochs=1, unusable=3 / 8)
    found = collect(batches)
    assert sorted(np.concatenate([b.indices for b in found])) == [0, 1, 4, 4, 4, 6, 6, 7]  # 2 and 3 are 4 now, 5 is 6
    assert all((b.weights == 1).all() for b in found)
    assert set(batches.unusable) == {str(tmp_path / f"{i:02d}.wav") for i in (2, 3, 5)}
    assert "is silent" in batches.unusable[str(tmp_path / "02.wav")]
    assert "is not recognised as sound" in batches.unusable[str(tmp_path / "05.wav")]


def test_bad_clips_weigh_nothing_in_evaluation(tmp_path):
    dataset = corpus(tmp_path, train=1, test=6, silent=(2,))
    batches = evaluate(dataset, unusable=0.2)
    first = collect(batches)[0]
    np.testing.assert_array_equal(first.indices, [0, 1, 2, 3])
    np.testing.assert_array_equal(first.weights, [1, 0, 1, 1])
    assert not first.waveforms[1].any()
    assert not first.targets[1].any()
    assert list(batches.unusable) == [str(tmp_path / "02.wav")]


def test_too_many_bad_clips_stop_the_run(tmp_path):
    dataset = corpus(tmp_path, train=1, test=10, silent=(4, 5))
    sentence = (
        "noise test: 2 of 10 clips cannot be used; at most 1 (10.00%) may be: "
        f"{tmp_path}/04.wav: is silent, every sample equals 0; a recording with sound in it is needed; "
        f"{tmp_path}/05.wav: is silent"
    )
    with evaluate(dataset, unusable=0.1) as batches:
        assert next(batches).weights.sum() == 3  # the first one is within the limit
        with pytest.raises(ValueError, match=re.escape(sentence)):
            next(batches)
    with evaluate(dataset) as batches, pytest.raises(ValueError, match=r"at most 0 \(1.00%\) may be"):
        next(batches)


def test_a_data_set_of_nothing_but_bad_clips(tmp_path):
    dataset = corpus(tmp_path, train=4, test=0, silent=(0, 1, 2, 3))
    with (
        train(dataset, unusable=1.0) as batches,
        pytest.raises(ValueError, match=r"neither this clip nor the 16 after it"),
    ):
        next(batches)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 12}, "noise has 11 train clips, too few for one batch of 12"),
        ({"batch_size": 0}, "batch_size is 0; it must be a positive multiple of the 1 processes"),
        ({"batch_size": 5, "process": ProcessRows(index=0, count=2)}, "must be a positive multiple of the 2 processes"),
        ({"epochs": 0}, "epochs is 0 and seed 5; they must be at least 1 and 0"),
        ({"unusable": 1.5}, "unusable is 1.5; it must be a share from 0 to 1"),
        ({"split": "validation"}, "noise has no validation clips; it has train 11, test 7"),
    ],
)
def test_refuses_impossible_settings(tmp_path, changes, sentence):
    dataset = corpus(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train(dataset, **changes)


def test_refuses_impossible_shards_and_workers():
    with pytest.raises(ValueError, match=r"process 2 of 2 does not exist; count from 0 to 1"):
        ProcessRows(index=2, count=2)
    with pytest.raises(ValueError, match=r"threads and ahead must be at least 1"):
        Workers(threads=0)
