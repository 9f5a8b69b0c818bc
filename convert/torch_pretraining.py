"""AudioMAE's masked pretraining in plain PyTorch: the yardstick of `jaxprune.pretraining`.

It is written from the published rules and shares only configurations with `jaxprune`. Windows are gathered by lists of
their patches, where ours are rolled and cut. `torch_reference.py` has the classifiers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, relu, softmax, unfold

from jaxprune.pretraining import PretrainingConfig, WindowDecoder

EPS = 1e-6


@dataclass(frozen=True)
class Result:
    """The results of one forward pass.

    `embedded` (b, 1 + k, d) enter the encoder, `blocks` leave each of its blocks, `latent` is the last of them after
    the norm. `mixed` (b, 1 + n, w) enter the decoder and `decoder_blocks` leave its blocks, CLS included where the
    decoder has it. `prediction` (b, n, pixels) is of all patches.
    """

    embedded: Tensor
    blocks: list[Tensor]
    latent: Tensor
    mixed: Tensor
    decoder_blocks: list[Tensor]
    prediction: Tensor


class Reference:
    """The model of official tensors, which are `state`, with gradients."""

    def __init__(self, state: Mapping[str, np.ndarray], config: PretrainingConfig):
        self.state = {key: torch.tensor(value, requires_grad="pos_embed" not in key) for key, value in state.items()}
        self.encoder, self.decoder, self.grid = config.encoder, config.decoder, config.encoder.grid

    def __call__(self, mel: Tensor, visible: Tensor) -> Result:
        """Encodes the patches `visible` (b, k) of spectrograms (b, t, f), and predicts all."""
        table = self.state["pos_embed"]
        kernel, bias = (self.state[f"patch_embed.proj.{name}"] for name in ("weight", "bias"))
        patches = linear(self.pixels(mel), kernel.flatten(1), bias)
        seen = torch.stack([row[ids] for row, ids in zip(patches + table[:, 1:], visible, strict=True)])
        cls = (self.state["cls_token"] + table[:, :1]).expand(len(mel), -1, -1)
        embedded = torch.cat([cls, seen], dim=1)
        blocks = [embedded]
        for i in range(self.encoder.depth):
            blocks.append(self.block(blocks[-1], f"blocks.{i}", heads=self.encoder.heads))
        latent = self.norm(blocks[-1], "norm")
        mixed = self.mixed(latent, visible)
        behind = self.windows(mixed[:, 1:]) if isinstance(self.decoder, WindowDecoder) else self.plain(mixed)
        last = behind[-1][:, -patches.shape[1] :]
        prediction = self.linear(self.norm(last, "decoder_norm"), "decoder_pred")
        return Result(embedded, blocks[1:], latent, mixed, behind, prediction)

    def loss(self, mel: Tensor, prediction: Tensor, visible: Tensor, *, normalise: bool) -> Tensor:
        """The squared error on the patches that were not seen."""
        target = self.pixels(mel)
        if normalise:
            variance = target.var(dim=-1, correction=1, keepdim=True)
            target = (target - target.mean(dim=-1, keepdim=True)) / (variance + EPS).sqrt()
        unseen = torch.ones(target.shape[:2]).scatter(1, visible.long(), 0)
        return (((prediction - target) ** 2).mean(dim=-1) * unseen).sum() / unseen.sum()

    def pixels(self, mel: Tensor) -> Tensor:
        """The pixels under each patch, (b, n, pixels), time-major."""
        stride = self.encoder.time_stride, self.encoder.freq_stride
        return unfold(mel.unsqueeze(1), self.encoder.patch, stride=stride).transpose(1, 2)

    def mixed(self, latent: Tensor, visible: Tensor) -> Tensor:
        """The decoder's input: codes of the seen patches at their places, the mask token at all others."""
        codes = self.linear(latent, "decoder_embed")
        rows = []
        for clip, ids in zip(codes, visible.tolist(), strict=True):
            at = {patch: 1 + place for place, patch in enumerate(ids)}
            count = math.prod(self.grid)
            rows.append(torch.stack([clip[at[i]] if i in at else self.state["mask_token"][0, 0] for i in range(count)]))
        return torch.cat([codes[:, :1], torch.stack(rows)], dim=1) + self.state["decoder_pos_embed"]

    def plain(self, x: Tensor) -> list[Tensor]:
        """The tokens that leave each ordinary decoder block."""
        left = []
        for i in range(self.decoder.depth):
            x = self.block(x, f"decoder_blocks.{i}", heads=self.decoder.heads)
            left.append(x)
        return left

    def windows(self, x: Tensor) -> list[Tensor]:
        """The tokens (b, n, w) that leave each window block."""
        left = []
        for i in range(self.decoder.depth):
            x = self.window_block(x, f"decoder_blocks.{i}", shift=self.decoder.shift * (i % 2))
            left.append(x)
        return left

    def block(self, x: Tensor, name: str, *, heads: int) -> Tensor:
        """An ordinary pre-norm block."""
        q, k, v = self.heads(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv", heads)
        weights = softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        x = x + self.linear((weights @ v).movedim(0, -2).flatten(-2), f"{name}.attn.proj")
        return x + self.mlp(self.norm(x, f"{name}.norm2"), f"{name}.mlp")

    def window_block(self, x: Tensor, name: str, *, shift: int) -> Tensor:
        """A post-norm block. Every window is a list of its patches and attends on its own."""
        (time, bands), size = self.grid, self.decoder.window
        attended = torch.empty_like(x)
        for t0 in range(0, time, size):
            for f0 in range(0, bands, size):
                cells = [(t0 + i, f0 + j) for i in range(size) for j in range(size)]
                patches = [(t + shift) % time * bands + f for t, f in cells]
                wrapped = torch.tensor([t + shift >= time for t, _ in cells])
                attended[:, patches] = self.window(x[:, patches], f"{name}.attn", torch.tensor(cells), wrapped)
        x = x + self.norm(attended, f"{name}.norm1")
        return x + self.norm(self.mlp(x, f"{name}.mlp"), f"{name}.norm2")

    def window(self, x: Tensor, name: str, cells: Tensor, wrapped: Tensor) -> Tensor:
        """Cosine attention among the tokens of a window, those of the clip's two ends apart."""
        q, k, v = self.heads(x, f"{name}.qkv", self.decoder.heads)
        cosine = q @ k.transpose(-1, -2) / (q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]).clamp(min=EPS)
        logits = cosine / self.state[f"{name}.tau"].clamp(min=0.01)[:, None, None, None]
        offsets = (cells[:, None] - cells[None, :]).float()  # query minus key
        hidden = relu(self.linear(offsets.sign() * offsets.abs().log1p(), f"{name}.meta_mlp.fc1"))
        bias = self.linear(hidden, f"{name}.meta_mlp.fc2").movedim(-1, 0)  # h q k
        bias = bias - 100 * (wrapped[:, None] != wrapped[None, :])
        weights = softmax(logits + bias[:, None], dim=-1)
        return self.linear((weights @ v).movedim(0, -2).flatten(-2), f"{name}.proj")

    def heads(self, x: Tensor, name: str, heads: int) -> Tensor:
        return self.linear(x, name).unflatten(-1, (3, heads, -1)).movedim((-3, -2), (0, 1))  # r h b s c

    def mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=EPS)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])
