"""A small model, one of transformers, and the conversion that tests of foreign checkpoints share."""

import sys

import pytest
from helpers import small
from jaxprune.convert.command import convert as command
from transformers import ASTConfig

from jaxprune.cli.console import run

AST = small("ast", depth=2, classes=7)


def convert(*arguments, monkeypatch):
    """The command line, in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run(command)
    return stop.value.code


def small_hugging_face(**changes):
    return ASTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, max_length=128, **changes
    )
