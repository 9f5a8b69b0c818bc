"""Reads a model's geometry from the shapes of its tensors, and says which shapes every tensor must then have.

Works on official key names and plain shapes, so it knows nothing of files. Sizes that no tensor reveals (heads, the
strides behind an ambiguous number of patches) come from the caller.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from jaxprune.config import Family

Shape = tuple[int, ...]

EXTRA_TOKENS = {"ast": 2, "audiomae": 1}
STANDARD_FRAMES = (128, 512, 1024)  # of the published models
AST_STRIDES = (16, 10)  # the pruning work's, and the original AST's
_PREFIX = {"ast": "v.", "audiomae": ""}
_CLASSIFIER = {"ast": ("mlp_head.0", "mlp_head.1"), "audiomae": ("fc_norm", "head")}  # LayerNorm, Linear
_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes that tensor shapes depend on. `classes` is None for a checkpoint that has no classifier."""

    family: Family
    width: int
    depth: int
    mlp_width: int
    patch: int
    patches: int
    classes: int | None

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Shape], *, family: Family, classifier: bool) -> "Geometry":
        """Derives the sizes. `ValueError`, a line a problem, where a tensor they need is missing or malformed."""
        prefix = _PREFIX[family]
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
            depth=depth_of(shapes, family=family),
            mlp_width=size(f"{prefix}blocks.0.mlp.fc1.weight", 2, 0),
            patch=size(f"{prefix}patch_embed.proj.weight", 4, 3),
            patches=size(f"{prefix}pos_embed", 3, 1) - EXTRA_TOKENS[family],
            classes=size(f"{_CLASSIFIER[family][1]}.weight", 2, 0) if classifier else None,
        )
        if problems:
            raise ValueError("\n".join(problems))
        return geometry


def depth_of(keys: Iterable[str], *, family: Family) -> int:
    """Blocks, by the highest index among the keys."""
    pattern = re.compile(re.escape(_PREFIX[family]) + r"blocks\.([0-9]{1,3})\.")
    return 1 + max((int(match[1]) for key in keys if (match := pattern.match(key))), default=-1)


def classifier_keys(family: Family) -> tuple[str, ...]:
    return tuple(f"{module}.{leaf}" for module in _CLASSIFIER[family] for leaf in ("weight", "bias"))


def expected_keys(family: Family, *, depth: int, classifier: bool) -> tuple[str, ...]:
    """The tensors a classifier of this family uses, in the model's order."""
    prefix = _PREFIX[family]
    tokens = ("cls_token", "dist_token")[: EXTRA_TOKENS[family]]
    modules = ["patch_embed.proj", *(f"blocks.{index}.{name}" for index in range(depth) for name in _BLOCK)]
    modules += ["norm"] if family == "ast" else []
    leaves = [f"{prefix}{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
    return (
        *(f"{prefix}{name}" for name in (*tokens, "pos_embed")),
        *leaves,
        *(classifier_keys(family) if classifier else ()),
    )


def expected_shapes(geometry: Geometry) -> dict[str, Shape]:
    """The shape of every tensor the classifier uses, in PyTorch's layout: a Linear is (out, in)."""
    g, d = geometry, geometry.width
    linear = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (g.mlp_width, d), "mlp.fc2": (d, g.mlp_width)}
    linear |= {"patch_embed.proj": (d, 1, g.patch, g.patch), _CLASSIFIER[g.family][1]: (g.classes or 0, d)}

    def shape(key: str) -> Shape:
        if key.endswith("_token"):
            return (1, 1, d)
        if key.endswith("pos_embed"):
            return (1, g.patches + EXTRA_TOKENS[g.family], d)
        module, leaf = key.removeprefix(_PREFIX[g.family]).rsplit(".", 1)
        weight = linear.get(re.sub(r"^blocks\.\d+\.", "", module), (d,))  # a LayerNorm's weight is (d,)
        return weight if leaf == "weight" else weight[:1]

    return {key: shape(key) for key in expected_keys(g.family, depth=g.depth, classifier=g.classes is not None)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """How a spectrogram was cut into patches; `note` says what had to be assumed, if anything."""

    frames: int
    time_stride: int
    freq_stride: int
    note: str = ""


def infer_grid(
    patches: int,
    *,
    family: Family,
    patch: int = 16,
    mels: int = 128,
    frames: int | None = None,
    time_stride: int | None = None,
    freq_stride: int | None = None,
) -> Grid:
    """The strides and frames behind a number of patches; what is given settles them, the rest is inferred.

    AudioMAE's stride is its patch size. AST's is 16 or 10, the same in time and frequency unless both are given. Where
    several fit, a published number of frames wins, then a multiple of 128, then of 16, then the larger stride. A stride
    leaves a range of frames with the same patches; the same preference chooses, else the smallest. Raises `ValueError`
    naming what to pass when nothing fits.
    """
    if patch > mels:
        raise ValueError(f"patches of {patch} x {patch} are larger than the {mels} mel bins")
    if time_stride is not None or freq_stride is not None:
        strides = [(time_stride or freq_stride, freq_stride or time_stride)]
    else:
        strides = [(stride, stride) for stride in (AST_STRIDES if family == "ast" else (patch,))]
    grids, tried = [], []
    for time, freq in strides:
        rows = (mels - patch) // freq + 1
        columns, rest = divmod(patches, rows)
        if rest or columns < 1:
            tried.append(
                f"strides {time} (time) and {freq} (frequency) make {rows} rows of patches, not a divisor of {patches}"
            )
            continue
        span = range((columns - 1) * time + patch, columns * time + patch)
        if frames is not None and frames not in span:
            tried.append(f"strides {time} (time) and {freq} (frequency) fit {span[0]} to {span[-1]} frames")
            continue
        chosen = min(span, key=_strangeness) if frames is None else frames
        grids.append(Grid(frames=chosen, time_stride=time, freq_stride=freq))
    if not grids:
        given = "" if frames is None else f" from {frames} frames"
        raise ValueError(
            f"{patches} patches cannot be placed on {mels} mel bins{given}: {'; '.join(tried)}; "
            "pass the right frames, time_stride and freq_stride"
        )
    best, *others = sorted(grids, key=lambda grid: _strangeness(grid.frames))
    return dataclasses.replace(best, note=_grid_note(best, others, patches=patches, given=frames is not None))


def _strangeness(frames: int) -> int:
    if frames in STANDARD_FRAMES:
        return 0
    return 1 if frames % 128 == 0 else 2 if frames % 16 == 0 else 3


def _grid_note(best: Grid, others: list[Grid], *, patches: int, given: bool) -> str:
    if others:
        also = " or ".join(f"stride {other.time_stride} with {other.frames} frames" for other in others)
        return (
            f"{patches} patches fit stride {best.time_stride} with {best.frames} frames, which was taken, "
            f"but also {also}; pass frames or the strides if that is wrong."
        )
    if not given and _strangeness(best.frames) > 1:
        return f"{best.frames} frames were assumed from {patches} patches; pass frames if the model had another number."
    return ""
