"""Extraction against single clips without batches; interruption, refusals, and the command line."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from extractions import write_random
from helpers import ROOT, small
from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES, FRAMES, corpus
from training_runs import model as make_model

import jaxprune
from jaxprune.analysis.extract import extract
from jaxprune.analysis.extraction import check_same_clips, check_same_model, members, on_grid, read_extraction
from jaxprune.analysis.identity import check_same, describe, model_digest
from jaxprune.audio import load_audio
from jaxprune.config import Card
from jaxprune.data import records
from jaxprune.data.batches import eval_batches
from jaxprune.features import STATIC, frame_count, model_input, sample_count
from jaxprune.positions import patch_corners
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.scores import PatchMean
from jaxprune.reduction.selection import Within

SCRIPT = ROOT / "scripts" / "extract.py"
CLIPS, BATCH, SHARD = 13, 4, 2  # the last batch is three rows short, the last shard five clips
RATES = {0: 0.7, 1: 0.5}


@functools.cache
def make(family: str = "audiomae"):
    made = make_model(family)
    return made, Card(model=made.config, mean=-6.0, std=4.0, activation="softmax", labels=CLASSES, source="test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


def run_once(out, dataset, *, model=None, card=None, policy=None, split="test", unusable=0.5, mel=None, **changes):
    made, its_card = make()
    model, card = model or made, card or its_card
    policy = jaxprune.topk(model, RATES) if policy is None else policy
    frames = model.config.frames
    common = {"card": card, "policy": policy, "mel": mel, "shard_batches": SHARD}
    description = describe(model, dataset, split=split, batch=BATCH, **common)
    with eval_batches(dataset, split, frames=frames, batch_size=BATCH, unusable=unusable) as batches:
        return extract(model, batches, out=out, description=description, **common | changes)


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


def other_weights():
    made = make_model()
    made.head.bias[...] = made.head.bias[...] + 1
    return made


def test_another_extraction_is_not_gone_on_with(tmp_path, dataset):
    out, (model, card) = tmp_path / "out", make()
    run_once(out, dataset)
    longer = make_model(frames=96)
    fewer = dataclasses.replace(dataset, records=dataset.records[:-1])
    for changes, why in [
        ({"model": other_weights()}, r"other weights: \w{12} there, \w{12} here; choose another folder"),
        ({"model": longer, "card": dataclasses.replace(card, model=longer.config)}, r"other frames \(T\): 64 .*, 96 "),
        ({"card": dataclasses.replace(card, mean=-5.0)}, "other model card"),
        ({"policy": jaxprune.topk(model, {1: 0.5})}, "other pruning"),
        ({"policy": jaxprune.topk(model, RATES, score=PatchMean())}, "other score: .*Received.* there, .*PatchMean"),
        ({"split": "train"}, "other split: test there, train here"),
        ({"mel": "float16"}, "other mel: null there, float16 here"),
    ]:
        with pytest.raises(ValueError, match=why):
            run_once(out, dataset, **changes)
    with pytest.raises(ValueError, match=r"other clips: \w{12} there, \w{12} here"):
        run_once(out, fewer)
    with pytest.raises(ValueError, match="other data set: tones there, sounds here"):
        run_once(out, dataclasses.replace(dataset, name="sounds"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="mine exists and is not an extraction; choose another name"):
        run_once(tmp_path / "mine", dataset)


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


def test_blocks_that_are_not_there_or_do_not_prune_are_refused(tmp_path):
    path = write_random(tmp_path / "some", small("ast"), clips=3, keep={3: 0.5})
    found = read_extraction(path)
    with pytest.raises(ValueError, match=r"block 4 of .*some does not prune; blocks \[3\] do"):
        found.kept(4)
    with pytest.raises(ValueError, match=r"no block 12; .* has blocks 0 to 11"):
        found.score(12)


def test_logits_that_are_not_numbers_are_refused(tmp_path, dataset):
    broken = make_model()
    broken.head.bias[...] = broken.head.bias[...] + np.nan
    with pytest.raises(
        ValueError, match=r"4 clips of a batch have scores that are not finite numbers, the first is .*01\.wav"
    ):
        run_once(tmp_path / "out", dataset, model=broken)
    with pytest.raises(ValueError, match="labelled with 2 classes, but the model has 3"):
        run_once(tmp_path / "two", corpus_of_two(dataset))


def corpus_of_two(dataset):
    records = tuple(dataclasses.replace(record, labels=(0,)) for record in dataset.records)
    return dataclasses.replace(dataset, labels=CLASSES[:2], records=records)


def test_damage_is_named(tmp_path):
    path = write_random(tmp_path / "some", small("ast"), clips=6, keep={3: 0.5}, shard=3)
    shard = path / "shard-00001.npz"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"shard-00001\.npz cannot be read .*; extract again"):
        read_extraction(path).score(0)
    shard.unlink()
    with pytest.raises(ValueError, match=r"some has lost shard-00001\.npz"):
        read_extraction(path)
    manifest = json.loads((path / "manifest.json").read_text())
    for change, why in [({"version": 7}, "is of version 7"), ({"kind": "diary"}, "not the manifest of an extraction")]:
        (path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match=why):
            read_extraction(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_extraction(path)
    with pytest.raises(ValueError, match="is not an extraction: it has no manifest"):
        read_extraction(tmp_path)


def test_only_the_same_clips_are_compared(tmp_path):
    def make_one(name, **changes):
        frames = changes.pop("frames", 128)
        family = changes.pop("family", "ast")
        options = {"clips": 4, "keep": {3: 0.5}} | changes
        return read_extraction(write_random(tmp_path / name, small(family, frames=frames), **options))

    first = make_one("first")
    check_same_clips(first, make_one("mae", family="audiomae", weights="b"))
    check_same_model(first, make_one("unpruned", keep={}))
    for name, changes, why in [
        ("long", {"frames": 256}, r"their frames \(T\) differ, 128 and 256"),
        ("named", {"data": "speech"}, "their data set differ, noise and speech"),
        ("seeded", {"seed": 1}, "their clips differ, noise-0 and noise-1"),
        ("short", {"clips": 3}, "other clips were unusable, so that 4 and 3 are left"),
    ]:
        with pytest.raises(ValueError, match=why):
            check_same_clips(first, make_one(name, **changes))
    with pytest.raises(ValueError, match=r"trained is of another model than .*first: weights b+, not a+"):
        check_same_model(first, make_one("trained", weights="b"))


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


@pytest.mark.parametrize("name", ["../x.npz", "/etc/x.npz", "shard-00000.npz/../x.npz", "a.npz", 3])
def test_an_extraction_reads_no_file_but_its_own(tmp_path, name):
    path = write_random(tmp_path / "some", small("ast"), clips=2, keep={3: 0.5})
    shutil.copy(path / "shard-00000.npz", tmp_path / "x.npz")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"shards": [name]}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*shards"):
        read_extraction(path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("model", "depth"), 10**9),
        (("model", "depth"), "2"),
        (("complete",), None),
        (("data",), []),
        (("data", "single_label"), "yes"),
        (("data", "labels"), ["one"]),
        (("policy", "stages"), {"x": {"kind": "TopK"}}),
        (("policy", "stages"), {"1": {}}),
        (("checkpoint", "weights_sha256"), 7),
        (("shards",), "shard-00000.npz"),
    ],
)
def test_a_manifest_of_another_shape_is_one_sentence(tmp_path, where, value):
    path = write_random(tmp_path / "some", small("ast"), clips=2, keep={3: 0.5})
    manifest = json.loads((path / "manifest.json").read_text())
    part = manifest
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        read_extraction(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("kept_03", np.full((2, 4), 5000, np.int16)),
        ("kept_03", np.full((2, 4), -2, np.int16)),
        ("score_00", np.zeros(2, np.float32)),
        ("mean", np.zeros((2, 3), np.float32)),
        ("std", np.zeros((2, 128), np.int32)),
        ("frames", np.zeros(3, np.int32)),
        ("path", np.zeros(2)),
        ("logits", np.array([None, None])),
    ],
)
def test_a_shard_with_a_strange_array_is_one_sentence(tmp_path, name, values):
    path = write_random(tmp_path / "some", small("ast"), clips=2, keep={3: 0.5})
    with np.load(path / "shard-00000.npz") as shard:
        arrays = dict(shard)
    np.savez(path / "shard-00000.npz", **arrays | {name: values})
    with pytest.raises(ValueError, match=r"shard-00000\.npz cannot be read"):
        read_extraction(path).column(name)


def test_a_flipped_bit_of_a_shard_is_seen(tmp_path):
    path = write_random(tmp_path / "some", small("ast"), clips=2, keep={3: 0.5})
    extraction, shard = read_extraction(path), path / "shard-00000.npz"
    whole, scores = shard.read_bytes(), extraction.score(0)
    for place in range(whole.index(scores.tobytes()[:64]) - 128, len(whole), len(whole) // 20):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            found = extraction.score(0)
        except ValueError:
            continue
        assert np.array_equal(found, scores)


def test_an_extraction_of_an_older_card_goes_on(tmp_path):
    card, rest = make()[1], {"model": {}, "data": {}, "policy": {}, "compute": {}}

    def described(card):
        return rest | {"checkpoint": {"card": card}}

    older = card.to_json()
    del older["trained"]
    check_same(tmp_path, described(older), described(card.to_json()))
    with pytest.raises(ValueError, match="other model card"):
        check_same(tmp_path, described(older), described(dataclasses.replace(card, mean=-1.0).to_json()))
