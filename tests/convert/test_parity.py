"""Our models against the independent PyTorch ones: same checkpoint file, same input."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import MIXED, STAGES, random_mel, rates, small
from jaxprune.convert import load_torch, torch_reference
from jaxprune.convert.random_checkpoint import write_ast_official, write_audiomae_finetuned
from jaxprune.convert.read import read_torch

import jaxprune

WRITE = {"ast": write_ast_official, "audiomae": write_audiomae_finetuned}
CASES = [
    *((small(family), keep) for family in WRITE for keep in (1.0, 0.7, MIXED)),
    *((small(family, frames=512), MIXED) for family in WRITE),
    (small("ast", frames=1024), 0.9),
    (small("audiomae", frames=1024), 0.5),
    *((small("ast", frames=frames, time_stride=10, freq_stride=10), 0.7) for frames in (128, 1024)),
    (small("ast", frames=256, time_stride=16, freq_stride=8), 0.5),
    (small("audiomae", mlp_ratio=2.0, depth=4), {0: 0.6, 3: 0.5}),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def both(config):
        path = folder / f"{abs(hash(config))}.pth"
        WRITE[config.family](path, config, seed=1)
        state = torch_reference.build(config)
        strides = {"time_stride": config.time_stride, "freq_stride": config.freq_stride}
        hints = strides | {"source_frames": config.frames} if config.family == "ast" else {}
        read = read_torch(path, num_heads=config.heads, **hints)
        state.load_state_dict({key: torch.tensor(value) for key, value in read.state.items()})
        return load_torch(path, num_heads=config.heads, **hints), state

    return both


@pytest.mark.parametrize(("config", "keep"), CASES, ids=str)
def test_logits_scores_and_kept_sets_equal_pytorchs(checkpoints, config, keep):
    ours, theirs = checkpoints(config)
    mel = random_mel(config)
    output = jaxprune.compiled(ours)(jnp.asarray(mel), jaxprune.topk(ours, keep))
    with torch.inference_mode():
        reference = theirs(torch.tensor(mel), rates(keep))
    np.testing.assert_allclose(output.logits, reference.logits, atol=5e-6)  # the issue asks for 2e-5
    for block in range(config.depth):
        scores, entry = reference.scores[block].numpy(), output.trace[block]
        np.testing.assert_allclose(np.sort(entry.score), np.sort(scores), atol=2e-6)
        assert [set(ids) for ids in entry.patch_ids.tolist()] == [
            set(ids) for ids in reference.patch_ids[block].tolist()
        ]
        assert entry.tokens.shape == tuple(reference.blocks[block].shape)


@pytest.mark.parametrize("family", WRITE)
def test_full_width_logits_agree(tmp_path, family):
    config = small(family, width=768, heads=12, depth=12, classes=50, frames=256)
    WRITE[family](tmp_path / "base.pth", config, seed=2)
    ours = load_torch(tmp_path / "base.pth")
    theirs = torch_reference.build(config)
    state = read_torch(tmp_path / "base.pth").state
    theirs.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    mel = random_mel(config, clips=1)
    logits = jaxprune.compiled(ours, lambda output: output.logits)(jnp.asarray(mel), jaxprune.topk(ours, 0.7))
    with torch.inference_mode():
        expected = theirs.logits(torch.tensor(mel), dict.fromkeys(STAGES, 0.7))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
