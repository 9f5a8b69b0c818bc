"""Masked pretraining against plain PyTorch, and what masks, decoders and their configurations promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import random_mel, small
from jaxprune.convert.pretraining import from_pretraining, load_pretraining
from jaxprune.convert.torch_pretraining import Reference
from quick import quick_compiling  # noqa: F401

from jaxprune.models import AudioMAE
from jaxprune.pretraining import (
    BiasDropout,
    PlainDecoder,
    Pretraining,
    PretrainingConfig,
    WindowDecoder,
    draw_noise,
    random_visible,
    removed,
    time_frequency_visible,
)
from jaxprune.pretraining.decoders import WindowBlocks

DECODERS = {
    "plain": PlainDecoder(width=16, depth=2, heads=2),
    "windows": WindowDecoder(width=32, depth=4, heads=4),
}
ENCODER = small("audiomae", depth=3)


def make(decoder: str, **changes) -> Pretraining:
    """A model whose every number differs from its neighbours', so that no swap goes unseen."""
    config = PretrainingConfig(encoder=ENCODER, decoder=dataclasses.replace(DECODERS[decoder], **changes))
    model = Pretraining(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf[...] = leaf[...] + rng.normal(0, 0.05, leaf[...].shape).astype(np.float32)
        assert path
    return model


def visible(clips: int = 2) -> jax.Array:
    return random_visible(draw_noise(jax.random.key(3), clips=clips, count=ENCODER.patches), ratio=0.8)


def reference(model: Pretraining) -> Reference:
    return Reference(from_pretraining(model), model.settings)


@pytest.mark.parametrize("decoder", DECODERS)
def test_latent_and_prediction_are_pytorchs(decoder):
    model, mel, ids = make(decoder), jnp.asarray(random_mel(ENCODER)), visible()
    output = jax.jit(lambda mel: model(mel, ids))(mel)
    with torch.no_grad():
        theirs = reference(model)(torch.tensor(np.asarray(mel)), torch.tensor(np.asarray(ids)))
    np.testing.assert_allclose(output.latent, theirs.latent, atol=5e-6)
    np.testing.assert_allclose(output.prediction, theirs.prediction, atol=5e-6)


@pytest.mark.parametrize(("decoder", "normalise"), [("plain", False), ("windows", True)])
def test_loss_and_gradients_are_pytorchs(decoder, normalise):
    model, mel, ids = make(decoder), jnp.asarray(random_mel(ENCODER)), visible()
    ours, gradients = nnx.jit(nnx.value_and_grad(lambda model: model.loss(mel, ids, normalise=normalise)))(model)
    theirs, chosen, heard = reference(model), torch.tensor(np.asarray(ids)), torch.tensor(np.asarray(mel))
    loss = theirs.loss(heard, theirs(heard, chosen).prediction, chosen, normalise=normalise)
    loss.backward()
    np.testing.assert_allclose(ours, loss.item(), rtol=2e-6)
    nnx.update(model, gradients)  # so that the way back to official tensors names the gradients
    for key, gradient in from_pretraining(model).items():
        if "pos_embed" in key:
            continue
        wanted = theirs.state[key].grad.numpy()
        # The last bias adds a constant to a head's logits: its gradient is 0 but for rounding.
        np.testing.assert_allclose(gradient, wanted, atol=1e-4 * max(np.abs(wanted).max(), 1e-4), err_msg=key)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_checkpoint_goes_to_pytorch_and_back(decoder, tmp_path):
    model, mel, ids = make(decoder), jnp.asarray(random_mel(ENCODER)), visible()
    state = {key: torch.tensor(value) for key, value in from_pretraining(model).items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "pretrained.pth")
    heads = model.settings.decoder.heads
    back = load_pretraining(tmp_path / "pretrained.pth", num_heads=ENCODER.heads, decoder_heads=heads)
    assert back.settings.decoder == model.settings.decoder
    ours, theirs = (jax.jit(lambda mel, model=model: model(mel, ids).prediction)(mel) for model in (model, back))
    np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_without_its_decoder_or_with_a_strange_tensor_is_refused(tmp_path):
    state = {key: torch.tensor(value) for key, value in from_pretraining(make("plain")).items()}
    path = tmp_path / "x.pth"
    torch.save({"model": {key: value for key, value in state.items() if "decoder" not in key}}, path)
    with pytest.raises(ValueError, match="not a pretrained AudioMAE with its decoder"):
        load_pretraining(path, num_heads=3, decoder_heads=2)
    torch.save({"model": state | {"decoder_blocks.0.attn.odd": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match=r"decoder_blocks.0.attn.odd: unexpected"):
        load_pretraining(path, num_heads=3, decoder_heads=2)
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=r"16 cannot be split over 3 heads"):
        load_pretraining(path, num_heads=3, decoder_heads=3)


def test_the_encoder_is_the_classifiers():
    ours = {path for path, _ in nnx.to_flat_state(nnx.state(make("plain").encoder))}
    assert ours == {path for path, _ in nnx.to_flat_state(nnx.state(AudioMAE(ENCODER, rngs=nnx.Rngs(0)).encoder))}


def test_random_masks_keep_the_least_noise_in_its_order():
    noise = jax.random.uniform(jax.random.key(0), (3, 512))
    ids = random_visible(noise, ratio=0.8)
    assert ids.shape == (3, 102)
    for row, chosen in zip(np.asarray(noise), np.asarray(ids), strict=True):
        assert list(chosen) == sorted(range(512), key=lambda patch: row[patch])[:102]
    assert np.asarray(removed(ids, patches=512)).sum(axis=1).tolist() == [410] * 3


@pytest.mark.parametrize(("frames", "kept"), [(1024, 19 * 5), (128, 2 * 5), (4096, 76 * 5)])
def test_time_and_frequency_masks_keep_patches_of_kept_steps_and_bands(frames, kept):
    config = dataclasses.replace(ENCODER, frames=frames)
    time, bands = config.grid
    t, f = jax.random.uniform(jax.random.key(1), (2, time)), jax.random.uniform(jax.random.key(2), (2, bands))
    ids = np.asarray(time_frequency_visible(t, f, config=config))
    assert ids.shape == (2, kept)
    for row, times, freqs in zip(ids, np.asarray(t), np.asarray(f), strict=True):
        steps, stay = np.argsort(times)[: kept // 5], np.argsort(freqs)[:5]
        assert list(row) == sorted(step * bands + band for step in steps for band in stay)


def test_windows_are_cut_and_joined_without_loss_and_ends_of_the_clip_stay_apart():
    blocks = make("windows").decoder
    assert isinstance(blocks, WindowBlocks)
    grid = np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8, 1)
    np.testing.assert_array_equal(blocks.join(blocks.cut(jnp.asarray(grid))), grid)
    apart = blocks.apart(2)  # g s s
    windows = np.asarray(blocks.cut(jnp.roll(jnp.asarray(grid), -2, axis=1)))[0, :, :, 0] // 8  # time step of each
    for window, mask in zip(windows, apart, strict=True):
        far = np.abs(window[:, None] - window[None, :]) >= 4  # within a window of 4 only a wrap is so far
        np.testing.assert_array_equal(mask, np.where(far, -100, 0))
    assert not blocks.apart(0).any()


def test_dropout_of_the_bias_is_decided_by_its_key():
    model, mel, ids = make("windows"), jnp.asarray(random_mel(ENCODER)), visible()
    loss = jax.jit(lambda dropout: model.loss(mel, ids, dropout=dropout))
    losses = [float(loss(BiasDropout(jax.random.key(seed)))) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert min(abs(float(loss(None)) - one) for one in losses) > 1e-5


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: random_visible(jnp.zeros((1, 8)), ratio=0.99), "mask ratio 0.99 leaves none of 8"),
        (lambda: random_visible(jnp.zeros((1, 8)), ratio=1.0), "mask ratio 1.0 is not allowed"),
        (lambda: WindowDecoder(width=30), "width 30 cannot be split over 16 heads"),
        (lambda: PretrainingConfig(encoder=small("ast"), decoder=WindowDecoder()), "masked pretraining is AudioMAE's"),
        (
            lambda: Pretraining(
                PretrainingConfig(encoder=dataclasses.replace(ENCODER, frames=96), decoder=WindowDecoder()),
                rngs=nnx.Rngs(0),
            ),
            "cannot be cut into windows",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
