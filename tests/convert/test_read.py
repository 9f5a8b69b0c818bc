"""Reading PyTorch checkpoints: every published format gives the same tensors, and nothing else gets through.

Files come from `convert.random_checkpoint`: width 48, 3 heads, the true depth of 12. What the tensors mean to a JAX
model is tested with the converter.
"""

import argparse
import dataclasses
import json
import pathlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from jaxprune.convert.grids import infer_grid
from jaxprune.convert.random_checkpoint import (
    random_state,
    write_ast_official,
    write_audiomae_finetuned,
    write_audiomae_pretrained,
    write_huggingface,
)
from jaxprune.convert.read import CheckpointError, read_torch
from read_cases import AST, AUDIOMAE, HUGGINGFACE, refused, save
from safetensors.torch import save_file

from jaxprune.config import ModelConfig
from jaxprune.features import STATISTICS

LABELS = tuple("abcdefg")


@pytest.fixture(scope="module")
def ast_state():
    return random_state(AST, seed=0)


@pytest.fixture(scope="module")
def audiomae_state():
    return random_state(AUDIOMAE, seed=0)


def same(state, expected):
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert state[key].dtype == np.float32
        np.testing.assert_array_equal(state[key], tensor.float().numpy(), err_msg=key)


# --- every published format


def test_official_ast(tmp_path, ast_state):
    write_ast_official(tmp_path / "ast.pth", AST, seed=0)
    read = read_torch(tmp_path / "ast.pth", num_heads=3)
    assert (read.card.model, read.layout, read.missing) == (AST, "AST, official", {})
    same(read.state, ast_state)
    assert read.names["v.cls_token"] == ("module.v.cls_token",)
    assert set(read.ignored) == {f"module.v.{m}.{leaf}" for m in ("head", "head_dist") for leaf in ("weight", "bias")}
    assert all("ImageNet" in reason for reason in read.ignored.values())


@pytest.mark.parametrize("container", ["safetensors", "bin"])
@pytest.mark.parametrize(("layout", "words"), [("legacy", "legacy keys"), ("v5", "transformers 5 keys")])
def test_hugging_face(tmp_path, layout, words, container):
    write_huggingface(
        tmp_path, HUGGINGFACE, seed=0, layout=layout, container=container, labels=LABELS, mean=-1.5, std=2.5
    )
    read = read_torch(tmp_path)
    assert read.card.model == HUGGINGFACE
    assert (read.card.labels, read.card.mean, read.card.std) == (LABELS, -1.5, 2.5)
    assert words in read.layout
    same(read.state, random_state(HUGGINGFACE, seed=0))
    query = read.names["v.blocks.3.attn.qkv.weight"]
    assert [next(word for word in ("q", "k", "v") if f".{word}" in name) for name in query] == ["q", "k", "v"]
    weights = "model.safetensors" if container == "safetensors" else "pytorch_model.bin"
    same(read_torch(tmp_path / weights).state, random_state(HUGGINGFACE, seed=0))


def test_a_model_saved_by_transformers_itself(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ASTConfig(
        hidden_size=48,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=192,
        max_length=128,
        num_labels=7,
        time_stride=16,
        problem_type="multi_label_classification",
    )
    model = transformers.ASTForAudioClassification(config)
    model.save_pretrained(tmp_path)
    read = read_torch(tmp_path)
    assert read.card.model == dataclasses.replace(HUGGINGFACE, time_stride=16)
    assert (read.card.labels, read.card.activation) == ((), "sigmoid")  # LABEL_0 ... are no names
    np.testing.assert_array_equal(read.state["mlp_head.1.weight"], model.classifier.dense.weight.detach())


def test_sharded_hugging_face(tmp_path):
    write_huggingface(tmp_path, HUGGINGFACE, seed=0, container="bin")
    whole = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    (tmp_path / "pytorch_model.bin").unlink()
    shards = {"one.safetensors": list(whole)[::2], "two.safetensors": list(whole)[1::2]}
    for name, keys in shards.items():
        save_file({key: whole[key] for key in keys}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, keys in shards.items() for key in keys}}))
    same(read_torch(tmp_path).state, random_state(HUGGINGFACE, seed=0))
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'\.\./one\.safetensors', which is not a file beside it"):
        read_torch(tmp_path)


def test_finetuned_audiomae(tmp_path, audiomae_state):
    write_audiomae_finetuned(tmp_path / "mae.pth", AUDIOMAE, seed=0)
    read = read_torch(tmp_path / "mae.pth", num_heads=3)
    assert (read.card.model, read.layout, read.missing) == (AUDIOMAE, "AudioMAE, fine-tuned", {})
    same(read.state, audiomae_state)
    assert {"optimizer", "epoch", "scaler", "args"} <= read.ignored.keys()


@pytest.mark.parametrize(
    ("settings", "classes"), [({}, 527), ({"classes": 7}, 7), ({"dataset": "esc50"}, 50), ({"labels": LABELS}, 7)]
)
def test_pretrained_audiomae(tmp_path, audiomae_state, settings, classes):
    write_audiomae_pretrained(tmp_path / "mae.pth", AUDIOMAE, seed=0)
    if "labels" in settings:
        (tmp_path / "labels.txt").write_text("\n".join(LABELS))
        settings = {"labels": tmp_path / "labels.txt"}
    read = read_torch(tmp_path / "mae.pth", num_heads=3, **settings)
    assert read.card.model == dataclasses.replace(AUDIOMAE, classes=classes)
    fresh = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    same(read.state, {key: value for key, value in audiomae_state.items() if key not in fresh})
    assert read.missing.keys() == fresh
    assert all(f"{classes} classes" in fate for fate in read.missing.values())
    assert {"mask_token", "decoder_pos_embed", "norm.weight", "optimizer"} <= read.ignored.keys()
    assert any("527" in note for note in read.notes) == (not settings)


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_wrapping_and_prefix_do_not_matter(tmp_path, ast_state, audiomae_state, wrap, prefix, family):
    state = {"ast": ast_state, "audiomae": audiomae_state}[family]
    path = save(tmp_path / "any.pt", wrap({prefix + key: value for key, value in state.items()}))
    same(read_torch(path, num_heads=3).state, state)


def test_safetensors_with_official_keys(tmp_path, ast_state):
    save_file(ast_state, tmp_path / "ast.safetensors")
    read = read_torch(tmp_path / "ast.safetensors", num_heads=3)
    assert read.card.model == AST
    same(read.state, ast_state)


def test_files_of_old_torch(tmp_path, ast_state):
    path = tmp_path / "old.pth"
    torch.save(ast_state, path, _use_new_zipfile_serialization=False)
    same(read_torch(path, num_heads=3).state, ast_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_are_noted(tmp_path, ast_state, dtype):
    stored = {key: value.to(dtype) for key, value in ast_state.items()}
    for path in (save(tmp_path / "a.pth", stored), tmp_path / "a.safetensors"):
        if path.suffix == ".safetensors":
            save_file(stored, path)
        read = read_torch(path, num_heads=3)
        same(read.state, stored)
        assert any(str(dtype).removeprefix("torch.") in note for note in read.notes)


def test_trainable_parameters_are_read_and_copied(tmp_path, ast_state):
    path = save(tmp_path / "a.pth", {key: torch.nn.Parameter(value) for key, value in ast_state.items()})
    state = read_torch(path, num_heads=3).state
    path.write_bytes(b"")  # what was read does not hang on the file
    same(state, ast_state)


def test_training_leftovers_beside_the_weights_become_blanks(tmp_path, ast_state):
    arguments = argparse.Namespace(out=pathlib.Path("/somewhere"), best=np.float64(0.5), curve=np.arange(3.0))
    path = save(tmp_path / "a.pth", {"model": ast_state, "args": arguments, "best": np.float32(1.0)})
    assert {"args", "best"} <= read_torch(path, num_heads=3).ignored.keys()


# --- what tensors do not tell


@pytest.mark.parametrize("stride", [16, 10])
@pytest.mark.parametrize("frames", [128, 512, 1024])
def test_ast_geometry_is_inferred_from_the_patch_count(stride, frames):
    config = dataclasses.replace(AST, frames=frames, time_stride=stride, freq_stride=stride)
    grid = infer_grid(config.patches, family="ast")
    assert (grid.frames, grid.time_stride, grid.freq_stride) == (frames, stride, stride)


@pytest.mark.parametrize("frames", [128, 208, 512, 1024])
def test_audiomae_geometry_is_inferred_from_the_patch_count(frames):
    patches = dataclasses.replace(AUDIOMAE, frames=frames).patches
    assert infer_grid(patches, family="audiomae").frames == frames


def test_ambiguous_geometry_is_noted_and_settled_by_what_is_given():
    standard = infer_grid(600, family="ast")  # 50 x 12 at stride 10, 75 x 8 at stride 16
    assert (standard.frames, standard.time_stride) == (512, 10)
    assert "also fit stride 16 with 1200 frames" in standard.note
    assert infer_grid(600, family="ast", frames=1200).time_stride == 16
    assert infer_grid(600, family="ast", time_stride=16).frames == 1200
    assert infer_grid(1212, family="ast", frames=1020).frames == 1020
    unequal = infer_grid(101 * 8, family="ast", time_stride=10, freq_stride=16)
    assert (unequal.frames, unequal.time_stride, unequal.freq_stride) == (1024, 10, 16)


def test_geometry_that_fits_nothing_says_what_to_pass(tmp_path, ast_state):
    state = ast_state | {"v.pos_embed": torch.zeros(1, 2 + 97, 48)}
    path = save(tmp_path / "a.pth", state)
    refused(path, "position table of 99 tokens", "97 patches", "give the right --source-frames, --mels")
    refused(save(path, ast_state), "64 patches", "from 1024 frames", "128 to 143 frames", source_frames=1024)


def test_heads_follow_the_width_or_must_be_given(tmp_path, ast_state):
    path = save(tmp_path / "a.pth", ast_state)
    refused(path, "width 48", "give --num-heads", num_heads=None)
    refused(path, "48 cannot be split over 5 heads", num_heads=5)
    wide = ModelConfig(family="audiomae", width=128, depth=1, heads=2, classes=7, frames=128, mlp_ratio=2.0)
    assert read_torch(save(path, random_state(wide, seed=0))).card.model == wide


@pytest.mark.parametrize(
    ("classes", "name"), [(527, "audioset"), (50, "esc50"), (35, "speechcommands"), (1251, "voxceleb1")]
)
def test_statistics_follow_the_class_count(tmp_path, audiomae_state, classes, name):
    head = {"head.weight": torch.zeros(classes, 48), "head.bias": torch.zeros(classes)}
    read = read_torch(save(tmp_path / "a.pth", audiomae_state | head), num_heads=3)
    assert (read.card.mean, read.card.std) == (STATISTICS[name].mean, STATISTICS[name].std)
    assert read.card.activation == STATISTICS[name].activation
    assert any(name in note for note in read.notes)


def test_statistics_of_a_named_data_set_need_no_note(tmp_path, audiomae_state):
    path = save(tmp_path / "a.pth", audiomae_state)
    assert any("no known data set has 7 classes" in note for note in read_torch(path, num_heads=3).notes)
    read = read_torch(path, num_heads=3, padding="zero", dataset="speechcommands", source_frames=128, mels=128)
    assert (read.card.mean, read.notes) == (STATISTICS["speechcommands"].mean, ())


@pytest.mark.parametrize(
    "settings",
    [{"num_heads": 0}, {"source_frames": -1}, {"classes": 0}, {"dataset": "imagenet"}, {"time_stride": -3}],
)
def test_arguments_out_of_range(tmp_path, settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        read_torch(tmp_path, **settings)


def test_arguments_that_contradict_the_checkpoint(tmp_path, ast_state):
    refused(save(tmp_path / "a.pth", ast_state), "classes 7 in its head, but classes=9 was asked for", classes=9)
    write_huggingface(tmp_path / "hf", HUGGINGFACE, seed=0)
    refused(tmp_path / "hf", "num_heads 3 in its config.json, but num_heads=4", num_heads=4)
    refused(tmp_path / "hf", "time_stride 10", "time_stride=16", num_heads=None, time_stride=16)


# --- labels


def test_labels_must_fit_the_head(tmp_path, ast_state):
    path, labels = save(tmp_path / "a.pth", ast_state), tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    assert read_torch(path, num_heads=3, labels=labels).card.labels == LABELS
    labels.write_text("\n".join(LABELS[:5]))
    refused(path, "7 classes in its head, but the labels name 5", labels=labels)
    with pytest.raises(ValueError, match=r"nowhere\.txt: cannot be read"):
        read_torch(path, labels=tmp_path / "nowhere.txt")
