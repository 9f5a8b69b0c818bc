"""Exported files against PyTorch and against the model: logits and kept patches, in every runtime and form."""

import functools
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile
import torch
from helpers import STAGES, small
from jaxprune.convert import torch_reference
from jaxprune.convert.mapping import to_flax
from jaxprune.convert.random_checkpoint import random_state
from quick import quick_compiling  # noqa: F401

from jaxprune import checkpoint
from jaxprune.config import Card
from jaxprune.export import check
from jaxprune.export import export as exports
from jaxprune.export.export import KINDS, Settings, export
from jaxprune.export.lowering import NotExportable
from jaxprune.export.runtimes import RUNTIMES
from jaxprune.features import sample_count
from jaxprune.models import masked_topk, topk
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.scores import Opposite, PatchMean, PatchStd, Random
from jaxprune.reduction.selection import Within
from jaxprune.registry import reduced

FAMILIES = ("ast", "audiomae")
FORMS = list(itertools.product((1.0, 0.7, 0.5), ("mel", "waveform"), (3, None)))


@functools.cache
def made(family: str, *, depth: int = 12):
    """A model of random weights, its card and its tensors."""
    # Two heads: where a block has as many tokens as heads, OpenVINO 2026.4 computes attention wrong (docs/export.md).
    config = small(family, width=24, heads=2, frames=64, mels=64, depth=depth)
    state = random_state(config, seed=0)
    padding = {"ast": "zero", "audiomae": "minimum"}[family]
    labels = tuple(f"sound {y}" for y in range(10))
    card = Card(model=config, mean=-4.3, std=4.6, activation="softmax", labels=labels, padding=padding, trained=False)
    return to_flax(state, config), card, state


@functools.cache
def heard(family: str):
    _, card, _ = made(family)
    return check.inputs_of(check.sounds(sample_count(card.model.frames)), card)


@functools.cache
def by_torch(family: str, rate: float) -> check.Answers:
    """PyTorch's logits, kept patches and score gaps."""
    _, card, state = made(family)
    model = torch_reference.build(card.model)
    model.load_state_dict(state)
    with torch.inference_mode():
        found = model(torch.tensor(heard(family)["mel"]), dict.fromkeys(STAGES, rate))
    blocks = STAGES if rate < 1 else ()
    ids = {block: found.patch_ids[block].numpy() for block in blocks}
    falling = {block: -np.sort(-found.scores[block].numpy()) for block in blocks}
    gaps = {i: falling[i][:, ids[i].shape[1] - 1] - falling[i][:, ids[i].shape[1]] for i in blocks}
    return check.Answers(logits=found.logits.numpy(), kept=ids, gaps=gaps)


def settings(kind: str = "onnx", **changes) -> Settings:
    return Settings(**{"format": kind} | changes)


@pytest.fixture
def files(tmp_path):
    """Writes an ONNX file and gives what each runtime finds in it."""

    def compare(model, policy, card, *, expected, inputs, **changes):
        asked = settings(**changes)
        path = tmp_path / "model.onnx"
        path.write_bytes(exports.onnx_model(model, policy, card=card, settings=asked, facts={}).SerializeToString())
        program = exports.program(model, policy, card=card, sound=asked.sound, batch=asked.batch)
        for name in KINDS["onnx"].runtimes:
            run = RUNTIMES[name].opens(path, precision="float32")
            yield name, check.compare(run, program, inputs, expected=expected)

    return compare


@pytest.mark.parametrize(("rate", "sound", "batch"), FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_computes_what_pytorch_does(files, family, rate, sound, batch):
    model, card, _ = made(family)
    asked = {"sound": sound, "batch": batch, "expected": by_torch(family, rate), "inputs": heard(family)}
    for name, found in files(model, topk(model, rate), card, **asked):
        assert found.difference < 1e-4, name
        assert found.overlap == 1, name
        assert found.ties == found.otherwise == 0, name


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("audiomae", lambda model: topk(model, {1: 0.5}, score=PatchMean())),
        ("ast", lambda model: topk(model, {0: 0.9, 11: 0.1}, score=Opposite(PatchStd()))),
        ("ast", lambda model: masked_topk(model, 0.6)),
        ("audiomae", lambda model: masked_topk(model, 0.6)),
        ("audiomae", lambda model: Policy(PatchMean(), {2: Within(-0.5, 0.5)})),
    ],
    ids=["mean", "opposite", "masked-ast", "masked-audiomae", "within"],
)
def test_any_policy_is_fixed_in_the_file(files, family, policy):
    model, card, _ = made(family)
    # Noise everywhere: of a silent stretch's equal scores any may go first.
    noise = np.random.default_rng(1).standard_normal((3, sample_count(card.model.frames))).astype(np.float32)
    inputs = check.inputs_of(list(noise * np.float32([[0.001], [0.1], [1]])), card)
    expected = check.answering(model, policy(model))(inputs["mel"])
    for name, found in files(model, policy(model), card, batch=3, expected=expected, inputs=inputs):
        assert found.difference < 1e-4, name
        assert found.overlap == 1, name


@pytest.mark.parametrize("method", ["evit", "tome", "pool", "hybrid", "grid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_is_fixed_in_the_file(files, family, method):
    model, card, _ = made(family, depth=4)
    policy = reduced(model, method, {1: 0.6, 2: 0.5})
    inputs = heard(family)
    expected = check.answering(model, policy)(inputs["mel"])
    for name, found in files(model, policy, card, batch=None, expected=expected, inputs=inputs):
        assert found.difference < 1e-4, name
        assert found.ties == found.otherwise == 0, name


def test_random_numbers_are_refused_in_a_sentence():
    model, card, _ = made("ast", depth=4)
    with pytest.raises(NotExportable, match="the model draws random numbers, which cannot be written to ONNX"):
        exports.onnx_model(model, reduced(model, "random", {1: 0.5}), card=card, settings=settings(), facts={})


def test_the_graph_has_the_operators_that_runtimes_have_kernels_for():
    model, card, _ = made("ast")
    graph = exports.onnx_model(model, topk(model, 0.5), card=card, settings=settings(), facts={}).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("LayerNormalization") == 2 * 12 + 2
    assert kinds.count("Gelu") == kinds.count("Softmax") == 12
    assert kinds.count("TopK") == 3
    assert not {"Loop", "Scan", "If", "Erf", "Exp"} & set(kinds)
    constants = {constant.name: constant for constant in graph.initializer}
    counts = [np.frombuffer(constants[n.input[1]].raw_data, np.int64)[0] for n in graph.node if n.op_type == "TopK"]
    assert counts == [8, 4, 2]


def test_epsilon_is_the_models_own():
    model, card, _ = made("ast")
    graph = exports.onnx_model(model, topk(model, {}), card=card, settings=settings(), facts={}).graph
    found = [
        a.f
        for node in graph.node
        if node.op_type == "LayerNormalization"
        for a in node.attribute
        if a.name == "epsilon"
    ]
    assert found == [np.float32(1e-6)] * 25 + [np.float32(1e-5)]


def test_a_random_score_cannot_be_exported():
    model, card, _ = made("ast")
    policy = topk(model, 0.5, score=Random(jax.random.key(0)))
    with pytest.raises(NotExportable, match="random"):
        exports.onnx_model(model, policy, card=card, settings=settings(), facts={})


@pytest.mark.parametrize("sound", ["mel", "waveform"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_the_model_its_facts_and_a_program_that_runs_it(tmp_path, kind, sound):
    model, card, _ = made("ast", depth=4)
    out = tmp_path / "out"
    found = export(out, model, policy=topk(model, 0.7), card=card, settings=settings(kind, sound=sound))
    assert found.keys() == set(KINDS[kind].runtimes)
    assert all(one.difference < 1e-4 and one.overlap == 1 for one in found.values())
    facts = json.loads((out / "export.json").read_text())
    assert Card.from_json(facts["card"]) == card
    assert facts["stages"] == {"3": "TopK(rate=0.7)"}
    inputs, expected = heard("ast"), check.answering(model, topk(model, 0.7))(heard("ast")["mel"])
    clip = {"mel": tmp_path / "clip.npz", "waveform": tmp_path / "clip.wav"}[sound]
    if sound == "mel":
        np.savez(clip, model_input=inputs["mel"][2])
    else:
        soundfile.write(clip, inputs["waveform"][2, : inputs["length"][2]], 16000, "FLOAT")
    label, probability = ran(
        out / "run.py", clip, without=("jaxprune",) if kind == "stablehlo" else ("jaxprune", "jax")
    )
    assert label == f"sound {expected.logits[2].argmax()}"
    softmax = np.exp(expected.logits[2]) / np.exp(expected.logits[2]).sum()
    assert probability == pytest.approx(softmax.max(), abs=1e-3)


def ran(program, clip, *, without):
    """The first label that a program prints, run where some packages cannot be imported."""
    blocked = f"import sys, runpy; sys.modules |= dict.fromkeys({without!r}); sys.argv = sys.argv[1:]; "
    run = "runpy.run_path(sys.argv[0], run_name='__main__'); assert not sys.modules.get('openvino_telemetry')"
    call = [sys.executable, "-c", blocked + run, program, clip]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    probability, label = done.stdout.splitlines()[0].split("  ")
    return label, float(probability)


def test_a_file_that_disagrees_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    model, card, _ = made("ast", depth=4)
    other = to_flax(random_state(card.model, seed=1), card.model)
    write = exports.onnx_model
    monkeypatch.setattr(exports, "onnx_model", lambda model, policy, **rest: write(other, policy, **rest))
    with pytest.raises(ValueError, match="so nothing was written"):
        export(tmp_path / "out", model, policy=topk(model, 1.0), card=card, settings=settings())
    with pytest.raises(ValueError, match="keeps other patches"):
        export(tmp_path / "out", model, policy=topk(model, 0.5), card=card, settings=settings())
    assert list(tmp_path.iterdir()) == []


def test_clips_whose_scores_tie_are_set_aside():
    logits = np.zeros((2, 3), np.float32)
    expected = check.Answers(logits=logits, kept={3: np.array([[0, 1], [0, 1]])}, gaps={3: np.array([1e-8, 1e-3])})
    program = exports.Program(lambda: (), (), ("logits", "kept_3"), 2)
    tied = {"logits": logits + np.float32([[1], [0]]), "kept_3": np.array([[0, 2], [1, 0]])}
    found = check.compare(lambda _: tied, program, {"mel": logits}, expected=expected)
    assert (found.ties, found.difference, found.overlap) == (1, 0, 0.75)
    wrong = tied | {"kept_3": np.array([[0, 1], [2, 0]])}
    assert check.compare(lambda _: wrong, program, {"mel": logits}, expected=expected).otherwise == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, card, _ = made("ast", depth=4)
    return checkpoint.save(tmp_path_factory.mktemp("saved") / "ast", model, card=card)


REFUSED = [
    (["--keep-rate", "0"], "keep rate 0.0"),
    (["--keep-rate", "1.5"], "keep rate 1.5"),
    (["--blocks", "12", "--keep-rate", "0.5"], "block 12"),
    (["--batch", "0"], "batch is 0"),
    (["--precision", "bfloat16"], "choose openvino or stablehlo"),
    (["--precision", "int8"], "--calibrate"),
    (["--format", "openvino", "--precision", "bfloat16", "--input", "waveform"], "--input mel"),
    (["--precision", "int8", "--calibrate", "nowhere"], "nowhere"),
    (["--sounds", "nothing.wav"], "nothing.wav"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_bad_requests_are_one_sentence(saved, tmp_path, run_command, options, said):
    code, _, told = run_command("export", saved, tmp_path / "out", "--format", "onnx", *options)
    assert code == 2
    assert said in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_int8_keeps_its_metadata_and_most_of_the_answers(tmp_path):
    model, card, _ = made("ast", depth=4)
    sounds = check.sounds(sample_count(card.model.frames))
    for sound in ("mel", "waveform"):
        asked = settings("onnx", precision="int8", sound=sound)
        out = tmp_path / sound
        found = export(out, model, policy=topk(model, 0.7), card=card, settings=asked, calibrate=sounds)
        assert all(0 < one.difference < 0.5 for one in found.values()), found  # of logits near 1
        assert all(one.overlap > 0.6 for one in found.values()), found
    text = (out / "model.onnx").read_bytes()
    assert b"QuantizeLinear" in text
    assert b"jaxprune" in text


def test_a_platform_that_is_not_here_an_output_that_is_there_and_a_file_name(saved, tmp_path, run_command):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("mine")
    for out, options, said in (
        ("out", ["--format", "stablehlo", "--platforms", "tpu"], "add cpu"),
        ("old", ["--format", "onnx"], "already exists"),
        ("old", ["--format", "onnx", "--overwrite"], "holds no export.json"),
        ("model.onnx", ["--format", "onnx"], "looks like a file"),
        ("out", ["--format", "tflite"], "tflite"),
    ):
        code, _, told = run_command("export", saved, tmp_path / out, *options)
        assert code == 2, told
        assert said in told
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnx"), ("onnx", "onnxruntime"), ("stablehlo", "flatbuffers")])
def test_a_missing_package_is_one_sentence(saved, tmp_path, run_command, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, told = run_command("export", saved, tmp_path / "out", "--format", kind)
    assert code == 2
    assert told == f'error: {package} is not installed; this needs it: pip install "jaxprune[export]"\n'
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_says_how_closely_the_file_agrees(saved, tmp_path, run_command):
    tone = tmp_path / "tone.wav"
    soundfile.write(tone, 0.1 * np.sin(np.arange(20_000) / 7) * np.linspace(0, 1, 20_000), 16000)
    options = ["--format", "onnx", "--keep-rate", "0.7", "--batch", "2", "--sounds", tone]
    code, told, _ = run_command("export", saved, tmp_path / "out", *options)
    assert code == 0
    assert "ONNX Runtime" in told and "OpenVINO" in told  # noqa: PT018
    assert json.loads((tmp_path / "out" / "export.json").read_text())["agreement"]["openvino"]["clips"] == 5
