"""Tables of clips in the dialects that people have: each is read as its plain form, or refused in one sentence."""

import json
import unicodedata
from pathlib import Path

import pytest
from helpers import ROOT
from layouts import refuses, touch

from jaxprune.data.labels import read_label_file
from jaxprune.data.own import Folder, Manifest
from jaxprune.data.published import AudioSet

PLAIN = 'path,labels,split\na.wav,dog;cat,train\n"b, too.wav",cat,test\n'


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.wav", "b, too.wav"):
        touch(tmp_path / name)
    (tmp_path / "plain.csv").write_text(PLAIN)
    return tmp_path


def same(folder: Path, name: str, content: str | bytes) -> None:
    """The table is read as the plain one."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    plain, found = Manifest(path=folder / "plain.csv").read(), Manifest(path=path).read()
    assert (found.labels, found.records) == (plain.labels, plain.records)


@pytest.mark.parametrize(
    "text",
    [
        'path,labels,split\na.wav,"dog;cat" ,train\n"b, too.wav"  , "cat" ,test\n',  # spaces around quotes
        'path;labels;split\na.wav;"dog;cat";train\nb, too.wav;cat;test\n',
        "path\tlabels\tsplit\na.wav\tdog;cat\ttrain\nb, too.wav\tcat\ttest\n",
        'PATH,Labels,"SPLIT"\r\na.wav, dog ; cat,Train\r\n"b, too.wav",cat,TEST\r\n',
        'split,note,labels,path\ntrain,x,dog;cat,a.wav\n\ntest,,cat,"b, too.wav"\n',
        'a.wav,dog;cat,train\n"b, too.wav",cat,test\n',  # no header
        "\ufeff" + PLAIN,
        PLAIN.replace("train\n", "train,\n"),  # an empty field at the end
        PLAIN.replace("\n", "\r"),
    ],
)
def test_dialects_of_csv_are_read(folder, text):
    same(folder, "m.csv", text)
    same(folder, "wide.csv", text.lstrip("\ufeff").encode("utf-16"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('path,labels,split\na.wav,"dog,train\nb.wav,cat,test\n', 'm.csv: row 3: a quote (") that opens there is not'),
        (f'path,labels,split\na.wav,"{"x" * 140_000}",train\n', "longer than 131,072 characters"),
        (f"path,labels,split\na.wav,{'x' * 140_000},train\n", "longer than 131,072 characters"),
        ('path,labels,split\na.wav,"dog"cat,train\n', "m.csv: row 2: ',' expected after '\"'"),
        ("file,class\na.wav,dog\n", "its columns are 'file, class'; it must have path, labels, split"),
        ("path,labels,split\na.wav,dog,cat,train\n", "row 2 has 4 fields for the header's 3 (path, labels, split)"),
        ("path,labels,split,path\na.wav,dog,train,b.wav\n", "its header has the column path twice"),
        (PLAIN + 'c.wav,"dog,test\nd.wav,cat",test\n', "row 4: a quote (\") opens before 'dog,test\\nd.wav,cat' and"),
        ("path,labels,split\na.wav,dog\n", "row 2 has no split; it must have path, labels, split"),
        ("a.wav,dog,train\nb.wav,dog\n", "row 2 has no split"),
        ("a.wav,dog,nosplit\n", "its columns are 'a.wav, dog, nosplit'; it must have"),
        ("  \n", "m.csv: has no rows"),
        (";;\n", "m.csv: has no rows"),
    ],
)
def test_what_is_ambiguous_in_a_csv_is_refused(folder, text, sentence):
    (folder / "m.csv").write_text(text)
    refuses(Manifest(path=folder / "m.csv"), sentence)


def test_json_and_json_lines_are_read(folder):
    entries = [
        {"path": "a.wav", "labels": ["dog", "cat"], "split": "train"},
        {"Path": "b, too.wav", "LABELS": "cat", "Split": "Test"},
    ]
    same(folder, "m.json", json.dumps({"data": entries}))
    same(folder, "m.jsonl", "\n".join(map(json.dumps, entries)) + "\n\n")
    for entry in entries:
        entry.pop("labels", None)
        entry.pop("LABELS", None)
    (folder / "n.json").write_text(json.dumps([entry | {"labels": i} for i, entry in enumerate(entries)]))
    assert Manifest(path=folder / "n.json").read().labels == ("0", "1")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"labels": None}, "labels must be names, or a list of names (1): a.wav None"),
        ({"labels": True}, "labels must be names, or a list of names (1): a.wav True"),
        ({"labels": ["dog", None]}, "labels must be names, or a list of names (1): a.wav ['dog', None]"),
        ({"labels": 1.5}, "labels must be names"),
        ({"labels": {"dog": 1}}, "labels must be names"),
        ({"path": 5}, "paths must be text (1): 5"),
        ({"path": ["a.wav"]}, "paths must be text (1): ['a.wav']"),
        ({"path": "a\0.wav"}, "paths must be text (1): 'a\\x00.wav'"),
        ({"path": None}, "entries name no file (1): "),
        ({"path": "\ud800.wav"}, "files are missing (1): "),
        ({"split": 3}, "splits must be train, validation or test (1): a.wav 3"),
    ],
)
def test_values_of_json_that_mean_nothing_are_refused(folder, entry, sentence):
    (folder / "m.json").write_text(json.dumps([{"path": "a.wav", "labels": ["dog"], "split": "train"} | entry]))
    refuses(Manifest(path=folder / "m.json"), sentence)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("m.json", "[" * 100_000, "m.json: is not JSON that is read here: it is nested too deeply"),
        ("m.json", '[{"path": ' + "9" * 5000 + "}]", "m.json: holds a number that is too long"),
        ("m.json", '[{"path": "a", "PATH": "b"}]', "an object has a name twice, in upper and lower case: {'path': 'a'"),
        ("m.json", '["a.wav"]', "expected a list of objects, or {\"data\": [...]}; it has 'a.wav'"),
        ("m.jsonl", '{"path": "a.wav"}\n{', "m.jsonl: line 2 is not JSON ("),
    ],
)
def test_json_that_cannot_be_a_list_of_clips_is_refused(folder, name, text, sentence):
    (folder / name).write_text(text)
    refuses(Manifest(path=folder / name), sentence)


@pytest.mark.parametrize(
    "value", ["/m/1,/m/2", "/m/1, /m/2", "/m/1,/m/2,", ["/m/1", " /m/2"], ["/m/2", "Bow, wow"], "/m/2,/m/1"]
)
def test_labels_of_audioset_in_every_form(tmp_path, value):
    (tmp_path / "labels.csv").write_text('index,mid,display_name\n0,/m/1,"Bow, wow"\n1,/m/2,Speech\n2,/m/3,Music\n')
    touch(tmp_path / "a.wav")
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"wav": "a.wav", "labels": value}]}))
    source = AudioSet(labels=tmp_path / "labels.csv", train=tmp_path / "train.json")
    assert source.read().records[0].labels == (0, 1)
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"wav": "a.wav", "labels": "Bow, wow"}]}))
    assert source.read().records[0].labels == (0,)
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"wav": "a.wav", "labels": None}]}))
    refuses(source, "labels must be names, or a list of names (1): a.wav None")


@pytest.mark.parametrize("name", ["index,mid,display_name", "Index;MID;Display_Name", '"index"\tmid\t"display_name"'])
def test_label_files_in_the_same_dialects(tmp_path, name):
    separator = next(mark for mark in ",;\t" if mark in name)
    rows = [name, separator.join(("0", "/m/1", '"Bow, wow" ')), separator.join(("1", "/m/2", " Speech"))]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    assert read_label_file(tmp_path / "labels.csv").names == ("Bow, wow", "Speech")
    (tmp_path / "labels.csv").write_text('index,display_name\n0,"Bow\n')
    with pytest.raises(ValueError, match="cannot be used: row 2: a quote"):
        read_label_file(tmp_path / "labels.csv")


def test_names_in_another_unicode_form_are_found(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café/naïve.wav") for form in ("NFC", "NFD"))
    assert composed != apart
    touch(tmp_path / apart)
    touch(tmp_path / "plain.wav")
    (tmp_path / "m.csv").write_text(f"path,labels,split\n{composed},x,train\nplain.wav,x,test\n")
    dataset = Manifest(path=tmp_path / "m.csv").read()
    assert Path(dataset.records[0].path).exists()
    (tmp_path / "m.csv").write_text(f"path,labels,split\n{composed},x,train\n{apart},x,test\n")
    refuses(Manifest(path=tmp_path / "m.csv"), "in train is ")


def test_a_class_in_two_unicode_forms_is_one(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for name in (f"train/{composed}/1.wav", f"test/{apart}/2.wav", "train/dog/3.wav"):
        touch(tmp_path / "own" / name)
    dataset = Folder(root=tmp_path / "own").read()
    assert len(dataset.labels) == 2
    assert unicodedata.normalize("NFC", dataset.labels[0]) == composed
    assert [(record.labels, record.split) for record in dataset.records if "caf" in record.path] == [
        ((0,), "test"),
        ((0,), "train"),
    ]
    (tmp_path / "labels.txt").write_text(f"dog\n{composed}\n")
    rows = f"own/train/dog/3.wav,dog;{apart},train\nown/train/{composed}/1.wav,{composed},train\n"
    (tmp_path / "m.csv").write_text(f"path,labels,split\n{rows}")
    dataset = Manifest(path=tmp_path / "m.csv", labels=tmp_path / "labels.txt").read()
    assert [record.labels for record in dataset.records] == [(0, 1), (1,)]


def test_missing_files_may_be_skipped_up_to_a_fifth(tmp_path):
    rows = [f"{i}.wav,x,{'test' if i % 2 else 'train'}" for i in range(10)]
    for i in range(2, 10):
        touch(tmp_path / f"{i}.wav")
    (tmp_path / "m.csv").write_text("path,labels,split\n" + "\n".join(rows))
    refuses(Manifest(path=tmp_path / "m.csv"), "m: files are missing (2): ")
    dataset = Manifest(path=tmp_path / "m.csv", missing="skip").read()
    assert dataset.sizes() == {"train": 4, "test": 4}
    where = f"{tmp_path}/0.wav; {tmp_path}/1.wav"
    assert dataset.notices == (f"m: 2 of 10 listed files are missing and skipped: {where}",)
    (tmp_path / "2.wav").unlink()
    sentence = "m: 3 of 10 listed files are missing, more than the 20% that may be skipped: "
    refuses(Manifest(path=tmp_path / "m.csv", missing="skip"), sentence)


def test_commands_say_what_was_skipped(tmp_path, run_script):
    for name in ("a/1.wav", "a/2.wav", "a/notes.txt"):
        touch(tmp_path / name)
    options = ("folder", "--root", tmp_path, "--test", 0, "--validation", 0, "--unusable", 1)
    _, _, said = run_script(ROOT / "scripts" / "dataset_stats.py", *options)
    assert f"note: {tmp_path}: skipped 1 file without sound: 1 .txt\n" in said
