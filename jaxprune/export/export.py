"""A model as a folder that runs elsewhere: the file, the facts about it, and a program that runs it.

    OUT/model.onnx, or model.xml and model.bin, or model.stablehlo
    OUT/export.json     the card, what is pruned, inputs and outputs, and how closely the file agrees with the model
    OUT/run.py          runs the file on a sound, without jaxprune

The folder appears when the file has been run and agrees with the model. Otherwise nothing is left behind.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.export import check
from jaxprune.export.check import Agreement
from jaxprune.export.programs import Program, Sound, for_runtimes, program, to_onnx
from jaxprune.export.quantise import quantised
from jaxprune.export.runtimes import HINTS, RUNTIMES, Precision, import_openvino
from jaxprune.export.script import script
from jaxprune.files import whole_directory
from jaxprune.models import Classifier, abstract, for_inference, topk
from jaxprune.reduction.policy import Policy

Format = Literal["onnx", "openvino", "stablehlo"]
Platform = Literal["cpu", "cuda", "rocm", "tpu"]

FACTS, SCRIPT = "export.json", "run.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A format: the file it is run from, the runtimes that run it, and the precisions it can be written in."""

    file: str
    runtimes: tuple[str, ...]
    precisions: tuple[Precision, ...]


KINDS: Mapping[Format, Kind] = {
    "onnx": Kind(file="model.onnx", runtimes=("onnxruntime", "openvino"), precisions=("float32", "int8")),
    "openvino": Kind(file="model.xml", runtimes=("openvino",), precisions=("float32", "bfloat16", "int8")),
    "stablehlo": Kind(file="model.stablehlo", runtimes=("jax",), precisions=("float32", "bfloat16")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that decide an exported file, beside the model and its policy.

    `batch` is None where it is free. `platforms` are those of StableHLO. Raises `ValueError` for a precision that the
    format does not have.
    """

    format: Format
    precision: Precision = "float32"
    sound: Sound = "mel"
    batch: int | None = None
    platforms: tuple[Platform, ...] = ("cpu", "cuda", "tpu")

    def __post_init__(self):
        if self.format not in KINDS:
            raise ValueError(f"there is no format {self.format!r}; choose from {', '.join(KINDS)}")
        if self.precision not in (known := KINDS[self.format].precisions):
            others = [name for name, kind in KINDS.items() if self.precision in kind.precisions]
            raise ValueError(
                f"{self.format} is written in {' or '.join(known)}, not in {self.precision}; "
                f"for {self.precision} choose {' or '.join(others)}"
            )
        if self.format == "openvino" and self.precision == "bfloat16" and self.sound == "waveform":
            raise ValueError(
                "OpenVINO would round the features to bfloat16 as well, which loses quiet sounds; export bfloat16 from "
                "log-mel (--input mel)"
            )
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if self.format == "stablehlo" and here not in self.platforms:
            raise ValueError(
                f"a file for {', '.join(self.platforms)} alone cannot be run and checked here, where JAX computes on "
                f"{here}; add {here} to the platforms"
            )


def export(
    out: str | os.PathLike[str],
    model: Classifier,
    *,
    policy: Policy,
    card: Card,
    settings: Settings,
    sounds: Sequence[np.ndarray] = (),
    calibrate: Sequence[np.ndarray] = (),
    overwrite: bool = False,
) -> dict[str, Agreement]:
    """Writes a model whose policy is fixed, runs what was written, and returns how closely each runtime agrees.

    `sounds` are 16 kHz waveforms to run on, besides four that are made. `calibrate` are those to find the ranges of
    int8 on. The float32 file must agree with the model to `check.TOLERANCE` in logits and keep the same patches. The
    difference that bfloat16 and int8 make is returned, not judged. Raises `ValueError` where it does not agree, for a
    policy or an operation that cannot be exported, for int8 without sounds to calibrate on, and where `out` exists and
    is not to be overwritten.
    """
    if settings.precision == "int8" and not calibrate:
        raise ValueError("int8 needs recordings to find the ranges of numbers on; name some to calibrate on")
    made = program(model, policy, card=card, sound=settings.sound, batch=settings.batch)
    facts = describe(made, model, policy=policy, card=card, settings=settings)
    inputs = check.inputs_of([*check.sounds(check.sample_count(card.model.frames)), *sounds], card)
    expected = check.answering(model, policy)(inputs["mel"])
    with whole_directory(out, marker=FACTS, overwrite=overwrite) as folder:
        write = {"onnx": _write_onnx, "openvino": _write_openvino, "stablehlo": _write_stablehlo}[settings.format]
        found = {}
        for precision in dict.fromkeys(("float32", settings.precision)):
            if precision == "float32" != settings.precision and settings.format == "stablehlo":
                continue  # another program altogether
            now = dataclasses.replace(settings, precision=precision)
            write(folder, model, policy, card=card, settings=now, facts=facts, calibrate=calibrate)
            for name in KINDS[settings.format].runtimes:
                found[name] = _checked(folder, name, made, inputs, expected=expected, settings=now)
        agreement = {name: dataclasses.asdict(one) for name, one in found.items()}
        text = json.dumps(facts | {"agreement": agreement}, indent=1, ensure_ascii=False)
        (folder / FACTS).write_text(text + "\n", encoding="utf-8")
        (folder / SCRIPT).write_text(script(settings.format, settings.sound), encoding="utf-8")
    return found


def describe(made: Program, model: Classifier, *, policy: Policy, card: Card, settings: Settings) -> dict[str, Any]:
    """The facts about an exported file, in JSON's types."""
    stages = {str(block): _in_words(stage) for block, stage in sorted(policy.stages.items())}
    return {
        "jaxprune": version("jaxprune"),
        "format": settings.format,
        "precision": settings.precision,
        "openvino_hint": HINTS[settings.precision],
        "batch": made.batch,
        "inputs": {port.name: list(port.shape) for port in made.inputs},
        "outputs": list(made.outputs),
        "score": type(policy.score).__name__,
        "stages": stages,
        "macs": macs(model, policy),
        "unpruned_macs": macs(model, topk(model, {})),
        "card": card.to_json(),
    }


def _in_words(stage: Any) -> str:
    """A stage with its plain settings, such as `TopK(rate=0.7)`."""
    fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    plain = ", ".join(f"{name}={value!r}" for name, value in fields.items() if isinstance(value, int | float | str))
    return f"{type(stage).__name__}({plain})"


def _checked(
    folder: Path, runtime: str, made: Program, inputs: Mapping[str, np.ndarray], *, expected: Any, settings: Settings
) -> Agreement:
    """The comparison of one file in one runtime. Raises `ValueError` where it must agree and does not."""
    what = f"the {settings.format} file in {RUNTIMES[runtime].name}, {settings.precision},"
    run = RUNTIMES[runtime].opens(folder / KINDS[settings.format].file, precision=settings.precision)
    try:
        agreement = check.compare(run, made, inputs, expected=expected)
    except ValueError as error:
        raise ValueError(f"{what} cannot be used: {error}") from error
    if settings.precision == "float32":
        check.check(agreement, what=what)
    return agreement


def onnx_model(
    model: Classifier,
    policy: Policy,
    *,
    card: Card,
    settings: Settings,
    facts: Mapping[str, Any],
    calibrate: Sequence[np.ndarray] = (),
) -> Any:
    """The ONNX model, in int8 where that is asked for. Raises `NotExportable` for what ONNX cannot compute."""
    made = program(for_runtimes(model), policy, card=card, sound=settings.sound, batch=settings.batch)
    graph = to_onnx(made, {"jaxprune": json.dumps(facts, ensure_ascii=False)})
    if settings.precision != "int8":
        return graph
    return quantised(graph, check.inputs_of(calibrate, card), batch=settings.batch)


def _write_onnx(folder: Path, model: Classifier, policy: Policy, **facts: Any) -> None:
    (folder / "model.onnx").write_bytes(onnx_model(model, policy, **facts).SerializeToString())


def _write_openvino(folder: Path, model: Classifier, policy: Policy, **facts: Any) -> None:
    openvino = import_openvino()
    graph = onnx_model(model, policy, **facts).SerializeToString()
    network = openvino.Core().read_model(graph, b"")
    network.set_rt_info(json.dumps(facts["facts"], ensure_ascii=False), ["jaxprune"])
    openvino.save_model(network, folder / "model.xml", compress_to_fp16=False)


def _write_stablehlo(
    folder: Path,
    model: Classifier,
    policy: Policy,
    *,
    card: Card,
    settings: Settings,
    facts: Mapping[str, Any],
    calibrate: Sequence[np.ndarray],
) -> None:
    """A program for several platforms. bfloat16 is the model's own compute dtype."""
    import flatbuffers  # `jax.export` needs it to write a file  # noqa: F401

    model = model if settings.precision == "float32" else for_inference(computing_in(model, jnp.bfloat16))
    made = program(model, policy, card=card, sound=settings.sound, batch=settings.batch)
    call: Callable[..., Any] = lambda *arrays: dict(zip(made.outputs, made.call(*arrays), strict=True))  # noqa: E731
    exported = jax.export.export(jax.jit(call), platforms=settings.platforms)(*made.specs(made.size()))
    (folder / "model.stablehlo").write_bytes(exported.serialize())


def computing_in(model: Classifier, dtype: Any) -> Classifier:
    """The model with the same weights, computing in another dtype."""
    graph, _ = nnx.split(abstract(model.config, dtype=dtype))
    return nnx.merge(graph, nnx.state(model))
