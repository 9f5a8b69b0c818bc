"""Refused extractions: other settings, damaged shards and manifests, and clips that do not match."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from extract_cases import CLIPS, RATES, make, other_weights, run_once
from extractions import write_random
from helpers import small
from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES, corpus
from training_runs import model as make_model

import jaxprune
from jaxprune.analysis.extraction import check_same_clips, check_same_model, read_extraction
from jaxprune.reduction.scores import PatchMean


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


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
        (("model", "freq_stq_stride"), 10),
        (("complete",), None),
        (("data",), []),
        (("data", "single_label"), "yes"),
        (("data", "labels"), ["one"]),
        (("policy", "stages"), {"x": {"kind": "TopK"}}),
        (("policy", "stages"), {"1": {}}),
        (("checkpoint", "weights_sha256"), 7),
        (("shards",), "shard-00000.npz"),
        (("shards",), []),
        (("unusable",), 3),
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


@pytest.mark.parametrize("field", ["complete", "checkpoint", "model", "data", "policy", "compute", "shards"])
def test_a_manifest_without_a_field_is_one_sentence(tmp_path, field):
    path = write_random(tmp_path / "some", small("ast"), clips=2, keep={3: 0.5})
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[field]
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


def test_extractions_of_another_padding_are_not_compared(tmp_path):
    config = small("ast", frames=128)
    first, other = (write_random(tmp_path / name, config, clips=4, keep={3: 0.5}) for name in ("first", "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["checkpoint"]["card"]["padding"] = "zero"  # the first, older, does not tell: it is the minimum
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="their paddings differ, minimum and zero"):
        check_same_clips(read_extraction(first), read_extraction(other))
