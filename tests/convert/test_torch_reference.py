"""The PyTorch yardstick against what does not depend on it: transformers, a numpy model clip by clip, properties."""

import math

import numpy as np
import pytest
import torch
from jaxprune.convert.huggingface import config_json, to_huggingface
from jaxprune.convert.random_checkpoint import random_state
from jaxprune.convert.torch_reference import build, given, keep_count
from scipy.special import erf, softmax

from jaxprune.config import ModelConfig

FAMILIES = ("ast", "audiomae")
KEEP = {3: 0.7, 6: 0.61, 9: 0.47}


def small(family: str, **changes) -> ModelConfig:
    eps = {"ast": 1e-5, "audiomae": 1e-6}[family]
    sizes = {"width": 48, "heads": 3, "depth": 12, "classes": 7, "frames": 128, "head_norm_eps": eps}
    return ModelConfig(**({"family": family} | sizes | changes))


def loaded(config: ModelConfig, *, seed: int = 0) -> torch.nn.Module:
    model = build(config)
    model.load_state_dict(random_state(config, seed=seed))
    return model


def clips(config: ModelConfig, *, b: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(b, config.frames, config.mels, generator=generator)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("stride", "frames"), [((16, 16), 512), ((10, 10), 256), ((16, 10), 160)])
def test_unpruned_ast_is_transformers_ast(stride, frames):
    # 1e-12 is the published eps; transformers applies it in the classifier's norm as well
    transformers = pytest.importorskip("transformers")
    config = small(
        "ast", frames=frames, time_stride=stride[0], freq_stride=stride[1], norm_eps=1e-12, head_norm_eps=1e-12
    )
    theirs = transformers.ASTForAudioClassification(transformers.ASTConfig(**config_json(config))).eval()
    theirs.load_state_dict(to_huggingface(random_state(config, seed=0), layout="v5").state)
    mel = clips(config)
    torch.testing.assert_close(loaded(config).logits(mel), theirs(mel).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stride", [16, 12])
def test_pruned_model_is_the_clip_by_clip_numpy_model(family, stride):
    config = small(family, time_stride=stride)
    state = {key: value.double().numpy() for key, value in random_state(config, seed=0).items()}
    mel = clips(config)
    ours = loaded(config).double()(mel.double(), KEEP)
    for clip, spectrogram in enumerate(mel.double().numpy()):
        logits, scores, ids = one_clip(config, state, spectrogram)
        assert np.abs(ours.logits[clip].numpy() - logits).max() < 1e-10
        for block in range(config.depth):
            assert np.abs(ours.scores[block][clip].numpy() - scores[block]).max() < 1e-12
            assert ours.patch_ids[block][clip].tolist() == ids[block]


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_near_float64(family):
    config = small(family)
    model, mel = loaded(config), clips(config)
    single = model(mel, KEEP)
    double = model.double()(mel.double(), forced=dict(enumerate(single.patch_ids)))
    assert (single.logits - double.logits).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_rate_one_changes_nothing(family):
    config = small(family)
    model, mel = loaded(config), clips(config)
    plain, whole = model(mel), model(mel, dict.fromkeys(range(config.depth), 1.0))
    assert torch.equal(plain.logits, whole.logits)
    assert all(torch.equal(ids, torch.arange(64).expand(2, -1)) for ids in whole.patch_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rate_just_under_one_reorders_all_patches(family):
    config = small(family)
    model, mel = loaded(config), clips(config)
    reordered = model(mel, {3: 0.999})
    assert torch.equal(reordered.patch_ids[3], model(mel).scores[3].argsort(dim=1, descending=True))
    assert (reordered.logits - model(mel).logits).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_patches_are_unique_nested_and_the_best(family):
    config = small(family)
    result = loaded(config)(clips(config), KEEP)
    before = torch.arange(64).expand(2, -1)
    for block, (scores, after) in enumerate(zip(result.scores, result.patch_ids, strict=True)):
        assert result.blocks[block].shape == (2, config.extra_tokens + after.shape[1], config.width)
        assert scores.shape == before.shape
        for clip in range(2):
            score_of = dict(zip(before[clip].tolist(), scores[clip].tolist(), strict=True))
            kept = after[clip].tolist()
            assert len(set(kept)) == len(kept)
            if block in KEEP:
                assert kept == sorted(score_of, key=score_of.get, reverse=True)[: len(kept)]
            else:
                assert kept == before[clip].tolist()
        before = after


@pytest.mark.parametrize("family", FAMILIES)
def test_forcing_the_free_choice_reproduces_it(family):
    config = small(family)
    model, mel = loaded(config), clips(config)
    free = model(mel, KEEP)
    forced = model(mel, forced={block: free.patch_ids[block] for block in KEEP})
    assert torch.equal(forced.logits, free.logits)
    shuffled = model(mel, forced={block: free.patch_ids[block].flip(1) for block in KEEP})
    assert torch.equal(shuffled.patch_ids[9], free.patch_ids[9].flip(1))
    assert (shuffled.logits - free.logits).abs().max() < 1e-5  # the order of patches means nothing after the positions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [{}, KEEP, {0: 0.5, 11: 0.1}])
def test_the_light_pass_gives_the_same_logits(family, keep):
    config = small(family)
    model, mel = loaded(config), clips(config)
    assert torch.equal(model.logits(mel, keep), model(mel, keep).logits)


@pytest.mark.parametrize(
    ("patches", "rates", "counts"),
    [
        (512, 0.9, (461, 415, 374)),
        (512, 0.7, (359, 252, 177)),
        (512, 0.5, (256, 128, 64)),
        (512, (0.83, 0.61, 0.47), (425, 260, 123)),
        (256, 0.9, (231, 208, 188)),
        (256, 0.7, (180, 126, 89)),
        (256, (0.83, 0.61, 0.47), (213, 130, 62)),
        (64, 0.9, (58, 53, 48)),
        (64, 0.7, (45, 32, 23)),
        (64, (0.83, 0.61, 0.47), (54, 33, 16)),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_the_published_ones(family, patches, rates, counts):
    rates = rates if isinstance(rates, tuple) else (rates,) * 3
    config = small(family, frames=patches * 2)
    result = loaded(config)(clips(config, b=1), dict(zip((3, 6, 9), rates, strict=True)))
    assert tuple(result.patch_ids[block].shape[1] for block in (3, 6, 9)) == counts


@pytest.mark.parametrize(("rate", "kept"), [(0.55, 56), (0.07, 8), (0.3, 30)])
def test_counts_are_rounded_up_in_float64(rate, kept):
    assert keep_count(rate, 100) == kept  # float32 would give 55, 7 and 31


@pytest.mark.parametrize("family", FAMILIES)
def test_patch_pixels_are_in_patch_order_and_can_rank(family):
    config = small(family, time_stride=12)
    model, mel = loaded(config), clips(config)
    pixels = model.patch_pixels(mel)
    for patch in (0, 1, config.patches // 2, config.patches - 1):
        t, f = corner(config, patch)
        expected = mel[:, t : t + 16, f : f + 16].flatten(1).sort().values
        assert torch.equal(pixels[:, patch].sort().values, expected)
    deviation = pixels.std(dim=-1)
    ranked = model(mel, {3: 0.5}, score=given(deviation)).patch_ids[3]
    assert torch.equal(ranked, deviation.argsort(dim=1, descending=True)[:, : ranked.shape[1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": {3: 0.0}}, "keep rate 0.0"),
        ({"keep": {3: 1.2}}, "keep rate 1.2"),
        ({"keep": {12: 0.5}}, "block 12"),
        ({"keep": {-1: 0.5}}, "block -1"),
        ({"forced": {3: torch.tensor([[0, 0], [1, 2]])}}, "twice"),
        ({"forced": {3: torch.tensor([[0, 64], [1, 2]])}}, "patch 64"),
        ({"forced": {3: torch.tensor([0, 1])}}, "shape"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    config = small("ast")
    with pytest.raises(ValueError, match=message):
        loaded(config)(clips(config), **arguments)


def test_a_spectrogram_of_another_size_is_refused():
    with pytest.raises(ValueError, match="256"):
        build(small("audiomae"))(torch.zeros(1, 256, 128))


def corner(config: ModelConfig, patch: int) -> tuple[int, int]:
    """First frame and bin of a patch: frequency-major in AST, time-major in AudioMAE."""
    times, freqs = config.grid
    i, j = {"ast": (patch % times, patch // times), "audiomae": (patch // freqs, patch % freqs)}[config.family]
    return i * config.time_stride, j * config.freq_stride


def one_clip(config: ModelConfig, state: dict[str, np.ndarray], mel: np.ndarray):
    """The reference's sections 1 and 2 spelled out for one clip in numpy: logits, scores and kept ids per block."""
    ast = config.family == "ast"
    trunk = "v." if ast else ""
    p = config.extra_tokens

    def norm(x, name, eps):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    kernel = state[f"{trunk}patch_embed.proj.weight"][:, 0]
    rows = [state["v.cls_token"][0, 0], state["v.dist_token"][0, 0]] if ast else [state["cls_token"][0, 0]]
    for patch in range(config.patches):
        t, f = corner(config, patch)
        pixels = mel[t : t + 16, f : f + 16]
        pixels = pixels.T if ast else pixels  # AST's kernel is (frequency, time)
        rows.append((kernel * pixels).sum((1, 2)) + state[f"{trunk}patch_embed.proj.bias"])
    x = np.stack(rows) + state[f"{trunk}pos_embed"][0]

    ids, scores, kept = list(range(config.patches)), [], []
    c = config.width // config.heads
    for block in range(config.depth):
        name = f"{trunk}blocks.{block}."
        q, k, v = np.split(linear(norm(x, name + "norm1", config.norm_eps), name + "attn.qkv"), 3, axis=-1)
        heads = [slice(h * c, (h + 1) * c) for h in range(config.heads)]
        attention = np.stack([softmax(q[:, h] @ k[:, h].T / math.sqrt(c), axis=-1) for h in heads])
        mixed = np.concatenate([a @ v[:, h] for a, h in zip(attention, heads, strict=True)], axis=-1)
        x = x + linear(mixed, name + "attn.proj")
        score = attention[:, 0, p:].mean(0) if ast else attention[:, p:, p:].mean((0, 1))
        scores.append(score)
        if block in KEEP:
            best = sorted(range(len(ids)), key=lambda i, score=score: -score[i])[: math.ceil(KEEP[block] * len(ids))]
            ids = [ids[i] for i in best]
            x = np.stack([*x[:p], *(x[p + i] for i in best)])
        kept.append(ids)
        hidden = linear(norm(x, name + "norm2", config.norm_eps), name + "mlp.fc1")
        x = x + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, name + "mlp.fc2")

    if ast:
        pooled = norm(x, "v.norm", config.norm_eps)[:2].mean(0)
        return linear(norm(pooled, "mlp_head.0", config.head_norm_eps), "mlp_head.1"), scores, kept
    return linear(norm(x[1:].mean(0), "fc_norm", config.head_norm_eps), "head"), scores, kept
