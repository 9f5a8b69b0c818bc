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
from safetensors.torch import save_file

from jaxprune.config import ModelConfig
from jaxprune.features import STATISTICS

AST = ModelConfig(family="ast", width=48, depth=12, heads=3, classes=7, frames=128, head_norm_eps=1e-5)
AUDIOMAE = ModelConfig(family="audiomae", width=48, depth=12, heads=3, classes=7, frames=128)
HUGGINGFACE = dataclasses.replace(AST, time_stride=10, freq_stride=10, norm_eps=1e-12, head_norm_eps=1e-12)
LABELS = tuple("abcdefg")


@pytest.fixture(scope="module")
def ast_state():
    return random_state(AST, seed=0)


@pytest.fixture(scope="module")
def audiomae_state():
    return random_state(AUDIOMAE, seed=0)


def save(path, content):
    torch.save(content, path)
    return path


def refused(path, *facts, **settings):
    """The message of the error that reading must raise; it names the file and every one of `facts`."""
    with pytest.raises(CheckpointError) as caught:
        read_torch(path, **{"num_heads": 3} | settings)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    for fact in facts:
        assert fact in message, message
    return caught.value


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


# --- files that are no checkpoint


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.target),)


class SystemPayload(Payload):
    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [Payload, SystemPayload])
def test_a_malicious_pickle_does_not_run(tmp_path, ast_state, kind, zipped):
    target, path = tmp_path / "owned", tmp_path / "bad.pth"
    torch.save({"model": ast_state, "args": kind(target)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, "was not opened", "could run code")
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # so the payload was live


def test_a_whole_pickled_module_is_refused(tmp_path):
    refused(save(tmp_path / "module.pt", torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear", "state dict")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"hello, I am not a checkpoint\n" * 500, "is a text file"),
        ("\u00e9\u4e16".encode() * 2000, "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x80\x02}q\x00.", "not a complete PyTorch checkpoint"),
        (b"RIFF\x00\x10\xff\xfeWAVEfmt \x00\x01\x02" * 30, "not a complete PyTorch checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_other_files(tmp_path, name, content, fact):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, fact)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, ast_state, kind, kept):
    path = tmp_path / "short.pth"
    if kind == "safetensors":
        save_file(ast_state, path)
    else:
        torch.save(ast_state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, "is not a complete")


def test_no_such_path(tmp_path):
    refused(tmp_path / "nowhere.pth", "does not exist")


def test_directories_without_their_files(tmp_path):
    refused(tmp_path, "without config.json")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "holds no weights", "model.safetensors")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3}, "holds no tensors by name; its entries are: epoch"),
        ({}, "its entries are: none"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(10)}, "not an AST or AudioMAE checkpoint"),
    ],
)
def test_other_contents(tmp_path, content, fact):
    refused(save(tmp_path / "a.pth", content), fact)


# --- checkpoints that do not fit


def test_all_problems_are_reported_at_once_by_the_names_in_the_file(tmp_path, ast_state):
    state = dict(ast_state)
    del state["v.blocks.5.norm1.bias"]
    state["v.blocks.2.attn.qkv.weight"] = torch.zeros(144, 40)
    state["v.extra.weight"] = torch.zeros(3)
    state["v.norm.bias"] = torch.zeros(48, dtype=torch.complex64)
    path = save(tmp_path / "a.pth", {f"module.{key}": value for key, value in state.items()})
    error = refused(
        path,
        "looks like AST, official, but does not fit it",
        "module.v.blocks.5.norm1.bias: missing",
        "module.v.blocks.2.attn.qkv.weight: has shape (144, 40), expected (144, 48)",
        "module.v.extra.weight: unexpected",
        "module.v.norm.bias: holds complex64",
    )
    assert len(error.problems) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_numbers(tmp_path, audiomae_state, value):
    state = audiomae_state | {"blocks.1.mlp.fc2.bias": torch.full((48,), value)}
    refused(save(tmp_path / "a.pth", {"model": state}), "NaN or infinity", "blocks.1.mlp.fc2.bias")


@pytest.mark.parametrize(
    ("key", "tensor", "fact"),
    [
        ("cls_token", torch.zeros(48), "cls_token: has shape (48,), expected 3 axes"),
        ("norm1.weight", torch.zeros(48), "norm1.weight: unexpected"),
        ("blocks.0.norm1.weight", torch.zeros(1).expand(48), "claims more values"),
        ("blocks.0.norm1.weight", torch.zeros(48, device="meta"), "not an ordinary dense tensor"),
        ("blocks.0.norm1.weight", torch.zeros(48, dtype=torch.int64), "holds int64"),
        ("blocks.0.norm1.weight", 3, "blocks.0.norm1.weight: is of type int, not a tensor"),
        ("blocks.14.norm1.weight", torch.zeros(48), "blocks.12.norm1.weight: missing"),
        ("patch_embed.proj.weight", torch.zeros(48, 3, 16, 16), "(48, 3, 16, 16), expected (48, 1, 16, 16)"),
    ],
)
def test_one_bad_tensor(tmp_path, audiomae_state, key, tensor, fact):
    refused(save(tmp_path / "a.pth", {"model": audiomae_state | {key: tensor}}), fact)


@pytest.mark.parametrize("key", ["cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight", "head.bias"])
def test_one_missing_tensor(tmp_path, audiomae_state, key):
    state = {name: value for name, value in audiomae_state.items() if name != key}
    assert refused(save(tmp_path / "a.pth", state)).problems == (f"{key}: missing",)


def test_half_a_hugging_face_qkv_is_named_by_what_is_lacking(tmp_path):
    write_huggingface(tmp_path, HUGGINGFACE, seed=0, layout="legacy", container="bin")
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    lost = "audio_spectrogram_transformer.encoder.layer.4.attention.attention.query.bias"
    del state[lost]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert refused(tmp_path, num_heads=None).problems == (f"{lost}: missing",)


def test_hugging_face_parts_of_the_wrong_shape(tmp_path):
    write_huggingface(tmp_path, HUGGINGFACE, seed=0, layout="v5", container="bin")
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    stem = "audio_spectrogram_transformer.layers.0.attention"
    state |= {f"{stem}.q_proj.weight": torch.zeros(40, 48), f"{stem}.k_proj.weight": torch.zeros(56, 48)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "q_proj.weight: has shape (40, 48), expected (48, 48)", "k_proj.weight", num_heads=None)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"hidden_act": "gelu_new"}, "sets hidden_act to 'gelu_new'"),
        ({"qkv_bias": False}, "sets qkv_bias to False"),
        ({"model_type": "wav2vec2"}, "model_type to 'wav2vec2'"),
        ({"hidden_size": "48"}, "hidden_size: is '48'"),
        ({"num_hidden_layers": 11}, "layers.11.mlp.fc1.weight: unexpected"),
        ({"time_stride": 16}, "position_embeddings: has shape (1, 146, 48), expected (1, 98, 48)"),
        ({"num_attention_heads": 5}, "width 48 cannot be split over 5 heads"),
        ({"layer_norm_eps": -1.0}, "norm_eps is -1.0"),
        ({"id2label": {"0": "a", "2": "b"}}, "index 1 is missing"),
        ({"id2label": {"0": "a", "1": "b"}}, "7 classes in its head, but the labels name 2"),
    ],
)
def test_hugging_face_configs_we_cannot_honour(tmp_path, change, fact):
    write_huggingface(tmp_path, HUGGINGFACE, seed=0, layout="v5")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as caught:
        read_torch(tmp_path)
    assert fact in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("change", [{"sampling_rate": 8000}, {"max_length": 1024}, {"num_mel_bins": 64}])
def test_preprocessors_we_cannot_honour(tmp_path, change):
    write_huggingface(tmp_path, HUGGINGFACE, seed=0)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json .*{next(iter(change))}"):
        read_torch(tmp_path)


def test_broken_or_absent_config(tmp_path):
    write_huggingface(tmp_path, HUGGINGFACE, seed=0)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        read_torch(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_torch(tmp_path / "model.safetensors")


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
