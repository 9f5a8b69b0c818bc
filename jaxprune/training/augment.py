"""Random variation of training clips, inside the jitted step: waveforms mixed and rolled, spectrograms masked.

Every function is pure: a key and a batch in, a batch out, each clip drawn on its own. How much is done is given in
numbers that may be traced (`Amounts`), so switching masks off is a value, not another program: a probability or a width
of 0 returns its input bit for bit. Patch masking changes shapes, so its share is static. What a recipe leaves out
altogether would cost time even at 0, so its program is without it. Speed and time shift are `jaxprune.training.tempo`'s
matter, pitch `jaxprune.training.pitch`'s, filters `jaxprune.training.filters`', features `jaxprune.features`', settings
`jaxprune.training.variation`'s, drop-path `jaxprune.vit`'s.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxprune.config import ModelConfig, Padding
from jaxprune.families import FAMILIES
from jaxprune.features import MELS, fit_frames, frame_count, log_mel, normalize, sample_count
from jaxprune.training.filters import random_filter
from jaxprune.training.pitch import draw_warp
from jaxprune.training.tempo import Number, change_speed, inside, shift_in_time
from jaxprune.training.variation import UNCHANGED, Augment

ROLL_FRAMES = 10  # frames are rolled by less than this, either way, with noise
NOISE = 0.1  # the most that one factor scales uniform noise by


@struct.dataclass
class Amounts:
    """Amounts of each augmentation: probabilities a clip, greatest widths of masks, the lowest and highest `speed` and
    `pitch`, `time_shift` in seconds, and `filter` in dB. All zero changes nothing.

    A pytree, so new numbers do not retrace. None makes a program without the part.
    """

    mixup: Number | None = None
    roll: Number | None = None
    noise: Number | None = None
    time_mask: Number = 0.0
    freq_mask: Number = 0.0
    speed: tuple[Number, Number] | None = None
    pitch: tuple[Number, Number] | None = None
    time_shift: Number | None = None
    filter: Number | None = None


class Batch(NamedTuple):
    """A model's input and its targets."""

    mel: Float[Array, "b t f"]
    labels: Float[Array, "b y"]


def amounts(settings: Augment) -> Amounts:
    """A recipe's amounts, as float32 scalars of a type that never retraces. Masks may stop during a run (`Augment`), so
    a width of 0 is a number, too."""
    masks = {name: getattr(settings, name) for name in ("time_mask", "freq_mask")}
    parts = ("mixup", "roll", "noise", "speed", "pitch", "time_shift", "filter")
    rest = {name: getattr(settings, name) for name in parts}
    used = {name: value for name, value in rest.items() if value not in (0, UNCHANGED)}
    return Amounts(**jax.tree.map(jnp.float32, masks | used))


def training_input(
    key: Key[Array, ""],
    waveforms: Float[Array, "b samples"],
    *,
    lengths: Int[Array, "b"],
    labels: Float[Array, "b y"],
    amounts: Amounts,
    frames: int,
    mean: Number,
    std: Number,
    padding: Padding,
    mels: int = MELS,
) -> Batch:
    """`features.model_input` with every augmentation in the originals' order, and the labels that go with it.

    Change the speed, shift in time, roll and scale each waveform, mix waveforms, log-mel at another pitch, filter,
    cut or pad, mask (before normalising), normalise, add noise and roll frames. With all amounts 0 it is `model_input`
    exactly. `lengths` are true lengths in samples, at least 400; `labels` are one-hot or multi-hot.
    """
    keys = jax.random.split(key, 4)
    lengths = jnp.minimum(lengths, waveforms.shape[1])
    if amounts.speed is not None:
        drawn = jax.random.fold_in(key, 4)  # the four keys above are those of runs that are older
        waveforms, lengths = change_speed(drawn, waveforms, lengths=lengths, factors=amounts.speed)
    if amounts.time_shift is not None:
        drawn = jax.random.fold_in(key, 5)
        waveforms, lengths = shift_in_time(drawn, waveforms, lengths=lengths, most=amounts.time_shift)
    if amounts.roll is not None:
        waveforms = roll_and_scale(keys[0], waveforms, lengths=lengths, probability=amounts.roll)
    if amounts.mixup is not None:
        waveforms, labels = mixup(keys[1], waveforms, lengths=lengths, labels=labels, probability=amounts.mixup)
    warp = None
    if amounts.pitch is not None:
        warp = draw_warp(jax.random.fold_in(key, 6), clips=len(waveforms), factors=amounts.pitch)
    mel = log_mel(waveforms[:, : sample_count(frames)], mels=mels, warp=warp)
    if amounts.filter is not None:
        mel = random_filter(jax.random.fold_in(key, 7), mel, most=amounts.filter)
    mel = fit_frames(mel, frames=frames, valid=frame_count(lengths), padding=padding)
    mel = spec_augment(keys[2], mel, time_mask=amounts.time_mask, freq_mask=amounts.freq_mask)
    mel = normalize(mel, mean=mean, std=std)
    if amounts.noise is not None:
        mel = noise_and_roll(keys[3], mel, probability=amounts.noise)
    return Batch(mel, labels)


def mixup(
    key: Key[Array, ""],
    waveforms: Float[Array, "b samples"],
    *,
    lengths: Int[Array, "b"],
    labels: Float[Array, "b y"],
    probability: Number,
) -> tuple[Float[Array, "b samples"], Float[Array, "b y"]]:
    """Some clips mixed with another of the batch, weights lambda and 1 - lambda, lambda ~ Beta(10, 10); labels alike.

    Both clips lose their mean first and the mixture its own afterwards. The result is as long as the clip: a shorter
    partner is followed by silence, a longer one cut (AST, AudioMAE). Samples beyond a clip's length are left alone.
    The originals draw the partner from the whole data set; here it is the clip's successor in the batch, whose order
    is random already. So it is another clip whenever there is one, and of devices that share a batch each needs one
    clip of its neighbour, where a random order would have every device gather all clips.
    """
    chance, weight = jax.random.split(key)
    b = len(waveforms)
    mixed = jax.random.uniform(chance, (b, 1)) < probability
    lam = beta_10_10(weight, b)
    real = inside(waveforms, lengths)
    centred = without_mean(waveforms, real)
    mixture = without_mean(lam * centred + (1 - lam) * successor(centred), real)
    return (
        jnp.where(mixed & real, mixture, waveforms),
        jnp.where(mixed, lam * labels + (1 - lam) * successor(labels), labels),
    )


def successor(rows: Float[Array, "b x"]) -> Float[Array, "b x"]:
    """The next row of each, the first after the last."""
    return jnp.roll(rows, -1, axis=0)


def beta_10_10(key: Key[Array, ""], clips: int) -> Float[Array, "{clips} 1"]:
    """Draws from Beta(10, 10): the 10th smallest of 19 uniform numbers is so distributed.

    `jax.random.beta` rejects until all is accepted, for which devices that share a batch would wait for each other.
    """
    return jnp.sort(jax.random.uniform(key, (clips, 19)), axis=1)[:, 9:10]


def roll_and_scale(
    key: Key[Array, ""], waveforms: Float[Array, "b samples"], *, lengths: Int[Array, "b"], probability: Number
) -> Float[Array, "b samples"]:
    """Some clips rolled round by a uniform offset within their length, and scaled by Beta(10, 10) + 0.5 (AudioMAE).

    The released code draws the offset below the number of channels, which is 1, so it never rolls; this does. Samples
    beyond a clip's length are left alone.
    """
    chance, offset, loudness = jax.random.split(key, 3)
    b = len(waveforms)
    chosen = jax.random.uniform(chance, (b, 1)) < probability
    shift = jnp.floor(jax.random.uniform(offset, (b,)) * lengths).astype(jnp.int32)
    shift = jnp.minimum(shift, lengths - 1)  # float32 may round the product up to the length
    factor = beta_10_10(loudness, b) + 0.5
    # Sample i comes from i - shift, or from as far before the clip's end: two rolls of the whole row, pieced together.
    head, tail = roll(waveforms, shift - lengths), roll(waveforms, shift)
    rolled = jnp.where(jnp.arange(waveforms.shape[1])[None] < shift[:, None], head, tail)
    return jnp.where(chosen & inside(waveforms, lengths), rolled * factor, waveforms)


def spec_augment(
    key: Key[Array, ""], mel: Float[Array, "b t f"], *, time_mask: Number, freq_mask: Number
) -> Float[Array, "b t f"]:
    """One stretch of frames and one of mel bins of each clip set to 0 (SpecAugment, Park et al. 2019).

    Widths and starts as `torchaudio`'s `TimeMasking` and `FrequencyMasking` draw them: width w uniform in [0, mask),
    start uniform in [0, size - w), both then rounded down, so `mask` itself is never reached. As in AST and AudioMAE
    this acts on log-mel that is padded but not yet normalised: the 0 is a power of 1, and lies above the data's mean.
    """
    in_time, in_freq = jax.random.split(key)
    hidden_frames = stretch(in_time, clips=mel.shape[0], size=mel.shape[1], widest=time_mask)
    hidden_bins = stretch(in_freq, clips=mel.shape[0], size=mel.shape[2], widest=freq_mask)
    return jnp.where(hidden_frames[:, :, None] | hidden_bins[:, None, :], 0, mel)


def noise_and_roll(key: Key[Array, ""], mel: Float[Array, "b t f"], *, probability: Number) -> Float[Array, "b t f"]:
    """Some normalised spectrograms with noise added, then rolled in time by -10 to 9 frames (AST, AudioMAE).

    The noise is uniform in [0, 1), times a factor uniform in [0, 0.1) that the clip shares.
    """
    chance, noise, factor, offset = jax.random.split(key, 4)
    b = len(mel)
    chosen = jax.random.uniform(chance, (b,)) < probability
    level = NOISE * jax.random.uniform(factor, (b, 1, 1))
    noisy = mel + level * jax.random.uniform(noise, mel.shape)
    shift = jax.random.randint(offset, (b,), -ROLL_FRAMES, ROLL_FRAMES)
    return jnp.where(chosen[:, None, None], roll(noisy, shift), mel)


def visible_patches(key: Key[Array, ""], *, clips: int, config: ModelConfig, hidden: float) -> Int[Array, "{clips} n"]:
    """The patches that AudioMAE's masking leaves: original positions in the model's own order, rising, drawn per clip.

    Of t columns (time) and f rows (frequency) a clip keeps int(t (1 - hidden)) and int(f (1 - hidden)), and the
    patches where they cross: 22 * 5 = 110 of 32 x 8 at 0.3. Pass them to the model as `visible`; `visible_count` is
    their number. Raises `ValueError` where nothing would be left.
    """
    columns, rows = visible_grid(config, hidden=hidden)
    (nt, nf), (in_time, in_freq) = config.grid, jax.random.split(key)
    time = subset(in_time, clips=clips, size=nt, keep=columns)
    freq = subset(in_freq, clips=clips, size=nf, keep=rows)
    if FAMILIES[config.family].fastest == "time":
        grid = freq[:, :, None] * nt + time[:, None, :]
    else:
        grid = time[:, :, None] * nf + freq[:, None, :]
    return grid.reshape(clips, columns * rows)


def visible_count(config: ModelConfig, *, hidden: float) -> int:
    """The number of patches that a masking leaves. Raises as `visible_patches`."""
    columns, rows = visible_grid(config, hidden=hidden)
    return columns * rows


def visible_grid(config: ModelConfig, *, hidden: float) -> tuple[int, int]:
    """Columns and rows of patches that a masking leaves."""
    columns, rows = (int(size * (1 - hidden)) for size in config.grid)
    if not 0 <= hidden < 1 or columns < 1 or rows < 1:
        raise ValueError(
            f"hiding a share of {hidden} leaves no patch of {config.grid[0]} x {config.grid[1]}, or is not in [0, 1)"
        )
    return columns, rows


def subset(key: Key[Array, ""], *, clips: int, size: int, keep: int) -> Int[Array, "{clips} {keep}"]:
    """Draws `keep` different numbers below `size` for each clip, rising. Every set is as likely."""
    return jnp.sort(jnp.argsort(-jax.random.uniform(key, (clips, size)), axis=1)[:, :keep], axis=1)


def stretch(key: Key[Array, ""], *, clips: int, size: int, widest: Number) -> Array:
    """True on one random stretch of each clip's axis, `(clips, size)`, of a width below `widest`, which may be 0."""
    u, v = jax.random.uniform(key, (2, clips, 1))
    width = u * jnp.minimum(widest, size)
    start = jnp.floor(v * (size - width))
    position = jnp.arange(size)[None]
    return (position >= start) & (position < start + jnp.floor(width))


def roll(x: Float[Array, "b *rest"], shift: Int[Array, "b"]) -> Float[Array, "b *rest"]:
    """Each clip rolled along its first axis by its own shift, forward where that is positive."""
    return jax.vmap(lambda row, by: jnp.roll(row, by, axis=0))(x, shift)


def without_mean(waveforms: Float[Array, "b samples"], real: Array) -> Float[Array, "b samples"]:
    """Each clip minus its mean over its real samples, and zero beyond them."""
    mean = jnp.sum(waveforms, axis=1, where=real, keepdims=True) / real.sum(axis=1, keepdims=True)
    return jnp.where(real, waveforms - mean, 0)
