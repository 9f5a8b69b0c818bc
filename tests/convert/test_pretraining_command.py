"""A pretrained AudioMAE through `jaxprune convert`: its decoder is kept, both ways."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import small
from jaxprune.convert import load_pretraining, validate_pretraining
from jaxprune.convert.random_checkpoint import write_audiomae_pretrained
from quick import quick_compiling  # noqa: F401

from jaxprune.checkpoint import leaves, load_card
from jaxprune.cli.main import command
from jaxprune.pretraining import WindowDecoder
from jaxprune.pretraining import checkpoint as pretraining_checkpoint

MAE = small("audiomae", depth=2)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "mae.pth"
    write_audiomae_pretrained(path, MAE, seed=1)
    return path


def convert(*arguments) -> int:
    with pytest.raises(SystemExit) as left:
        command("convert", [str(argument) for argument in arguments])
    return left.value.code


def test_every_tensor_comes_back_as_it_was(official, tmp_path, capsys):
    assert convert(official, tmp_path / "mae", "--num-heads", 3) == 0
    said = capsys.readouterr()
    assert "window decoder, width 32, depth 2, 4 heads" in said.out
    assert "the decoder is kept" in said.err
    assert "the feature statistics are AudioSet's" in said.err
    card = load_card(tmp_path / "mae")
    assert (card.padding, card.trained, card.model.frames) == ("zero", True, MAE.frames)
    assert convert("--to-torch", "official", tmp_path / "mae", tmp_path / "back.pth") == 0
    there, back = (torch.load(path, weights_only=False)["model"] for path in (official, tmp_path / "back.pth"))
    assert there.keys() == back.keys()
    for key, value in there.items():
        assert torch.equal(value, back[key]), key


def test_the_loaded_model_is_the_converted_one(official, tmp_path):
    assert convert(official, tmp_path / "mae", "--num-heads", 3, "--frames", 256) == 0
    model, longer = load_pretraining(official, num_heads=3), pretraining_checkpoint.load(tmp_path / "mae")
    assert model.settings.decoder == WindowDecoder(width=32, depth=2, heads=4)
    assert (longer.config.frames, model.config.frames) == (256, MAE.frames)
    ours, theirs = leaves(model), leaves(longer)
    for name in ours:
        if "positions" not in name:
            np.testing.assert_array_equal(ours[name][...], theirs[name][...], err_msg=name)


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ((), "its width 48 is no multiple of 64, so its heads are unknown; give them (--num-heads)"),
        (("--num-heads", 5), "width 48 cannot be split over 5 heads"),
        (("--num-heads", 3, "--decoder-heads", 5), "the decoder's width 32 cannot be split over 5 heads"),
    ],
)
def test_heads_that_do_not_divide_a_width_are_one_sentence(official, tmp_path, capsys, heads, said):
    assert convert(official, tmp_path / "mae", *heads) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mae").exists()


def test_tensors_of_another_shape_are_named(official, tmp_path):
    content = torch.load(official, weights_only=False)
    for key, value, said in (
        ("decoder_embed.weight", torch.ones(3), "holds decoder_embed.weight with shape"),
        ("decoder_pred.weight", torch.ones(256, 8), "wrong shape: predict.kernel"),
        ("mask_token", torch.ones(32), "holds a tensor of another shape"),
        ("norm.bias", torch.ones(48, dtype=torch.int64), "norm.bias: holds int64"),
    ):
        torch.save({"model": content["model"] | {key: value}}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=said):
            load_pretraining(tmp_path / "x.pth", num_heads=3)


def test_the_package_imports_torch_only_when_a_loader_is_asked_for():
    program = "import sys, jaxprune.convert as c; print('torch' in sys.modules); c.load_pretraining; c.load_torch; "
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def validate(*arguments) -> int:
    with pytest.raises(SystemExit) as left:
        command("validate", [str(argument) for argument in arguments])
    return left.value.code


def test_validate_climbs_through_the_decoder_and_finds_a_changed_tensor(official, tmp_path, capsys, monkeypatch):
    assert validate(official, "--num-heads", 3, "--out", tmp_path / "proof.json") == 0
    assert "agrees" in capsys.readouterr().out
    proof = json.loads((tmp_path / "proof.json").read_text())
    stages = {rung["stage"]: rung["passed"] for rung in proof["rungs"]}
    assert list(stages)[3:] == [
        "patches seen, in their order", "patch embedding", "encoder block 0", "encoder block 1", "latent",
        "decoder, embedded", "decoder block 0", "decoder block 1", "prediction", "loss, normalised pixels",
        "loss, pixels as they are", "tensors, there and back",
    ]  # fmt: skip
    right = validate_pretraining.read_pretraining

    def wrong(*arguments, **options):
        model = right(*arguments, **options)
        model.decoder.blocks[1].attention.temperature[...] = model.decoder.blocks[1].attention.temperature[...] * 1.5
        return model

    monkeypatch.setattr(validate_pretraining, "read_pretraining", wrong)
    asked = ("--num-heads", 3, "--keep-rates", 0.5, "--out", tmp_path / "proof.json")
    assert validate(official, *asked) == 1
    said = capsys.readouterr()
    assert "DOES NOT AGREE" in said.out
    assert "--method, --blocks and the amounts are left aside" in said.err
    stages = {rung["stage"]: rung["passed"] for rung in json.loads((tmp_path / "proof.json").read_text())["rungs"]}
    failed = [stage for stage, passed in stages.items() if not passed]
    assert failed[:2] == ["decoder block 1", "prediction"]
    assert failed[-1] == "tensors, there and back"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mask-ratio", 0.999), "mask ratio 0.999 leaves none of 64"),
        (("--mask-ratio", 1), "mask ratio 1.0 is not allowed"),
        (("--mean", -5), "a mean and a std of the features go together"),
        (("--dataset", "birds"), "no statistics are known for 'birds'"),
    ],
)
def test_validate_refuses_in_a_sentence(official, capsys, options, said):
    assert validate(official, "--num-heads", 3, *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
