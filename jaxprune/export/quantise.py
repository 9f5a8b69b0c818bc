"""int8: weights of the linear layers channel by channel, their inputs by ranges found on recordings.

ONNX Runtime's quantiser writes it (quantise and dequantise nodes, which OpenVINO reads as well). Attention's products,
LayerNorm, softmax and the features stay in float32.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CLIPS = 8  # in a call while ranges are found, where the batch is free


def quantised(model: Any, inputs: Mapping[str, np.ndarray], *, batch: int | None) -> Any:
    """An int8 version of a float32 ONNX model, its ranges taken from these inputs. Metadata stays."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    size = batch or min(CLIPS, len(next(iter(inputs.values()))))
    wanted = {
        port.name: onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type) for port in model.graph.input
    }

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._feeds = feeds({name: np.asarray(inputs[name], dtype) for name, dtype in wanted.items()}, batch=size)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    logging.getLogger().addFilter(_without_advice)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, before)
        quantize_static(
            before,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=feature_products(model),
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        made = onnx.load(after)
    onnx.helper.set_model_props(made, {entry.key: entry.value for entry in model.metadata_props})
    return made


def feeds(inputs: Mapping[str, np.ndarray], *, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """The inputs in batches of one size. Clips that do not fill the last are left out, unless there is no other."""
    clips = len(next(iter(inputs.values())))
    if clips < batch:
        yield {name: np.resize(array, (batch, *array.shape[1:])) for name, array in inputs.items()}
    for first in range(0, clips - batch + 1, batch):
        yield {name: array[first : first + batch] for name, array in inputs.items()}


def feature_products(model: Any) -> list[str]:
    """The products that make log-mel, which are those before the logarithm: int8 would drown quiet sounds."""
    kinds = [node.op_type for node in model.graph.node]
    before = kinds.index("Log") if "Log" in kinds else 0
    return [node.name for node in model.graph.node[:before] if node.op_type == "MatMul"]


def _without_advice(record: logging.LogRecord) -> bool:
    """The quantiser advises on the root logger to prepare models, which ours are."""
    return "pre-process" not in record.getMessage()
