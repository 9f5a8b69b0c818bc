"""The manifest of an extraction: the schema that it is held against when it is read again.

`jaxprune.analysis.extract` writes it, `jaxprune.analysis.extraction` reads the arrays beside it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from jaxprune.config import MethodName, ModelConfig, Padding
from jaxprune.json_files import fit, read_json

KIND, VERSION = "jaxprune extraction", 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Weights:
    weights_sha256: str
    card: "_CardPart"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CardPart:
    labels: list[str] = dataclasses.field(default_factory=list)
    activation: str = "softmax"
    padding: Padding = "minimum"
    keep_rates: list[float] = dataclasses.field(default_factory=list)
    method: MethodName = "topk"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Data:
    name: str
    split: str
    sha256: str
    single_label: bool
    labels: list[str] = dataclasses.field(default_factory=list)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pruning:
    score: _Part
    stages: dict[int, _Part]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestFields:
    """The fields of a manifest that are read again, and their types."""

    complete: bool
    checkpoint: _Weights
    model: ModelConfig
    data: _Data
    policy: _Pruning
    compute: dict[str, Any]
    # Names without folders, so that an extraction reads no file but its own.
    shards: list[Annotated[str, msgspec.Meta(pattern=r"^shard-[0-9]{5,9}\.npz$")]] = dataclasses.field(
        default_factory=list
    )

    unusable: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.complete and not self.shards:
            raise ValueError("it is complete, but names no shards")
        for labels in (self.data.labels, self.checkpoint.card.labels):
            if labels and len(labels) != self.model.classes:
                raise ValueError(f"it names {len(labels)} labels for {self.model.classes} classes")


def is_extraction(path: Path) -> bool:
    """True for a folder that holds an extraction, finished or not."""
    return (path / MANIFEST).exists()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises `ValueError` if there is none or it is not an extraction's."""
    file = path / MANIFEST
    try:
        manifest = read_json(file)
    except FileNotFoundError:
        raise ValueError(f"{path} is not an extraction: it has no {MANIFEST}; jaxprune extract makes one") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError(f"{file} is not the manifest of an extraction")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path} is of version {manifest.get('version')!r:.20}; this program reads version {VERSION}")
    try:
        fields_of(manifest)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); extract again to another folder") from error
    return manifest


def fields_of(manifest: Mapping[str, Any]) -> ManifestFields:
    """The fields of a manifest's content that are read. Raises `ValueError` where it is of another schema.

    Geometry may lack fields that are younger than the extraction, but not have others: a name may be damaged.
    """
    fields = fit(manifest, ManifestFields)
    if unknown := manifest["model"].keys() - dataclasses.asdict(fields.model).keys():
        raise ValueError(f"its model has the unknown field {min(unknown)!r:.80}")
    return fields
