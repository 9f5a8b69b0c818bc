"""Made extractions with ties and padding."""

import pytest
from analysis_cases import CLIPS
from extractions import write_random
from helpers import small

from jaxprune.analysis.extraction import read_extraction


@pytest.fixture(scope="module")
def extractions(tmp_path_factory):
    """The same clips, by an AST unpruned, pruned, pruned more, and by an AudioMAE."""
    home = tmp_path_factory.mktemp("extractions")
    config = small("ast", depth=4)
    made = {
        "unpruned": (config, {}),
        "pruned": (config, {1: 0.8, 2: 0.6}),
        "harder": (config, {1: 0.5, 2: 0.5}),
        "once": (config, {2: 0.5}),
        "mae": (small("audiomae", depth=4), {1: 0.8, 2: 0.6}),
    }
    for name, (its, keep) in made.items():
        write_random(home / name, its, clips=CLIPS, keep=keep, shard=4, weights=name[0] if name == "mae" else "a")
    return {name: read_extraction(home / name) for name in made}
