"""The runtimes that run exported files: ONNX Runtime, OpenVINO, and JAX for StableHLO.

Each opens a file and gives a function of named arrays. Their packages are imported when one is opened.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np

Precision = Literal["float32", "bfloat16", "int8"]
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # OpenVINO's, for what is not quantised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime.

    `name` is for people. `opens` makes a file's function. `precisions` are those it computes in on a CPU.
    """

    name: str
    opens: Callable[..., Run]
    precisions: tuple[Precision, ...]


def open_onnxruntime(path: str | os.PathLike[str], *, precision: Precision, threads: int | None = None) -> Run:
    """An ONNX file in ONNX Runtime, on the CPU. Its precision is the file's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
    inputs = {port.name: types[port.type] for port in session.get_inputs()}
    outputs = [port.name for port in session.get_outputs()]

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = session.run(None, {name: np.asarray(arrays[name], dtype) for name, dtype in inputs.items()})
        return dict(zip(outputs, found, strict=True))

    return run


def open_openvino(path: str | os.PathLike[str], *, precision: Precision, threads: int | None = None) -> Run:
    """An ONNX file or an OpenVINO one (.xml) in OpenVINO, on the CPU, computing in `precision`."""
    openvino = import_openvino()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
    inputs = {port.any_name: port.element_type.to_dtype() for port in compiled.inputs}

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled({name: np.asarray(arrays[name], dtype) for name, dtype in inputs.items()})
        return {name: np.array(found[port]) for port in compiled.outputs for name in port.names}

    return run


def open_jax(path: str | os.PathLike[str], *, precision: Precision, threads: int | None = None) -> Run:
    """A StableHLO file that `jax.export` reads, on JAX's device. Its precision is the file's."""
    exported = jax.export.deserialize(bytearray(Path(path).read_bytes()))
    call = jax.jit(exported.call)
    specs, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    names = {1: ("mel",), 2: ("waveform", "length")}[len(specs)]

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = call(*(np.asarray(arrays[name], spec.dtype) for name, spec in zip(names, specs, strict=True)))
        return {name: np.asarray(array) for name, array in found.items()}

    return run


def import_openvino() -> ModuleType:
    """The package, without its telemetry: on import that forks this process and tells Intel and Google.

    OpenVINO has a stub for machines where the telemetry is not installed.
    """
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to make an import fail
    try:
        import openvino
    finally:
        if absent:
            del sys.modules[name]
    return openvino


RUNTIMES: Mapping[str, Runtime] = {
    "onnxruntime": Runtime(name="ONNX Runtime", opens=open_onnxruntime, precisions=("float32", "int8")),
    "openvino": Runtime(name="OpenVINO", opens=open_openvino, precisions=("float32", "bfloat16", "int8")),
    "jax": Runtime(name="JAX", opens=open_jax, precisions=("float32", "bfloat16")),
}
