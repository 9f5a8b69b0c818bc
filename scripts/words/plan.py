"""Who says what, how, in a synthetic corpus: every clip's recipe, drawn from the seed. No sound is made here.

`scripts.words.corpus` makes the sound and writes the files.
"""

import dataclasses
import hashlib
import zlib

import numpy as np

from scripts.words.voices import ACCENTS, ENGLISH, TIMBRES, WORDS

NOISES = ("white", "pink", "brown", "babble")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The settings that decide every sample of a corpus: `takes` clips of each word by each speaker.

    `validation` and `test` are shares of the speakers, the rest train. `snr` is in dB, speech while it is spoken over
    noise throughout, and `peak` a clip's largest sample in dB of full scale; both are drawn evenly. `background` is the
    length in seconds of the noise files, and of the babble that clips are mixed with.
    """

    seed: int = 0
    speakers: int = 240
    takes: int = 2
    validation: float = 0.1
    test: float = 0.2
    snr: tuple[float, float] = (10.0, 30.0)
    peak: tuple[float, float] = (-20.0, -1.0)
    background: int = 60

    def __post_init__(self):
        if self.seed < 0 or self.takes < 1 or self.speakers < 3:
            raise ValueError(
                f"seed {self.seed}, {self.takes} takes and {self.speakers} speakers do not make a corpus; "
                "give a seed of at least 0, at least 1 take and at least 3 speakers"
            )
        if min(self.validation, self.test) <= 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} must be positive shares that leave some to train"
            )
        for name in ("snr", "peak"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} runs from {low} to {high} dB; give the lower end first")
        if self.background < 2:
            raise ValueError(f"background is {self.background} s; it must be at least 2")
        if self.peak[1] > 0:
            raise ValueError(f"peak reaches {self.peak[1]} dB, above full scale; it must not pass 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speaker:
    """One voice: `name` is the eight hex digits of its files; `rate` in words a minute, `pitch` from 0 to 99."""

    name: str
    split: str
    accent: str
    timbre: str
    rate: int
    pitch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """The making of one clip. `start` is where the word begins, as a share of the room that its length leaves."""

    path: str  # word/speaker_nohash_take.wav
    word: str
    speaker: Speaker
    rate: int
    pitch: int
    start: float
    noise: str
    snr: float
    peak: float


def cast(corpus: Corpus) -> tuple[Speaker, ...]:
    """The speakers. No timbre is heard in two splits; accents are, as they are among people."""
    rng = np.random.default_rng([corpus.seed, 1])
    families = list(rng.permutation(len(TIMBRES)))
    shares = {"validation": corpus.validation, "test": corpus.test}
    numbers = {split: max(1, round(share * corpus.speakers)) for split, share in shares.items()}
    numbers["train"] = corpus.speakers - sum(numbers.values())
    speakers = []
    for split, number in numbers.items():
        some = len(families) if split == "train" else max(1, round(shares[split] * len(TIMBRES)))
        timbres = [timbre for _ in range(some) for timbre in TIMBRES[families.pop()]]
        for i in range(number):
            accent = str(rng.choice(ENGLISH if rng.random() < 0.5 else ACCENTS))
            fields = {"accent": accent, "timbre": timbres[i % len(timbres)]}
            fields |= {"rate": int(rng.integers(130, 221)), "pitch": int(rng.integers(20, 81))}
            name = hashlib.sha1(f"{corpus.seed} {split} {i} {fields}".encode()).hexdigest()[:8]
            speakers.append(Speaker(name=name, split=split, **fields))
    if len({speaker.name for speaker in speakers}) < len(speakers):
        raise ValueError(f"two of {len(speakers)} speakers got the same name from seed {corpus.seed}; take another")
    return tuple(speakers)


def utterances(corpus: Corpus) -> list[Utterance]:
    """Every clip of the corpus, by speaker, word and take."""
    plan = []
    for speaker in cast(corpus):
        for word in WORDS:
            for take in range(corpus.takes):
                path = f"{word}/{speaker.name}_nohash_{take}.wav"
                rng = random(corpus.seed, path, 0)
                plan.append(
                    Utterance(
                        path=path,
                        word=word,
                        speaker=speaker,
                        rate=round(speaker.rate * rng.uniform(0.85, 1.2)),
                        pitch=int(np.clip(speaker.pitch + rng.integers(-12, 13), 0, 99)),
                        start=float(rng.random()),
                        noise=str(rng.choice(NOISES)),
                        snr=float(rng.uniform(*corpus.snr)),
                        peak=float(rng.uniform(*corpus.peak)),
                    )
                )
    return plan


def random(seed: int, name: str, stream: int) -> np.random.Generator:
    """Numbers for one use (`stream`) in one clip or track, whatever else is made and in whatever order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), stream])
