"""Sound to the models' input: Kaldi-exact log-mel spectrograms, fitted to a length and normalised, in JAX.

Everything here is a function of arrays that runs under jit, on any accelerator, for any leading batch dimensions.
Files, sample rates and channels belong to `jaxprune.audio`; augmentation to `jaxprune.training.augment`. The published
features come from `torchaudio.compliance.kaldi.fbank`; ours are the same quantity computed more exactly (see
`log_mel`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jaxprune.config import Activation, Padding

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples in a frame: 25 ms
HOP = 160  # samples between frames: 10 ms
MELS = 128  # of the published models
FFT_SIZE = 512
MOST_MELS = FFT_SIZE // 2 - 1  # more bins than the FFT has would repeat it
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)  # of the power in a mel bin; its logarithm is -15.942385


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureStats:
    """Facts that a data set's models expect: `frames` (t), log-mel `mean` and `std` of its training clips, the task."""

    frames: int
    mean: float
    std: float
    classes: int
    activation: Activation


STATISTICS: Mapping[str, FeatureStats] = MappingProxyType(
    {
        "audioset": FeatureStats(frames=1024, mean=-4.2677393, std=4.5689974, classes=527, activation="sigmoid"),
        "esc50": FeatureStats(frames=512, mean=-6.6268077, std=5.358466, classes=50, activation="softmax"),
        "speechcommands": FeatureStats(frames=128, mean=-6.845978, std=5.5654526, classes=35, activation="sigmoid"),
        "voxceleb1": FeatureStats(frames=1024, mean=-6.370, std=3.074, classes=1251, activation="softmax"),
    }
)


def model_input(
    waveforms: Num[Array | np.ndarray, "b samples"],
    lengths: Int[Array | np.ndarray, "b"],
    *,
    frames: int,
    mean: float | Float[Array, ""],
    std: float | Float[Array, ""],
    padding: Padding,
    mels: int = MELS,
) -> Float[Array, "b {frames} {mels}"]:
    """Normalised log-mel of a padded batch, ready for a model: each row is what its clip would give alone.

    `waveforms` is 16 kHz mono, `lengths` the samples of each row that are sound (at least 400, not checked under jit);
    what lies beyond is ignored. Clips are cut or padded to `frames`, as `fit_frames` says; `padding` belongs to the
    model, whose card tells it. `frames`, `padding` and `mels` are static (`STATIC`).
    """
    mel = log_mel(waveforms[:, : sample_count(frames)], mels=mels)
    fitted = fit_frames(mel, frames=frames, valid=frame_count(lengths), padding=padding)
    return normalize(fitted, mean=mean, std=std)


STATIC = ("frames", "padding", "mels")  # arguments of `model_input` that decide the program


def log_mel(
    waveform: Num[Array | np.ndarray, "*b samples"],
    *,
    mels: int = MELS,
    warp: Float[Array | np.ndarray, "*b 255"] | None = None,
) -> Float[Array, "*b t {mels}"]:
    """Natural log of the power in Kaldi's mel bins, every 10 ms, unnormalised, in float32.

    `waveform` is 16 kHz mono, floating point, full scale at 1; t is `frame_count(samples)`. Per frame of 25 ms: the
    mean is removed, pre-emphasis 0.97 (the first sample is its own predecessor), a symmetric Hann window, the power
    spectrum over 512 points, triangles on Kaldi's mel scale from 20 Hz to 8 kHz, and a floor at float32's epsilon.
    Removing each frame's mean also removes the clip's, which the published recipe subtracts beforehand: no separate
    step is needed and any constant offset is harmless. Of 128 bins, number 3 is always the floor,
    because its triangle falls between two FFT bins.

    `warp` gives the FFT bin, with its fraction, that each of bins 1 to 255 is read from, linear in power between two:
    variation of training clips (`jaxprune.training.pitch`). What leaves 1 to 255 is moved to the nearest end.

    The same steps with a float32 FFT err by up to 4e-3 in quiet bins beside a loud tone. This stays within 2e-4
    of float64 (`test_log_mel_matches_float64`), at any setting of JAX's default matmul precision; see
    `_power_spectrum`. Raises `ValueError` for samples that are not floating point, for fewer than 400 of them,
    and for a number of bins outside 1 to `MOST_MELS`.
    """
    waveform = jnp.asarray(waveform)
    if not jnp.issubdtype(waveform.dtype, jnp.floating):
        raise ValueError(
            f"waveform holds {waveform.dtype}; it must be floating point, full scale at 1 (divide int16 by 32768)"
        )
    if waveform.ndim == 0 or waveform.shape[-1] < WINDOW:
        raise ValueError(
            f"waveform has shape {waveform.shape}; its last axis must hold at least {WINDOW} samples (25 ms at 16 kHz)"
        )
    spectrum = _power_spectrum(_frames(waveform.astype(jnp.float32)))  # (*b, t, 255)
    if warp is not None:
        spectrum = _between_bins(spectrum, warp)
    power = jnp.matmul(spectrum, _mel_filters(mels).astype(np.float32), precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(power, np.float32(FLOOR)))


def at_floor(mel: Float[Array | np.ndarray, "*b t f"]) -> Bool[Array, "*b t f"]:
    """The bins of an unnormalised log-mel that have no power: those within 1e-3 of the floor's logarithm.

    The margin, a power 0.1 % above the floor, is there because logarithms differ in their last bits between devices.
    """
    return jnp.asarray(mel) <= np.float32(np.log(FLOOR) + 1e-3)


def fit_frames(
    mel: Float[Array | np.ndarray, "*b t f"],
    *,
    frames: int,
    valid: Int[Array | np.ndarray, "*b"] | None = None,
    padding: Padding = "minimum",
) -> Float[Array, "*b {frames} f"]:
    """Cuts each clip after `frames`, or pads it there: with the smallest value among its own frames, or with 0.

    `valid` counts the frames of each clip that are real, the first ones (default: all of t); the rest is replaced by
    padding and never read. Counts outside 1..t are moved to the nearest end. `frames` below 1 raises `ValueError`.
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}; it must be at least 1")
    t = mel.shape[-2]
    valid = jnp.broadcast_to(t if valid is None else jnp.clip(valid, 1, t), mel.shape[:-2])
    frame = jax.lax.broadcasted_iota(jnp.int32, (*mel.shape[:-1], 1), mel.ndim - 2)
    real = frame < valid[..., None, None]  # (*b, t, 1)
    fill = FILLS[padding](mel, real)
    fitted = jnp.where(real, mel, fill)[..., :frames, :]
    missing = jnp.broadcast_to(fill, (*mel.shape[:-2], frames - fitted.shape[-2], mel.shape[-1]))
    return jnp.concatenate([fitted, missing], axis=-2)


def clip_minimum(mel: Float[Array | np.ndarray, "*b t f"], real: Bool[Array, "*b t 1"]) -> Float[Array, "*b 1 1"]:
    """The smallest value in each clip's own frames."""
    return jnp.min(mel, axis=(-2, -1), where=real, initial=jnp.inf, keepdims=True)


def zero(mel: Float[Array | np.ndarray, "*b t f"], real: Bool[Array, "*b t 1"]) -> Float[Array, "*b 1 1"]:
    """Log-mel 0 for every clip: a power of 1, above the mean of most sounds."""
    return jnp.zeros((*mel.shape[:-2], 1, 1), mel.dtype)


# The value that fills each clip's missing frames, before normalising.
FILLS: Mapping[Padding, Callable[..., Float[Array, "*b 1 1"]]] = MappingProxyType(
    {"minimum": clip_minimum, "zero": zero}
)


def normalize(
    mel: Float[Array | np.ndarray, "*b t f"], *, mean: float | Float[Array, ""], std: float | Float[Array, ""]
) -> Float[Array, "*b t f"]:
    """(x - mean) / (2 std), as published models were trained: the values get a standard deviation of 0.5, not 1."""
    return (mel - mean) / (2 * std)


def frame_count(samples: int | Int[Array | np.ndarray, "*b"]) -> int | Int[Array | np.ndarray, "*b"]:
    """Whole 25 ms frames in so many samples, 10 ms apart: 98 in 1 s, 998 in 10 s, none below 400 samples."""
    count = 1 + (samples - WINDOW) // HOP
    return max(count, 0) if isinstance(count, int) else count.clip(0)


def sample_count(frames: int) -> int:
    """The fewest samples that make so many frames: the inverse of `frame_count`."""
    return WINDOW + HOP * (frames - 1)


def _frames(waveform: Float[Array, "*b samples"]) -> Float[Array, "*b t 400"]:
    """Overlapping frames, without a gather: two and a half hops make a window, so slices of hops are joined."""
    t = frame_count(waveform.shape[-1])
    short = max(0, (t + 2) * HOP - waveform.shape[-1])
    padded = jnp.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, short)])
    hops = padded[..., : (t + 2) * HOP].reshape(*waveform.shape[:-1], t + 2, HOP)
    return jnp.concatenate([hops[..., :-2, :], hops[..., 1:-1, :], hops[..., 2:, : WINDOW - 2 * HOP]], axis=-1)


def _power_spectrum(frames: Float[Array, "*b t 400"]) -> Float[Array, "*b t 255"]:
    """Each frame's power in FFT bins 1 to 255, its amplitudes exact to far below float32's rounding of the loudest.

    A CPU takes an FFT in float64, which needs a third of the time of the products that accelerators take. Several CPU
    devices take the products as well: to transform clips that they share, XLA would send every device all of them.
    """
    if jax.device_count() > 1:
        return _by_products(frames)
    return jax.lax.platform_dependent(frames, cpu=_by_fft, default=_by_products)


def _by_fft(frames: Float[Array, "*b t 400"]) -> Float[Array, "*b t 255"]:
    """The power spectrum by an FFT in float64."""
    with jax.enable_x64(True):
        rows = frames.reshape(-1, WINDOW).astype(jnp.float64)
        rows = rows - rows.mean(axis=1, keepdims=True)
        previous = jnp.concatenate([rows[:, :1], rows[:, :-1]], axis=1)
        spectrum = jnp.fft.rfft((rows - PREEMPHASIS * previous) * np.hanning(WINDOW)[None], FFT_SIZE)[:, 1:-1]
        power = (spectrum.real**2 + spectrum.imag**2).astype(jnp.float32)
        return power.reshape(*frames.shape[:-1], power.shape[1])


def _by_products(frames: Float[Array, "*b t 400"]) -> Float[Array, "*b t 255"]:
    """The power spectrum by products in float32.

    From samples to spectrum everything is linear, so it is one product with a matrix fixed in float64. Rounding in
    float32 would still leave an error of 1e-7 of the loudest component in every bin. So both factors are split into a
    coarse part, whole multiples of a power of two, and a small rest: coarse times coarse adds whole numbers below
    2**24, which float32 holds exactly, and the two other products, with their rounding errors, are 2**-8 as small.
    """
    coarse_map, rest_map, whole_map = _spectrum_maps()
    peak = jnp.clip(jnp.max(jnp.abs(jax.lax.stop_gradient(frames)), axis=-1, keepdims=True), 2.0**-60, 2.0**60)
    step = jax.lax.reduce_precision(peak, exponent_bits=8, mantissa_bits=0) / 128  # a power of two: scaling is exact
    scaled = frames / step  # |scaled| <= 192
    coarse = jnp.round(scaled)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    small = product(coarse, rest_map) + product(scaled - coarse, whole_map)
    real, imaginary = jnp.split((product(coarse, coarse_map) + small) * step, 2, axis=-1)
    return real**2 + imaginary**2


def _between_bins(spectrum: Float[Array, "*b t 255"], bins: Float[Array | np.ndarray, "*b 255"]) -> Array:
    """The power at FFT bins with fractions, between 1 and 255."""
    place = jnp.clip(bins, 1, FFT_SIZE // 2 - 1)[..., None, :] - 1  # (*b, 1, 255): bin 1 is the first
    left = jnp.floor(place).astype(jnp.int32)
    one, other = (
        jnp.take_along_axis(spectrum, jnp.broadcast_to(at, spectrum.shape), axis=-1, mode="clip")
        for at in (left, left + 1)
    )
    return one + (place - left) * (other - one)


@functools.cache
def _spectrum_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The map from 400 samples to the real, then imaginary parts of FFT bins 1 to 255: coarse part, rest, whole.

    Bins 0 (0 Hz) and 256 (8 kHz) lie outside every mel filter. Coarse entries are multiples of 2**-8 whose magnitudes
    add to under 2**16 such steps in any column, so that products with whole numbers up to 2**8 sum exactly.
    """
    centred = np.eye(WINDOW) - 1 / WINDOW  # row n: what the sample n alone becomes
    previous = np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
    windowed = (centred - PREEMPHASIS * previous) * np.hanning(WINDOW)
    spectrum = np.fft.rfft(windowed, FFT_SIZE)[:, 1:-1]
    whole = np.concatenate([spectrum.real, spectrum.imag], axis=1)
    coarse = np.round(whole * 2**8) / 2**8
    return coarse.astype(np.float32), (whole - coarse).astype(np.float32), whole.astype(np.float32)


@functools.cache
def _mel_filters(mels: int) -> Float[np.ndarray, "255 {mels}"]:
    """Weights of FFT bins 1 to 255 in each mel bin: triangles of height 1, evenly spaced on Kaldi's mel scale."""
    if not 1 <= mels <= MOST_MELS:
        raise ValueError(f"{mels} mel bins cannot be computed; the features have 1 to {MOST_MELS}")
    edges = np.linspace(*hertz_to_mel(np.array([LOWEST_HZ, SAMPLE_RATE / 2])), mels + 2)
    bins = hertz_to_mel(np.arange(1, FFT_SIZE // 2)[:, None] * SAMPLE_RATE / FFT_SIZE)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """Kaldi's mel scale (HTK's, in natural logarithms)."""
    return 1127 * np.log1p(hertz / 700)
