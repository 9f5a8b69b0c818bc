"""The program that is written beside an exported file and runs it without jaxprune."""

LOAD = {
    "onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession(HERE / "model.onnx")
facts = json.loads(session.get_modelmeta().custom_metadata_map["jaxprune"])
run = lambda feed: dict(zip([port.name for port in session.get_outputs()], session.run(None, feed)))
""",
    "openvino": """\
sys.modules.setdefault("openvino_telemetry", None)  # which tells Intel and Google of an import; openvino does without
import openvino

model = openvino.Core().read_model(HERE / "model.xml")
facts = json.loads(model.get_rt_info(["jaxprune"]).astype(str))
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": facts["openvino_hint"]})
run = lambda feed: {name: array for port, array in compiled(feed).items() for name in port.names}
""",
    "stablehlo": """\
import jax

exported = jax.export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
facts = json.loads((HERE / "export.json").read_text())
run = lambda feed: {name: np.asarray(array) for name, array in exported.call(*feed.values()).items()}
""",
}
READ = {
    "waveform": """\
import soundfile

sound, rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
if rate != 16000:
    sys.exit(f"{sys.argv[1]} has {rate} samples a second; resample it to 16000")
(samples,) = facts["inputs"]["waveform"]
sound = sound.mean(axis=1)[:samples]  # mono, the model's first window
feed = {"waveform": np.pad(sound, (0, samples - len(sound))), "length": np.LENGTH(len(sound))}
""",
    "mel": """\
# jaxprune features SOUND --checkpoint CHECKPOINT --out SOUND.npz makes such a file.
feed = {"mel": np.load(sys.argv[1])["model_input"].astype(np.float32)}
""",
}
SCRIPT = '''\
"""Runs the exported model on one {what}, without jaxprune: python run.py {file}

It needs {needs}.
"""

import json
import sys
from pathlib import Path

import numpy as np
{load}
{read}
feed = {{name: np.repeat(np.asarray(array)[None], facts["batch"] or 1, axis=0) for name, array in feed.items()}}
logits = run(feed)["logits"][0]
card = facts["card"]
scores = 1 / (1 + np.exp(-logits)) if card["activation"] == "sigmoid" else np.exp(logits - logits.max())
scores = scores if card["activation"] == "sigmoid" else scores / scores.sum()
for index in np.argsort(-scores)[:5]:
    print(f"{{scores[index]:.3f}}  {{card['labels'][index] if card['labels'] else index}}")
'''
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "stablehlo": "jax and flatbuffers"}
LENGTHS = {"onnx": "int64", "openvino": "int64", "stablehlo": "int32"}


def script(kind: str, sound: str) -> str:
    """The program for a file of this kind that reads this."""
    imports, _, load = LOAD[kind].partition("\n\n")
    more, _, read = READ[sound].partition("\n\n") if sound == "waveform" else ("", "", READ[sound])
    needs = f"numpy, {PACKAGES[kind]}" + (" and soundfile" if sound == "waveform" else "")
    return SCRIPT.format(
        what={"mel": "clip's log-mel", "waveform": "sound file"}[sound],
        file={"mel": "SOUND.npz", "waveform": "SOUND.wav"}[sound],
        needs=needs,
        load="\n".join(filter(None, (imports, more))) + f"\n\nHERE = Path(__file__).resolve().parent\n{load}",
        read=read.replace("LENGTH", LENGTHS[kind]),
    )
