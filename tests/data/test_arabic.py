"""Arabic Speech Commands on disk: the published tables, one manifest, words and speakers. Clips are empty files."""

from pathlib import Path

import pytest
from layouts import refuses, touch

from jaxprune.data.published import ArabicSpeechCommands
from jaxprune.data.records import Dataset

SPEAKERS = {"00000001": "test", "00000002": "validation", "00000003": "train"}
ROUNDS = range(1, 11)


def arabic(root: Path, *, suffix: str = "wav") -> Path:
    """The published layout, with three speakers and two words: a table a split, with the columns file and class."""
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for word in ("zoom in", "yes"):
        for speaker, split in SPEAKERS.items():
            for nth in ROUNDS:
                touch(root / "dataset" / word / f"{speaker}_NO_{nth:02d}.{suffix}")
                rows[split].append((f"dataset/{word}/{speaker}_NO_{nth:02d}.wav", word))
    for split, table in {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}.items():
        lines = ["file,class", *(f"{file},{word}" for file, word in rows[split])]
        (root / table).write_text("\n".join(lines) + "\n")
    return root


def arabic_manifest(root: Path) -> Path:
    """The same clips as flac, listed in one table."""
    lines = ["path,labels,split,speaker,round"]
    for word in ("zoom in", "yes"):
        for speaker, split in SPEAKERS.items():
            for nth in ROUNDS:
                clip = f"{word}/{speaker}_NO_{nth:02d}.flac"
                touch(root / clip)
                lines.append(f"{clip},{word},{split},{speaker},{nth}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return root


def told_apart(dataset: Dataset) -> set[tuple[str, str, str]]:
    """Name of the file, of the class and of the split of every clip."""
    return {(Path(r.path).stem, dataset.labels[r.labels[0]], r.split) for r in dataset.records}


def test_arabic_words_are_split_by_speaker(tmp_path):
    dataset = ArabicSpeechCommands(root=arabic(tmp_path)).read()
    assert dataset.labels == ("yes", "zoom in")
    assert dataset.sizes() == {"train": 20, "validation": 20, "test": 20}
    assert all(SPEAKERS[Path(r.path).name[:8]] == r.split for r in dataset.records)
    assert all(dataset.labels[r.labels[0]] == Path(r.path).parent.name for r in dataset.records)


def test_arabic_speakers_are_split_by_round(tmp_path):
    dataset = ArabicSpeechCommands(root=arabic(tmp_path), task="speakers").read()
    assert dataset.labels == tuple(SPEAKERS)
    long = {8: "validation", 9: "test", 10: "test"}
    split_of_round = {"00000001": long, "00000002": {4: "validation", 5: "test"}, "00000003": long}
    last = {"00000002": 5, "00000001": 10, "00000003": 10}
    expected = {
        (f"{who}_NO_{nth:02d}", who, split_of_round[who].get(nth, "train"))
        for who in SPEAKERS
        for nth in ROUNDS
        if nth <= last[who]
    }
    assert told_apart(dataset) == expected
    assert dataset.notices == (f"{tmp_path}: 10 clips of the validation speakers' rounds 6 to 10 are not used",)


@pytest.mark.parametrize("task", ["words", "speakers"])
def test_arabic_clips_as_flac_or_in_one_table_are_the_same(tmp_path, task):
    layouts = (arabic(tmp_path / "a"), arabic(tmp_path / "b", suffix="flac"), arabic_manifest(tmp_path / "c"))
    a, b, c = (ArabicSpeechCommands(root=root, task=task).read() for root in layouts)
    assert told_apart(a) == told_apart(b) == told_apart(c)
    assert all(Path(r.path).exists() for dataset in (a, b, c) for r in dataset.records)


def test_arabic_refusals(tmp_path):
    refuses(ArabicSpeechCommands(root=tmp_path), "train.csv: cannot be read (No such file or directory)")
    root = arabic(tmp_path / "twice")
    with (root / "test.csv").open("a") as table:
        table.write("dataset/yes/00000003_NO_01.wav,yes\n")
    refuses(ArabicSpeechCommands(root=root), "splits overlap, these speakers are in two splits")
    root = arabic(tmp_path / "named")
    touch(root / "dataset" / "yes" / "clip7.wav")
    with (root / "train.csv").open("a") as table:
        table.write("dataset/yes/clip7.wav,yes\n")
    refuses(ArabicSpeechCommands(root=root), "clip7.wav: its name tells no speaker and round")
    root = arabic_manifest(tmp_path / "split")
    (root / "clips.csv").write_text("path,labels,split\nyes/00000001_NO_01.flac,yes,night\n")
    refuses(ArabicSpeechCommands(root=root), "splits must be train, validation, test")
