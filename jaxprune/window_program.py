"""The one program that classifies windows of sound: features, model and probabilities, compiled for one batch size.

`jaxprune.inference` runs it on files and clips.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from jaxprune.config import Card
from jaxprune.features import WINDOW, model_input, sample_count
from jaxprune.models import Classifier, for_inference
from jaxprune.reduction.policy import Policy

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}  # of logits, by the card's name


@struct.dataclass
class WindowOutput:
    """A batch's results on the device: the model's input, probabilities, and the kept patches by pruning block.

    A token made from several patches has -1 in `kept`; `groups` has its patches. `finite` marks the rows whose logits
    are finite numbers.
    """

    mel: Float[Array, "b t f"]
    probabilities: Float[Array, "b y"]
    finite: Bool[Array, "b"]
    kept: dict[int, Int[Array, "b _"]]
    groups: dict[int, Int[Array, "b n"]]


def compile_windows(
    model: Classifier, policy: Policy, *, blocks: Sequence[int], card: Card, batch: int
) -> Callable[..., WindowOutput]:
    """The one program, `(waveforms, lengths) -> WindowOutput` for batches of this size, ready to run."""
    graph, state = nnx.split(for_inference(model))
    activation = ACTIVATIONS[card.activation]
    frames = model.config.frames

    def run(state: Any, waveforms: Float[Array, "b samples"], lengths: Int[Array, "b"]) -> WindowOutput:
        mel = model_input(
            waveforms,
            lengths,
            frames=frames,
            mean=card.mean,
            std=card.std,
            padding=card.padding,
            mels=model.config.mels,
        )
        output = nnx.merge(graph, state)(mel, policy)
        traces = {block: output.trace[block] for block in blocks}
        kept = {block: trace.patch_ids for block, trace in traces.items()}
        groups = {block: trace.groups for block, trace in traces.items() if trace.held is not None}
        finite = jnp.isfinite(output.logits).all(axis=1)
        return WindowOutput(mel, activation(output.logits), finite, kept, groups)

    waveforms = jax.ShapeDtypeStruct((batch, sample_count(frames)), jnp.float32)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
    program = jax.jit(run).lower(state, waveforms, lengths).compile()
    return lambda waveforms, lengths: program(state, waveforms, lengths)


def on_device(
    waveforms: Sequence[Float[np.ndarray, "..."]], *, batch: int, samples: int
) -> tuple[Float[Array, "b samples"], Int[Array, "b"]]:
    """Waveforms and their lengths on the device, filled up with silence to `batch` rows of `samples`."""
    rows, lengths = np.zeros((batch, samples), np.float32), np.full(batch, WINDOW, np.int32)
    for i, waveform in enumerate(waveforms):
        rows[i, : len(waveform)] = waveform
        lengths[i] = len(waveform)
    return jax.block_until_ready((jax.device_put(rows), jax.device_put(lengths)))
