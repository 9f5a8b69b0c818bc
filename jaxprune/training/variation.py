"""Settings of the variation of training clips, as a frozen dataclass.

`augment`, `tempo`, `pitch` and `filters` of `jaxprune.training` do what they say. The other settings of a recipe are in
`jaxprune.training.settings`.
"""

import dataclasses
import math

from jaxprune.training.checks import share, whole_number

UNCHANGED = (1.0, 1.0)  # speeds and pitches
LEAST, MOST = 0.5, 2.0  # of either
MOST_DECIBELS = 100.0  # between two sounds or of a filter: beyond, one is not heard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Settings of the variation of training clips. 0 switches a part off."""

    # Probability that a clip is mixed with another.
    mixup: float = 0.0
    # Probability that a waveform is rolled by a random offset and scaled by a random factor.
    roll: float = 0.0
    # Probability that noise is added to the spectrogram and its frames are rolled by up to 10.
    noise: float = 0.0
    # Greatest width of the SpecAugment time mask, in frames.
    time_mask: int = 0
    # Greatest width of the SpecAugment frequency mask, in mel bins.
    freq_mask: int = 0
    # Share of patch columns, and of patch rows, dropped before the blocks.
    patch_mask: float = 0.0
    # Drop-path rate of the last block; it rises linearly from 0 in the first.
    drop_path: float = 0.0
    # Longest time that a clip is moved by, either way, in seconds; silence moves in. TensorFlow's example has 0.1.
    time_shift: float = 0.0
    # Lowest and highest speed of a clip, pitch included (Ko et al. 2015: 0.9 1.1); 1 1 changes nothing.
    speed: tuple[float, float] = UNCHANGED
    # Lowest and highest factor on a clip's frequencies at the same speed (Jaitly and Hinton 2013: 0.9 1.1).
    pitch: tuple[float, float] = UNCHANGED
    # Greatest gain of a random filter on a clip's spectrum, either way, in dB (Nam et al. 2022: 6).
    filter: float = 0.0
    # Folder of sounds to mix under the clips as background noise; empty: none.
    background: str = ""
    # Lowest and highest ratio of a clip's power to that of its background noise, in dB.
    background_snr: tuple[float, float] = (0.0, 20.0)
    # Share of the clips that have background noise. TensorFlow's example has 0.8.
    background_share: float = 0.8

    def __post_init__(self):
        for name in ("mixup", "roll", "noise", "background_share"):
            share(name, getattr(self, name), most=1.0)
        for name in ("patch_mask", "drop_path"):
            value = share(name, getattr(self, name), most=1.0)
            if value == 1:
                raise ValueError(f"{name} is 1, which would leave nothing; it must be below 1")
        whole_number("time_mask", self.time_mask, least=0)
        whole_number("freq_mask", self.freq_mask, least=0)
        if not 0 <= self.time_shift < math.inf:
            raise ValueError(f"time_shift is {self.time_shift}; it must be 0 seconds or more")
        if not 0 <= self.filter <= MOST_DECIBELS:
            raise ValueError(f"filter is {self.filter}; it must be from 0 to {MOST_DECIBELS:g} dB")
        least, most = self.background_snr
        if not -MOST_DECIBELS <= least <= most <= MOST_DECIBELS:
            raise ValueError(
                f"background_snr is {least} to {most}; it must be two numbers of dB from {-MOST_DECIBELS:g} to "
                f"{MOST_DECIBELS:g}, the lower one first"
            )
        for name in ("speed", "pitch"):
            low, high = getattr(self, name)
            if not LEAST <= low <= high <= MOST:
                raise ValueError(
                    f"{name} is {low} to {high}; it must be two factors from {LEAST} to {MOST:g}, the lower one first"
                )

    def while_shrinking(self) -> "Augment":
        """The rest from shrink start on, when the target is below 1: SpecAugment and patch masking stop."""
        return dataclasses.replace(self, time_mask=0, freq_mask=0, patch_mask=0.0)
