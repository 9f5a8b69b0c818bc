"""Extractions and an analysis to report on, and the page of them."""

import matplotlib.image
import numpy as np
import pytest
from extractions import write_random
from helpers import small
from report_cases import CLIPS, CONFIG, EVIL, add_clips, analysed


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Analyses of an AST, pruned and not, and of an AudioMAE on the same clips; a sweep; an extraction without mel."""
    home = tmp_path_factory.mktemp("runs")
    mae = small("audiomae", depth=3, frames=98, classes=3)
    for name, config, keep in [("ast", CONFIG, {1: 0.7, 2: 0.7}), ("ast-1", CONFIG, {}), ("mae", mae, {1: 0.5})]:
        write_random(home / f"x-{name}", config, clips=CLIPS, keep=keep, shard=2, weights=name[0])
        add_clips(home / f"x-{name}", home / "sounds")
        analysed(home / f"x-{name}", home / name)
    analysed(write_random(home / "x-silent", CONFIG, clips=CLIPS, keep={1: 0.5}), home / "silent")
    (home / "sweep").mkdir()
    (home / "sweep" / "sweep.csv").write_text(f"score,quality\n{EVIL},0.123456789\n")
    matplotlib.image.imsave(home / "sweep" / "sweep.png", np.zeros((400, 640)))
    return home
