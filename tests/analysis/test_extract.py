"""Extraction against single clips without batches; interruption, the files, and the command line."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from extract_cases import BATCH, CLIPS, RATES, SHARD, make, other_weights, run_once
from helpers import ROOT, small
from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES, FRAMES, corpus
from training_runs import model as make_model

import jaxprune
from jaxprune.analysis.extraction import check_same_clips, members, on_grid, read_extraction
from jaxprune.analysis.identity import check_same, describe, model_digest
from jaxprune.audio import load_audio
from jaxprune.config import Card
from jaxprune.data import records
from jaxprune.features import STATIC, frame_count, model_input, sample_count
from jaxprune.positions import patch_corners
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.scores import PatchMean
from jaxprune.reduction.selection import Within

SCRIPT = ROOT / "scripts" / "extract.py"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


features = jax.jit(model_input, static_argnames=STATIC)


def contents(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every shard, as plain numpy reads it."""
    return {path.name: dict(np.load(path, allow_pickle=False)) for path in sorted(folder.glob("shard-*"))}


def assert_equal(first: Path, second: Path) -> None:
    one, two = contents(first), contents(second)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].keys() == two[name].keys()
        for array in one[name].keys() - {"state"}:
            np.testing.assert_array_equal(one[name][array], two[name][array], err_msg=array)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (first, second)]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("family", ["audiomae", "ast"])
def test_every_array_is_what_the_clip_gives_alone(tmp_path, dataset, family):
    model, card = make(family)
    found = run_once(tmp_path / "out", dataset, model=model, card=card, mel="float32")
    assert (found.clips, found.stages, found.config) == (CLIPS, (0, 1), model.config)
    assert [len(shard["index"]) for shard in contents(tmp_path / "out").values()] == [8, 5]
    forward = jaxprune.compiled(model, lambda output: (output.logits, [(b.score, b.patch_ids) for b in output.trace]))
    scored, kept = ([read(block) for block in range(2)] for read in (found.scored, found.kept))
    for i, record in enumerate(dataset.clips("test")):
        waveform = load_audio(record.path).waveform[: sample_count(FRAMES)]
        padded = np.pad(waveform, (0, sample_count(FRAMES) - len(waveform)))[None]
        mel = features(
            padded, np.array([len(waveform)]), frames=FRAMES, mean=card.mean, std=card.std, padding=card.padding
        )
        logits, trace = forward(mel, jaxprune.topk(model, RATES))
        np.testing.assert_allclose(found.column("logits")[i], logits[0], atol=1e-5)
        np.testing.assert_allclose(found.column("mel")[i], mel[0], atol=1e-5)
        for block, (score, patch_ids) in enumerate(trace):
            np.testing.assert_allclose(found.score(block)[i], score[0], rtol=1e-4)
            assert kept[block][i].tolist() == patch_ids[0].tolist()
            assert scored[block][i].tolist() == (kept[0][i].tolist() if block else list(range(32)))
        for (frame, bin), mean, std in zip(
            patch_corners(model.config), found.column("mean")[i], found.column("std")[i], strict=True
        ):
            pixels = np.asarray(mel[0, frame : frame + 16, bin : bin + 16], np.float64)
            assert (mean, std) == pytest.approx((pixels.mean(), pixels.std(ddof=1)), abs=1e-5)
        assert found.column("path")[i] == record.path
        assert found.column("frames")[i] == frame_count(len(waveform))
        assert found.column("target")[i].tolist() == [float(y in record.labels) for y in range(len(CLASSES))]
    assert found.index.tolist() == list(range(CLIPS))
    np.testing.assert_array_equal(found.kept_mask(1).sum(axis=1), np.full(CLIPS, 12))


def test_the_files_hold_what_is_documented(tmp_path, dataset):
    run_once(tmp_path / "out", dataset, mel="float16")
    types = {name: array.dtype.name for name, array in contents(tmp_path / "out")["shard-00001.npz"].items()}
    assert types.pop("path").startswith("str")
    assert types.pop("state").startswith("str")
    assert types == {
        "index": "int32",
        "frames": "int32",
        "target": "uint8",
        **dict.fromkeys(("logits", "mean", "std", "score_00", "score_01"), "float32"),
        **dict.fromkeys(("kept_00", "kept_01"), "int16"),
        "mel": "float16",
    }
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["policy"] == {
        "score": {"kind": "ReceivedAttention"},
        "stages": {"0": {"kind": "TopK", "rate": 0.7}, "1": {"kind": "TopK", "rate": 0.5}},
    }
    assert Card.from_json(manifest["checkpoint"]["card"]) == make()[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "shard-00000.npz",
        "shard-00001.npz",
    ]
    with pytest.raises(ValueError, match=r"holds no mel: it was not extracted; extract again with --mel"):
        run_once(tmp_path / "without", dataset).column("mel")


def test_an_interrupted_extraction_is_unfinished_and_goes_on_to_the_same_files(tmp_path, dataset, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_once(whole, dataset)
    heard = []

    def interrupt(done):
        heard.append(done)
        if done == CLIPS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_once(cut, dataset, watch=interrupt)
    assert heard == [0, 4, 8, 12, 13]
    assert list(contents(cut)) == ["shard-00000.npz"]
    with pytest.raises(ValueError, match=r"cut is unfinished \(1 shards so far\); run the command that began it again"):
        read_extraction(cut)
    (cut / ".shard-00001.unfinished-1.npz").write_bytes(b"a killed run's")
    read, heard = [], []
    monkeypatch.setattr(records, "load_audio", lambda path: read.append(path) or load_audio(path))
    run_once(cut, dataset, watch=heard.append)
    assert sorted(read) == [record.path for record in dataset.clips("test")[8:]]
    assert heard == [8, 12, 13]
    assert_equal(whole, cut)
    assert len(list(cut.iterdir())) == 3
    read.clear()
    assert run_once(cut, dataset).clips == CLIPS  # and once complete it is only read
    assert len(read) <= 4 * BATCH  # what was read ahead before it turned out so
    shutil.rmtree(cut)


def test_all_shards_without_the_end_are_finished_by_another_call(tmp_path, dataset):
    out = tmp_path / "out"
    run_once(out, dataset)
    manifest = json.loads((out / "manifest.json").read_text())
    complete = dict(manifest)
    del manifest["shards"], manifest["unusable"]
    (out / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    run_once(out, dataset)
    assert json.loads((out / "manifest.json").read_text()) == complete


def test_a_shard_that_cannot_be_written_leaves_nothing_and_says_so(tmp_path, dataset, monkeypatch):
    def full(file, **arrays):
        Path(file).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            run_once(tmp_path / "out", dataset)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    assert run_once(tmp_path / "out", dataset).clips == CLIPS


def test_unusable_clips_are_named_and_left_out_also_after_an_interruption(tmp_path, dataset):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(8000), 16000)
    records = list(dataset.records)
    records[3] = dataclasses.replace(records[3], path=str(silent))  # test clip 2, in the first shard
    broken = dataclasses.replace(dataset, records=tuple(records))

    def interrupt(done):
        if done == CLIPS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path / "out", broken, watch=interrupt)
    found = run_once(tmp_path / "out", broken)
    assert found.index.tolist() == [i for i in range(CLIPS) if i != 2]
    assert list(found.manifest["unusable"]) == [str(silent)]
    assert str(silent) not in found.column("path")
    other = run_once(tmp_path / "other", dataset)
    with pytest.raises(ValueError, match="cannot be compared: their clips differ"):
        check_same_clips(found, other)


def test_the_digest_is_of_the_weights_and_a_moved_data_set_is_the_same(tmp_path, dataset):
    model, card = make()
    assert model_digest(model) == model_digest(make_model()) != model_digest(other_weights())
    moved = [dataclasses.replace(r, path=str(tmp_path / Path(r.path).name)) for r in dataset.records]
    options = {"split": "test", "card": card, "policy": jaxprune.topk(model, RATES), "batch": 4}
    here = describe(model, dataset, **options)
    assert describe(model, dataclasses.replace(dataset, records=tuple(moved)), **options) == here
    assert json.loads(json.dumps(here)) == here


def test_masked_stages_leave_places_empty_and_keep_the_same(tmp_path, dataset):
    model, _ = make()
    exact = run_once(tmp_path / "exact", dataset)
    masked = run_once(tmp_path / "masked", dataset, policy=jaxprune.masked_topk(model, RATES))
    assert masked.kept(0).shape == (CLIPS, 32)
    assert (masked.kept(0)[:, :23] == exact.kept(0)).all()
    assert (masked.kept(0)[:, 23:] == -1).all()
    np.testing.assert_array_equal(masked.kept_mask(1), exact.kept_mask(1))
    loud = run_once(tmp_path / "loud", dataset, policy=Policy(PatchMean(), {1: Within(-0.2, 0.3)}))
    inside = (loud.column("mean") > -0.2) & (loud.column("mean") < 0.3)
    np.testing.assert_array_equal(loud.kept_mask(1), inside)
    assert loud.stages == (1,)
    assert "Within" in loud.name


def test_an_unpruned_model_has_no_kept_patches(tmp_path, dataset):
    found = run_once(tmp_path / "out", dataset, policy=jaxprune.topk(make()[0], {0: 1.0, 1: 1.0}))
    assert found.stages == ()
    assert found.name == "audiomae tones test keep 1"
    assert found.scored(1).tolist() == [list(range(32))] * CLIPS
    with pytest.raises(ValueError, match="out was extracted without pruning, so it has no kept patches; extract with"):
        found.kept(0)


def test_masks_and_grids():
    assert members(np.array([[2, -1], [0, 1]]), patches=3).tolist() == [[False, False, True], [True, True, False]]
    for family in ("ast", "audiomae"):
        config = small(family, frames=64)
        grid = on_grid(np.arange(config.patches)[None], config)[0]
        for patch, (frame, bin) in enumerate(patch_corners(config)):
            assert grid[frame // 16, bin // 16] == patch


# The command line


@pytest.fixture
def run(run_script):
    """Runs the script in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_script, SCRIPT)


def test_the_command_extracts_goes_on_and_refuses(tmp_path, dataset, run):
    model, card = make()
    jaxprune.save(tmp_path / "model", model, card=card)
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    entries = [{"path": r.path, "labels": [CLASSES[r.labels[0]]], "split": r.split} for r in dataset.records]
    (tmp_path / "tones.json").write_text(json.dumps(entries))
    source = ["manifest", "--path", tmp_path / "tones.json", "--labels", tmp_path / "labels.txt"]
    options = ["--blocks", 0, 1, "--batch", BATCH, "--shard", BATCH * SHARD]
    command = [tmp_path / "model", *source, *options, "--out", tmp_path / "out"]
    for _ in range(2):
        code, _, said = run(*command)
        assert (code, "holds 13 clips" in said) == (0, True), said
    expected = run_once(tmp_path / "expected", dataset, policy=jaxprune.topk(model, {0: 0.7, 1: 0.7}))
    found = read_extraction(tmp_path / "out")
    np.testing.assert_array_equal(found.kept(1), expected.kept(1))
    assert found.manifest["checkpoint"]["path"] == str(tmp_path / "model")
    assert found.manifest["data"]["source"]["kind"] == "Manifest"
    code, _, said = run(*command, "--keep-rate", 0.5)
    assert code == 2
    assert said.startswith(f"error: {tmp_path / 'out'} holds an extraction with other pruning: ")
    assert len(said.splitlines()) == 1
    code, _, said = run(*command, "--batch", 0)
    assert (code, said) == (2, "error: batch is 0; it must be at least 1\n")
    code, table, said = run(*command[:-1], tmp_path / "none", "--compare", 1)
    assert code == 0, said
    assert "Extraction adds" in table
    assert not (tmp_path / "none").exists()


def test_an_extraction_of_an_older_card_goes_on(tmp_path):
    card, rest = make()[1], {"model": {}, "data": {}, "policy": {}, "compute": {}}

    def described(card):
        return rest | {"checkpoint": {"card": card}}

    older = card.to_json()
    del older["trained"]
    check_same(tmp_path, described(older), described(card.to_json()))
    with pytest.raises(ValueError, match="other model card"):
        check_same(tmp_path, described(older), described(dataclasses.replace(card, mean=-1.0).to_json()))


def test_an_extraction_from_before_a_field_of_the_geometry_goes_on(tmp_path):
    card = make()[1]

    def described(model):
        return {"model": model, "checkpoint": {}, "data": {}, "policy": {}, "compute": {}}

    now = json.loads(json.dumps(dataclasses.asdict(card.model)))
    older = {name: value for name, value in now.items() if name != "predictors"}
    check_same(tmp_path, described(older), described(now))
    with pytest.raises(ValueError, match="other model geometry"):
        check_same(tmp_path, described(older), described(now | {"depth": now["depth"] + 1}))
