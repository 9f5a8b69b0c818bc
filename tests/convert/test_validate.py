"""The validator says yes to the same model, no to a changed one, and calls a tie a tie."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import torch
from helpers import TESTS, small
from jaxprune.convert import rungs, torch_features, validate
from jaxprune.convert.random_checkpoint import (
    random_state,
    write_ast_official,
    write_audiomae_finetuned,
    write_huggingface,
)
from jaxprune.convert.read import read_torch
from quick import quick_compiling  # noqa: F401

from jaxprune.cli.console import run

RECORDINGS = TESTS / "recordings"
AST, MAE = small("ast", depth=4), small("audiomae", depth=4)
OPTIONS = ("--num-heads", 3, "--keep-rates", 0.6, "--blocks", 1, 3)


def command(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["validate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run(validate.main)
    return stop.value.code


def reference(scores, kept):
    """A reference of one block that keeps the best of its scores."""
    scores = torch.tensor(scores)
    ids = scores.topk(kept, dim=1).indices
    return validate.torch_reference.Reference(
        logits=torch.zeros(len(scores), 2), embedded=torch.zeros(1), blocks=[], scores=[scores], patch_ids=[ids]
    )


def ours(scores, kept):
    """Our output for the same, as far as the free comparison reads it."""
    from jaxprune.models import Output
    from jaxprune.vit import BlockTrace

    scores = jax.numpy.asarray(scores, "float32")
    every = jax.numpy.broadcast_to(jax.numpy.arange(scores.shape[1]), scores.shape)
    ids = jax.lax.top_k(scores, kept)[1]
    trace = BlockTrace(scores, every, ids, ids >= 0, jax.numpy.zeros((len(scores), 1, 1)))
    zeros = jax.numpy.zeros((len(scores), 2))
    return Output(zeros, zeros, zeros[None], (trace,))


@pytest.mark.parametrize(("write", "config"), [(write_ast_official, AST), (write_audiomae_finetuned, MAE)])
def test_a_converted_model_agrees_on_recordings(tmp_path, monkeypatch, capsys, write, config):
    write(tmp_path / "model.pth", config, seed=1)
    clips = (RECORDINGS / "crow.wav", RECORDINGS / "tabla.ogg")
    arguments = (tmp_path / "model.pth", *clips, *OPTIONS, "--out", tmp_path / "proof.json")
    assert command(*arguments, monkeypatch=monkeypatch) == 0
    assert "agrees" in capsys.readouterr().out
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["passed"]
    stages = [rung["stage"] for rung in proof["rungs"]]
    assert stages[:4] == ["log-mel", "log-mel where above -10", "input, from the sound", "logits, from the sound"]
    assert stages[4:7] == ["patch embedding", "block 0", "encoder, unpruned"]
    free = [rung for rung in proof["rungs"] if rung["overlap"] is not None]
    assert len(free) == 2
    assert all(rung["overlap"] == 1 for rung in free)


def test_the_facts_that_convert_takes_are_taken_here_too(tmp_path, monkeypatch, capsys):
    """The same file is another model with other facts: 32 patches are 64 frames x 128 mel bins unless told."""
    models = {name: random_state(small("ast", depth=4, mels=64), seed=seed) for seed, name in enumerate(("raw", "ema"))}
    torch.save(models, tmp_path / "model.pth")
    facts = ("--key", "ema", "--mels", 64, "--mean", -5, "--std", 4, "--padding", "minimum")
    arguments = (tmp_path / "model.pth", *OPTIONS, *facts, "--out", tmp_path / "proof.json")
    assert command(*arguments, monkeypatch=monkeypatch) == 0
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert (proof["model"]["frames"], proof["model"]["mels"]) == (128, 64)
    tolerances = {rung["stage"]: rung["tolerance"] for rung in proof["rungs"]}
    assert tolerances["input, from the sound"] == 2e-3 / (2 * 4)
    assert "the file also has raw" in capsys.readouterr().err


def test_a_hugging_face_checkpoint_is_compared_with_transformers_too(tmp_path, monkeypatch, capsys):
    write_huggingface(tmp_path / "hf", dataclasses.replace(AST, norm_eps=1e-12, head_norm_eps=1e-12), seed=1)
    assert command(tmp_path / "hf", *OPTIONS, monkeypatch=monkeypatch) == 0
    assert "transformers" in capsys.readouterr().out


def test_a_model_that_differs_fails_with_exit_code_1(tmp_path, monkeypatch, capsys):
    write_ast_official(tmp_path / "model.pth", AST, seed=1)
    convert_right = validate.to_flax

    def convert_wrong(state, config):
        state = dict(state)
        state["v.blocks.2.mlp.fc1.bias"] = state["v.blocks.2.mlp.fc1.bias"] + 0.01
        return convert_right(state, config)

    monkeypatch.setattr(validate, "to_flax", convert_wrong)
    assert command(tmp_path / "model.pth", *OPTIONS, monkeypatch=monkeypatch) == 1
    out = capsys.readouterr().out
    assert "DOES NOT AGREE" in out
    passed = {line.split("│")[1].strip(): "FAILED" not in line for line in out.splitlines() if line.count("│") > 5}
    assert passed["block 0"]
    assert passed["block 1, forced"]
    assert not passed["block 3, forced"]
    assert not passed["logits, unpruned"]


def test_another_choice_within_the_gap_is_a_tie_and_beyond_it_an_error():
    tie = [[0.5, 0.3, 0.3 + 5e-7, 0.1]], [[0.5, 0.3 + 5e-7, 0.3, 0.1]]
    error = [[0.5, 0.3, 0.3 + 5e-6, 0.1]], [[0.5, 0.3 + 5e-6, 0.3, 0.1]]
    for (theirs, mine), passes in ((tie, True), (error, False)):
        pair = reference(np.array(theirs), 2), ours(mine, 2)
        first, logits = rungs.free_rungs(*pair, blocks=[0], keep_rate=0.5, tolerance=1e-4)
        assert first.passed == passes
        assert first.overlap == 0.5
        assert ("tied" in first.remark) == passes
        assert "every clip" in logits.remark


def test_a_gap_is_between_the_last_kept_and_the_first_dropped():
    gaps = rungs.score_gaps(np.array([[4.0, 1.0, 3.0, 2.5]]), 2)
    assert gaps.tolist() == [0.5]
    assert rungs.score_gaps(np.zeros((1, 4)), 4).tolist() == [np.inf]


def test_the_synthetic_sounds_reach_every_mel_bin_but_the_empty_one():
    mel = torch_features.log_mel(torch.tensor(validate.synthetic(128).waveforms[0]))
    above = (mel > -15.9).any(dim=0)
    assert above.sum() == 127
    assert not above[3]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--keep-rates", 1.2), "greater than 0 and at most 1"),
        (("--keep-rates", 0.5, "--blocks", 12), "blocks are 0 to 3"),
    ],
)
def test_bad_options_are_refused(tmp_path, monkeypatch, capsys, options, sentence):
    write_ast_official(tmp_path / "model.pth", AST, seed=1)
    assert command(tmp_path / "model.pth", "--num-heads", 3, *options, monkeypatch=monkeypatch) == 2
    assert sentence in capsys.readouterr().err


def test_a_shallow_model_is_compared_at_those_of_the_default_blocks_that_it_has(tmp_path, monkeypatch):
    write_ast_official(tmp_path / "model.pth", AST, seed=1)
    arguments = (tmp_path / "model.pth", "--num-heads", 3, "--keep-rates", 0.5, "--out", tmp_path / "proof.json")
    assert command(*arguments, monkeypatch=monkeypatch) == 0
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["blocks"] == [3]
    assert "block 3, forced" in {rung["stage"] for rung in proof["rungs"]}


def test_a_pretrained_encoder_without_its_decoder_has_nothing_to_compare(tmp_path, monkeypatch, capsys):
    from jaxprune.convert.random_checkpoint import write_audiomae_pretrained

    write_audiomae_pretrained(tmp_path / "mae.pth", MAE, seed=1)
    tensors = torch.load(tmp_path / "mae.pth", weights_only=False)["model"]
    torch.save({"model": {key: tensors[key] for key in tensors if "decoder" not in key}}, tmp_path / "mae.pth")
    assert read_torch(tmp_path / "mae.pth", num_heads=3).missing
    assert command(tmp_path / "mae.pth", "--num-heads", 3, monkeypatch=monkeypatch) == 2
    assert "no classifier" in capsys.readouterr().err


def test_another_padding_than_the_reference_fails_from_the_sound_alone(tmp_path, monkeypatch, capsys):
    write_huggingface(tmp_path / "hf", dataclasses.replace(AST, norm_eps=1e-12, head_norm_eps=1e-12), seed=1)
    assert command(tmp_path / "hf", *OPTIONS, "--padding", "minimum", monkeypatch=monkeypatch) == 1
    out = capsys.readouterr().out
    passed = {line.split("│")[1].strip(): "FAILED" not in line for line in out.splitlines() if line.count("│") > 5}
    assert not passed["input, from the sound"]
    assert not passed["logits, from the sound"]
    assert passed["logits, unpruned"]
