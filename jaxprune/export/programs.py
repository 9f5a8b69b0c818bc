"""The program in an exported file: its inputs, its outputs, and the function between them.

From log-mel a program is the model with a policy fixed. From the waveform the features and the card's padding rule come
first. They are products with constant matrices, so the file needs nothing beside it. Both give out the logits and the
patches kept at every block that prunes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxprune.config import Card
from jaxprune.export.functions import FUNCTIONS, attend
from jaxprune.export.graph import Graph
from jaxprune.export.lowering import Lowering, Value, trace
from jaxprune.export.primitives import RULES
from jaxprune.features import model_input, sample_count
from jaxprune.models import Classifier, Output
from jaxprune.reduction.policy import Policy

Sound = Literal["mel", "waveform"]


@dataclasses.dataclass(frozen=True)
class Port:
    """An input: its name, its dtype and its shape behind the batch."""

    name: str
    dtype: Any
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of the batch's arrays, with the names of its inputs and outputs.

    `batch` is the number of clips in a call, None where it is free. Outputs are `logits` `(b, y)` float32, then
    `kept_I` `(b, k)` for each pruning block I: the original positions of the patches that go on, best first, -1 where
    a stage left a place empty or made a token from several.
    """

    call: Callable[..., tuple[Array, ...]]
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    batch: int | None

    def specs(self, batch: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The inputs' shapes for so many clips."""
        return tuple(jax.ShapeDtypeStruct((batch, *port.shape), port.dtype) for port in self.inputs)

    def size(self) -> Any:
        """The batch as JAX traces it: a number, or the symbol of a free one."""
        return jax.export.symbolic_shape("batch")[0] if self.batch is None else self.batch


def program(model: Classifier, policy: Policy, *, card: Card, sound: Sound, batch: int | None) -> Program:
    """The program of a model. `sound` says what it reads, `batch` how many clips at once, None for any number.

    Raises `ValueError` for a batch below 1 and a policy that the model cannot follow.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1, or free")
    blocks = pruning_blocks(policy)
    graph, state = nnx.split(model)
    inputs, prepare = {"mel": _from_mel, "waveform": _from_waveform}[sound](card)

    def call(*arrays: Array) -> tuple[Array, ...]:
        output = nnx.merge(graph, state)(prepare(*arrays), policy)
        return output.logits, *kept(output, blocks).values()

    made = Program(call, inputs, ("logits", *(f"kept_{block}" for block in blocks)), batch)
    jax.eval_shape(call, *made.specs(1))  # refuses a policy for blocks that the model does not have
    return made


def pruning_blocks(policy: Policy) -> tuple[int, ...]:
    """The blocks whose stage may drop a patch."""
    return tuple(block for block, stage in sorted(policy.stages.items()) if not stage.idle)


def kept(output: Output, blocks: tuple[int, ...]) -> dict[int, Array]:
    """The patches that each of the blocks kept, -1 where a place is empty or holds several."""
    traces = {block: output.trace[block] for block in blocks}
    return {block: jnp.where(trace.alive, trace.patch_ids, -1) for block, trace in traces.items()}


def _from_mel(card: Card) -> tuple[tuple[Port, ...], Callable[..., Array]]:
    """The normalised log-mel, as `jaxprune.model_input` makes it."""
    return (Port("mel", np.float32, (card.model.frames, card.model.mels)),), lambda mel: mel


def _from_waveform(card: Card) -> tuple[tuple[Port, ...], Callable[..., Array]]:
    """16 kHz samples of the model's length, zeros after a shorter clip, and the samples that are sound."""
    ports = (Port("waveform", np.float32, (sample_count(card.model.frames),)), Port("length", np.int32, ()))
    return ports, features_of(card)


def features_of(card: Card) -> Callable[[Any, Any], Array]:
    """`jaxprune.model_input` of waveforms and lengths, by the card's features and padding."""
    facts = {"mean": card.mean, "std": card.std, "padding": card.padding}
    return functools.partial(model_input, frames=card.model.frames, mels=card.model.mels, **facts)


def to_onnx(made: Program, metadata: dict[str, str]) -> Any:
    """The program as an ONNX model. Raises `NotExportable` for what ONNX cannot compute."""
    graph, batch = Graph(), made.size()
    specs = made.specs(batch)
    named = "batch" if made.batch is None else made.batch
    arguments = [
        Value(graph.input(port.name, port.dtype, shape=(named, *port.shape)), spec.shape)
        for port, spec in zip(made.inputs, specs, strict=True)
    ]
    closed = trace(made.call, *specs)
    to = Lowering(graph, rules=RULES, functions=FUNCTIONS, batch=(batch, arguments[0].name))
    found = to.run(closed, arguments)
    for name, value, aval in zip(made.outputs, found, closed.out_avals, strict=True):
        shape = tuple(size if isinstance(size, int) else "batch" for size in aval.shape)
        graph.output(name, to.name(to.whole(value, aval.shape)), dtype=aval.dtype, shape=shape)
    return graph.model(metadata)


def for_runtimes(model: Classifier) -> Classifier:
    """A copy whose attention is written in the form that runtimes recognise. It shares the weights."""
    copy = nnx.merge(*nnx.split(model))
    for block in copy.encoder.blocks:
        block.attention.attend = attend
    return copy
