"""What is written appears whole or not at all, and nothing of somebody else's is deleted."""

import pytest

from jaxprune.files import replace_file, whole_directory, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def half(path):
        path.write_text("ha")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "a.txt", half)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    seen = []
    replace_file(tmp_path / "new" / "a.png", lambda path: (seen.append(path), path.write_text("x")))
    assert seen[0].suffix == ".png"
    assert names(tmp_path / "new") == ["a.png"]


def test_a_directory_is_absent_until_it_is_complete(tmp_path):
    with whole_directory(tmp_path / "out", marker="m") as folder:
        (folder / "m").write_text("1")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    with pytest.raises(KeyError), whole_directory(tmp_path / "other", marker="m") as folder:
        raise KeyError
    assert names(tmp_path) == ["out"]


def test_an_old_directory_survives_a_failed_overwrite(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("old")
    with pytest.raises(KeyError), whole_directory(tmp_path / "out", marker="m", overwrite=True):
        raise KeyError
    assert (tmp_path / "out" / "m").read_text() == "old"
    with whole_directory(tmp_path / "out", marker="m", overwrite=True) as folder:
        (folder / "m").write_text("new")
    assert (tmp_path / "out" / "m").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_only_an_empty_directory_or_one_of_its_kind_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_directory(tmp_path / "empty", marker="m") as folder:
        (folder / "m").write_text("1")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    for overwrite, sentence in ((False, "already exists"), (True, "holds no m")):
        with (
            pytest.raises(ValueError, match=sentence),
            whole_directory(tmp_path / "photos", marker="m", overwrite=overwrite),
        ):
            pass
    assert names(tmp_path / "photos") == ["cat.jpg"]
