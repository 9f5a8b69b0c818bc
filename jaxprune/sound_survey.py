"""Judges a file's sound while it is decoded: what was changed on the way, what is missing, and what cannot be used.

Channels are mixed here, because channels that cancel each other out must not be. Decoding is `jaxprune.decoding`'s,
resampling `jaxprune.audio`'s.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxprune.decoding import Sound, shown, sounds
from jaxprune.features import SAMPLE_RATE, WINDOW

SHORTEST = f"{1000 * WINDOW // SAMPLE_RATE} ms ({WINDOW} samples at {SAMPLE_RATE} Hz)"
_LOUD = 1.5  # full scale is 1; resampled or lossy peaks pass it a little
_CERTAINLY_INTEGERS = 100
# Channels cancel where the power of their sum, by that of independent channels, is less. A codec leaves more of them
# than rounding does.
_CANCELLED, _CANCELLED_BUT_FOR_NOISE = 1e-4, 1e-2
_STEP = 2.0**-15  # of 16-bit samples


class Survey:
    """A file's blocks, and what they show about it as a whole once they have passed."""

    def __init__(self, path: Path):
        self.path, self.scale = path, np.float32(1)
        self._single: dict[int, int] = {}  # the one channel that is used of a sound whose channels cancel
        self._facts: list[_Facts] = []

    def blocks(self) -> Iterator[tuple[Sound, Float32[np.ndarray, "_"]]]:
        """Decodes the file: its mono blocks, and the sound that each belongs to."""
        self._facts = []
        for number, sound in enumerate(sounds(self.path)):
            facts = _Facts(sound)
            self._facts.append(facts)
            for block in sound.blocks():
                if sound.channels == 1 or number in self._single:
                    mono = np.ascontiguousarray(block[:, self._single.get(number, 0)])
                else:
                    mono = _mean(block)
                    facts.add_channels(block, mono)
                facts.add(mono)
                yield sound, mono

    def pass_by(self) -> None:
        """Decodes the file for its facts alone."""
        for _ in self.blocks():
            pass

    def cancels(self) -> bool:
        """True when channels cancel each other out: decode again, which then takes the first that has sound."""
        self._single = {number: one.sounding for number, one in enumerate(self._facts) if one.cancels}
        return bool(self._single)

    def check(self) -> None:
        """Raises `ValueError` for no samples, samples that are not finite, silence, and a level without a scale."""
        where, facts = shown(self.path), self._facts
        count = sum(one.count for one in facts)
        if count == 0 and any(one.is_truncated for one in facts):
            raise ValueError(f"{where}: is cut short, and nothing of it can be decoded")
        if count == 0:
            raise ValueError(f"{where}: holds no samples; a recording of at least {SHORTEST} is needed")
        if bad := sum(one.bad for one in facts):
            raise ValueError(f"{where}: {bad} of {count} samples are NaN or infinite; all must be finite numbers")
        low, high = min(one.low for one in facts), max(one.high for one in facts)
        if low == high:
            raise ValueError(f"{where}: is silent, every sample equals {low:g}; a recording with sound in it is needed")
        self._peak = max(-low, high)
        self.scale = self._scale(where, integers=all(one.integers for one in facts))

    def _scale(self, where: str, *, integers: bool) -> np.float32:
        if self._peak > _LOUD and (integers or self._peak >= _CERTAINLY_INTEGERS):
            if self._peak > 2**16:
                raise ValueError(f"{where}: its samples reach {self._peak:g}; write them so that full scale is 1")
            return np.float32(2**-15)
        return np.float32(1)

    def notices(self) -> tuple[str, ...]:
        """Sentences about what was changed on the way, or is missing."""
        name, facts = shown(self.path.name), self._facts
        told = []
        for number, one in enumerate(facts):
            if one.is_truncated:
                of = f"{one.count} of {one.announced}" if one.announced else f"only {one.count}"
                which = f" (sound {number + 1} of {len(facts)})" if len(facts) > 1 else ""
                told.append(f"{name}: is truncated{which}, {of} samples could be read")
            if one.sound.skipped:
                told.append(f"{name}: {one.sound.skipped} bytes between its frames are no sound and are left out")
        if len(facts) > 1:
            told.append(f"{name}: holds {len(facts)} sounds one after the other, read as one")
        for number, one in enumerate(facts):
            many = one.sound.channels
            if number in self._single:
                which = f"channel {self._single[number] + 1}" if self._single[number] else "the first (left)"
                told.append(f"{name}: its {many} channels cancel each other out, so only {which} is used")
            elif many > 1:
                told.append(f"{name}: averaged {many} channels into one")
        rates = {one.sound.rate for one in facts} - {SAMPLE_RATE}
        told += [f"{name}: resampled from {rate} Hz to {SAMPLE_RATE} Hz" for rate in sorted(rates)]
        if self._peak > _LOUD:
            done = "taken for 16-bit integers and divided by 32768" if self.scale != 1 else "used as they are"
            told.append(f"{name}: its samples reach {self._peak:.4g} where full scale is 1; {done}")
        return tuple(dict.fromkeys(told))


class _Facts:
    """The measurements of one sound that need all of its blocks."""

    def __init__(self, sound: Sound):
        self.sound = sound
        self.count = self.bad = 0
        self.low, self.high = np.inf, -np.inf
        self.integers = True
        self._sums = self._squares = np.zeros(sound.channels + 1)
        self._counted = 0

    def add(self, mono: Float32[np.ndarray, "_"]) -> None:
        low, high = float(mono.min()) + 0.0, float(mono.max()) + 0.0  # of -0 as well: 0
        self.count += len(mono)
        if not (np.isfinite(low) and np.isfinite(high)):
            self.bad += int(np.count_nonzero(~np.isfinite(mono)))
        if max(-low, high) > _LOUD and self.integers:
            whole = mono * self.sound.channels  # the mean of integers is none
            self.integers = bool(np.array_equal(whole, np.rint(whole)))
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add_channels(self, block: Float32[np.ndarray, "_ channels"], mono: Float32[np.ndarray, "_"]) -> None:
        """Sums and sums of squares of each channel, and of their mean, over every eighth sample: enough for a power."""
        values = np.column_stack([block[::8], mono[::8]]).astype(np.float64)  # squares of float32 would underflow
        ones = np.ones(len(values))
        self._counted += len(values)
        self._sums = self._sums + ones @ values
        self._squares = self._squares + ones @ (values * values)

    @property
    def _powers(self) -> np.ndarray:
        """The variance of each channel, so that no offset counts, and last of their mean."""
        return self._squares / self._counted - (self._sums / self._counted) ** 2

    @property
    def cancels(self) -> bool:
        """True where the channels' mean is next to nothing beside what independent channels would leave of it."""
        if not self._counted or self.bad:
            return False
        *parts, mean = self._powers
        noise = self.sound.lossy or mean < _STEP**2
        most = _CANCELLED_BUT_FOR_NOISE if noise else _CANCELLED
        return bool(sum(parts) > 0 and self.sound.channels**2 * mean < most * sum(parts))

    @property
    def sounding(self) -> int:
        """The first channel that is not next to nothing beside the loudest."""
        parts = self._powers[:-1]
        return int(np.argmax(parts > _CANCELLED_BUT_FOR_NOISE * parts.max()))

    @property
    def announced(self) -> int | None:
        """The samples that the header announces beyond those that were read."""
        frames = self.sound.frames
        return frames if frames is not None and frames > self.count else None

    @property
    def is_truncated(self) -> bool:
        return self.sound.short or (self.announced is not None and self.count < self.announced - self.sound.slack)


def _mean(block: Float32[np.ndarray, "samples channels"]) -> Float32[np.ndarray, "samples"]:
    """The mean of the channels. Of two it is the same number, 30 times as fast."""
    return (block[:, 0] + block[:, 1]) * np.float32(0.5) if block.shape[1] == 2 else block.mean(axis=1)
