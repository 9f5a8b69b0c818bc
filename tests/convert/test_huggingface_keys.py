"""Key names and files: both Hugging Face layouts, there and back, through transformers, and the random checkpoints."""

import argparse
import json

import pytest
import torch
from jaxprune.convert import random_checkpoint
from jaxprune.convert.huggingface import from_huggingface, to_huggingface
from jaxprune.convert.random_checkpoint import random_state
from jaxprune.convert.torch_reference import build
from safetensors.torch import load_file

from jaxprune.config import ModelConfig

AST = ModelConfig(family="ast", width=48, depth=12, heads=3, classes=5, frames=128, norm_eps=1e-12, head_norm_eps=1e-12)
MAE = ModelConfig(family="audiomae", width=48, depth=12, heads=3, classes=5)
LAYOUTS = ("v5", "legacy")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_bit_equal(layout):
    state = random_state(AST, seed=0)
    there = to_huggingface(state, layout=layout)
    back = from_huggingface(there.state)
    assert (there.leftover, back.leftover) == ((), ())
    assert same(back.state, state)


def test_names_with_and_without_the_model_prefix_are_read():
    state = random_state(AST, seed=0)
    bare = {
        key.removeprefix("audio_spectrogram_transformer."): value for key, value in to_huggingface(state).state.items()
    }
    assert same(from_huggingface(bare).state, state)


def test_foreign_keys_are_left_over():
    state = random_state(AST, seed=0)
    heads = {"v.head.weight": torch.zeros(3, 48), "v.blocks.0.attn.extra": torch.zeros(3)}
    assert to_huggingface(state | heads).leftover == tuple(heads)
    foreign = {"vision_model.layers.0.mlp.fc1.weight": torch.zeros(3), "embeddings.cls_token.weight.x": torch.zeros(3)}
    assert from_huggingface(to_huggingface(state).state | foreign).leftover == tuple(foreign)


def test_a_query_without_its_key_is_left_over():
    theirs = to_huggingface(random_state(AST, seed=0), layout="v5").state
    del theirs["audio_spectrogram_transformer.layers.4.attention.k_proj.bias"]
    result = from_huggingface(theirs)
    assert "v.blocks.4.attn.qkv.bias" not in result.state
    assert sorted(key.split(".")[-2] for key in result.leftover) == ["q_proj", "v_proj"]


def test_a_file_that_holds_both_layouts_is_refused():
    state = random_state(AST, seed=0)
    with pytest.raises(ValueError, match="same parameter"):
        from_huggingface(to_huggingface(state, layout="v5").state | to_huggingface(state, layout="legacy").state)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_transformers_loads_what_is_written_and_what_it_writes_is_read(layout, container, tmp_path):
    transformers = pytest.importorskip("transformers")
    labels = ["dog", "rain", "door", "siren", "cough"]
    random_checkpoint.write_huggingface(
        tmp_path / "a", AST, seed=3, layout=layout, container=container, labels=labels, mean=-6.8, std=5.5
    )
    theirs, report = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report.values()), report
    assert list(theirs.config.id2label.values()) == labels
    assert same(from_huggingface(dict(theirs.state_dict())).state, random_state(AST, seed=3))

    theirs.save_pretrained(tmp_path / "b")
    saved = load_file(tmp_path / "b" / "model.safetensors")
    assert saved.keys() == to_huggingface(random_state(AST, seed=3), layout=layout).state.keys()
    assert same(from_huggingface(saved).state, random_state(AST, seed=3))

    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "a")
    assert (extractor.mean, extractor.std, extractor.max_length) == (-6.8, 5.5, 128)
    extractor.save_pretrained(tmp_path / "b")
    written, theirs = (json.loads((tmp_path / x / "preprocessor_config.json").read_text()) for x in "ab")
    assert written == theirs


def test_transformers_saves_a_fresh_model_in_the_legacy_layout(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ASTConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=192)
    transformers.ASTForAudioClassification(config).save_pretrained(tmp_path)
    assert any(".encoder.layer.0.attention.attention.query" in key for key in load_file(tmp_path / "model.safetensors"))


def test_one_eps_for_two_is_refused(tmp_path):
    config = ModelConfig(family="ast", width=48, depth=1, heads=3, classes=5, norm_eps=1e-6, head_norm_eps=1e-5)
    with pytest.raises(ValueError, match="layer_norm_eps"):
        random_checkpoint.write_huggingface(tmp_path, config, seed=0)


def test_official_ast_file(tmp_path):
    random_checkpoint.write_ast_official(tmp_path / "a.pth", AST, seed=0)
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert all(key.startswith("module.") for key in state)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    idle = {key: tuple(state.pop(key).shape) for key in list(state) if key.startswith("v.head")}
    assert idle == {
        f"{head}.{kind}": shape
        for head in ("v.head", "v.head_dist")
        for kind, shape in (("weight", (1000, 48)), ("bias", (1000,)))
    }
    build(AST).load_state_dict(state)


def test_fine_tuned_audiomae_file(tmp_path):
    random_checkpoint.write_audiomae_finetuned(tmp_path / "a.pth", MAE, seed=0)
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(content) == ["model", "optimizer", "epoch", "scaler", "args"]
    assert content["args"].nb_classes == 5
    build(MAE).load_state_dict(content["model"])


def test_pretrained_audiomae_file(tmp_path):
    random_checkpoint.write_audiomae_pretrained(tmp_path / "a.pth", MAE, seed=0)
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    missing, unexpected = build(MAE).load_state_dict(state, strict=False)
    assert sorted(missing) == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    assert {key.split(".")[0] for key in unexpected} == {
        "norm", "mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred",
    }  # fmt: skip
    assert state["pos_embed"].shape == (1, 513, 48)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    assert same(random_state(MAE, seed=1), random_state(MAE, seed=1))
    ours, other = random_state(MAE, seed=1), random_state(MAE, seed=2)
    assert {key for key in ours if torch.equal(ours[key], other[key])} == {"pos_embed"}
    assert all(value.std() > 0.05 for value in ours.values())
