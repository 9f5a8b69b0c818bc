"""Infers the strides and frames behind a position table. A checkpoint tells only the table's size."""

import dataclasses
from collections.abc import Iterator

from jaxprune.families import FAMILIES, Family
from jaxprune.features import MELS

STANDARD_FRAMES = (128, 512, 1024)  # of the published models
HINTS = "--source-frames, --mels, --time-stride or --freq-stride"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The cut of a spectrogram into patches. `note` tells what had to be assumed, if anything."""

    frames: int
    time_stride: int
    freq_stride: int
    note: str = ""


def infer_grid(
    patches: int,
    *,
    family: Family,
    patch: int = 16,
    mels: int | None = None,
    frames: int | None = None,
    time_stride: int | None = None,
    freq_stride: int | None = None,
) -> Grid:
    """The strides and frames behind a number of patches. What is given settles them, the rest is inferred.

    AudioMAE's stride is its patch size. AST's is 10 or 16, the same in time and frequency unless both are given. If
    both fit, a published number of frames wins, then stride 10, the original's. A range of frames gives the same
    patches. Of them a published number is chosen, then a multiple of 128, of 16, of 10, else the smallest. Raises
    `ValueError` if nothing fits; it names the options to give.
    """
    given, mels = frames is not None and mels is not None, mels or MELS
    if patch > mels:
        raise ValueError(f"patches of {patch} x {patch} are larger than the {mels} mel bins")
    if time_stride is not None or freq_stride is not None:
        strides = [(time_stride or freq_stride, freq_stride or time_stride)]
    else:
        strides = [(stride, stride) for stride in FAMILIES[family].strides or (patch,)]
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
        wanted = "" if frames is None else f" from {frames} frames"
        raise ValueError(
            f"{patches} patches cannot be placed on {mels} mel bins{wanted}: {'; '.join(tried)}; give the right {HINTS}"
        )
    best, *others = sorted(grids, key=lambda grid: grid.frames not in STANDARD_FRAMES)  # stable: else in order
    if given and not others:
        return best
    return dataclasses.replace(best, note="".join(_note(best, others, patches=patches, mels=mels)))


def _strangeness(frames: int) -> int:
    if frames in STANDARD_FRAMES:
        return 0
    return next((rank for rank, multiple in enumerate((128, 16, 10), 1) if frames % multiple == 0), 4)


def _note(best: Grid, others: list[Grid], *, patches: int, mels: int) -> Iterator[str]:
    """Tells the reading that was assumed, the others that fit, and the options that choose."""
    yield (
        f"The position table's {patches} patches were read as {best.frames} frames x {mels} mel bins at stride "
        f"{best.time_stride}" + (f" x {best.freq_stride}" if best.freq_stride != best.time_stride else "")
    )
    for other in others:
        yield f" (they also fit stride {other.time_stride} with {other.frames} frames)"
    yield f"; if that is wrong, give {HINTS}."
