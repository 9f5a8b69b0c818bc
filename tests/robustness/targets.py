"""The kinds of input that a campaign damages: how each is made whole, and what is read from it.

`read` gives the answer as text that differs where anything does that a user would see, and what was said beside it.
"""

import csv
import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxprune.convert import random_checkpoint
from jaxprune.convert.read import read_torch

import jaxprune
from jaxprune import checkpoint
from jaxprune.analysis.extraction import read_extraction
from jaxprune.audio import load_audio
from jaxprune.config import ModelConfig
from jaxprune.data import shard_writer, shards
from jaxprune.data.labels import read_label_file
from jaxprune.data.own import Manifest
from jaxprune.data.records import Dataset, Record
from jaxprune.experiments.sweep import Store
from tests.extractions import write_random

RECORDINGS = Path(__file__).resolve().parent.parent / "recordings"
CONFIG = ModelConfig(family="ast", width=16, depth=1, heads=1, classes=3, frames=32, mels=128, head_norm_eps=1e-5)
HUGGINGFACE = dataclasses.replace(CONFIG, norm_eps=1e-12, head_norm_eps=1e-12)
Answer = tuple[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """`make` writes a whole input in a folder, `read` reads it from there.

    `checked` are the files whose content a checksum of the format covers: another answer from a damaged one is a
    fault. Damage to other files may make a file that is as valid as the old one and says something else. `damaged` are
    the files that a campaign chooses among.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Answer]
    checked: Callable[[Path], bool] = lambda path: False
    damaged: Callable[[Path], bool] = lambda path: True


def digest(*arrays: np.ndarray) -> str:
    return checkpoint.weights_digest({str(i): values for i, values in enumerate(arrays)})


def weights_of(name: str) -> Callable[[Path], Answer]:
    """A reader of a PyTorch or Hugging Face checkpoint."""

    def read(folder: Path) -> Answer:
        found = read_torch(folder / name, num_heads=1)
        for key, values in found.state.items():
            if not np.isfinite(values).all():
                raise AssertionError(f"{key} is not finite, and was read")
        return f"{checkpoint.weights_digest(found.state)} {found.card}", found.notes

    return read


def sound(source: str, *, checked: bool = False) -> Target:
    """A recording as it is; `checked` where its format has checksums over all its sound."""

    def read(folder: Path) -> Answer:
        clip = load_audio(folder / source)
        if not np.isfinite(clip.waveform).all():
            raise AssertionError("samples that are not finite were read")
        return digest(clip.waveform), clip.notices

    return Target(make=lambda folder: shutil.copy(RECORDINGS / source, folder), read=read, checked=lambda _: checked)


def own_checkpoint(folder: Path) -> None:
    card = jaxprune.Card(model=CONFIG, mean=-4.0, std=4.0, activation="softmax", labels=("a", "b", "c"))
    jaxprune.save(folder / "model", jaxprune.build(CONFIG, seed=1), card=card)


def read_own(folder: Path) -> Answer:
    known = checkpoint._intact_card(folder / "model")  # as `load`, but for putting the weights on a device
    weights = checkpoint.read_weights(folder / "model", card=known.card)
    found = checkpoint.weights_digest(weights)
    if known.weights not in (None, found):
        raise ValueError("the weights are damaged")
    return f"{found} {known.card}", (known.unprotected,) if known.unprotected else ()


def tones(folder: Path) -> Dataset:
    """Four short clips of two classes."""
    records = []
    for i in range(4):
        path = folder / "sounds" / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(np.arange(800) * (i + 1) / 9), 16_000)
        records.append(Record(path=str(path), labels=(i % 2,), split="train" if i < 2 else "test"))
    return Dataset(name="tones", labels=("a", "b"), records=tuple(records))


def make_shards(folder: Path) -> None:
    shard_writer.write(tones(folder), folder / "shards", clips=2)
    shutil.rmtree(folder / "sounds")


def read_shards(folder: Path) -> Answer:
    found = shards.Shards(root=folder / "shards").read()
    clips = [(record.labels, record.split, digest(record.load())) for record in found.records]
    return repr((found.labels, clips)), found.notices


def make_table(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        rows = [
            {"path": f"sounds/{i}.wav", "labels": "ab"[record.labels[0]], "split": record.split}
            for i, record in enumerate(tones(folder).records)
        ]
        if suffix == ".json":
            (folder / "clips.json").write_text(json.dumps(rows))
            return
        with open(folder / "clips.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return make


def read_table(suffix: str) -> Callable[[Path], Answer]:
    def read(folder: Path) -> Answer:
        found = Manifest(path=folder / f"clips{suffix}").read()
        clips = [(Path(record.path).name, record.labels, record.split) for record in found.records]
        return repr((found.labels, clips)), found.notices

    return read


def read_extracted(folder: Path) -> Answer:
    found = read_extraction(folder / "extraction")
    names = ("index", "frames", "target", "logits", "mean", "std", "score_00", "kept_00")
    paths = " ".join(map(str, found.column("path").tolist()))
    hashed = hashlib.sha256(paths.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{found.name} {found.config} {hashed} {digest(*map(found.column, names))}", ()


def make_sweep(folder: Path) -> None:
    store = Store(folder / "sweep.json", about={"data set": "tones"})
    store.quality["a"] = {"metrics": {"top1": 0.5}, "clips": 4, "unusable": 0, "right": "a0"}
    store.seconds["a"] = {"seconds": [0.1, 0.2], "unpruned_seconds": [0.2, 0.3]}
    store.save()


def read_sweep(folder: Path) -> Answer:
    store = Store(folder / "sweep.json", about={"data set": "tones"})
    return json.dumps([store.quality, store.seconds], sort_keys=True), ()


def quietly(read: Callable[[Path], Answer]) -> Callable[[Path], Answer]:
    """The reader, with its warnings among what it says."""

    def quiet(folder: Path) -> Answer:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer, said = read(folder)
        return answer, (*said, *(str(one.message) for one in caught if one.category is UserWarning))

    return quiet


def official(folder: Path) -> None:
    random_checkpoint.write_ast_official(folder / "ast.pth", CONFIG, seed=1)


def legacy(folder: Path) -> None:
    official(folder)
    content = torch.load(folder / "ast.pth", weights_only=True)
    torch.save(content, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "ast.pth").unlink()


def huggingface(folder: Path) -> None:
    random_checkpoint.write_huggingface(folder / "hf", HUGGINGFACE, seed=1, labels=("a", "b", "c"))


def labels(folder: Path) -> None:
    (folder / "labels.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}))


def read_labels(folder: Path) -> Answer:
    found = read_label_file(folder / "labels.json")
    return repr((found.names, dict(found.ids))), ()


def of_clips(path: Path) -> bool:
    return path.stem == "clips"


TARGETS = {
    "official .pth": Target(make=official, read=weights_of("ast.pth"), checked=lambda path: True),
    "old .pt": Target(make=legacy, read=weights_of("old.pt")),
    "Hugging Face": Target(make=huggingface, read=weights_of("hf")),
    "checkpoint": Target(make=own_checkpoint, read=read_own, checked=lambda path: True),
    "wav": sound("crow.wav"),
    "flac": sound("choir.flac", checked=True),
    "mp3": sound("guitar.mp3"),
    "ogg": sound("drum_roll.ogg", checked=True),
    "csv": Target(make=make_table(".csv"), read=read_table(".csv"), damaged=of_clips),
    "json": Target(make=make_table(".json"), read=read_table(".json"), damaged=of_clips),
    "labels": Target(make=labels, read=read_labels),
    "shards": Target(make=make_shards, read=read_shards, checked=lambda path: path.suffix == ".array_record"),
    "extraction": Target(
        make=lambda folder: write_random(folder / "extraction", CONFIG, clips=4, keep={0: 0.5}, shard=2),
        read=read_extracted,
        checked=lambda path: path.suffix == ".npz",
    ),
    "sweep": Target(make=make_sweep, read=read_sweep),
}
TARGETS = {name: dataclasses.replace(target, read=quietly(target.read)) for name, target in TARGETS.items()}
