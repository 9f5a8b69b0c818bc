"""Times pruned forward passes on this device by interleaved calls."""

import statistics
import time
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import jax

from jaxprune.evaluation.evaluate import keep_policies
from jaxprune.models import Classifier, jit_forward
from jaxprune.reduction.policy import Policy

Name = TypeVar("Name", bound=Hashable)


def milliseconds(
    model: Classifier, keep_rates: Iterable[float], *, batch: int = 64, rounds: int = 15, seed: int = 0
) -> dict[float, float]:
    """Milliseconds per clip at each keep rate: the median of `interleaved` calls.

    Raises `ValueError` as `interleaved` and `keep_policies` do.
    """
    spent = interleaved(model, keep_policies(model, keep_rates), batch=batch, rounds=rounds, seed=seed)
    return {rate: 1e3 * statistics.median(seconds) / batch for rate, seconds in spent.items()}


def interleaved(
    model: Classifier, policies: Mapping[Name, Policy], *, batch: int, rounds: int, seed: int = 0
) -> dict[Name, list[float]]:
    """Seconds of `rounds` calls with `batch` clips under each policy, after compiling.

    The policies take turns. So other load on the machine meets all of them. The clips are noise, because time does not
    depend on their content. Raises `ValueError` for a batch or rounds below 1.
    """
    if batch < 1 or rounds < 1:
        raise ValueError(f"batch is {batch} and rounds {rounds}; they must be at least 1")
    forward = jit_forward(model, lambda output: output.logits)
    mel = jax.random.normal(jax.random.key(seed), (batch, model.config.frames, model.config.mels))
    for policy in policies.values():
        forward(mel, policy).block_until_ready()
    spent: dict[Name, list[float]] = {name: [] for name in policies}
    for _ in range(rounds):
        for name, policy in policies.items():
            began = time.perf_counter()
            forward(mel, policy).block_until_ready()
            spent[name].append(time.perf_counter() - began)
    return spent
