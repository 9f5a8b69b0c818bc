"""Data sets on disk that tests share."""

import re
from pathlib import Path

import pytest

from jaxprune.data.published import Source


def touch(path: Path) -> None:
    """An empty file: a clip that is never opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def refuses(source: Source, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        source.read()
    assert "\n" not in str(caught.value)
