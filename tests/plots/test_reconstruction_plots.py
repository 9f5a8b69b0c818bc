"""Pictures of the prediction: patches at their places, in the scale of the input."""

import jax.numpy as jnp
import numpy as np
import pytest
from pretraining.pretraining_cases import ENCODER

from jaxprune.models import cut_patches
from jaxprune.plots.reconstruction import draw_reconstructions, predicted_mel
from jaxprune.pretraining.model import normalised

MEL = np.random.default_rng(0).normal(0, 1, (2, ENCODER.frames, ENCODER.mels)).astype(np.float32)
PATCHES = cut_patches(jnp.asarray(MEL), ENCODER)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_perfect_prediction_is_the_input(scaled):
    target = np.asarray(normalised(PATCHES) if scaled else PATCHES)
    for mel, pixels in zip(MEL, target, strict=True):
        np.testing.assert_allclose(predicted_mel(mel, pixels, config=ENCODER, normalised=scaled), mel, atol=1e-5)


def test_a_picture_is_written_and_another_suffix_refused(tmp_path):
    what = {
        "visible": np.arange(6).reshape(2, 3), "prediction": np.asarray(PATCHES), "names": ("a", "$b"),
        "config": ENCODER, "normalised": False,
    }  # fmt: skip
    draw_reconstructions(MEL, **what, path=tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="pictures are written as"):
        draw_reconstructions(MEL, **what, path=tmp_path / "p.gif")
