"""EViT and ToMe once more, clip by clip in float64 numpy, from the papers and what their published code does."""

import math

import numpy as np

from jaxprune.models import Classifier, cut_patches

erf = np.vectorize(math.erf)


def array(leaf) -> np.ndarray:
    return np.asarray(leaf[...], np.float64)


def norm(layer, x):
    unit = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + layer.epsilon)
    return unit * array(layer.scale) + array(layer.bias)


def linear(layer, x):
    return x @ array(layer.kernel) + array(layer.bias)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(block, x, sizes):
    """Tokens after attention, the weights of all heads, and the keys averaged over heads."""
    layer = block.attention
    q, k, v = (
        part.reshape(len(x), layer.heads, -1).transpose(1, 0, 2)
        for part in np.split(linear(layer.qkv, norm(block.norm1, x)), 3, axis=1)
    )
    logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    weights = softmax(logits if sizes is None else logits + np.log(sizes))
    mixed = (weights @ v).transpose(1, 0, 2).reshape(len(x), -1)
    return x + linear(layer.out, mixed), weights, k.mean(axis=0)


def mlp(block, x):
    hidden = linear(block.mlp.fc1, norm(block.norm2, x))
    return x + linear(block.mlp.fc2, hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))))


def evit(extra, tokens, weights, rate):
    """The kept tokens by falling attention from CLS, then the sum of the others by it. Members are lists of patches."""
    x, members, _ = tokens
    score = weights[:, 0, extra:].mean(axis=0)
    keep = math.ceil(rate * len(score))
    if keep == len(score):
        return tokens
    order = sorted(range(len(score)), key=lambda i: -score[i])
    kept, others = order[:keep], order[keep:]
    fused = sum(score[i] * x[extra + i] for i in others)
    rows = [*x[:extra], *(x[extra + i] for i in kept), fused]
    held = [members[i] for i in kept] + [[patch for i in others for patch in members[i]]]
    return np.stack(rows), held, None


def tome(extra, tokens, keys, r):
    """Bipartite soft matching of even and odd positions."""
    x, members, sizes = tokens
    sizes = np.ones(len(x)) if sizes is None else sizes
    r = min(r, (len(x) - extra) // 2)
    if r <= 0:
        return tokens
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    even, odd = range(0, len(x), 2), range(1, len(x), 2)
    best = {i: max((j for j in odd if j >= extra), key=lambda j: unit[i] @ unit[j]) for i in even if i >= extra}
    merged = sorted(best, key=lambda i: -(unit[i] @ unit[best[i]]))[:r]
    left = [*range(extra), *(i for i in even if i >= extra and i not in merged), *(j for j in odd if j >= extra)]
    rows, held, total = [], [], []
    for i in left:
        into = [i, *(j for j in merged if best[j] == i)]
        total.append(sum(sizes[j] for j in into))
        rows.append(sum(sizes[j] * x[j] for j in into) / total[-1])
        if i >= extra:
            held.append([patch for j in into for patch in members[j - extra]])
    return np.stack(rows), held, np.array(total)


def forward(model: Classifier, mel, reduce, *, proportional: bool = True):
    """Logits of one clip, and each block's lists of patches that its tokens hold.

    `reduce(block, extra, tokens, weights, keys)` gets and gives tokens: values, members and sizes (None: all 1).
    """
    config = model.config
    x = np.asarray(model.embed(model.patch_embed(cut_patches(mel[None], config)))[0], np.float64)
    extra, tokens, trace = config.extra_tokens, (x, [[i] for i in range(config.patches)], None), []
    for number, block in enumerate(model.encoder.blocks):
        x, members, sizes = tokens
        x, weights, keys = attention(block, x, sizes if proportional else None)
        x, members, sizes = reduce(number, extra, (x, members, sizes), weights, keys)
        tokens = mlp(block, x), members, sizes
        trace.append(members)
    x, _, sizes = tokens
    if config.family == "ast":
        features = norm(model.norm, x[:2]).mean(axis=0)
    else:
        weights = np.ones(len(x)) if sizes is None else sizes
        features = (weights[1:, None] * x[1:]).sum(axis=0) / weights[1:].sum()
    return linear(model.head, norm(model.head_norm, features)), trace
