"""Keep rates and precisions on a small data set: the pairs, their front, the command with its table and picture."""

import json

import pytest
from evaluation.evaluate_cases import BLOCKS, corpus, make
from quick import quick_compiling  # noqa: F401

from jaxprune import checkpoint
from jaxprune.data.batches import eval_batches
from jaxprune.evaluation.evaluate import keep_policies
from jaxprune.export.precisions import Pair, front, measure


def measured(folder, *, several: bool, precisions, runtime="onnxruntime", rates=(1.0, 0.5)):
    model, card = make("ast")
    dataset = corpus(folder, several=several)
    sounds = [record.load() for record in dataset.records]
    with eval_batches(dataset, frames=card.model.frames, batch_size=4) as batches:
        return measure(
            model,
            batches,
            card=card,
            policies=keep_policies(model, rates, blocks=BLOCKS),
            precisions=precisions,
            runtime=runtime,
            calibrate=sounds,
            single_label=dataset.single_label,
        )


def test_float32_is_the_model_and_int8_is_near_it(tmp_path):
    pairs = measured(tmp_path, several=False, precisions=("float32", "int8"))
    assert [(pair.rate, pair.precision) for pair in pairs] == [
        (1, "float32"),
        (1, "int8"),
        (0.5, "float32"),
        (0.5, "int8"),
    ]
    for exact, rounded in zip(pairs[::2], pairs[1::2], strict=True):
        assert (exact.overlap, exact.same_label) == (1, 1)
        assert exact.difference < 1e-4 < rounded.difference
        assert rounded.overlap > 0.8
        assert rounded.file_bytes < exact.file_bytes
        assert exact.macs == rounded.macs
    assert pairs[0].macs > pairs[2].macs


def test_clips_of_several_classes_are_ranked(tmp_path):
    (pair,) = measured(tmp_path, several=True, precisions=("float32",), rates=(1.0,))
    assert pair.metric == "mean_average_precision"
    assert 0 < pair.quality <= 1


def test_a_precision_that_the_runtime_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ONNX Runtime does not compute in bfloat16"):
        measured(tmp_path, several=False, precisions=("bfloat16",))


def test_the_front_holds_what_no_other_beats():
    def pair(milliseconds, quality):
        rest = {
            "asked": "1",
            "rate": 1.0,
            "precision": "int8",
            "macs": 1,
            "metric": "top1",
            "overlap": 1.0,
            "same_label": 1.0,
        }
        return Pair(**rest, difference=0.0, milliseconds=milliseconds, quality=quality, file_bytes=1)

    pairs = [pair(3.0, 0.9), pair(1.0, 0.5), pair(2.0, 0.5), pair(2.0, 0.7), pair(4.0, 0.9)]
    assert front(pairs) == [pairs[1], pairs[3], pairs[0]]


def test_the_command_prints_saves_and_draws(tmp_path, run_command):
    model, card = make("ast")
    dataset = corpus(tmp_path)
    saved = checkpoint.save(tmp_path / "model", model, card=card)
    rows = [f"{record.path},{dataset.labels[record.labels[0]]},test" for record in dataset.records]
    (tmp_path / "clips.csv").write_text("path,labels,split\n" + "\n".join(rows) + "\n")
    (tmp_path / "labels.txt").write_text("\n".join(dataset.labels) + "\n")
    data = ["manifest", "--path", tmp_path / "clips.csv", "--labels", tmp_path / "labels.txt"]
    options = ["--keep-rates", 0.5, "--blocks", 0, "--precisions", "float32", "bfloat16", "--batch", 5]
    options += ["--out", tmp_path / "pairs.json", "--picture", tmp_path / "front.png"]
    code, said, told = run_command("precision", saved, *data, *options)
    assert code == 0, told
    assert "same patches" in said
    pairs = json.loads((tmp_path / "pairs.json").read_text())["pairs"]
    assert [pair["precision"] for pair in pairs] == ["float32", "bfloat16"]
    assert (tmp_path / "front.png").stat().st_size > 1000
