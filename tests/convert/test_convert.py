"""The converter end to end: every family in, every layout out, nothing lost or half written."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import random_mel, small
from jaxprune.convert import load_torch
from jaxprune.convert.command import convert as command
from jaxprune.convert.mapping import official_shapes, pairs, to_flax, to_torch
from jaxprune.convert.random_checkpoint import (
    write_ast_official,
    write_audiomae_finetuned,
    write_audiomae_pretrained,
    write_huggingface,
)
from jaxprune.convert.read import read_torch

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.cli.console import run
from jaxprune.positions import adapt_positions, published_positions, released_audiomae_cut

AST, MAE = small("ast", depth=3), small("audiomae", depth=3)
HF = dataclasses.replace(AST, norm_eps=1e-12, head_norm_eps=1e-12)


def convert(*arguments, monkeypatch):
    """The command line, in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run(command)
    return stop.value.code


def logits(model, seed=0):
    forward = jaxprune.jit_forward(model, lambda output: output.logits)
    return np.asarray(forward(jnp.asarray(random_mel(model.config, seed=seed)), jaxprune.topk(model, {})))


@pytest.fixture
def official(tmp_path):
    write_ast_official(tmp_path / "ast.pth", AST, seed=1)
    return tmp_path / "ast.pth"


@pytest.mark.parametrize("config", [AST, MAE])
def test_the_table_uses_every_tensor_and_fills_every_leaf_once(config):
    table = pairs(config)
    filled = [pair.leaf for pair in table]
    assert sorted(filled) == sorted(leaves(jaxprune.build(config)))
    official = [key for pair in table for key in pair.official]
    from jaxprune.convert.torch_reference import build

    assert sorted(official) == sorted(build(config).state_dict())


@pytest.mark.parametrize(
    "config", [AST, MAE, small("ast", depth=2, frames=250, time_stride=10, freq_stride=10, mels=64)]
)
def test_the_shapes_that_follow_from_the_table_are_those_of_the_torch_model(config):
    from jaxprune.convert.torch_reference import build

    expected = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    assert official_shapes(config) == expected


@pytest.mark.parametrize("config", [AST, MAE])
def test_to_torch_undoes_to_flax_bit_for_bit(config):
    model = jaxprune.build(config, seed=3)
    again = to_flax(to_torch(model), config)
    for name, leaf in leaves(model).items():
        assert np.array_equal(leaf[...], leaves(again)[name][...]), name


def test_a_tensor_without_a_place_is_an_error():
    state = to_torch(jaxprune.build(AST))
    with pytest.raises(ValueError, match=r"no place for v\.gamma"):
        to_flax(state | {"v.gamma": np.zeros(3)}, AST)


@pytest.mark.parametrize(
    ("write", "config"),
    [
        (write_ast_official, AST),
        (write_audiomae_finetuned, MAE),
        (lambda path, config, seed: write_huggingface(path, config, seed=seed, layout="v5"), HF),
        (lambda path, config, seed: write_huggingface(path, config, seed=seed, container="bin"), HF),
    ],
    ids=["AST official", "AudioMAE fine-tuned", "Hugging Face v5", "Hugging Face legacy bin"],
)
def test_a_converted_checkpoint_loads_as_the_model_load_torch_gives(tmp_path, monkeypatch, capsys, write, config):
    write(tmp_path / "source", config, seed=1)
    assert convert(tmp_path / "source", tmp_path / "out", "--num-heads", 3, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "Mapped from" in out
    assert "all equal" in out
    model = jaxprune.load(tmp_path / "out")
    assert model.config == config
    assert (logits(model) == logits(load_torch(tmp_path / "source", num_heads=3))).all()


def test_ignored_tensors_are_listed_with_the_reason(official, tmp_path, monkeypatch, capsys):
    convert(official, tmp_path / "out", "--num-heads", 3, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "module.v.head_dist.weight" in out
    assert "ImageNet" in out


def test_a_pretrained_audiomae_gets_a_fresh_head_and_says_so(tmp_path, monkeypatch, capsys):
    write_audiomae_pretrained(tmp_path / "mae.pth", MAE, seed=1)
    arguments = (tmp_path / "mae.pth", tmp_path / "out", "--num-heads", 3, "--classes", 7)
    assert convert(*arguments, monkeypatch=monkeypatch) == 0
    assert "newly initialised for 7 classes" in capsys.readouterr().out
    card = jaxprune.load_card(tmp_path / "out")
    assert "random weights in its new head" in card.source
    assert not card.trained
    model = jaxprune.load(tmp_path / "out")
    state = read_torch(tmp_path / "mae.pth", num_heads=3, classes=7).state
    assert model.config.classes == 7
    assert (model.head_norm.scale[...] == 1).all()
    assert 0 < float(jnp.abs(model.head.kernel[...]).max()) <= 5e-5  # truncated normal of std 2e-5
    assert np.array_equal(model.positions[...], state["pos_embed"][0])


def test_names_in_the_report_are_fit_to_print(tmp_path, monkeypatch, capsys):
    write_audiomae_finetuned(tmp_path / "a.pth", MAE, seed=1)
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    content["model"]["decoder_\x1b[31m\ud800"] = torch.ones(3)
    torch.save(content, tmp_path / "a.pth")
    assert convert(tmp_path / "a.pth", tmp_path / "out", "--num-heads", 3, monkeypatch=monkeypatch) == 0
    assert r"decoder_\x1b[31m\ud800" in capsys.readouterr().out


def test_labels_travel_with_the_model(official, tmp_path, monkeypatch):
    names = [f'sound, "{i}"' for i in range(10)]
    rows = "\n".join('{},/m/{},"{}"'.format(i, i, name.replace('"', '""')) for i, name in enumerate(names))
    (tmp_path / "labels.csv").write_text(f"index,mid,display_name\n{rows}\n")
    labels = ("--labels", tmp_path / "labels.csv")
    assert convert(official, tmp_path / "out", "--num-heads", 3, *labels, monkeypatch=monkeypatch) == 0
    assert jaxprune.load_card(tmp_path / "out").labels == tuple(names)


def test_labels_that_do_not_fit_the_head_are_refused(official, tmp_path, monkeypatch, capsys):
    (tmp_path / "labels.txt").write_text("yes\nno\n")
    labels = ("--labels", tmp_path / "labels.txt")
    assert convert(official, tmp_path / "out", "--num-heads", 3, *labels, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert "10 classes" in error
    assert "labels name 2" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 and then nothing"])
def test_a_file_that_is_no_checkpoint_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, content):
    (tmp_path / "bad.pth").write_bytes(content)
    assert convert(tmp_path / "bad.pth", tmp_path / "out", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "bad.pth" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_refused(official, tmp_path, monkeypatch, capsys):
    official.write_bytes(official.read_bytes()[:-5000])
    assert convert(official, tmp_path / "out", monkeypatch=monkeypatch) == 2
    assert "ast.pth" in capsys.readouterr().err


def test_an_existing_output_is_kept_unless_told_otherwise(official, tmp_path, monkeypatch, capsys):
    arguments = (official, tmp_path / "out", "--num-heads", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert convert(*arguments, monkeypatch=monkeypatch) == 2
    assert "already exists" in capsys.readouterr().err
    assert convert(*arguments, "--overwrite", monkeypatch=monkeypatch) == 2
    assert "holds no card.json" in capsys.readouterr().err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "card.json").write_text("an older model")
    assert convert(*arguments, "--overwrite", monkeypatch=monkeypatch) == 0
    assert jaxprune.load(tmp_path / "out").config == AST
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ast.pth", "out"]


def test_a_model_goes_back_to_the_official_layout_and_returns(official, tmp_path, monkeypatch):
    convert(official, tmp_path / "out", "--num-heads", 3, monkeypatch=monkeypatch)
    assert convert("--to-torch", "official", tmp_path / "out", tmp_path / "back.pth", monkeypatch=monkeypatch) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    for key, tensor in torch.load(official, weights_only=True).items():
        if "v.head" not in key:
            assert torch.equal(back[key], tensor), key


def test_transformers_loads_the_exported_directory_and_agrees(tmp_path, monkeypatch):
    from transformers import ASTForAudioClassification

    write_huggingface(tmp_path / "hf", HF, seed=4, labels=[f"label {i}" for i in range(10)])
    convert(tmp_path / "hf", tmp_path / "out", monkeypatch=monkeypatch)
    assert convert("--to-torch", "huggingface", tmp_path / "out", tmp_path / "again", monkeypatch=monkeypatch) == 0
    theirs, report = ASTForAudioClassification.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.id2label[3] == "label 3"
    ours = jaxprune.load(tmp_path / "out")
    mel = random_mel(HF)
    with torch.inference_mode():
        expected = theirs.eval()(torch.tensor(mel)).logits.numpy()
    np.testing.assert_allclose(logits(ours), expected, atol=2e-6)


def test_an_official_ast_exported_to_hugging_face_stays_within_its_eps(official, tmp_path, monkeypatch, capsys):
    from transformers import ASTForAudioClassification

    convert(official, tmp_path / "out", "--num-heads", 3, monkeypatch=monkeypatch)
    convert("--to-torch", "huggingface", tmp_path / "out", tmp_path / "hf", monkeypatch=monkeypatch)
    assert "one LayerNorm eps" in capsys.readouterr().err
    theirs = ASTForAudioClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor(random_mel(AST))).logits.numpy()
    np.testing.assert_allclose(logits(jaxprune.load(tmp_path / "out")), expected, atol=1e-4)


def test_there_is_no_hugging_face_layout_for_audiomae(tmp_path, monkeypatch, capsys):
    card = jaxprune.Card(model=MAE, mean=-4.0, std=4.0, activation="softmax")
    jaxprune.save(tmp_path / "mae", jaxprune.build(MAE), card=card)
    assert convert("--to-torch", "huggingface", tmp_path / "mae", tmp_path / "hf", monkeypatch=monkeypatch) == 2
    assert "no audiomae classifier" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_frames_on_request_adapts_the_table(tmp_path, monkeypatch):
    config = small("audiomae", depth=2, frames=512)
    write_audiomae_finetuned(tmp_path / "mae.pth", config, seed=1)
    table = read_torch(tmp_path / "mae.pth", num_heads=3).state["pos_embed"][0]
    for positions, adapt in (("right", adapt_positions), ("released", released_audiomae_cut)):
        options = ("--num-heads", 3, "--frames", 128, "--positions", positions)
        assert convert(tmp_path / "mae.pth", tmp_path / positions, *options, monkeypatch=monkeypatch) == 0
        model = jaxprune.load(tmp_path / positions)
        assert model.config.frames == 128
        assert np.array_equal(model.positions[...], adapt(table, config, frames=128))
    longer = ("--num-heads", 3, "--frames", 2048)  # as published, with its sides swapped, and so continued
    assert convert(tmp_path / "mae.pth", tmp_path / "longer", *longer, monkeypatch=monkeypatch) == 0
    found = jaxprune.load(tmp_path / "longer").positions[...]
    np.testing.assert_array_equal(found[: len(table)], table)
    expected = published_positions(dataclasses.replace(config, frames=2048))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_library_loads_a_checkpoint_without_torch(official, tmp_path, monkeypatch):
    import subprocess

    convert(official, tmp_path / "out", "--num-heads", 3, monkeypatch=monkeypatch)
    program = "import sys, jaxprune; jaxprune.load(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_card_is_readable_json(official, tmp_path, monkeypatch):
    convert(
        official,
        tmp_path / "out",
        "--num-heads",
        3,
        "--dataset",
        "esc50",
        "--origin",
        "random weights",
        monkeypatch=monkeypatch,
    )
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["model"]["family"] == "ast"
    assert card["source"] == "ast.pth (AST, official); random weights"
    assert (card["mean"], card["std"], card["activation"]) == (-6.6268077, 5.358466, "softmax")
