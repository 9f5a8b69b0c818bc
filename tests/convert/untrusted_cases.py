"""A model and a check that tests of untrusted files share."""

import time
import zipfile

import pytest
from jaxprune.convert.read import CheckpointError, read_torch

from jaxprune.config import ModelConfig

AST = ModelConfig(family="ast", width=48, depth=2, heads=3, classes=7, frames=128, head_norm_eps=1e-5)


def refused(path, *facts, within=10, **settings):
    """The message of the error, which names the file and every one of `facts`, after at most so many seconds."""
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        read_torch(path, **{"num_heads": 3} | settings)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert all(fact in message for fact in facts), message
    assert time.monotonic() - began < within
    return message


def zipped(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content:
            archive.writestr(name, data)
    return path
