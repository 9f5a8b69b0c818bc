"""Models and checks that tests of reading PyTorch checkpoints share."""

import dataclasses

import pytest
import torch
from jaxprune.convert.read import CheckpointError, read_torch

from jaxprune.config import ModelConfig

AST = ModelConfig(family="ast", width=48, depth=12, heads=3, classes=7, frames=128, head_norm_eps=1e-5)
AUDIOMAE = ModelConfig(family="audiomae", width=48, depth=12, heads=3, classes=7, frames=128)
HUGGINGFACE = dataclasses.replace(AST, time_stride=10, freq_stride=10, norm_eps=1e-12, head_norm_eps=1e-12)


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
