"""The pruned AST and AudioMAE classifiers in plain PyTorch: the yardstick of the JAX models.

They are written from the published descriptions and share only `ModelConfig` with `jaxprune`, so that a mistake in one
is not repeated in the other. Parameters have their official names, without DataParallel's `module.`, so an original
checkpoint loads with `load_state_dict`. Attention forms its softmax matrix, as the authors ran it: to time "PyTorch
eager", time `logits`. The rest of `convert` reads checkpoint files and compares.

Shapes: b clips, t frames, f mel bins, p extra tokens, n patches in a block, k patches kept, s = p + n, d width,
h heads, c channels per head, y classes.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxprune.config import ModelConfig

# A score ranks a block's patches: (attention (b, h, s, s), original positions (b, n)) -> (b, n); the highest stay.
Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reference:
    """The results of one forward pass. The three lists have an entry per block.

    `logits` are (b, y). `embedded` (b, s, d) are the tokens that enter block 0. `blocks` are the tokens that leave the
    block, (b, p + k, d), extra tokens first. `scores` are (b, n), in the order of the patches that enter the block;
    blocks that do not prune have them too. `patch_ids` (b, k) int64 are the original positions of the patches that
    leave the block, in token order.
    """

    logits: Tensor
    embedded: Tensor
    blocks: list[Tensor]
    scores: list[Tensor]
    patch_ids: list[Tensor]


def build(config: ModelConfig) -> "Classifier":
    """The model of `config` in eval mode, with PyTorch's initial weights. Load a state dict before use."""
    return {"ast": AST, "audiomae": AudioMAE}[config.family](config).eval()


class Classifier(nn.Module):
    """The walk through the blocks that both families share, pruning between a block's attention and its MLP.

    A family adds `image` (the spectrogram as its patch convolution sees it), `embed` (tokens entering block 0),
    `readout` (logits from the last tokens), `patch_embed`, `blocks`, and the `score` it was published with.
    """

    patch_embed: "PatchEmbed"
    blocks: nn.ModuleList
    score: Score

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config

    def forward(
        self,
        mel: Tensor,
        keep: Mapping[int, float] | None = None,
        *,
        forced: Mapping[int, Tensor] | None = None,
        score: Score | None = None,
    ) -> Reference:
        """Classifies normalised log-mel `mel` (b, t, f), and records every step on the way.

        `keep` maps a block (0-based) to the share of patches that stays, 0 < rate <= 1. They are then in order of
        falling score; rate 1 changes nothing. `forced` maps a block to the original positions (b, k) that leave it, in
        that order; it overrules `keep` and the scores. `score` replaces the family's own. Raises `ValueError` for a
        spectrogram of the wrong size, for blocks or rates out of range, and for forced positions that are repeated or
        no longer there.
        """
        embedded = self.embed(self._checked(mel))
        every_block = range(len(self.blocks))
        steps = self._walk(embedded, keep=keep or {}, forced=forced or {}, score=score, scored=every_block)
        blocks, scores, patch_ids = (list(column) for column in zip(*steps, strict=True))
        return Reference(self.readout(blocks[-1]), embedded, blocks, scores, patch_ids)

    def logits(self, mel: Tensor, keep: Mapping[int, float] | None = None, *, score: Score | None = None) -> Tensor:
        """The logits (b, y) of `forward`, for timing. Keeps no tokens; scores only blocks that prune."""
        keep = keep or {}
        pruning = [index for index, rate in keep.items() if rate < 1]
        for step in self._walk(self.embed(self._checked(mel)), keep=keep, forced={}, score=score, scored=pruning):
            tokens = step[0]
        return self.readout(tokens)

    def patch_pixels(self, mel: Tensor) -> Tensor:
        """The pixels under each patch: mel (b, t, f) -> (b, n, patch * patch), in this family's patch order."""
        conv = self.patch_embed.proj
        return F.unfold(self.image(self._checked(mel)), conv.kernel_size, stride=conv.stride).transpose(1, 2)

    def image(self, mel: Tensor) -> Tensor:
        raise NotImplementedError

    def embed(self, mel: Tensor) -> Tensor:
        raise NotImplementedError

    def readout(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        """Logits of the last tokens (b, s, d); a mean over patches counts each by its weight (b, s), None: alike."""
        raise NotImplementedError

    def _walk(
        self,
        tokens: Tensor,
        *,
        keep: Mapping[int, float],
        forced: Mapping[int, Tensor],
        score: Score | None,
        scored: Collection[int],
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Yields after each block its tokens, its score (None outside `scored`) and the original positions of its
        patches.
        """
        for index in {*keep, *forced}:
            if index not in range(len(self.blocks)):
                raise ValueError(f"block {index} cannot prune; this model has blocks 0 to {len(self.blocks) - 1}")
        for rate in keep.values():
            keep_count(rate, 1)  # refuses a rate out of range
        rank = score or self.score
        b, p = tokens.shape[0], self.config.extra_tokens
        ids = torch.arange(tokens.shape[1] - p, device=tokens.device).expand(b, -1)
        for index, block in enumerate(self.blocks):
            tokens, values = block.attend(tokens, ids, rank if index in scored else unscored)
            rate = keep.get(index, 1.0)
            local = None
            if index in forced:
                local = locate(forced[index], ids)
            elif rate < 1:
                local = values.topk(keep_count(rate, ids.shape[1]), dim=1, sorted=True).indices
            if local is not None:
                ids = ids.gather(1, local)
                rows = local.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
                tokens = torch.cat((tokens[:, :p], tokens[:, p:].gather(1, rows)), dim=1)
            tokens = block.transform(tokens)
            yield tokens, values, ids

    def _checked(self, mel: Tensor) -> Tensor:
        if mel.ndim != 3 or mel.shape[1:] != (self.config.frames, self.config.mels):
            raise ValueError(
                f"the spectrogram's shape is {tuple(mel.shape)}; it must be (clips, {self.config.frames} frames, "
                f"{self.config.mels} mel bins)"
            )
        return mel


class AST(Classifier):
    """Audio Spectrogram Transformer (Gong et al. 2021): frequency-major patches; the two extra tokens classify."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.v = nn.Module()  # the official name of the transformer; the classifier stays outside it
        self.v.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.v.dist_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.v.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 2, config.width))
        self.v.patch_embed = PatchEmbed(config, stride=(config.freq_stride, config.time_stride))
        self.v.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.v.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.v.score_predictor = nn.ModuleList(Predictor(config.width) for _ in config.predictors)
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(config.width, eps=config.head_norm_eps), nn.Linear(config.width, config.classes)
        )
        self.score = cls_attention

    @property
    def patch_embed(self) -> "PatchEmbed":
        return self.v.patch_embed

    @property
    def blocks(self) -> nn.ModuleList:
        return self.v.blocks

    def image(self, mel: Tensor) -> Tensor:
        return mel.unsqueeze(1).transpose(2, 3)  # b 1 f t

    def embed(self, mel: Tensor) -> Tensor:
        patches = self.v.patch_embed(self.image(mel))
        b = patches.shape[0]
        extra = self.v.cls_token.expand(b, -1, -1), self.v.dist_token.expand(b, -1, -1)
        return torch.cat((*extra, patches), dim=1) + self.v.pos_embed

    def readout(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        tokens = self.v.norm(tokens)
        return self.mlp_head((tokens[:, 0] + tokens[:, 1]) / 2)


class AudioMAE(Classifier):
    """AudioMAE's fine-tuned ViT (Huang et al. 2022): time-major patches; their mean classifies, CLS does not."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 1, config.width), requires_grad=False)
        self.patch_embed = PatchEmbed(config, stride=(config.time_stride, config.freq_stride))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.fc_norm = nn.LayerNorm(config.width, eps=config.head_norm_eps)
        self.score_predictor = nn.ModuleList(Predictor(config.width) for _ in config.predictors)
        self.head = nn.Linear(config.width, config.classes)
        self.score = received_attention

    def image(self, mel: Tensor) -> Tensor:
        return mel.unsqueeze(1)  # b 1 t f

    def embed(self, mel: Tensor) -> Tensor:
        patches = self.patch_embed(self.image(mel)) + self.pos_embed[:, 1:]
        cls = self.cls_token + self.pos_embed[:, :1]
        return torch.cat((cls.expand(patches.shape[0], -1, -1), patches), dim=1)

    def readout(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        patches = tokens[:, 1:]
        if weights is None:
            return self.head(self.fc_norm(patches.mean(dim=1)))
        shares = weights[:, 1:, None] / weights[:, 1:].sum(dim=1)[:, None, None]
        return self.head(self.fc_norm((shares * patches).sum(dim=1)))


class PatchEmbed(nn.Module):
    def __init__(self, config: ModelConfig, *, stride: tuple[int, int]):
        super().__init__()
        self.proj = nn.Conv2d(1, config.width, kernel_size=config.patch, stride=stride)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)  # b n d, row-major over the image


class Block(nn.Module):
    """One pre-norm transformer block in two halves. Patches are dropped between them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def attend(self, tokens: Tensor, patch_ids: Tensor, score: Score) -> tuple[Tensor, Tensor | None]:
        mixed, values = self.attn(self.norm1(tokens), patch_ids, score)
        return tokens + mixed, values

    def transform(self, tokens: Tensor) -> Tensor:
        return tokens + self.mlp(self.norm2(tokens))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.heads
        self.scale = (config.width // config.heads) ** -0.5
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor, patch_ids: Tensor, score: Score) -> tuple[Tensor, Tensor | None]:
        b, s, d = tokens.shape
        qkv = self.qkv(tokens).reshape(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each b h s c
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        mixed = self.proj((attention @ v).transpose(1, 2).reshape(b, s, d))
        return mixed, score(attention, patch_ids)


class Predictor(nn.Module):
    """DynamicViT's predictor: log-probabilities of keeping and dropping, from the tokens and who of them is left."""

    def __init__(self, width: int):
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, patches: Tensor, decision: Tensor) -> Tensor:
        own, shared = self.in_conv(patches).chunk(2, dim=-1)
        mean = (shared * decision.unsqueeze(-1)).sum(dim=1) / decision.sum(dim=1, keepdim=True)
        return self.out_conv(torch.cat((own, mean.unsqueeze(1).expand_as(own)), dim=-1))


class Mlp(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))  # the exact GELU, with erf


def cls_attention(attention: Tensor, patch_ids: Tensor) -> Tensor:
    """AST's score: the attention CLS pays to each patch, mean over heads."""
    p = attention.shape[-1] - patch_ids.shape[1]
    return attention[:, :, 0, p:].mean(dim=1)


def received_attention(attention: Tensor, patch_ids: Tensor) -> Tensor:
    """AudioMAE's score: the attention each patch receives, mean over heads and over the patches that pay it."""
    p = attention.shape[-1] - patch_ids.shape[1]
    return attention[:, :, p:, p:].mean(dim=(1, 2))


def given(values: Tensor) -> Score:
    """A score fixed beforehand: `values` (b, patches), one per original position.

    With `model.patch_pixels(mel).mean(-1)` or `.std(-1)` (ddof = 1) it ranks by signal, the paper's ablation.
    """
    return lambda attention, patch_ids: values.gather(1, patch_ids)


def unscored(attention: Tensor, patch_ids: Tensor) -> None:
    """The absence of a score, for a block that nobody asked about."""


def keep_count(rate: float, patches: int) -> int:
    """Patches kept of `patches` at a keep rate: the ceiling of a float64 product, so 0.55 of 100 is 56, not 55."""
    if not 0 < rate <= 1:
        raise ValueError(f"keep rate {rate} is out of range; it must be above 0 and at most 1")
    return math.ceil(rate * patches)


def locate(wanted: Tensor, patch_ids: Tensor) -> Tensor:
    """Indices (b, k) into the patches of `patch_ids` (b, n) at which the original positions `wanted` (b, k) are.

    Raises `ValueError` unless each row of `wanted` holds distinct positions that are in the same row of `patch_ids`.
    """
    if wanted.ndim != 2 or wanted.shape[0] != patch_ids.shape[0] or wanted.shape[1] < 1:
        clips = patch_ids.shape[0]
        raise ValueError(f"forced positions have shape {tuple(wanted.shape)}; it must be ({clips} clips, k)")
    matches = wanted.unsqueeze(2) == patch_ids.unsqueeze(1)  # b k n
    if not matches.any(dim=2).all():
        missing = wanted[~matches.any(dim=2)][0].item()
        raise ValueError(f"patch {missing} was forced to stay, but it is not among the block's patches")
    if matches.sum(dim=1).max() > 1:
        raise ValueError("a patch was forced to stay twice in one clip; each position may be given once")
    return matches.int().argmax(dim=2)
