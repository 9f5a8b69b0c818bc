"""Ways to reduce tokens in plain PyTorch, beside `torch_reference.py`: what `jaxprune validate --method` compares with.

Written from the papers and from what their published code does. Tokens carry whom they hold as a matrix of zeros and
ones, (b, n tokens, n0 patches), so that dropping, fusing and merging are gathers and sums of its rows. EViT is Liang et
al. 2022, ToMe Bolya et al. 2023, DynamicViT Rao et al. 2021. Counts are those of our policy.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jaxprune.families import FAMILIES
from jaxprune.reduction.dynamic import Predicted
from jaxprune.reduction.fusing import Fuse
from jaxprune.reduction.joining import Then
from jaxprune.reduction.merging import Merge
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.pooling import PoolTime
from jaxprune.reduction.selection import TopK

from .torch_reference import Classifier, cls_attention, keep_count

UNSTATED = {"random": "PyTorch cannot draw JAX's random numbers"}  # methods that nothing here is a statement of


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Values (b, s, d), the patches that each patch token holds (b, n, n0), and the weights of all tokens (b, s)."""

    values: Tensor
    holds: Tensor
    weights: Tensor

    @property
    def extra(self) -> int:
        return self.values.shape[1] - self.holds.shape[1]


@dataclasses.dataclass(frozen=True)
class Seen:
    """Tokens after a block's attention, its weights (b, h, s, s), and the keys' mean over heads (b, s, c)."""

    tokens: Tokens
    attention: Tensor
    keys: Tensor


@dataclasses.dataclass(frozen=True)
class Reduced:
    """Logits (b, y), whom each block's tokens hold (b, n, n0), and the smallest distance from another choice (b,)."""

    logits: Tensor
    holds: list[Tensor]
    gap: Tensor


Score = Callable[[Seen], Tensor]  # (b, n)
Step = Callable[[Seen], tuple[Seen, Tensor]]  # what is left, and the distance from another choice


def run(model: Classifier, mel: Tensor, method: str, policy: Policy) -> Reduced:
    """The forward pass of a method. Raises `ValueError` where there is no statement of it."""
    check(method)
    values = model.embed(mel)
    b, s, _ = values.shape
    patches = model.config.patches
    tokens = Tokens(values, torch.eye(patches).expand(b, -1, -1), torch.ones(b, s))
    weigh = all(getattr(getattr(stage, "rest", stage), "proportional", True) for stage in policy.stages.values())
    gaps, holds = [torch.full((b,), math.inf)], []
    for index, block in enumerate(model.blocks):
        stage = policy.stages.get(index)
        if isinstance(stage, Predicted):
            tokens, gap = _predicted(model, tokens, index=index, count=stage.count)
            gaps.append(gap)
        seen = _attended(block, tokens, weigh=weigh)
        for step in _steps(stage, score=_score(model, mel, method)):
            seen, gap = step(seen)
            gaps.append(gap)
        tokens = dataclasses.replace(seen.tokens, values=block.transform(seen.tokens.values))
        holds.append(tokens.holds)
    return Reduced(model.readout(tokens.values, tokens.weights), holds, torch.stack(gaps).amin(dim=0))


def check(method: str) -> None:
    """Raises `ValueError` for a method without a statement in PyTorch."""
    if method in UNSTATED:
        raise ValueError(f"{method} cannot be validated: {UNSTATED[method]}; validate another method")


def _score(model: Classifier, mel: Tensor, method: str) -> Score:
    """The score that a method prunes by; a family's own unless the method has another."""

    def by_place(values: Tensor) -> Score:
        return lambda seen: torch.einsum("bnm,bm->bn", seen.tokens.holds, values)

    def by_attention(rank: Callable[[Tensor, Tensor], Tensor]) -> Score:
        return lambda seen: rank(seen.attention, seen.tokens.holds[:, :, 0])

    match method:
        case "loudest":
            return by_place(model.patch_pixels(mel).mean(-1))
        case "varied":
            return by_place(model.patch_pixels(mel).std(-1))
        case "grid":
            return by_place(_lattice(model).expand(len(mel), -1))
        case "evit":
            return by_attention(cls_attention)
    return by_attention(model.score)


def _lattice(model: Classifier) -> Tensor:
    """Roberts' quasirandom sequence: -frac(t / g + f / g ** 2), where g ** 3 = g + 1, for each patch."""
    (times, bands), g = model.config.grid, 1.32471795724474602596
    t, f = torch.meshgrid(torch.arange(times), torch.arange(bands), indexing="ij")
    values = -((t.double() / g + f.double() / g**2) % 1).float()
    return (values.T if FAMILIES[model.config.family].fastest == "time" else values).reshape(-1)


def _attended(block: torch.nn.Module, tokens: Tokens, *, weigh: bool) -> Seen:
    """A block's attention. With `weigh` the log of a token's weight is added to its logits as a key."""
    b, s, d = tokens.values.shape
    layer = block.attn
    qkv = layer.qkv(block.norm1(tokens.values)).reshape(b, s, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)  # each b h s c
    bias = tokens.weights.log() if weigh else torch.zeros_like(tokens.weights)
    attention = (q @ k.transpose(-2, -1) * layer.scale + bias[:, None, None]).softmax(dim=-1)
    mixed = layer.proj((attention @ v).transpose(1, 2).reshape(b, s, d))
    return Seen(dataclasses.replace(tokens, values=tokens.values + mixed), attention, k.mean(dim=1))


def _steps(stage: object, *, score: Score) -> Iterator[Step]:
    """The steps between a block's attention and its MLP."""
    match stage:
        case TopK(rate=rate) if rate < 1:
            yield functools.partial(_top_k, rate=rate, score=score)
        case Fuse(rate=rate) if rate < 1:
            yield functools.partial(_fused, rate=rate, score=score)
        case Merge(r=r) if r > 0:
            yield functools.partial(_merged, r=r)
        case PoolTime(grid=grid, fastest=fastest):
            yield functools.partial(_pooled, grid=grid, fast_time=fastest == "time")
        case Then(stage=first, rest=rest):
            yield from _steps(first, score=score)
            yield from _steps(rest, score=score)


def _top_k(seen: Seen, *, rate: float, score: Score) -> tuple[Seen, Tensor]:
    found = score(seen)
    index, gap = _best(found, keep_count(rate, found.shape[1]))
    return dataclasses.replace(
        seen, tokens=_taken(seen.tokens, index), keys=_rows(seen.keys, index, extra=seen.tokens.extra)
    ), gap


def _fused(seen: Seen, *, rate: float, score: Score) -> tuple[Seen, Tensor]:
    """EViT: the dropped live on as their sum, each times its score. It weighs as one token."""
    tokens, found = seen.tokens, score(seen)
    index, gap = _best(found, keep_count(rate, found.shape[1]))
    if index.shape == found.shape:
        return seen, gap
    dropped = torch.ones_like(found).scatter(1, index, 0.0)
    value = torch.einsum("bn,bnd->bd", dropped * found, tokens.values[:, tokens.extra :])
    held = torch.einsum("bn,bnm->bm", dropped, tokens.holds)
    left = _taken(tokens, index)
    left = Tokens(
        torch.cat((left.values, value[:, None]), dim=1),
        torch.cat((left.holds, held[:, None]), dim=1),
        torch.cat((left.weights, torch.ones(len(value), 1)), dim=1),
    )
    return dataclasses.replace(seen, tokens=left), gap


def _merged(seen: Seen, *, r: int) -> tuple[Seen, Tensor]:
    """ToMe's bipartite matching, clip by clip. In front stay the extra tokens, then unmerged even ones, then odd."""
    extra, s = seen.tokens.extra, seen.keys.shape[1]
    unit = seen.keys / seen.keys.norm(dim=2, keepdim=True)
    even, odd = range(0, s, 2), range(1, s, 2)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # b even odd
    similarity[:, 0] = -math.inf  # CLS is never merged
    if extra == 2:
        similarity[:, :, 0] = -math.inf  # nothing merges into the distillation token
    count, joins, gaps = min(r, (s - extra) // 2), [], []
    for one in similarity:
        best, partner = one.max(dim=1)
        order = best.argsort(descending=True)
        merged = order[:count].tolist()
        left = [i for i in range(len(even)) if i not in merged]
        places = [*(even[i] for i in left[:1]), *odd[: extra - 1], *(even[i] for i in left[1:]), *odd[extra - 1 :]]
        matrix = torch.zeros(s - count, s)
        matrix[torch.arange(len(places)), torch.tensor(places)] = 1
        for i in merged:
            matrix[places.index(odd[partner[i]]), even[i]] = 1
        joins.append(matrix)
        second = one[merged].topk(2, dim=1).values
        gaps += [torch.minimum(best[order[count - 1]] - best[order[count]], (second[:, 0] - second[:, 1]).min())]
    return _joined(seen, torch.stack(joins)), torch.stack(gaps)


def _pooled(seen: Seen, *, grid: tuple[int, int], fast_time: bool) -> tuple[Seen, Tensor]:
    """Every two neighbours in time become their mean; of an odd number the last stays."""
    (times, bands), extra, s = grid, seen.tokens.extra, seen.keys.shape[1]
    half, matrix = -(-times // 2), torch.zeros(extra + -(-times // 2) * bands, s)
    matrix[torch.arange(extra), torch.arange(extra)] = 1
    for t in range(times):
        for f in range(bands):
            old = f * times + t if fast_time else t * bands + f
            new = f * half + t // 2 if fast_time else t // 2 * bands + f
            matrix[extra + new, extra + old] = 1
    return _joined(seen, matrix.expand(len(seen.keys), -1, -1)), torch.full((len(seen.keys),), math.inf)


def _joined(seen: Seen, joins: Tensor) -> Seen:
    """One token of all that a row of `joins` (b, k, s) names: their mean by weight, and the sum of their weights."""
    tokens, p = seen.tokens, seen.tokens.extra
    weights = torch.einsum("bks,bs->bk", joins, tokens.weights)
    values = torch.einsum("bks,bs,bsd->bkd", joins, tokens.weights, tokens.values) / weights[:, :, None]
    return dataclasses.replace(seen, tokens=Tokens(values, joins[:, p:, p:] @ tokens.holds, weights))


def _predicted(model: Classifier, tokens: Tokens, *, index: int, count: int) -> tuple[Tokens, Tensor]:
    """DynamicViT: the patches of highest probability stay, before the block's attention."""
    predictors = getattr(model, "v", model).score_predictor
    predictor = predictors[model.config.predictors.index(index)]
    patches = tokens.values[:, tokens.extra :]
    kept, gap = _best(predictor(patches, torch.ones(patches.shape[:2]))[:, :, 0], count)
    return _taken(tokens, kept), gap


def _best(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places of the best, falling, and the distance between the last of them and the next (b,)."""
    found = score.sort(dim=1, descending=True)
    if count >= score.shape[1]:
        return found.indices, torch.full((len(score),), math.inf)
    return found.indices[:, :count], found.values[:, count - 1] - found.values[:, count]


def _taken(tokens: Tokens, index: Tensor) -> Tokens:
    """The patch tokens at `index` (b, k), behind the extra ones."""
    holds = tokens.holds.gather(1, index[:, :, None].expand(-1, -1, tokens.holds.shape[2]))
    p = tokens.extra
    weights = torch.cat((tokens.weights[:, :p], tokens.weights[:, p:].gather(1, index)), dim=1)
    return Tokens(_rows(tokens.values, index, extra=p), holds, weights)


def _rows(x: Tensor, index: Tensor, *, extra: int) -> Tensor:
    """The extra tokens' rows of x (b, s, d), then those at `index` of the others."""
    return torch.cat((x[:, :extra], x[:, extra:].gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))), dim=1)
