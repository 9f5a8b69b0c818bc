"""The published formats, told apart by their keys, and what each calls the official tensors.

Official names are those of the original AST (Gong et al.) and AudioMAE (Huang et al.). `state_dicts.py` finds the state
dict in a file, `geometry.py` knows the shapes.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import torch

from jaxprune.config import Family

from . import huggingface
from .mapping import OFFICIAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A published format. For each group in `marks`, some key must begin with a mark of the group.

    `layout` is Hugging Face's alone. `headless` is the format's name without a classifier. `unused` and `needed` are by
    beginnings of keys: the reason why the classifier leaves those tensors out, and a remark for when they are missing.
    """

    name: str
    headless: str
    family: Family
    marks: tuple[tuple[str, ...], ...]
    layout: huggingface.KeyLayout | None = None
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def fits(self, keys: Collection[str]) -> bool:
        """Tells whether keys without any common prefix are of this format."""
        return all(any(key.startswith(group) for key in keys) for group in self.marks)

    def lacking(self, official: str) -> str:
        """The remark on a missing tensor, or nothing."""
        return next((f" ({remark})" for start, remark in self.needed.items() if official.startswith(start)), "")


FORMATS = (
    Format(
        name="AST, Hugging Face (transformers 5 keys)",
        headless="AST body, Hugging Face (transformers 5 keys)",
        family="ast",
        marks=((f"{huggingface.BODY}layers.", "layers."), (huggingface.BODY, "embeddings.distillation_token")),
        layout="v5",
    ),
    Format(
        name="AST, Hugging Face (legacy keys)",
        headless="AST body, Hugging Face (legacy keys)",
        family="ast",
        marks=((huggingface.BODY, "embeddings.distillation_token"),),
        layout="legacy",
    ),
    Format(
        name="AST, official",
        headless="AST body, official",
        family="ast",
        marks=(("v.blocks.", "v.patch_embed."),),
        unused=dict.fromkeys(("v.head.", "v.head_dist."), "ImageNet classifier, unused by AST"),
    ),
    Format(
        name="AudioMAE, fine-tuned",
        headless="AudioMAE, pretrained",
        family="audiomae",
        marks=(("blocks.",), ("patch_embed.", "pos_embed", "cls_token")),
        unused={
            **dict.fromkeys(("decoder_", "mask_token"), "pretraining decoder, unused by the classifier"),
            "norm.": "final norm of pretraining; the classifier pools first and uses fc_norm",
        },
        needed={"fc_norm.": "the norm after pooling; a head that reads the CLS token has none and is not AudioMAE's"},
    ),
)


def recognised(keys: Iterable[str]) -> Format | None:
    """The format of these keys, or None."""
    keys = list(keys)
    return next((form for form in FORMATS if form.fits(keys)), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """The keys of a file, without their common prefix, as official tensors.

    `parts` maps an official name to its key, or to the keys that are joined to it. `ignored` maps keys to reasons.
    `leftover` keys have no place.
    """

    parts: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    leftover: tuple[str, ...]

    @classmethod
    def of(cls, keys: Collection[str], form: Format) -> "Names":
        """Raises `ValueError` where two keys mean the same parameter."""
        if form.layout is not None:
            # Numbers stand in for the tensors: after renaming they tell the keys behind each official name.
            order = list(keys)
            renamed = huggingface.from_huggingface({key: torch.tensor([at]) for at, key in enumerate(order)})
            parts = {name: tuple(order[at] for at in numbers) for name, numbers in renamed.state.items()}
            return cls(parts=parts, ignored={}, leftover=renamed.leftover)
        ignored = {key: reason for key in keys for start, reason in form.unused.items() if key.startswith(start)}
        return cls(parts={key: (key,) for key in keys if key not in ignored}, ignored=ignored, leftover=())


def missing_modules(keys: Collection[str], family: Family) -> tuple[str, ...]:
    """The classifier's modules that must be made anew. None if it has its last layer, else those wholly absent."""
    modules = OFFICIAL[family].classifier
    absent = [module for module in modules if not any(key.startswith(f"{module}.") for key in keys)]
    return tuple(absent) if modules[-1] in absent else ()


def in_file(official: str, form: Format) -> tuple[str, ...]:
    """The key or keys under which a format keeps an official tensor."""
    if form.layout is None:
        return (official,)
    return tuple(huggingface.to_huggingface({official: torch.arange(3)}, layout=form.layout).state)
