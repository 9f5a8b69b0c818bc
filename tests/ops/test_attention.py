import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from jaxprune.ops import attention
from jaxprune.ops import attention_chunked as attention_parts
from jaxprune.ops import attention_cudnn as attention_fused
from jaxprune.ops.xla_cpu import stored

B, S, H, C = 2, 9, 6, 4
QKV = jnp.asarray(np.random.default_rng(0).standard_normal((B, S, 3, H, C)), jnp.float32)
MASK = jnp.asarray([[True] * 6 + [False] * 3, [True, False] * 4 + [True]])
WAYS = {
    "whole": {},
    "by heads": {"WHOLE_BYTES": 0, "HEADS_BYTES": 2 * 4 * B * S * S},  # two heads at a time
    "one head": {"WHOLE_BYTES": 0, "HEADS_BYTES": 0},
}


@pytest.fixture(params=[*WAYS, "by queries", "fused"])
def attend(request, monkeypatch):
    """`attend` made to take each of its ways, on a small input."""
    for name, value in WAYS.get(request.param, {"WHOLE_BYTES": 0, "QUERIES": 4}).items():
        monkeypatch.setattr(attention_parts, name, value)
    if request.param == "by queries":  # what an accelerator takes
        monkeypatch.setattr(attention_parts, "by_heads", attention_parts.by_queries)
        monkeypatch.setattr(attention_parts, "gradient_by_heads", attention_parts.gradient_by_queries)
    if request.param == "fused":  # what a GPU takes, with another library
        monkeypatch.setattr(attention_fused, "QUERIES", 4)
        monkeypatch.setattr(attention_fused, "suits", lambda *_, **__: True)
        monkeypatch.setattr(attention_fused, "LIBRARY", "xla")
    return attend_qkv


def attend_qkv(qkv, *, queries, mask):
    """`attend` for projected tokens."""
    s, _, h, c = qkv.shape[1:]
    tokens = rearrange(qkv, "b s three h c -> b s (three h c)")

    def project(tokens, roles):
        return rearrange(tokens, "b s (three h c) -> b s three h c", h=h, c=c)[:, :, roles]

    mixed, received = attention.attend(tokens, project, queries=queries, mask=mask)
    return mixed[:, :s], received


def attend_one_by_one(queries, mask):
    """Float64, a loop a query, dropped tokens really dropped."""
    q, k, v = rearrange(np.asarray(QKV, np.float64), "b s three h c -> three b s h c")
    out, received = np.full((B, S, H, C), np.nan), np.zeros((B, S))
    for b in range(B):
        there = np.flatnonzero(mask[b])
        asked = [i for i in range(S)[queries] if i in there]
        for h in range(H):
            for i in there:
                weight = np.exp(k[b, there, h] @ q[b, i, h] / np.sqrt(C))
                weight /= weight.sum()
                out[b, i, h] = weight @ v[b, there, h]
                if i in asked:
                    received[b, there] += weight / (H * len(asked))
    return out, received


def attend_whole(qkv, queries, mask):
    """All weights at once, for automatic differentiation."""
    q, k, v = rearrange(qkv, "b s three h c -> three b h s c")
    logits = jnp.where(mask[:, None, None], jnp.einsum("bhqc,bhkc->bhqk", q, k) / C**0.5, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    asked = jnp.zeros((B, S)).at[:, queries].set(1) * mask
    received = jnp.einsum("bhqk,bq->bk", weights, asked / asked.sum(axis=1, keepdims=True)) / H
    return jnp.einsum("bhqk,bhkc->bqhc", weights, v), received


@pytest.mark.parametrize("queries", [slice(0, 1), slice(1, None), slice(2, None)])
@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_and_what_each_token_received_equal_a_loop_over_real_tokens(attend, queries, mask):
    there = np.ones((B, S), bool) if mask is None else np.asarray(mask)
    expected, expected_received = attend_one_by_one(queries, there)
    out, received = attend(QKV, queries=queries, mask=mask)
    real = np.broadcast_to(there[:, :, None, None], expected.shape)
    np.testing.assert_allclose(np.asarray(out)[real], expected[real], atol=1e-6)
    np.testing.assert_allclose(received, expected_received, atol=1e-7)


@pytest.mark.parametrize("reads", ["mixed", "received", "both"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_gradients_equal_automatic_ones_of_all_weights_at_once(attend, mask, reads):
    """The cotangent of a result that nobody reads never becomes an array."""
    there = jnp.ones((B, S), bool) if mask is None else mask
    keys = jax.random.split(jax.random.key(1))
    wanted = (
        jax.random.normal(keys[0], (B, S, H, C)) * there[:, :, None, None],
        jax.random.normal(keys[1], (B, S)),
    )

    def loss(qkv, results):
        products = [(a * b).sum() for a, b in zip(results(qkv), wanted, strict=True)]
        return {"mixed": products[0], "received": products[1], "both": sum(products)}[reads]

    queries = slice(1, None)
    found = jax.jit(jax.grad(lambda qkv: loss(qkv, lambda x: attend(x, queries=queries, mask=mask))))(QKV)
    expected = jax.jit(jax.grad(lambda qkv: loss(qkv, lambda x: attend_whole(x, queries, there))))(QKV)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_nothing_of_a_masked_token_reaches_the_others(attend):
    louder = jnp.where(MASK[:, :, None, None, None], QKV, 1e4 * QKV)
    quiet_out, quiet = attend(QKV, queries=slice(1, None), mask=MASK)
    loud_out, loud = attend(louder, queries=slice(1, None), mask=MASK)
    assert (quiet == loud).all()
    assert (jnp.where(MASK[:, :, None, None], quiet_out == loud_out, True)).all()


def test_large_logits_do_not_overflow(attend):
    large = QKV * jnp.reshape(jnp.asarray([100.0, 100.0, 1.0]), (1, 1, 3, 1, 1))
    out, received = attend(large, queries=slice(0, 1), mask=None)
    assert jnp.isfinite(out).all()
    np.testing.assert_allclose(received.sum(axis=1), 1, atol=1e-5)


def test_bfloat16_tokens_still_get_float32_scores(attend):
    out, received = attend(QKV.astype(jnp.bfloat16), queries=slice(1, None), mask=None)
    assert out.dtype == jnp.bfloat16
    assert received.dtype == jnp.float32
    expected, expected_received = attend_one_by_one(slice(1, None), np.ones((B, S), bool))
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=3e-2)
    np.testing.assert_allclose(received, expected_received, atol=3e-3)


@pytest.mark.compiled
@pytest.mark.parametrize("by", ["forward", "gradient"])
def test_no_array_holds_the_weights_of_all_heads(by):
    """At T = 1024, batch 1, where the heads together exceed the limit by least."""
    s, h, c = 513, 12, 64

    def mixed(qkv):
        return attend_qkv(qkv, queries=slice(1, None), mask=None)

    work = mixed if by == "forward" else jax.grad(lambda qkv: mixed(qkv)[0].sum())
    program = jax.jit(work).lower(jax.ShapeDtypeStruct((1, s, 3, h, c), jnp.float32)).compile()
    assert f"{h},{s},{s}" not in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < 4 * h * s * s


@pytest.mark.compiled
def test_what_nobody_reads_of_the_received_attention_is_not_computed():
    shape = jax.ShapeDtypeStruct((1, 513, 3, 12, 64), jnp.float32)

    def flops(pick):
        def work(qkv):
            return pick(attend_qkv(qkv, queries=slice(1, None), mask=None))

        return jax.jit(work).lower(shape).compile().cost_analysis()["flops"]

    assert flops(lambda results: results) - flops(lambda results: results[0]) >= 2 * 2 * 513 * 513  # one loop body


@pytest.mark.compiled
def test_blocks_share_the_memory_that_their_loops_write_to():
    """Zeros to write to would be made for all of them when the program starts."""
    b, s, h, c = 8, 513, 4, 32

    def held(blocks: int) -> int:
        def work(x, w):
            for _ in range(blocks):
                mixed, _ = attend_qkv((x @ w).reshape(b, s, 3, h, c), queries=slice(1, None), mask=None)
                x = stored(x + mixed.reshape(x.shape))
            return x

        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(b * s, h * c), (h * c, 3 * h * c)])
        return jax.jit(work).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert held(6) - held(3) < 4 * b * s * h * c  # one array of mixed values
