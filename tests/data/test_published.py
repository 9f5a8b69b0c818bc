"""The published layouts on disk: what is read from each, in full, and what each refuses. Clips are empty files, never
opened."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from layouts import refuses, touch

from jaxprune.data import locations
from jaxprune.data.published import ESC50, AudioSet, SpeechCommands, VoxCeleb1
from jaxprune.data.records import Dataset, Record, class_counts, targets

# ESC-50


def esc_rows(folds: int = 5, classes: int = 3) -> list[dict]:
    rows = []
    for fold in range(1, folds + 1):
        for target in range(classes):
            for take in "AB":
                source = f"{fold}{target:03d}"
                fields = {"filename": f"{fold}-{source}-{take}-{target}.wav", "fold": fold, "target": target}
                fields |= {"category": ["dog", "rooster", "airplane"][target], "esc10": "True", "src_file": source}
                rows.append(fields | {"take": take})
    return rows


def esc50(root: Path, rows: list[dict]) -> ESC50:
    (root / "meta").mkdir(parents=True)
    for row in rows:
        touch(root / "audio" / row["filename"])
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return ESC50(root=root)


@pytest.mark.parametrize("fold", [1, 4])
def test_esc50_tests_on_one_fold_and_trains_on_the_others(tmp_path, fold):
    esc50(tmp_path, rows := esc_rows())
    dataset = ESC50(root=tmp_path, fold=fold).read()
    assert dataset.labels == ("dog", "rooster", "airplane")  # by target, not by name
    assert dataset.sizes() == {"train": 24, "test": 6}
    assert dataset.single_label
    expected = {
        (str(tmp_path / "audio" / r["filename"]), (r["target"],), "test" if r["fold"] == fold else "train", r["fold"])
        for r in rows
    }
    assert {(r.path, r.labels, r.split, r.fold) for r in dataset.records} == expected
    assert all(r.fold == fold for r in dataset.clips("test"))


def test_esc50_refusals(tmp_path):
    refuses(ESC50(root=tmp_path / "none"), "none/meta/esc50.csv: cannot be read (No such file or directory)")
    rows = esc_rows()
    refuses(ESC50(root=esc50(tmp_path / "a", rows).root, fold=6), "fold is 6; ")
    leak = [row | ({"src_file": "1000"} if row["fold"] == 2 and row["target"] == 0 else {}) for row in rows]
    refuses(
        esc50(tmp_path / "b", leak), "folds overlap, these source recordings are in two folds (1): 1000 in folds [1, 2]"
    )
    refuses(esc50(tmp_path / "c", [*rows, rows[0]]), "ESC-50: clips are listed more than once (1): ")
    for row in rows[:7]:
        (tmp_path / "a" / "audio" / row["filename"]).unlink()
    refuses(ESC50(root=tmp_path / "a"), "ESC-50: files are missing (7): ")
    refuses(ESC50(root=tmp_path / "a"), f"audio/{rows[4]['filename']} and 2 more")
    two_names = [row | ({"category": "cat"} if row["fold"] == 5 and row["target"] == 1 else {}) for row in rows]
    refuses(esc50(tmp_path / "d", two_names), "targets have two names (1): 1 is ['cat', 'rooster']")
    refuses(esc50(tmp_path / "e", [r for r in rows if r["target"] != 1]), "targets are [0, 2]; they must run from 0")
    refuses(esc50(tmp_path / "f", [row | {"target": "x"} for row in rows]), "'x' is not a whole number")
    refuses(
        esc50(tmp_path / "g", [row | {"fold": ""} for row in rows]), "row 2 has no fold; it must have filename, fold"
    )
    refuses(esc50(tmp_path / "h", [r for r in rows if r["fold"] == 1]), "ESC-50: there are no train clips")


# Speech Commands

WORDS = ("yes", "bed", "zero")


def speech_commands(
    root: Path, *, validation: str = "aa", test: str = "bb", extra: tuple[str, ...] = ()
) -> SpeechCommands:
    names = [
        f"{word}/{speaker}_nohash_{i}.wav" for word in WORDS for speaker in ("aa", "bb", "cc", "dd") for i in (0, 1)
    ]
    for name in (*names, "_background_noise_/white_noise.wav", "_background_noise_/README.md", "yes/.hidden.wav"):
        touch(root / name)
    for file, speaker in (("validation_list.txt", validation), ("testing_list.txt", test)):
        (root / file).write_text("".join(f"{n}\n" for n in (*names, *extra) if speaker and f"/{speaker}" in n))
    return SpeechCommands(root=root)


def test_speech_commands_follows_the_lists(tmp_path):
    dataset = speech_commands(tmp_path).read()
    assert dataset.labels == ("bed", "yes", "zero")
    assert dataset.sizes() == {"train": 12, "validation": 6, "test": 6}
    for record in dataset.records:
        path = Path(record.path)
        assert dataset.labels[record.labels[0]] == path.parent.name
        assert record.split == {"aa": "validation", "bb": "test"}.get(path.name[:2], "train")


def test_speech_commands_takes_another_label_order(tmp_path):
    """AST's order is its own; a converted head needs it."""
    speech_commands(tmp_path)
    labels = tmp_path / "labels.csv"
    labels.write_text('index,mid,display_name\n0,/m/spcmd00,"yes"\n2,/m/spcmd02,"bed"\n1,/m/spcmd01,"zero"\n')
    dataset = SpeechCommands(root=tmp_path, labels=labels).read()
    assert dataset.labels == ("yes", "zero", "bed")
    assert all(dataset.labels[r.labels[0]] == Path(r.path).parent.name for r in dataset.records)
    labels = tmp_path / "labels.txt"
    labels.write_text("yes\nbed\n")
    refuses(SpeechCommands(root=tmp_path, labels=labels), f"labels are not in {labels} (1): zero")


def test_speech_commands_refusals(tmp_path):
    refuses(
        speech_commands(tmp_path / "a", extra=("yes/bb_nohash_9.wav",)), "clips in the lists are missing (1): yes/bb_n"
    )
    refuses(
        speech_commands(tmp_path / "b", validation="bb"),
        "clips are listed more than once (6): yes/bb_nohash_0.wav in v",
    )
    refuses(speech_commands(tmp_path / "c", validation=""), "Speech Commands: there are no validation clips")
    source = speech_commands(tmp_path / "d")
    lines = (source.root / "testing_list.txt").read_text().splitlines()
    (source.root / "testing_list.txt").write_text("\n".join(lines[1:]))
    refuses(source, "splits overlap, these speakers are in two splits (1): bb in test and train")
    (source.root / "testing_list.txt").unlink()
    refuses(source, "testing_list.txt: cannot be read (No such file or directory)")


# AudioSet

MIDS = 'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/0dgw9r,"Human sounds, other"\n2,/t/dd00003,Male speech\n'


def audioset(root: Path, train: list[tuple[str, str]], test: list[tuple[str, str]], *, missing: tuple = ()) -> AudioSet:
    root.mkdir(parents=True, exist_ok=True)
    (root / "class_labels_indices.csv").write_text(MIDS)
    for name, clips in (("train", train), ("eval", test)):
        (root / f"{name}.json").write_text(json.dumps({"data": [{"wav": w, "labels": ids} for w, ids in clips]}))
        for wav, _ in clips:
            if wav not in missing:
                touch(root / wav)
    return AudioSet(labels=root / "class_labels_indices.csv", train=root / "train.json", test=root / "eval.json")


def test_audioset_labels_are_machine_ids(tmp_path):
    absolute = str(tmp_path / "elsewhere" / "z.flac")
    source = audioset(
        tmp_path,
        [("wavs/a.wav", "/t/dd00003,/m/09x0r"), (absolute, "/m/0dgw9r")],
        [("wavs/c.flac", "/m/09x0r,/m/0dgw9r,/t/dd00003")],
    )
    dataset = source.read()
    assert dataset.labels == ("Speech", "Human sounds, other", "Male speech")
    assert [(r.path, r.labels, r.split) for r in dataset.records] == [
        (str(tmp_path / "wavs/a.wav"), (0, 2), "train"),
        (absolute, (1,), "train"),
        (str(tmp_path / "wavs/c.flac"), (0, 1, 2), "test"),
    ]
    assert not dataset.single_label
    np.testing.assert_array_equal(targets(dataset.records, classes=3), [[1, 0, 1], [0, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(class_counts(dataset.records, classes=3), [2, 2, 2])
    only = AudioSet(labels=source.labels, test=source.test).read()
    assert only.sizes() == {"test": 1}
    with pytest.raises(ValueError, match=r"AudioSet has no train clips; it has test 1"):
        only.clips("train")


def test_audioset_looks_under_another_root(tmp_path):
    source = audioset(tmp_path / "lists", [("a.wav", "/m/09x0r")], [("b.wav", "/m/09x0r")], missing=("a.wav", "b.wav"))
    refuses(source, "AudioSet: files are missing (2): ")
    for name in ("a.wav", "b.wav"):
        touch(tmp_path / "sound" / name)
    moved = AudioSet(labels=source.labels, train=source.train, test=source.test, root=tmp_path / "sound").read()
    assert [Path(r.path).parent.name for r in moved.records] == ["sound", "sound"]


def test_audioset_refusals(tmp_path):
    good = [("c.wav", "/m/09x0r")]
    refuses(audioset(tmp_path / "a", [("a.wav", "/m/09x0r,/m/nope")], good), "labels are not in ")
    refuses(
        AudioSet(labels=tmp_path / "a/class_labels_indices.csv", train=tmp_path / "a/train.json"), "a.wav '/m/nope'"
    )
    refuses(audioset(tmp_path / "b", good, good), "clips are listed more than once (1): ")
    refuses(audioset(tmp_path / "c", good, []), "AudioSet: there are no test clips")
    refuses(AudioSet(labels=tmp_path / "a/class_labels_indices.csv"), "neither train nor test is given")
    source = audioset(tmp_path / "d", good, [("e.wav", "")])
    refuses(source, "AudioSet: clips have no label or one outside the 3 classes (1): ")
    (tmp_path / "d" / "train.json").write_text("{")
    refuses(source, "train.json: is not JSON (")
    (tmp_path / "d" / "train.json").write_text('{"wav": 1}')
    refuses(source, "expected a list of objects")


# VoxCeleb-1

VOX = (
    "1 id10001/aaa/00001.wav",
    "2 id10001/bbb/00001.wav",
    "3 id10001/ccc/00001.wav",
    "1 id10002/ddd/00001.wav",
    "3 id10002/ddd/00002.wav",
)


def vox(root: Path, homes: dict[str, str]) -> VoxCeleb1:
    for line in VOX:
        path = line.split()[1]
        touch(root / homes[path[:7]] / path)
    (root / "iden_split.txt").write_text("\n".join(VOX) + "\n")
    return VoxCeleb1(root=root)


@pytest.mark.parametrize("homes", [("wav", "wav"), ("dev/wav", "test/wav"), ("", "vox1_test_wav/wav")])
def test_voxceleb_downloads_merged_or_apart(tmp_path, homes):
    dataset = vox(tmp_path, dict(zip(("id10001", "id10002"), homes, strict=True))).read()
    assert dataset.labels == ("id10001", "id10002")
    assert [(r.split, r.labels) for r in dataset.records] == [
        ("train", (0,)),
        ("validation", (0,)),
        ("test", (0,)),
        ("train", (1,)),
        ("test", (1,)),
    ]
    assert all(Path(r.path).is_file() for r in dataset.records)


def test_voxceleb_other_folders_and_label_files(tmp_path):
    vox(tmp_path, {"id10001": "wav", "id10002": "../far/wav"})
    refuses(VoxCeleb1(root=tmp_path), "VoxCeleb-1: files are missing (2): ")
    labels = tmp_path / "labels.csv"  # the released file has one row more than there are speakers
    labels.write_text("index,mid,display_name\n0,id10000,nobody\n1,id10001,id10001\n2,id10002,id10002\n")
    dataset = VoxCeleb1(root=tmp_path, also=(tmp_path.parent / "far",), labels=labels).read()
    assert [r.labels[0] for r in dataset.records] == [1, 1, 1, 2, 2]
    assert len(dataset.labels) == 3
    (tmp_path / "iden_split.txt").write_text("4 id10001/aaa/00001.wav\n")
    refuses(
        VoxCeleb1(root=tmp_path), "line 1 is '4 id10001/aaa/00001.wav'; expected 1, 2 or 3 and id10001/VIDEO/00001.wav"
    )


def test_voxceleb_speaker_divided_between_folders(tmp_path):
    """A dev and a test download that share a speaker, as the merged split list allows."""
    vox(tmp_path, {"id10001": "dev/wav", "id10002": "dev/wav"})
    (tmp_path / "test/wav/id10002/ddd").mkdir(parents=True)
    (tmp_path / "dev/wav/id10002/ddd/00002.wav").rename(tmp_path / "test/wav/id10002/ddd/00002.wav")
    assert all(Path(r.path).is_file() for r in VoxCeleb1(root=tmp_path).read().records)


# What all share


def test_a_split_that_is_no_split():
    dataset = Dataset(name="x", labels=("a",), records=(Record(path="p", labels=(0,), split="train"),))
    with pytest.raises(ValueError, match=r"x has no test clips; it has train 1"):
        dataset.clips("test")


def test_missing_files_agrees_with_looking_at_each(tmp_path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{rng.integers(5)}" / f"{i}.wav") for i in range(60)]
    for path in paths[::3]:
        touch(Path(path))
    assert locations.missing_files(paths) == [path for path in paths if not Path(path).exists()]
