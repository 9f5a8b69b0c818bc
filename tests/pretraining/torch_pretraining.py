"""AudioMAE's pretraining in plain PyTorch, written token by token from the paper's rules: slow, and plain to read."""

import math

import torch
from torch.nn.functional import gelu, layer_norm, linear, relu, softmax


class Reference:
    """Prediction and loss from official tensors. `grid` is (time steps, bands)."""

    def __init__(
        self, state, *, heads: int, decoder_heads: int, grid: tuple[int, int], window: int = 4, shift: int = 2
    ):
        self.state = {key: torch.tensor(value, requires_grad="pos_embed" not in key) for key, value in state.items()}
        self.heads, self.decoder_heads, self.grid, self.window, self.shift = heads, decoder_heads, grid, window, shift

    def linear(self, x, name):
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x, name):
        return layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def mlp(self, x, name):
        return self.linear(gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def depth(self, blocks):
        return 1 + max(int(key.split(".")[1]) for key in self.state if key.startswith(f"{blocks}."))

    def split_heads(self, x, name, heads):
        return self.linear(x, name).unflatten(-1, (3, heads, -1)).movedim((-3, -2), (0, 1))  # r h ... s c

    def block(self, x, name, heads):
        q, k, v = self.split_heads(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv", heads)
        weights = softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        x = x + self.linear((weights @ v).movedim(0, -2).flatten(-2), f"{name}.attn.proj")
        return x + self.mlp(self.norm(x, f"{name}.norm2"), f"{name}.mlp")

    def window_block(self, x, name, shift):
        """`x` (b, n, d), n time-major. Every window is gathered by a list of its patches and attended on its own."""
        time, bands = self.grid
        attended = torch.empty_like(x)
        for t0 in range(0, time, self.window):
            for f0 in range(0, bands, self.window):
                cells = [(t0 + i, f0 + j) for i in range(self.window) for j in range(self.window)]
                patches = [(t + shift) % time * bands + f for t, f in cells]
                wrapped = [t + shift >= time for t, _ in cells]
                attended[:, patches] = self.window_attention(x[:, patches], f"{name}.attn", cells, wrapped)
        x = x + self.norm(attended, f"{name}.norm1")
        return x + self.norm(self.mlp(x, f"{name}.mlp"), f"{name}.norm2")

    def window_attention(self, x, name, cells, wrapped):
        q, k, v = self.split_heads(x, f"{name}.qkv", self.decoder_heads)
        cosine = q @ k.transpose(-1, -2) / (q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]).clamp(min=1e-6)
        logits = cosine / self.state[f"{name}.tau"].clamp(min=0.01)[:, None, None, None]
        rows = []
        for (tq, fq), was in zip(cells, wrapped, strict=True):
            for (tk, fk), other in zip(cells, wrapped, strict=True):
                offset = torch.tensor([math.copysign(math.log1p(abs(d)), d) for d in (tq - tk, fq - fk)])
                bias = self.linear(relu(self.linear(offset, f"{name}.meta_mlp.fc1")), f"{name}.meta_mlp.fc2")
                rows.append(bias - 100 * (was != other))
        bias = torch.stack(rows, dim=-1).unflatten(-1, (len(cells), len(cells)))  # h q k
        weights = softmax(logits + bias[:, None], dim=-1)
        return self.linear((weights @ v).movedim(0, -2).flatten(-2), f"{name}.proj")

    def latent(self, mel, visible):
        time, bands = self.grid
        patches = mel.unflatten(1, (time, 16)).unflatten(3, (bands, 16)).transpose(2, 3).reshape(len(mel), -1, 256)
        embedded = linear(
            patches, self.state["patch_embed.proj.weight"].flatten(1), self.state["patch_embed.proj.bias"]
        )
        embedded = embedded + self.state["pos_embed"][:, 1:]
        seen = torch.stack([row[ids] for row, ids in zip(embedded, visible, strict=True)])
        cls = (self.state["cls_token"] + self.state["pos_embed"][:, :1]).expand(len(mel), -1, -1)
        x = torch.cat([cls, seen], dim=1)
        for i in range(self.depth("blocks")):
            x = self.block(x, f"blocks.{i}", self.heads)
        return self.norm(x, "norm"), patches

    def prediction(self, latent, visible):
        codes = self.linear(latent, "decoder_embed")
        n = math.prod(self.grid)
        rows = []
        for clip, ids in zip(codes, visible.tolist(), strict=True):
            at = {patch: 1 + place for place, patch in enumerate(ids)}
            rows.append(torch.stack([clip[at[i]] if i in at else self.state["mask_token"][0, 0] for i in range(n)]))
        x = torch.cat([codes[:, :1], torch.stack(rows)], dim=1) + self.state["decoder_pos_embed"]
        windows = "decoder_blocks.0.attn.tau" in self.state
        x = x[:, 1:] if windows else x
        for i in range(self.depth("decoder_blocks")):
            name = f"decoder_blocks.{i}"
            x = self.window_block(x, name, self.shift * (i % 2)) if windows else self.block(x, name, self.decoder_heads)
        x = self.linear(self.norm(x, "decoder_norm"), "decoder_pred")
        return x if windows else x[:, 1:]

    def loss(self, patches, prediction, visible, *, normalise):
        if normalise:
            variance = patches.var(dim=-1, correction=1, keepdim=True)
            patches = (patches - patches.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
        errors = [
            ((prediction[clip, patch] - patches[clip, patch]) ** 2).mean()
            for clip in range(len(patches))
            for patch in range(patches.shape[1])
            if patch not in visible[clip].tolist()
        ]
        return torch.stack(errors).mean()
