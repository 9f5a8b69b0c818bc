"""Refusals of PyTorch checkpoints: malicious, damaged, incomplete and contradictory files are named in one sentence."""

import json
import pathlib

import pytest
import torch
from jaxprune.convert.random_checkpoint import (
    random_state,
    write_huggingface,
)
from jaxprune.convert.read import CheckpointError, read_torch
from read_cases import AST, AUDIOMAE, HUGGINGFACE, refused, save
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def ast_state():
    return random_state(AST, seed=0)


@pytest.fixture(scope="module")
def audiomae_state():
    return random_state(AUDIOMAE, seed=0)


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
    (tmp_path / "card.json").write_text("{}")
    refused(tmp_path, "is a jaxprune checkpoint already; --to-torch makes a PyTorch one of it")


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
