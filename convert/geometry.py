"""A model's geometry, read from the shapes of its tensors.

It works on official key names and plain shapes, and knows nothing of files. The shapes that all tensors must then have
follow from the table in `mapping.py`. `complete_card.py` finds the sizes that no tensor tells: heads, and the strides
behind a number of patches.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from jaxprune.config import ModelConfig
from jaxprune.families import FAMILIES, Family

from .mapping import BLOCK, OFFICIAL, PREDICTOR, Shape, official_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes that tensor shapes depend on.

    `classes` is None for a checkpoint without a classifier. `predictors` counts DynamicViT's.
    """

    family: Family
    width: int
    depth: int
    mlp_width: int
    patch: int
    patches: int
    classes: int | None
    predictors: int = 0

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Shape], *, family: Family, classifier: bool) -> "Geometry":
        """Reads the sizes. Raises `ValueError`, a line a problem, if a tensor for them is missing or malformed."""
        prefix, (_, head) = OFFICIAL[family].prefix, OFFICIAL[family].classifier
        problems: list[str] = []

        def size(key: str, ndim: int, axis: int) -> int:
            shape = shapes.get(key)
            if shape is None:
                problems.append(f"{key}: missing")
            elif len(shape) != ndim or 0 in shape:
                problems.append(f"{key}: has shape {shape}, expected {ndim} axes, none empty")
            else:
                return shape[axis]
            return 0

        geometry = cls(
            family=family,
            width=size(f"{prefix}cls_token", 3, 2),
            depth=depth_of(shapes),
            mlp_width=size(f"{prefix}blocks.0.mlp.fc1.weight", 2, 0),
            patch=size(f"{prefix}patch_embed.proj.weight", 4, 3),
            patches=size(f"{prefix}pos_embed", 3, 1) - FAMILIES[family].extra_tokens,
            classes=size(f"{head}.weight", 2, 0) if classifier else None,
            predictors=predictors_of(shapes),
        )
        if not problems and geometry.patches < 1:
            problems.append(f"{prefix}pos_embed: has shape {shapes[f'{prefix}pos_embed']}, no patch among its tokens")
        if not problems and (found := shapes[f"{prefix}pos_embed"]) != (expected := (1, found[1], geometry.width)):
            problems.append(f"{prefix}pos_embed: has shape {found}, expected {expected}")
        if problems:
            raise ValueError("\n".join(problems))
        return geometry

    @property
    def mlp_ratio(self) -> float:
        """The ratio that gives `mlp_width` again when the configuration rounds down."""
        ratio = self.mlp_width / self.width
        return ratio if int(self.width * ratio) == self.mlp_width else math.nextafter(ratio, math.inf)

    def shapes(self) -> dict[str, Shape]:
        """The shape of every official tensor of such a model, in its order. An unknown classifier has 1 class.

        Shapes depend on the number of patches alone, so here the patches lie in one row. Raises `ValueError` for sizes
        that no model has.
        """
        row = ModelConfig(
            family=self.family,
            width=self.width,
            depth=self.depth,
            heads=1,
            classes=self.classes or 1,
            frames=self.patch + self.patches - 1,
            mels=self.patch,
            patch=self.patch,
            time_stride=1,
            freq_stride=1,
            mlp_ratio=self.mlp_ratio,
            predictors=tuple(range(self.predictors)),
        )
        return official_shapes(row)


def depth_of(keys: Iterable[str]) -> int:
    """Blocks, by the highest index among official keys."""
    return 1 + max((int(match[1]) for key in keys if (match := BLOCK.search(key))), default=-1)


def predictors_of(keys: Iterable[str]) -> int:
    """DynamicViT's predictors, by the highest index among official keys."""
    return 1 + max((int(match[1]) for key in keys if (match := PREDICTOR.search(key))), default=-1)
