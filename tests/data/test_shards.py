"""Shards against the files they were decoded from: the same batches, bit for bit, and what is refused."""

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path

import grain
import numpy as np
import pytest
import soundfile
from data.test_batches import FRAMES, THREADS, collect, evaluate, same, train
from helpers import ROOT
from layouts import refuses

from jaxprune.data import shard_files, shard_writer
from jaxprune.data.batches import Workers
from jaxprune.data.own import Folder
from jaxprune.data.records import Dataset, Record
from jaxprune.data.shard_files import decoded
from jaxprune.data.shards import Shards
from jaxprune.data.statistics import measure
from jaxprune.training.protocol import check_folds
from jaxprune.training.recipes import recipe
from jaxprune.training.start import Sources

SCRIPT = ROOT / "scripts" / "shard.py"


def corpus(folder: Path, *, subtype: str = "PCM_16", rate: int = 16000, folds: bool = False) -> Dataset:
    """18 clips of many lengths, the fourth of them silent and the last no sound at all; some have two classes."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(18):
        path = folder / "abc"[i % 3] / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = rng.uniform(-1, 1, int(rng.integers(1200, 9000))) * (i != 3)
        soundfile.write(path, sound, rate, subtype)
        labels = (i % 3,) if i % 4 else tuple(sorted({i % 3, 2}))
        split = "train" if i < 11 else "test"
        records.append(Record(path=str(path), labels=labels, split=split, fold=1 + i % 3 if folds else None))
    path.write_bytes(b"no sound")
    return Dataset(name="noise", labels=("a", "b", "c"), records=tuple(records))


def written(dataset: Dataset, out: Path, **changes) -> Shards:
    shard_writer.write(dataset, out, **{"clips": 7, "unusable": 0.2} | changes)
    return Shards(root=out)


def both(read, dataset: Dataset, stored: Dataset, **changes) -> None:
    """The same batches, and the same clips refused for the same reasons."""
    found = []
    for one in (dataset, stored):
        batches = read(one, unusable=0.2, **changes)
        found.append((collect(batches), batches.unusable))
    same(found[0][0], found[1][0])
    root, other = (Path(one.records[0].path).parent.parent for one in (dataset, stored))
    told = {
        path.replace(str(root), str(other)): text.replace(str(root), str(other)) for path, text in found[0][1].items()
    }
    assert found[1][1] == told
    assert len(told) == 1


@pytest.mark.parametrize(
    ("rate", "subtype", "samples"),
    [(16000, "PCM_16", "int16"), (44100, "FLOAT", "float32"), (8000, "PCM_16", "float32")],
)
def test_batches_are_those_of_the_files(tmp_path, rate, subtype, samples):
    dataset = corpus(tmp_path / "wav", rate=rate, subtype=subtype)
    source = written(dataset, tmp_path / "shards", samples=samples)
    stored = source.read()
    assert (stored.name, stored.labels, stored.sizes()) == (dataset.name, dataset.labels, dataset.sizes())
    both(train, dataset, stored)
    both(evaluate, dataset, stored)
    index = json.loads((tmp_path / "shards" / "shards.json").read_text())
    assert [shard["clips"] for shard in index["shards"]] == [7, 7, 4]
    assert (index["sample_rate"], index["sizes"], index["inexact"]) == (16000, {"train": 11, "test": 7}, 0)
    assert index["unusable"].keys() == {"a/03.wav", "c/17.wav"}
    assert index["unusable"]["a/03.wav"].startswith("is silent, ")


def test_other_sound_is_rounded_to_half_a_step_and_counted(tmp_path):
    dataset = corpus(tmp_path / "wav", rate=22050)
    stored = written(dataset, tmp_path / "shards").read()
    assert json.loads((tmp_path / "shards" / "shards.json").read_text())["inexact"] == 16
    for one, other in zip(collect(evaluate(dataset, unusable=1)), collect(evaluate(stored, unusable=1)), strict=True):
        np.testing.assert_allclose(one.waveforms.clip(-1, 1), other.waveforms, atol=2**-15)
    quiet = np.full(500, 1e-6) * np.resize([1, -1], 500)
    with pytest.raises(ValueError, match="so quiet that 16 bits leave nothing"):
        shard_files.rounded(quiet.astype(np.float32))
    np.testing.assert_array_equal(shard_files.rounded(np.float32([-2, -1, 0, 1, 2])), [-32768, -32768, 0, 32767, 32767])


def test_records_can_be_read_by_grain_and_in_other_processes(tmp_path):
    dataset = corpus(tmp_path / "wav")
    source = written(dataset, tmp_path / "shards")
    raw = grain.sources.ArrayRecordDataSource(sorted(map(str, source.root.glob("*.array_record"))))
    assert len(raw) == 18
    for i, record in enumerate(dataset.records):
        facts, samples = decoded(raw[i])
        assert facts["name"] == str(Path(record.path).relative_to(tmp_path / "wav"))
        assert (facts["labels"], facts["split"], facts["rate"]) == ([*record.labels], record.split, 16000)
        assert facts["samples"] == len(samples)
        if i not in (3, 17):
            np.testing.assert_array_equal(samples, soundfile.read(record.path, dtype="int16")[0])
    stored = source.read()
    again = pickle.loads(pickle.dumps(stored.records))
    np.testing.assert_array_equal(again[5].load(), dataset.records[5].load())
    for bad in (b"", b"text", b'{"dtype": "int16", "samples": 3}\n\x00\x00', b'{"dtype": "none", "samples": 0}\n'):
        with pytest.raises(ValueError, match=r"not a record of jaxprune shard"):
            decoded(bad)


def test_lengths_are_known_without_reading(tmp_path):
    dataset = corpus(tmp_path / "wav")
    stored = written(dataset, tmp_path / "shards").read()
    one, other = (measure(d, "test", frames=FRAMES, unusable=0.2) for d in (dataset, stored))
    assert dataclasses.replace(one, unusable={}) == dataclasses.replace(other, unusable={})


def test_folds_and_label_order_are_chosen_when_read(tmp_path):
    dataset = corpus(tmp_path / "wav", folds=True)
    source = written(dataset, tmp_path / "shards")
    for fold in (1, 3):
        stored = dataclasses.replace(source, fold=fold).read()
        assert [record.split for record in stored.records] == [
            "test" if record.fold == fold else "train" for record in dataset.records
        ]
    refuses(dataclasses.replace(source, fold=4), f"fold is 4; {source.root} has the folds [1, 2, 3]")
    (tmp_path / "labels.json").write_text('["c", "x", "b", "a"]')
    stored = dataclasses.replace(source, labels=tmp_path / "labels.json").read()
    assert stored.labels == ("c", "x", "b", "a")
    for mine, theirs in zip(stored.records, dataset.records, strict=True):
        assert {stored.labels[i] for i in mine.labels} == {dataset.labels[i] for i in theirs.labels}
    (tmp_path / "labels.json").write_text('["c", "b"]')
    refuses(dataclasses.replace(source, labels=tmp_path / "labels.json"), "labels are not in ")
    made = recipe("ast-esc50")
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, root=str(source.root), folds=(1, 2, 3)))
    check_folds(made, Sources())
    assert Sources(fold=2).of(made) == dataclasses.replace(source, fold=2)


def test_what_was_cut_off_goes_on(tmp_path, monkeypatch):
    dataset, out = corpus(tmp_path / "wav"), tmp_path / "shards"
    whole = written(dataset, tmp_path / "whole")
    seen = []

    def cut_off(done, total):
        seen.append(done)
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(dataset, out, watch=cut_off)
    assert sorted(path.name for path in out.iterdir()) == ["00000.array_record", "00000.json", "shards.json"]
    refuses(Shards(root=out), f"{out}: the shards are not finished; run jaxprune shard again, it goes on")
    before = (out / "00000.array_record").stat().st_mtime_ns
    written(dataset, out, watch=lambda done, total: seen.append((done, total)))
    assert seen[11:13] == [(7, 18), (8, 18)]
    assert seen[-1] == (18, 18)
    assert (out / "00000.array_record").stat().st_mtime_ns == before
    names = sorted(path.name for path in whole.root.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (whole.root / name).read_bytes()


def test_damaged_shards_are_refused(tmp_path):
    dataset = corpus(tmp_path / "wav")
    good = written(dataset, tmp_path / "good").root

    def copy(name: str) -> Path:
        return shutil.copytree(good, tmp_path / name)

    (copy("missing") / "00001.array_record").unlink()
    told = "shards are missing or not as they were written"
    refuses(Shards(root=tmp_path / "missing"), f"{told} (1): 00001.array_record is missing")
    cut = copy("cut") / "00002.array_record"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[: size // 2])
    refuses(Shards(root=tmp_path / "cut"), f"{told} (1): 00002.array_record has {size // 2} bytes of {size}")
    (copy("table") / "00000.json").unlink()
    refuses(Shards(root=tmp_path / "table"), "table/00000.json: cannot be read (No such file or directory)")
    refuses(Shards(root=tmp_path / "none"), "none/shards.json: cannot be read (No such file or directory)")
    for text, said in (
        ("{", "shards.json: is not JSON"),
        ("[]", "shards.json: is not an index that jaxprune shard has written"),
        ('{"format": "jaxprune shards", "version": 2}', "shards.json: has version 2; only 1 is read here"),
    ):
        (tmp_path / "table" / "shards.json").write_text(text)
        refuses(Shards(root=tmp_path / "table"), said)

    burnt = copy("burnt") / "00000.array_record"
    content = bytearray(burnt.read_bytes())
    content[-3 * size // 4 :] = bytes(len(content[-3 * size // 4 :]))
    burnt.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape("00000.array_record")):
        [record.load() for record in Shards(root=tmp_path / "burnt").read().records[:7]]
    for one in (0, 1):  # of equal length, swapped
        shutil.copyfile(good / f"{1 - one:05d}.array_record", copy(f"swapped{one}") / f"{one:05d}.array_record")
        index = json.loads((good / "shards.json").read_text())
        index["shards"][one]["bytes"] = index["shards"][1 - one]["bytes"]
        (tmp_path / f"swapped{one}" / "shards.json").write_text(json.dumps(index))
        record = Shards(root=tmp_path / f"swapped{one}").read().records[7 * one]
        with pytest.raises(ValueError, match="another clip; the shards were mixed up"):
            record.load()


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        (
            "shards.json",
            {"shards": None},
            "writes it (Expected `array`, got `null`",
        ),
        ("shards.json", {"labels": [1]}, "Expected `str`, got `int` - at `$.labels[0]`"),
        ("shards.json", {"sample_rate": 8000}, "sample_rate"),
        ("shards.json", {"finished": "yes"}, "Expected `bool`, got `str`"),
        ("shards.json", {"shards": [{"file": "../x.array_record", "clips": 7, "bytes": 9}]}, "at `$.shards[0].file`"),
        ("shards.json", {"shards": [{"file": "/x.array_record", "clips": 7, "bytes": 9}]}, "at `$.shards[0].file`"),
        ("shards.json", {"labels": ["a"]}, "its table does not fit the index"),
        ("00000.json", {"clips": 5}, "00000.json: is not as jaxprune shard writes it"),
        ("00000.json", {"bytes": -1}, "Expected `int` >= 0"),
        ("00000.json", {"clips": [["a.wav", [0], "later", None, 9]]}, "Invalid enum value 'later'"),
        ("00000.json", {"clips": [["a.wav", [0], "train", None, 9e99]]}, "is not as jaxprune shard writes it"),
        ("00000.json", {"clips": [["a.wav", [0], "train", None, 10**30]]}, "is not as jaxprune shard writes it"),
        ("00000.json", {"clips": [["../a.wav", [0], "train", None, 9]]}, "the clip '../a.wav' is named outside"),
        ("00000.json", {"clips": [["/etc/a.wav", [0], "train", None, 9]]}, "the clip '/etc/a.wav' is named outside"),
        ("00000.json", {"clips": [["a.wav", [0], "train", None, 9]]}, "its table does not fit the index"),
    ],
)
def test_tables_of_another_form_are_refused_in_a_sentence(tmp_path, file, change, sentence):
    root = written(corpus(tmp_path / "wav"), tmp_path / "shards").root
    content = json.loads((root / file).read_text())
    (root / file).write_text(json.dumps(content | change))
    refuses(Shards(root=root), sentence)
    for key in set(content) - {"format", "version"}:
        (root / file).write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        refuses(Shards(root=root), f"Object missing required field `{key}`")
    for text, said in (("[" * 100_000, "nested too deeply"), ("9" * 5000, "a number that is too long")):
        (root / file).write_text(text)
        refuses(Shards(root=root), said)


def test_other_data_and_too_many_bad_clips_are_refused(tmp_path):
    dataset, out = corpus(tmp_path / "wav"), tmp_path / "shards"
    with pytest.raises(ValueError, match=r"1 of 18 clips cannot be used; at most 0 \(1\.00%\) may be: a/03.wav: is"):
        written(dataset, out, unusable=0.01)
    written(dataset, out)
    for changes, said in (
        ({"clips": 8}, "holds shards of clips 7, not 8; give a new folder"),
        ({"samples": "float32"}, "holds shards of samples 'int16', not 'float32'"),
        ({"clips": 0}, "clips is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            written(dataset, out, **changes)
    with pytest.raises(ValueError, match="holds shards of other clips"):
        written(dataclasses.replace(dataset, records=dataset.records[::-1]), out)
    with pytest.raises(ValueError, match=r"is not an empty folder and holds no shards\.json"):
        written(dataset, tmp_path / "wav")


def test_the_command(tmp_path, run_script):
    corpus(tmp_path / "wav")
    (tmp_path / "wav" / "c" / "17.wav").unlink()
    arguments = ("folder", "--root", tmp_path / "wav", "--out", tmp_path / "shards", "--unusable", 0.1)
    code, out, err = run_script(SCRIPT, *arguments, "--clips", 5)
    assert (code, err) == (0, "")
    assert "1 clip could not be used: a/03.wav: is silent" in out
    stored = Shards(root=tmp_path / "shards").read()
    dataset = Folder(root=tmp_path / "wav").read()
    assert stored.sizes() == dataset.sizes()
    assert [record.labels for record in stored.records] == [record.labels for record in dataset.records]
    with train(stored, epochs=1, workers=Workers(threads=1, processes=1), unusable=1) as batches:
        same(list(batches), collect(train(dataset, epochs=1, workers=THREADS, unusable=1)))
    code, _, err = run_script(SCRIPT, *arguments, "--clips", 6)
    assert (code, err.count("\n")) == (2, 1)
    assert "give a new folder" in err
