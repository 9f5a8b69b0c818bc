"""Checkpoints as people have them: wrapped, prefixed, averaged, bare, of timm. Each comes in right."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import random_mel, small
from jaxprune.convert import load_torch, torch_reference
from jaxprune.convert.random_checkpoint import random_state, write_ast_official, write_huggingface
from jaxprune.convert.read import CheckpointError, read_torch
from kinds_cases import AST, convert, small_hugging_face
from quick import quick_compiling  # noqa: F401
from safetensors.torch import save_file
from transformers import ASTFeatureExtractor, ASTForAudioClassification, ASTModel

import jaxprune

MAE = small("audiomae", depth=2, classes=7)


@pytest.fixture(scope="module")
def state():
    return random_state(AST, seed=0)


def same(read, expected):
    assert read.state.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(read.state[key], tensor.numpy(), err_msg=key)


# --- prefixes and wrappers


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "model.module.net.", "my_classifier."],
)
@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_a_prefix_in_front_of_all_keys_is_taken_off_with_a_note(tmp_path, prefix, family):
    expected = random_state({"ast": AST, "audiomae": MAE}[family], seed=0)
    torch.save({prefix + key: value for key, value in expected.items()}, tmp_path / "a.pth")
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    same(read, expected)
    assert f"The prefix {prefix} was taken off all keys." in read.notes
    assert read.names["blocks.0.norm1.bias" if family == "audiomae" else "v.blocks.0.norm1.bias"][0].startswith(prefix)


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_a_prefix_before_hugging_faces_own_is_taken_off(tmp_path, prefix):
    write_huggingface(tmp_path, _equal_eps(), seed=0, container="bin")
    weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    torch.save({prefix + key: value for key, value in weights.items()}, tmp_path / "pytorch_model.bin")
    same(read_torch(tmp_path), random_state(_equal_eps(), seed=0))


def test_a_prefix_of_some_keys_alone_is_taken_off_on_request(tmp_path, state):
    """A loss with weights, and an averaged copy, in the state dict of a training program."""
    averaged = {f"ema_model.module.{key}": value + 1 for key, value in state.items()}
    trained = {f"model.{key}": value for key, value in state.items()}
    for beside, names in (({"loss.weight": torch.ones(3)}, "model"), (averaged, "model, ema_model")):
        torch.save(trained | beside, tmp_path / "a")
        sentence = f"holds other tensors beside its model, or two models; choose with --key: {names}$"
        with pytest.raises(CheckpointError, match=sentence):
            read_torch(tmp_path / "a", num_heads=3)
        read = read_torch(tmp_path / "a", num_heads=3, key="model")
        same(read, state)
        assert read.ignored.keys() == beside.keys()
        assert read.names["v.cls_token"] == ("model.v.cls_token",)
    same(read_torch(tmp_path / "a", num_heads=3, key="ema_model"), {key: value + 1 for key, value in state.items()})
    with pytest.raises(CheckpointError, match="under the key v; its models are: model, ema_model"):
        read_torch(tmp_path / "a", num_heads=3, key="v")


@pytest.mark.parametrize("word", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_the_names_of_wrapped_parts_are_taken_out_of_the_keys(tmp_path, state, word):
    wrapped = {key.replace("v.", f"v.{word}.").replace("s.1.", f"s.1.{word}."): key for key in state}
    torch.save({f"model.{name}": state[key] for name, key in wrapped.items()}, tmp_path / "a.pth")
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    same(read, state)
    assert f"The names of wrapped parts were taken out of the keys: {word}." in read.notes
    assert read.names["v.blocks.1.norm1.bias"] == (f"model.v.{word}.blocks.1.{word}.norm1.bias",)
    torch.save(state | {f"v.{word}.cls_token": state["v.cls_token"]}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"v.{word}.cls_token: unexpected"):
        read_torch(tmp_path / "a.pth", num_heads=3)


@pytest.mark.parametrize(
    "place", ["model_state_dict", "net", "module", "model_ema", "checkpoint.model", "a.b.c", "odd.name"]
)
def test_a_wrapper_is_taken_off_with_a_note(tmp_path, state, place):
    content = state
    for part in reversed(place.split(".") if place != "odd.name" else [place]):
        content = {part: content, "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    same(read, state)
    assert f"The weights were taken from {place}." in read.notes
    assert "epoch" in read.ignored


def test_of_several_the_trained_weights_come_before_the_averaged_ones_and_key_chooses(tmp_path, state):
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({"avg_model": averaged, "net": state}, tmp_path / "a.pth")
    same(read_torch(tmp_path / "a.pth", num_heads=3), state)
    content = {"model_ema": averaged, "model": state, "optimizer": {"state": {0: torch.ones(3)}}, "args": None}
    torch.save(content, tmp_path / "a.pth")
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    same(read, state)
    assert "The weights were taken from model; the file also has model_ema: choose with --key." in read.notes
    same(read_torch(tmp_path / "a.pth", num_heads=3, key="model_ema"), averaged)
    with pytest.raises(CheckpointError, match="no AST or AudioMAE under the key ema; its models are: model_ema, model"):
        read_torch(tmp_path / "a.pth", num_heads=3, key="ema")


def test_the_command_takes_the_averaged_weights_on_request(tmp_path, monkeypatch, state):
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "a.pth")
    options = ("--num-heads", 3, "--key", "state_dict_ema")
    assert convert(tmp_path / "a.pth", tmp_path / "out", *options, monkeypatch=monkeypatch) == 0
    model = jaxprune.load(tmp_path / "out")
    np.testing.assert_array_equal(model.head.bias[...], averaged["mlp_head.1.bias"])


def test_the_averaged_model_of_torch_itself(tmp_path):
    model = torch_reference.build(AST)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "a.pth")
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    same(read, model.state_dict())
    assert "n_averaged" in read.ignored


def test_a_compiled_model_of_torch_itself(tmp_path):
    model = torch_reference.build(AST)
    torch.save(torch.nn.DataParallel(torch.compile(model)).state_dict(), tmp_path / "a.pth")
    same(read_torch(tmp_path / "a.pth", num_heads=3), model.state_dict())


# --- bodies without a classifier


def test_a_bare_body_of_transformers_gets_a_new_head_and_keeps_its_tokens(tmp_path):
    theirs = ASTModel(small_hugging_face()).eval()
    theirs.save_pretrained(tmp_path)
    read = read_torch(tmp_path, classes=5)
    assert "AST body, Hugging Face" in read.layout
    assert read.card.model.classes == 5
    assert not read.card.trained
    assert read.missing.keys() == {f"mlp_head.{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")}
    model = load_torch(tmp_path, classes=5)
    mel = random_mel(read.card.model)
    with torch.inference_mode():
        expected = theirs(torch.tensor(mel)).last_hidden_state
    tokens = model.norm(jaxprune.compiled(model)(jnp.asarray(mel), jaxprune.topk(model, {})).trace[-1].tokens)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_a_bare_official_body_gets_a_new_head(tmp_path, monkeypatch, capsys, state):
    body = {key: value for key, value in state.items() if key.startswith("v.")}
    torch.save({f"module.{key}": value for key, value in body.items()}, tmp_path / "a.pth")
    options = ("--num-heads", 3, "--classes", 4)
    assert convert(tmp_path / "a.pth", tmp_path / "out", *options, monkeypatch=monkeypatch) == 0
    assert "newly initialised for 4 classes" in capsys.readouterr().out
    assert not jaxprune.load_card(tmp_path / "out").trained
    assert jaxprune.load(tmp_path / "out").config.classes == 4


def test_half_a_classifier_is_an_error(tmp_path, state):
    torch.save({key: value for key, value in state.items() if key != "mlp_head.1.bias"}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"mlp_head\.1\.bias: missing"):
        read_torch(tmp_path / "a.pth", num_heads=3)


# --- timm's AudioMAE


def write_timm(folder, tensors, **config):
    folder.mkdir()
    pretrained = {"tag": "audiomae_as2m", "input_size": [1, 128, 128], "mean": [0.5], "std": [0.5]}
    content = {"architecture": "vit_base_patch16_1024_128", "num_classes": 7, "global_pool": "avg"}
    content |= {"pretrained_cfg": pretrained, "model_args": {"in_chans": 1, "img_size": [128, 128]}} | config
    (folder / "config.json").write_text(json.dumps(content))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_fine_tuned_audiomae_of_timm(tmp_path):
    tensors = random_state(MAE, seed=0)
    read = read_torch(write_timm(tmp_path / "timm", tensors), num_heads=3)
    assert read.card.model == MAE
    same(read, tensors)
    assert read.card.mean == pytest.approx(-4.2677393)  # timm's own mean is of images
    assert not any("read as" in note for note in read.notes)  # the folder tells frames and mel bins
    shutil.move(tmp_path / "timm" / "model.safetensors", tmp_path / "weights.safetensors")
    torch.save(tensors, tmp_path / "timm" / "pytorch_model.bin")
    same(read_torch(tmp_path / "timm", num_heads=3), tensors)


@pytest.mark.parametrize("norm", ["norm", "fc_norm"])
def test_a_pretrained_audiomae_of_timm_keeps_its_fc_norm_and_gets_a_new_head(tmp_path, norm):
    tensors = {key: value for key, value in random_state(MAE, seed=0).items() if not key.startswith(("head", "fc_"))}
    tensors |= {f"{norm}.weight": torch.full((48,), 2.0), f"{norm}.bias": torch.full((48,), 3.0)}
    folder = write_timm(tmp_path / "timm", tensors, num_classes=0)
    read = read_torch(folder, num_heads=3, classes=4)
    kept = norm == "fc_norm"
    assert read.missing.keys() == {f"{m}.{leaf}" for m in ("head",) + ("fc_norm",) * (not kept) for leaf in LEAVES}
    assert ("norm.weight" in read.ignored) is not kept
    model = load_torch(folder, num_heads=3, classes=4)
    assert float(model.head_norm.scale[0]) == (2.0 if kept else 1.0)


LEAVES = ("weight", "bias")


def test_timms_class_names_and_sizes_are_read(tmp_path):
    names = [f"sound {i}" for i in range(7)]
    config = {"pretrained_cfg": {"input_size": [1, 128, 128], "label_names": names}}
    assert read_torch(write_timm(tmp_path / "a", random_state(MAE, seed=0), **config), num_heads=3).card.labels == (
        *names,
    )
    config = {"pretrained_cfg": {"input_size": [3, 224, 224]}}
    with pytest.raises(CheckpointError, match=r"input_size to \[3, 224, 224\]; expected 1 channel"):
        read_torch(write_timm(tmp_path / "b", random_state(MAE, seed=0), **config), num_heads=3)


def test_a_head_on_the_cls_token_is_not_audiomaes(tmp_path):
    tensors = {key.replace("fc_norm", "norm"): value for key, value in random_state(MAE, seed=0).items()}
    with pytest.raises(CheckpointError, match="sets global_pool to 'token'"):
        read_torch(write_timm(tmp_path / "a", tensors, global_pool="token"), num_heads=3)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"fc_norm\.weight: missing \(the norm after pooling; a head that reads"):
        read_torch(tmp_path / "a.pth", num_heads=3)


# --- the feature extractor's file, statistics, classes


@pytest.mark.parametrize("beside", [True, False])
def test_a_processors_settings_come_before_the_preprocessors_as_in_transformers(tmp_path, beside):
    write_huggingface(tmp_path, _equal_eps(), seed=0, mean=-1.5, std=2.5)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {"mean": -7.0, "std": 3.0}
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
    if not beside:
        (tmp_path / "preprocessor_config.json").unlink()
    card, theirs = read_torch(tmp_path).card, ASTFeatureExtractor.from_pretrained(tmp_path)
    assert (card.mean, card.std) == (theirs.mean, theirs.std) == (-7.0, 3.0)


def test_a_processor_without_a_feature_extractor_leaves_the_preprocessors(tmp_path):
    write_huggingface(tmp_path, _equal_eps(), seed=0, mean=-1.5, std=2.5)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "X"}')
    assert read_torch(tmp_path).card.mean == ASTFeatureExtractor.from_pretrained(tmp_path).mean == -1.5


def test_own_mean_and_std_come_before_all_others(tmp_path, monkeypatch, state):
    torch.save(state, tmp_path / "a.pth")
    options = ("--num-heads", 3, "--dataset", "esc50", "--mean", -3.25, "--std", 1.5)
    assert convert(tmp_path / "a.pth", tmp_path / "out", *options, monkeypatch=monkeypatch) == 0
    card = jaxprune.load_card(tmp_path / "out")
    assert (card.mean, card.std, card.activation) == (-3.25, 1.5, "softmax")
    for wrong in ({"mean": 1.0}, {"mean": 1.0, "std": 0.0}, {"mean": float("nan"), "std": 1.0}):
        with pytest.raises(ValueError, match="mean"):
            read_torch(tmp_path / "a.pth", num_heads=3, **wrong)


@pytest.mark.parametrize("settings", [{}, {"dataset": "esc50"}])
def test_one_class_is_a_sigmoid(tmp_path, settings):
    config = dataclasses.replace(AST, classes=1)
    write_ast_official(tmp_path / "a.pth", config, seed=0)
    read = read_torch(tmp_path / "a.pth", num_heads=3, **settings)
    assert read.card.activation == "sigmoid"
    assert "The head has one class, so its activation is sigmoid." in read.notes


def test_one_class_of_hugging_face_is_a_sigmoid(tmp_path):
    ASTForAudioClassification(small_hugging_face(num_labels=1)).save_pretrained(tmp_path)
    assert read_torch(tmp_path).card.activation == "sigmoid"


def _equal_eps():
    return small("ast", depth=2, classes=7, norm_eps=1e-12, head_norm_eps=1e-12)
