"""What a keep rate is worth in time, on the device at hand: interleaved calls of the compiled forward pass."""

import statistics
import time
from collections.abc import Iterable

import jax
from jaxtyping import Float

from jaxprune.evaluate import keep_policies
from jaxprune.models import Classifier, compiled


def milliseconds(
    model: Classifier, keep_rates: Iterable[float], *, batch: int = 64, rounds: int = 15, seed: int = 0
) -> dict[float, float]:
    """Time a clip takes at each keep rate: the median of `rounds` calls with `batch` clips, after compiling.

    The rates take turns, so that whatever else the machine does meets all of them. Clips are noise: time does not
    depend on what they hold. Raises `ValueError` as `keep_policies` does.
    """
    policies = keep_policies(model, keep_rates)
    forward = compiled(model, lambda output: output.logits)
    shape = (batch, model.config.frames, model.config.mels)
    mel: Float[jax.Array, "b t f"] = jax.random.normal(jax.random.key(seed), shape)
    for policy in policies.values():
        forward(mel, policy).block_until_ready()
    spent: dict[float, list[float]] = {rate: [] for rate in policies}
    for _ in range(rounds):
        for rate, policy in policies.items():
            began = time.perf_counter()
            forward(mel, policy).block_until_ready()
            spent[rate].append(time.perf_counter() - began)
    return {rate: 1e3 * statistics.median(seconds) / batch for rate, seconds in spent.items()}
