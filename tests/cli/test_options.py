"""Options that the commands on a data set share."""

from pathlib import Path

import pytest
from helpers import TESTS

from jaxprune.cli import options
from jaxprune.cli.main import main
from jaxprune.cli.options import OnDataset, check_file, check_folder, cpu_flags, left_out, tell_if_slower
from jaxprune.data.published import Manifest

ON_DATASET = ("evaluate", "extract", "ablate", "sweep")
WORDS = Manifest(path=TESTS / "words" / "words.csv")


@pytest.mark.parametrize("command", ON_DATASET)
def test_commands_on_a_data_set_take_the_same_options(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    told = capsys.readouterr().out
    for option in ("CHECKPOINT", "--split", "--dtype", "--threads", "--unusable", "esc50", "manifest", "shards"):
        assert option in told


def test_the_split_is_looked_at_before_anything_else():
    with pytest.raises(ValueError, match="no validation clips"):
        OnDataset(checkpoint=Path("nowhere"), data=WORDS, split="validation").read()


def test_batches_are_no_larger_than_the_split():
    on = OnDataset(checkpoint=Path("ast-words"), data=WORDS)
    dataset, model = on.read(), on.model()
    on.card(dataset)
    with on.batches(dataset, model, batch=10_000) as batches:
        assert next(batches).waveforms.shape[0] == len(dataset.clips("test"))
    with pytest.raises(ValueError, match="batch is 0; it must be at least 1"):
        on.batches(dataset, model, batch=0)


def test_the_source_is_the_kind_and_its_options():
    source = OnDataset(checkpoint=Path("x"), data=WORDS).source
    assert source["kind"] == "Manifest"
    assert source["path"] == WORDS.path


def test_outputs_of_the_other_kind_are_refused_and_a_files_folder_is_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; --out names a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="is a directory; --out names a file"):
        check_file(tmp_path)
    check_folder(None)
    check_file(None)
    check_folder(tmp_path / "new")
    check_file(tmp_path / "new" / "result.json")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["new"]


def test_clips_left_out_are_counted_and_the_first_reasons_given():
    assert left_out([]) == []
    assert left_out(["a.wav: is silent"]) == ["1 clip could not be used: a.wav: is silent"]
    (sentence,) = left_out([f"{i}.wav: is silent" for i in range(100)])
    assert sentence.startswith("100 clips could not be used: 0.wav: is silent")
    assert len(sentence) < 500


@pytest.mark.parametrize(
    ("dtype", "flags", "told"),
    [("bfloat16", "fpu avx512f", True), ("bfloat16", "fpu avx512_bf16", False), ("float32", "fpu", False)],
)
def test_bfloat16_is_remarked_on_where_it_may_be_slower(capsys, monkeypatch, tmp_path, dtype, flags, told):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    monkeypatch.setattr(options, "cpu_flags", lambda: cpu_flags(facts))
    tell_if_slower(dtype)
    assert ("bfloat16 may be slower here than float32" in capsys.readouterr().err) == told


def test_a_machine_that_tells_no_flags_has_none(tmp_path):
    assert cpu_flags(tmp_path / "nothing") == []
