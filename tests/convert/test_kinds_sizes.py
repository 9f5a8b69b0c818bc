"""Checkpoints of other sizes: mel bins, strides and widths come in right or are refused."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from helpers import TESTS
from jaxprune.convert import load_torch
from jaxprune.convert.grids import infer_grid
from jaxprune.convert.random_checkpoint import random_state, write_ast_official
from jaxprune.convert.read import CheckpointError, read_torch
from kinds_cases import AST, convert, small_hugging_face
from transformers import ASTFeatureExtractor, ASTForAudioClassification

import jaxprune
from jaxprune.audio import load_audio, pad_batch
from jaxprune.features import model_input

CROW = TESTS / "recordings" / "crow.wav"


@pytest.fixture(scope="module")
def state():
    return random_state(AST, seed=0)


def logits(model, mel):
    return jaxprune.jit_forward(model, lambda output: output.logits)(mel, jaxprune.topk(model, {}))


# --- mel bins and geometry


@pytest.mark.parametrize("mels", [40, 64, 96])
def test_other_mel_bins_are_computed_as_transformers_computes_them(tmp_path, mels):
    theirs = ASTForAudioClassification(small_hugging_face(num_labels=5, num_mel_bins=mels)).eval()
    theirs.save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor(num_mel_bins=mels, max_length=128)
    extractor.save_pretrained(tmp_path)
    card, model = read_torch(tmp_path).card, load_torch(tmp_path)
    assert model.config.mels == mels
    waveform = np.resize(load_audio(CROW).waveform, 16000 * 2)  # fills the model, so that padding plays no part
    values = extractor(waveform, sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**values).logits
    mel = model_input(*pad_batch([waveform]), frames=128, mean=card.mean, std=card.std, padding=card.padding, mels=mels)
    np.testing.assert_allclose(logits(model, mel), expected, atol=1e-4)


def test_64_mel_bins_of_an_official_file_are_given_and_the_assumption_is_said(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(AST, mels=64, frames=256)
    write_ast_official(tmp_path / "a.pth", config, seed=0)
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    assert read.card.model.mels == 128  # 64 patches are 128 x 128 as well: it says so
    assert any("64 patches were read as 128 frames x 128 mel bins" in note and "--mels" in note for note in read.notes)
    options = ("--num-heads", 3, "--mels", 64)
    assert convert(tmp_path / "a.pth", tmp_path / "out", *options, monkeypatch=monkeypatch) == 0
    model = jaxprune.load(tmp_path / "out")
    assert model.config == config
    mel = model_input(*pad_batch([load_audio(CROW).waveform]), frames=256, mean=-4.0, std=4.0, padding="zero", mels=64)
    assert np.isfinite(logits(model, mel)).all()


def test_mel_bins_that_cannot_be_computed_are_refused_when_converting(tmp_path, state):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="takes 256 mel bins; the features have 1 to 255"):
        read_torch(tmp_path / "a.pth", num_heads=3, mels=256)


@pytest.mark.parametrize("frames", [250, 400, 500, 998, 1000, 1024])
def test_the_original_ast_has_stride_10_first_and_advice_that_works(tmp_path, frames):
    config = dataclasses.replace(AST, frames=frames, time_stride=10, freq_stride=10)
    write_ast_official(tmp_path / "a.pth", config, seed=0)
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    assert (read.card.model.time_stride, read.card.model.freq_stride) == (10, 10)
    note = next(note for note in read.notes if "were read as" in note)
    assert "--source-frames" in note
    assert read_torch(tmp_path / "a.pth", num_heads=3, source_frames=frames).card.model == config


def test_the_advice_of_an_ambiguous_table_leads_to_the_other_reading(tmp_path, monkeypatch):
    """250 frames at stride 10 and 576 at stride 16 have tables of one size; the note's words lead to the other one."""
    config = dataclasses.replace(AST, frames=576)
    write_ast_official(tmp_path / "a.pth", config, seed=0)
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    assert (read.card.model.frames, read.card.model.time_stride) == (250, 10)
    note = next(note for note in read.notes if "were read as" in note)
    stride, frames = re.search(r"also fit stride (\d+) with (\d+) frames", note).groups()
    for number, option in ((frames, "--source-frames"), (stride, "--time-stride")):
        assert option in note
        out = tmp_path / option.strip("-")
        assert convert(tmp_path / "a.pth", out, "--num-heads", 3, option, number, monkeypatch=monkeypatch) == 0
        assert jaxprune.load(out).config == config


def test_frames_of_a_stride_are_the_roundest():
    assert infer_grid(24 * 12, family="ast").frames == 250
    assert infer_grid(99 * 12, family="ast").frames == 1000
    assert infer_grid(101 * 12, family="ast").frames == 1024


def test_the_mlps_width_survives_its_ratio():
    from jaxprune.convert.geometry import Geometry

    for width in (48, 49, 97, 192):
        for mlp_width in range(1, 4 * width, 7):
            sizes = {"family": "ast", "depth": 1, "patch": 16, "patches": 64, "classes": 2}
            ratio = Geometry(width=width, mlp_width=mlp_width, **sizes).mlp_ratio
            config = jaxprune.ModelConfig(family="ast", width=width, depth=1, heads=1, classes=2, mlp_ratio=ratio)
            assert config.mlp_width == mlp_width
