"""An ONNX graph under construction: nodes, constants, inputs and outputs by name.

It knows ONNX and nothing of JAX. Whole numbers are int64 and real ones float32 throughout, as ONNX's own operators
prefer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OPSET = 20  # the first with Gelu; ONNX Runtime 1.17 and OpenVINO 2024 run it
IR_VERSION = 9  # of opset 20's time: older runtimes refuse newer files
PRODUCER = "jaxprune"
SMALL = 4096  # bytes; equal constants up to this size are kept once
LARGEST = 2**31 - 2**20  # bytes; a protocol buffer holds no more


class Graph:
    """Nodes in the order in which they were added, which is one in which they can run."""

    def __init__(self):
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._known: dict[tuple, str] = {}
        self._inputs: list[tuple[str, np.dtype, tuple]] = []
        self._outputs: list[tuple[str, np.dtype, tuple]] = []
        self._counts: Counter[str] = Counter()

    def input(self, name: str, dtype: Any, *, shape: Sequence[int | str]) -> str:
        """A new input. A dimension that is text is free."""
        self._inputs.append((name, stored_dtype(dtype), tuple(shape)))
        return name

    def output(self, name: str, tensor: str, *, dtype: Any, shape: Sequence[int | str]) -> None:
        """Gives a tensor out under a name."""
        self.nodes("Identity", [tensor], names=[name])
        self._outputs.append((name, stored_dtype(dtype), tuple(shape)))

    def constant(self, value: Any) -> str:
        """The name of a constant. Small equal ones share it."""
        array = np.asarray(value)
        array = np.ascontiguousarray(array, stored_dtype(array.dtype)).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= SMALL else None
        if key in self._known:
            return self._known[key]
        name = self._fresh("constant")
        self._constants[name] = array
        if key is not None:
            self._known[key] = name
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output and returns the output's name."""
        return self.nodes(kind, inputs, names=[self._fresh(kind)], **attributes)[0]

    def nodes(self, kind: str, inputs: Sequence[str], *, names: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Adds a node whose outputs get these names, and returns them."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, list(inputs), list(names), name=self._fresh(kind), **attributes))
        return names

    def names(self, kind: str, count: int) -> list[str]:
        """Makes so many fresh names of tensors."""
        return [self._fresh(kind) for _ in range(count)]

    def source(self, tensor: str) -> Any:
        """The node that makes a tensor, None for inputs and constants."""
        return next((node for node in reversed(self._nodes) if tensor in node.output), None)

    def model(self, metadata: Mapping[str, str]) -> Any:
        """The finished model, without the nodes and constants that no output needs. Raises `ValueError` over 2 GB."""
        import onnx
        from onnx import helper, numpy_helper

        nodes = self._living()
        read = {name for node in nodes for name in node.input}
        constants = {name: array for name, array in self._constants.items() if name in read}
        if (size := sum(array.nbytes for array in constants.values())) > LARGEST:
            raise ValueError(f"the weights take {size:,} bytes; an ONNX file holds less than {LARGEST:,}")
        graph = helper.make_graph(
            nodes,
            PRODUCER,
            [_value_info(*port) for port in self._inputs],
            [_value_info(*port) for port in self._outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(
            graph,
            producer_name=PRODUCER,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
        return model

    def _living(self) -> list[Any]:
        """The nodes that outputs need."""
        wanted = {name for name, *_ in self._outputs}
        living = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                living.append(node)
                wanted.update(node.input)
        return living[::-1]

    def _fresh(self, kind: str) -> str:
        self._counts[kind] += 1
        return f"{kind}_{self._counts[kind]}"


def stored_dtype(dtype: Any) -> np.dtype:
    """The dtype that stands for JAX's in a graph: bool, int64 or float32."""
    kind = np.dtype(dtype).kind
    return np.dtype({"b": np.bool_, "i": np.int64, "u": np.int64}.get(kind, np.float32))


def _value_info(name: str, dtype: np.dtype, shape: tuple) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), list(shape))
