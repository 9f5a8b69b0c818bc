"""DynamicViT on AudioMAE in plain PyTorch, written from the paper's rules: slow, and plain to read.

`state` are official tensors, the predictors under `score_predictor.`. Blocks, stages and patches are counted from 0.
"""

import math

import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear, log_softmax, softmax

EPS = 1e-6


class Reference:
    """Both ways through the model: `inference` drops patches, `training` keeps and masks them."""

    def __init__(self, state, *, heads: int, blocks: tuple[int, ...] = (3, 6, 9)):
        self.state = {key: torch.tensor(value, requires_grad="pos_embed" not in key) for key, value in state.items()}
        self.heads, self.stages = heads, {block: stage for stage, block in enumerate(blocks)}
        self.depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))

    def linear(self, x, name):
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x, name, eps=1e-6):
        return layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=eps)

    def predict(self, patches, decision, stage):
        name = f"score_predictor.{stage}"
        z = gelu(self.linear(self.norm(patches, f"{name}.in_conv.0", eps=1e-5), f"{name}.in_conv.1"))
        half = z.shape[-1] // 2
        shared = torch.zeros(len(z), half)
        for clip in range(len(z)):
            weights = decision[clip]
            shared[clip] = (z[clip, :, half:] * weights[:, None]).sum(dim=0) / weights.sum()
        z = torch.cat([z[..., :half], shared[:, None].expand(-1, z.shape[1], -1)], dim=-1)
        z = gelu(self.linear(z, f"{name}.out_conv.0"))
        z = gelu(self.linear(z, f"{name}.out_conv.2"))
        return log_softmax(self.linear(z, f"{name}.out_conv.4"), dim=-1)

    def embed(self, mel):
        time, bands = mel.shape[1] // 16, mel.shape[2] // 16
        pixels = mel.unflatten(1, (time, 16)).unflatten(3, (bands, 16)).transpose(2, 3).reshape(len(mel), -1, 256)
        patches = linear(pixels, self.state["patch_embed.proj.weight"].flatten(1), self.state["patch_embed.proj.bias"])
        cls = self.state["cls_token"].expand(len(mel), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.state["pos_embed"]

    def block(self, x, i, softmax_of_logits):
        name = f"blocks.{i}"
        qkv = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = softmax_of_logits(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        x = x + self.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        hidden = gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def logits(self, pooled):
        return self.linear(self.norm(pooled, "fc_norm"), "head")

    def inference(self, mel, ratios):
        """Logits, and of each stage the log-probabilities and the original positions kept."""
        x = self.embed(mel)
        n = x.shape[1] - 1
        ids, stages = torch.arange(n).expand(len(x), -1), []
        for i in range(self.depth):
            if (stage := self.stages.get(i)) is not None:
                logp = self.predict(x[:, 1:], torch.ones(ids.shape), stage)
                kept = logp[..., 0].argsort(dim=1, descending=True)[:, : math.trunc(n * ratios[stage])]
                rows = [torch.cat([clip[:1], clip[1:][index]]) for clip, index in zip(x, kept, strict=True)]
                x, ids = torch.stack(rows), ids.gather(1, kept)
                stages.append((logp, ids))
            x = self.block(x, i, lambda logits: softmax(logits, dim=-1))
        return self.logits(x[:, 1:].mean(dim=1)), stages

    def training(self, mel, decide):
        """Logits, last patch tokens, and of each stage the log-probabilities and the decision.

        `decide(stage, log-probabilities, decision before)` makes a decision. The mean over patches is weighted by the
        last one, which gets no gradient there.
        """
        x = self.embed(mel)
        decision, stages = torch.ones(len(x), x.shape[1] - 1), []
        for i in range(self.depth):
            if (stage := self.stages.get(i)) is not None:
                logp = self.predict(x[:, 1:], decision, stage)
                decision = decide(stage, logp, decision)
                stages.append((logp, decision))
            policy = torch.cat([torch.ones(len(x), 1), decision], dim=1)
            x = self.block(x, i, lambda logits, policy=policy: masked_softmax(logits, policy))
        share = decision.detach()[..., None]
        return self.logits((x[:, 1:] * share).sum(dim=1) / share.sum(dim=1)), x[:, 1:], stages


def masked_softmax(logits, policy):
    """Each key by its policy, each token itself in full."""
    n = logits.shape[-1]
    mask = torch.empty(len(policy), n, n)
    for i in range(n):
        for j in range(n):
            mask[:, i, j] = 1 if i == j else policy[:, j]
    e = (logits - logits.amax(dim=-1, keepdim=True)).exp() * mask[:, None]
    return (e + EPS / n) / (e.sum(dim=-1, keepdim=True) + EPS)


def gumbel(noise):
    """The straight-through decision with given noise, a list a stage, times the decision before."""

    def decide(stage, logp, before):
        soft = softmax(logp + noise[stage], dim=-1)
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
        return (hard - soft.detach() + soft)[..., 0] * before

    return decide


def ratio_loss(decisions, ratios, *, of_batch=False):
    total = 0.0
    for decision, ratio in zip(decisions, ratios, strict=True):
        share = decision.mean() if of_batch else decision.mean(dim=1)
        total = total + ((share - ratio) ** 2).mean()
    return total


def distillation(student, teacher, *, kept, mse):
    """The tokens' loss over the kept patches, one after the other."""
    losses = [
        ((s - t) ** 2).mean() if mse else kl(s, t)
        for clip in range(len(kept))
        for s, t, there in zip(student[clip], teacher[clip], kept[clip], strict=True)
        if there > 0.5
    ]
    return torch.stack(losses).mean() if losses else torch.tensor(0.0)


def kl(student, teacher):
    p, q = softmax(teacher, dim=-1), softmax(student, dim=-1)
    return (p * (p / q).log()).sum(dim=-1)


def total_loss(logits, labels, decisions, *, ratios, weight=2.0):
    return cross_entropy(logits, labels) + weight * ratio_loss(decisions, ratios) / len(ratios)
