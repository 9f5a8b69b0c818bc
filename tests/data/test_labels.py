"""Label files: the same names from every form, and each way in which one can be wrong."""

import re

import pytest

from jaxprune.data.labels import named_labels, read_label_file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'index,mid,display_name\n1,/m/2,"Dog, barking"\n0,/m/1,Cat\n'),
        ("a.csv", 'index,display_name\r\n0,"Cat"\r\n1,"Dog, barking"\r\n'),
        ("esc50.csv", 'filename,target,category\nx,1,"Dog, barking"\ny,0,Cat\nz,1,"Dog, barking"\n'),
        ("a.txt", "Cat\nDog, barking\n"),
        ("a.json", '["Cat", "Dog, barking"]'),
        ("a.json", '{"1": "Dog, barking", "0": "Cat"}'),
        ("config.json", '{"id2label": {"0": "Cat", "1": "Dog, barking"}, "hidden_size": 3}'),
    ],
)
def test_labels_in_every_form(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_label_file(tmp_path / name)
    assert found.names == ("Cat", "Dog, barking")
    assert found.ids == {"Cat": 0, "Dog, barking": 1} | ({"/m/1": 0, "/m/2": 1} if "/m/1" in text else {})


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("a.csv", b"index,display_name\n0,Cat\n0,Dog\n", "index 0 is given twice, as 'Cat' and 'Dog'"),
        ("a.csv", b"index,display_name\n0,Cat\n2,Dog\n", "2 classes are listed but index 1 is missing"),
        ("a.csv", b"index,display_name\nx,Cat\n", "'x' is not a class index"),
        ("a.csv", b"index,mid,display_name\n0,Cat\n", "fewer columns"),
        ("a.csv", b"index,display_name\n", "lists no classes"),
        ("a.csv", b"name,colour\nCat,black\n", "its columns are name, colour"),
        ("a.csv", b"target,category\n0,Cat\n0,Dog\n", "index 0 is given twice"),
        ("a.txt", b"Cat\n\nDog\n", "index 1 has no name"),
        ("a.txt", b"", "is empty"),
        ("a.csv", b"index,mid,display_name\n0,/m/a,A\n1,/m/a,B\n", "'/m/a' is the name of class 0 and of class 1"),
        ("a.txt", b"Cat\nDog\nCat\n", "'Cat' is the name of class 0 and of class 2"),
        ("a.json", b"{", "cannot be used"),
        ("a.json", b"3", "JSON int"),
        ("a.json", b"[1, 2]", "index 0 has no name"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, name, content, fact):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"the labels {tmp_path / name} cannot be used: ")) as caught:
        read_label_file(tmp_path / name)
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fact"), [(None, "cannot be read (No such file or directory)"), (b"\xff\xfe\x00", "is not UTF-8 text")]
)
def test_labels_that_cannot_be_read(tmp_path, content, fact):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {fact}")):
        read_label_file(path)


def test_a_data_sets_own_names_are_in_alphabetical_order_and_must_be_in_its_label_file(tmp_path):
    assert named_labels(None, ("b", "a", "b"), name="mine").names == ("a", "b")
    (tmp_path / "l.txt").write_text("b\nc\na\n")
    assert named_labels(tmp_path / "l.txt", ("b", "a"), name="mine").ids == {"b": 0, "c": 1, "a": 2}
    with pytest.raises(ValueError, match=re.escape(f"mine: labels are not in {tmp_path / 'l.txt'} (1): d")):
        named_labels(tmp_path / "l.txt", ("b", "d"), name="mine")
