"""Own sounds on disk: what is read from folders and tables, and what is refused. Clips are empty files never opened."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from layouts import refuses, touch

from jaxprune.data.batches import eval_batches, train_batches
from jaxprune.data.own import Folder, Manifest, UnlabelledFolder


def test_folder_per_class_is_divided_by_seed(tmp_path):
    for name, count in (("cat", 20), ("dog", 30)):
        for i in range(count):
            touch(tmp_path / name / f"deep{i % 2}" / f"{i}.{('wav', 'flac', 'mp3')[i % 3]}")
    touch(tmp_path / "cat" / "notes.txt")
    touch(tmp_path / "_old" / "x.wav")
    dataset = Folder(root=tmp_path).read()
    assert dataset.labels == ("cat", "dog")
    count = Counter((r.labels[0], r.split) for r in dataset.records)
    assert count == {
        (0, "train"): 16,
        (0, "validation"): 2,
        (0, "test"): 2,
        (1, "train"): 24,
        (1, "validation"): 3,
        (1, "test"): 3,
    }
    assert Folder(root=tmp_path).read() == dataset
    assert {r.path: r.split for r in Folder(root=tmp_path, seed=1).read().records} != {
        r.path: r.split for r in dataset.records
    }
    assert Folder(root=tmp_path, validation=0, test=0).read().sizes() == {"train": 50}
    assert Folder(root=tmp_path, validation=0, test=1).read().sizes() == {"test": 50}
    refuses(Folder(root=tmp_path, validation=0.5, test=0.6), "must be shares of at most 1 in all")


def test_folder_with_split_folders(tmp_path):
    for name in ("train/cat/1.wav", "train/dog/2.wav", "val/cat/3.wav", "Eval/dog/4.wav"):
        touch(tmp_path / name)
    dataset = Folder(root=tmp_path).read()
    assert {(r.path, r.split) for r in dataset.records} == {
        (str(tmp_path / "train/cat/1.wav"), "train"),
        (str(tmp_path / "train/dog/2.wav"), "train"),
        (str(tmp_path / "val/cat/3.wav"), "validation"),
        (str(tmp_path / "Eval/dog/4.wav"), "test"),
    }
    refuses(Folder(root=tmp_path / "train" / "cat"), "holds no clips")
    refuses(Folder(root=tmp_path / "none"), "none: cannot be read (No such file or directory)")


def test_a_folder_without_labels_gives_all_its_sounds(tmp_path):
    for i in range(30):
        touch(tmp_path / "flat" / f"{i}.{('wav', 'flac', 'mp3')[i % 3]}")
    touch(tmp_path / "flat" / "notes.txt")
    refuses(Folder(root=tmp_path / "flat"), "in a folder per class")
    dataset = UnlabelledFolder(root=tmp_path / "flat").read()
    assert dataset.labels == ()
    assert dataset.sizes() == {"train": 27, "validation": 3}
    assert len({record.path for record in dataset.records}) == 30
    assert {record.labels for record in dataset.records} == {()}
    _, told = dataset.notices
    assert told.startswith(f"{tmp_path}/flat: 3 of 30 sounds, a share of 0.1, drawn clip by clip, are held out")
    assert UnlabelledFolder(root=tmp_path / "flat").read() == dataset
    other = UnlabelledFolder(root=tmp_path / "flat", validation=0.5, seed=1).read()
    assert other.sizes() == {"train": 15, "validation": 15}
    touch(tmp_path / "one" / "1.wav")
    assert "none of 1 sounds" in UnlabelledFolder(root=tmp_path / "one").read().notices[0]
    (tmp_path / "empty").mkdir()
    refuses(UnlabelledFolder(root=tmp_path / "empty"), "empty: holds no clips (.wav, ")


def test_folders_that_may_be_classes_are_divided_alike_with_labels_and_without(tmp_path):
    """So that no clip is trained on here and tested on there."""
    for name in "ab":
        for i in range(20):
            touch(tmp_path / name / "deep" / f"{i}.wav")
    labelled, without = Folder(root=tmp_path).read(), UnlabelledFolder(root=tmp_path).read()
    assert [(r.path, r.split) for r in without.records] == [(r.path, r.split) for r in labelled.records]
    assert "the 4 clips that fine-tuning would test on are left out of training" in without.notices[-1]
    for i in range(20):
        touch(tmp_path / f"loose{i}.wav")
    both = UnlabelledFolder(root=tmp_path).read()
    assert both.records[:40] == without.records
    assert Counter(record.split for record in both.records[40:]) == {"train": 18, "validation": 2}


def test_split_folders_need_no_classes_for_pretraining(tmp_path):
    for name in ("train/1.wav", "train/deep/er/2.wav", "dev/3.wav", "test/4.wav", "others/5.wav", "6.wav"):
        touch(tmp_path / name)
    dataset = UnlabelledFolder(root=tmp_path).read()
    splits = {str(Path(record.path).relative_to(tmp_path)): record.split for record in dataset.records}
    assert splits == {
        "train/1.wav": "train",
        "train/deep/er/2.wav": "train",
        "dev/3.wav": "validation",
        "test/4.wav": "test",
    }
    assert dataset.notices == (
        f"{tmp_path}: holds splits, so its other folders are skipped: others",
        f"{tmp_path}: skipped 1 file in no split folder: {tmp_path}/6.wav",
    )


def test_manifest_as_csv_or_json(tmp_path):
    for name in "abc":
        touch(tmp_path / f"{name}.wav")
    (tmp_path / "m.csv").write_text(
        "split,path,labels,note\ntrain,a.wav,dog;cat,x\nval,b.wav,cat,\neval,c.wav, dog ,\n"
    )
    dataset = Manifest(path=tmp_path / "m.csv").read()
    assert dataset.labels == ("cat", "dog")
    expected = [("a.wav", (0, 1), "train"), ("b.wav", (0,), "validation"), ("c.wav", (1,), "test")]
    assert [(Path(r.path).name, r.labels, r.split) for r in dataset.records] == expected
    entries = [
        {"path": "a.wav", "labels": ["dog", "cat"], "split": "train"},
        {"path": str(tmp_path / "b.wav"), "labels": "cat", "split": "validation"},
        {"path": "c.wav", "labels": ["dog"], "split": "test"},
    ]
    for content in (entries, {"data": entries}):
        (tmp_path / "m.json").write_text(json.dumps(content))
        assert Manifest(path=tmp_path / "m.json").read() == dataset.__class__(
            name="m", labels=dataset.labels, records=dataset.records
        )


def test_manifest_refusals(tmp_path):
    touch(tmp_path / "a.wav")
    manifest = tmp_path / "m.csv"

    def refused(rows: str, sentence: str, **settings):
        manifest.write_text("path,labels,split\n" + rows)
        refuses(Manifest(path=manifest, **settings), sentence)

    refused(
        "a.wav,x,train\na.wav,x,test\n", f"m: clips are listed more than once (1): {tmp_path}/a.wav in train and test"
    )
    refused("a.wav,x,train\n./a.wav,x,train\n", "m: clips are listed more than once (1)")
    refused("a.wav,x,later\n", "splits must be train, validation or test (1): a.wav 'later'")
    refused("b.wav,x,train\n", f"m: files are missing (1): {tmp_path}/b.wav")
    refused("a.wav,;,train\n", "m: clips have no label or one outside the 0 classes (1)")
    touch(tmp_path / "c.wav")
    refused("a.wav,;,train\nc.wav,x,train\n", "m: clips have no label or one outside the 1 classes (1)")
    refused("a.wav,,train\n", "row 2 has no labels; it must have path, labels, split")
    refused("", "m.csv: has no rows")
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    refused("a.wav,cow;cat,train\n", f"labels are not in {labels} (1): cow", labels=labels)


@pytest.mark.parametrize("kind", ["folder", "csv", "json"])
def test_only_training_needs_clips_to_train_on(tmp_path, kind):
    for name in ("test/cat/1.wav", "test/dog/2.wav"):
        touch(tmp_path / name)
    (tmp_path / "m.csv").write_text("path,labels,split\ntest/cat/1.wav,cat,test\ntest/dog/2.wav,dog,test\n")
    entries = [
        {"path": f"test/{name}/{i}.wav", "labels": [name], "split": "test"} for i, name in ((1, "cat"), (2, "dog"))
    ]
    (tmp_path / "m.json").write_text(json.dumps(entries))
    source = Folder(root=tmp_path) if kind == "folder" else Manifest(path=tmp_path / f"m.{kind}")
    dataset = source.read()
    assert (dataset.labels, dataset.sizes()) == (("cat", "dog"), {"test": 2})
    with eval_batches(dataset, "test", frames=64, batch_size=2) as batches:
        assert len(batches) == 1
    with pytest.raises(ValueError, match=r"has no train clips; it has test 2$"):
        train_batches(dataset, frames=64, batch_size=2, epochs=1, seed=0)


def test_no_clips_at_all_are_refused(tmp_path):
    (tmp_path / "m.json").write_text("[]")
    refuses(Manifest(path=tmp_path / "m.json"), "m: there are no clips")


def test_what_is_passed_over_in_a_folder_is_said(tmp_path, monkeypatch):
    for name in ("cat/1.wav", "cat/2.AIFF", "cat/3.opus", "cat/4.m4a", "dog/5.flac", "dog/notes.txt", "lost.wav"):
        touch(tmp_path / name)
    for name in ("cat/.hidden/6.wav", "dog/deep/.git/7.wav", "dog/.8.wav", ".cache/9.wav", "_old/x.wav"):
        touch(tmp_path / name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    dataset = Folder(root=tmp_path, validation=0, test=0).read()
    assert sorted(Path(record.path).name for record in dataset.records) == ["1.wav", "2.AIFF", "3.opus", "5.flac"]
    assert dataset.notices == (
        f'{tmp_path}: skipped 1 file for want of the extra audio (pip install "jaxprune[audio]"): 1 .m4a',
        f"{tmp_path}: skipped 1 file without sound: 1 .txt",
        f"{tmp_path}: skipped 1 file in no class folder: {tmp_path}/lost.wav",
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "here")
    assert len(Folder(root=tmp_path, validation=0, test=0).read().records) == 5


def test_splits_stay_splits_beside_other_folders(tmp_path):
    for name in ("train/cat/1.wav", "test/cat/2.wav", "train/3.wav", "metadata/notes/4.wav"):
        touch(tmp_path / name)
    dataset = Folder(root=tmp_path).read()
    assert dataset.labels == ("cat",)
    assert dataset.sizes() == {"train": 1, "test": 1}
    assert dataset.notices == (
        f"{tmp_path}: holds splits, so its other folders are skipped: metadata",
        f"{tmp_path}: skipped 1 file in no class folder: {tmp_path}/train/3.wav",
    )
    words = tmp_path / "words"
    for name in ("test/1.wav", "yes/2.wav"):  # a word, not a split
        touch(words / name)
    dataset = Folder(root=words, validation=0, test=0).read()
    assert dataset.labels == ("test", "yes")
    assert dataset.notices == (f"{words}: the folder test is taken for a class: train and another split must exist",)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_each_real_folder_is_read_once(tmp_path):
    for i in range(8):
        touch(tmp_path / "own" / "cat" / f"{i}.wav")
        touch(tmp_path / "far" / f"{i}.wav")
    own = tmp_path / "own"
    (own / "cat" / "loop").symlink_to(own / "cat")
    (own / "cat" / "up").symlink_to(own)
    (own / "also").symlink_to(own / "cat")  # sorts before cat, but cat is the real one
    (own / "dog").symlink_to(tmp_path / "far")  # sound that lies elsewhere
    dataset = Folder(root=own, validation=0.25, test=0.25).read()
    assert dataset.labels == ("cat", "dog")
    assert len(dataset.records) == 16
    assert dataset.notices == tuple(
        f"{own}: {name} is skipped, the same folder was read already" for name in ("also", "cat/loop", "cat/up")
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to"])
def test_one_real_file_in_two_splits_is_refused(tmp_path, kind):
    for name in ("train/cat/1.wav", "test/cat/2.wav"):
        touch(tmp_path / name)
    getattr(tmp_path / "test/cat/3.wav", kind)(tmp_path / "train/cat/1.wav")
    path = f"{tmp_path}/train/cat/1.wav"
    refuses(Folder(root=tmp_path), "clips are listed more than once (1): ")
    refuses(Folder(root=tmp_path), f"{path} in train, one file")
    (tmp_path / "test/cat/3.wav").rename(tmp_path / "train/cat/3.wav")
    assert Folder(root=tmp_path).read().sizes() == {"train": 2, "test": 1}
