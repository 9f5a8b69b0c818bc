import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import random_mel, small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.checkpoint import dotted, leaves
from jaxprune.training.optim import Group, group, map_named, optimizer, tree_name
from jaxprune.training.settings import AdamL2, AdamW

DEPTH = 2
SMALL = {"depth": DEPTH, "width": 24, "frames": 32, "mels": 32, "classes": 5}

# Layer and whether decayed, by hand: embeddings 0, blocks 1 and 2, the rest 3.
BLOCK = {
    "norm1.scale": False, "norm1.bias": False, "attention.qkv.kernel": True, "attention.qkv.bias": False,
    "attention.out.kernel": True, "attention.out.bias": False, "norm2.scale": False, "norm2.bias": False,
    "mlp.fc1.kernel": True, "mlp.fc1.bias": False, "mlp.fc2.kernel": True, "mlp.fc2.bias": False,
}  # fmt: skip
AUDIOMAE_GROUPS = {
    "extra_tokens": Group(0, False),
    "patch_embed.kernel": Group(0, True),
    "patch_embed.bias": Group(0, False),
    **{f"encoder.blocks.0.{name}": Group(1, decayed) for name, decayed in BLOCK.items()},
    **{f"encoder.blocks.1.{name}": Group(2, decayed) for name, decayed in BLOCK.items()},
    "head_norm.scale": Group(3, False),
    "head_norm.bias": Group(3, False),
    "head.kernel": Group(3, True),
    "head.bias": Group(3, False),
}
AST_GROUPS = AUDIOMAE_GROUPS | {
    "positions": Group(0, False),
    "norm.scale": Group(3, False),
    "norm.bias": Group(3, False),
}
GROUPS = {"audiomae": AUDIOMAE_GROUPS, "ast": AST_GROUPS}


def model_of(family):
    return jaxprune.build(small(family, **SMALL))


def trained(model):
    """The trained parameters by dotted name."""
    return {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


@pytest.mark.parametrize("family", GROUPS)
def test_groups_are_those_of_the_table(family):
    found = {name: group(name, ndim=leaf.ndim, depth=DEPTH) for name, leaf in trained(model_of(family)).items()}
    assert found == GROUPS[family]


@pytest.mark.parametrize("family", GROUPS)
def test_every_tree_of_parameters_has_the_names_of_a_checkpoint(family):
    model = model_of(family)
    state = nnx.state(model, nnx.Param)
    for tree in (state, nnx.to_pure_dict(state), nnx.as_pure(state)):
        names = {tree_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}
        assert names == set(GROUPS[family]) <= set(leaves(model))


def test_layers_scale_the_first_update():
    """Adam's first update is the learning rate times the gradient's sign, wherever the gradient is not tiny."""
    model = model_of("audiomae")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    steps = optimizer(AdamW(weight_decay=0.0), 0.1, depth=DEPTH)
    updates, _ = jax.jit(steps.update)(jax.tree.map(jnp.ones_like, params), steps.init(params), params)
    named = {}
    map_named(lambda name, leaf: named.update({name: leaf}), updates)
    for name, of in AUDIOMAE_GROUPS.items():
        np.testing.assert_allclose(named[name], -0.1 * 0.75 ** (3 - of.layer), rtol=1e-6, err_msg=name)


def test_only_weights_decay_and_by_their_layers_rate():
    model = model_of("audiomae")
    params = jax.tree.map(jnp.ones_like, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    steps = optimizer(AdamW(weight_decay=0.5), 0.1, depth=DEPTH)
    updates, _ = jax.jit(steps.update)(jax.tree.map(jnp.zeros_like, params), steps.init(params), params)
    named = {}
    map_named(lambda name, leaf: named.update({name: leaf}), updates)
    for name, of in AUDIOMAE_GROUPS.items():
        expected = -0.1 * 0.5 * 0.75 ** (3 - of.layer) if of.decayed else 0.0
        np.testing.assert_allclose(named[name], expected, rtol=1e-6, err_msg=name)


def torch_layer(name):
    """The reference's layer ids, by official names."""
    name = name.removeprefix("v.")
    if name in ("cls_token", "dist_token", "pos_embed") or name.startswith("patch_embed."):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else DEPTH + 1


def torch_optimizer(family, net, *, lr):
    import torch

    trained = {name: value for name, value in net.named_parameters() if value.requires_grad}
    if family == "ast":
        return torch.optim.Adam(trained.values(), lr=lr, betas=(0.95, 0.999), weight_decay=0.05)
    plain = [
        {
            "params": [value],
            "lr": lr * 0.75 ** (DEPTH + 1 - torch_layer(name)),
            "weight_decay": 0.0 if value.ndim == 1 or name == "cls_token" else 0.05,
        }
        for name, value in trained.items()
    ]
    return torch.optim.AdamW(plain, betas=(0.9, 0.95))


@pytest.mark.parametrize(
    ("family", "settings"), [("audiomae", AdamW(weight_decay=0.05)), ("ast", AdamL2(weight_decay=0.05))]
)
def test_ten_steps_equal_pytorch(family, settings):
    """On PyTorch's gradients, because Adam divides rounding noise by itself where a gradient is zero (the key's bias).
    The decay is far above the recipes', so that it shows."""
    torch = pytest.importorskip("torch")
    from jaxprune.convert.mapping import pairs, to_flax, to_torch
    from jaxprune.convert.torch_reference import build

    config = small(family, **SMALL)
    net, rng = build(config), np.random.default_rng(0)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.from_numpy(0.3 * rng.standard_normal(tuple(value.shape)).astype(np.float32)))
    state = {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}
    model = to_flax(state, config)
    start = to_torch(model)
    theirs = torch_optimizer(family, net, lr=3e-3)
    ours = optimizer(settings, 3e-3, depth=DEPTH)
    params = {name: leaves(model)[name][...] for name in trained(model)}
    moments, update = ours.init(params), jax.jit(ours.update)
    labels = torch.eye(5)[torch.arange(4) % 5]
    for step in range(10):
        mel = random_mel(config, clips=4, seed=step)
        loss = torch.nn.functional.cross_entropy(net.logits(torch.from_numpy(mel)), labels)
        theirs.zero_grad()
        loss.backward()
        gradients = {
            name: value.grad.numpy() if value.grad is not None else np.zeros(tuple(value.shape), np.float32)
            for name, value in net.named_parameters()
        }
        theirs.step()
        named = {p.leaf: p.to_flax(*(gradients[key] for key in p.official)) for p in pairs(config) if p.leaf in params}
        updates, moments = update(named, moments, params)
        params = optax.apply_updates(params, updates)
    for name, value in params.items():
        leaves(model)[name][...] = value
    final = to_torch(model)
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(final[name], value.numpy(), atol=1e-6, err_msg=name)
        moved = np.abs(final[name] - start[name]).max()
        assert moved > 1e-3 or (family == "audiomae" and name == "pos_embed" and moved == 0), name


def test_clipping_bounds_the_gradients_norm():
    """Adam hides a scale, so the second moment is looked at: g = 3 on 8 numbers has norm 8.49, clipped to 1."""
    params = {"head": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    made = optimizer(AdamW(clip=1.0), 0.1, depth=DEPTH)
    _, state = made.update(jax.tree.map(lambda x: jnp.full_like(x, 3.0), params), made.init(params), params)
    second = optax.tree_utils.tree_get(state, "nu")
    np.testing.assert_allclose(sum(leaf.sum() for leaf in jax.tree.leaves(second)), 0.05 * 1.0, rtol=1e-5)


def test_it_runs_inside_a_jitted_step_of_a_model():
    model = jaxprune.build(small("audiomae", **SMALL | {"depth": 1}))
    steps = nnx.Optimizer(model, optimizer(AdamW(clip=1.0), 1e-2, depth=1), wrt=nnx.Param)
    mel, labels = jnp.asarray(random_mel(model.config, clips=4)), jnp.eye(5)[:4]

    @nnx.jit
    def step(model, steps):
        def loss(model):
            return optax.softmax_cross_entropy(model(mel).logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        steps.update(model, gradients)
        return value

    table = np.asarray(model.positions[...])
    losses = [float(step(model, steps)) for _ in range(4)]
    assert losses[-1] < losses[0] - 0.05
    assert (np.asarray(model.positions[...]) == table).all()
