"""The table of fine-tuning recipes: seven published (Lee & Lee 2025, from the released scripts), and ours.

What the settings mean, and how a variant is made, is in `jaxprune.training.settings`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxprune.config import Family
from jaxprune.training.settings import (
    AdamL2,
    AdamW,
    Augment,
    Cosine,
    Data,
    Loop,
    Precision,
    Prune,
    Published,
    Recipe,
    Start,
    StepDecay,
)
from jaxprune.training.variation import UNCHANGED

EARLIER_VERSION = "an earlier version of Lee & Lee 2025 (arXiv 2504.01690)"
ESC50_SEEDS = (12, 34, 56, 78, 90)
# The voices of words may be another's; those of speakers are their own.
OTHER_SPEEDS, OTHER_PITCHES = (0.85, 1.15), (0.9, 1.1)


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `ValueError` listing those there are."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def audiomae(name: str, dataset: str, *, augment: Augment, prune: Prune, loop: Loop, **changes: Any) -> Recipe:
    """A published AudioMAE recipe: what all four share, and what was given."""
    return Recipe(
        name=name,
        source="released scripts of Lee & Lee 2025",
        start=Start(family="audiomae", published="AudioMAE ViT-base, pretrained on AudioSet-2M without labels"),
        data=Data.of(dataset, folds=(1, 2, 3, 4, 5) if dataset == "esc50" else ()),
        augment=dataclasses.replace(augment, roll=1.0, drop_path=0.1),
        optimizer=AdamW(),
        schedule=Cosine(),
        prune=prune,
        loop=loop,
        **changes,
    )


def ast(
    name: str, dataset: str, *, lr: float, augment: Augment, schedule: StepDecay, prune: Prune, loop: Loop
) -> Recipe:
    """A published AST recipe: what all three share, and what was given."""
    return Recipe(
        name=name,
        source="released scripts of Lee & Lee 2025",
        start=Start(
            family="ast", published="AST-base with stride 16, trained on AudioSet (mAP 0.4422 in its file name)"
        ),
        data=Data.of(dataset, folds=(1, 2, 3, 4, 5) if dataset == "esc50" else ()),
        augment=augment,
        optimizer=AdamL2(base_lr=lr),
        schedule=schedule,
        prune=dataclasses.replace(prune, first_epoch=1),
        loop=loop,
    )


def words(family: Family) -> Recipe:
    """Ours: a micro model on a spoken corpus of our own, small enough for two CPU cores."""
    return Recipe(
        name=f"{family}-words",
        source="ours, not published: chosen for two CPU cores and the project's spoken corpus, seed 0",
        start=Start(family=family, size="micro"),
        data=Data.of("speechcommands", frames=98, mean=-7.690634, std=5.414383),
        augment=Augment(noise=1.0),
        optimizer=AdamW(base_lr=4e-3, b2=0.98, weight_decay=0.05, layer_decay=1.0, clip=1.0),
        schedule=Cosine(warmup_epochs=0.5),
        prune=Prune(keep_rate=0.7, shrink_start=1, shrink_epochs=3, buckets=3),
        loop=Loop(epochs=8, batch=64, loss="ce"),
        precision=Precision(compute="float32"),
    )


def arabic(family: Family, task: str, *, classes: int, epochs: int, speed: tuple[float, float] = UNCHANGED) -> Recipe:
    """Ours: a small model on real recordings, the words or the speakers of Arabic Speech Commands."""
    return Recipe(
        name=f"{family}-arabic-{task}",
        source="ours, not published: chosen on the validation clips of Arabic Speech Commands",
        start=Start(family=family, size="micro"),
        data=Data(dataset=f"arabic{task}", frames=98, mean=-8.524405, std=4.244379, classes=classes),
        augment=Augment(
            mixup=0.3,
            noise=1.0,
            time_mask=20,
            freq_mask=24,
            drop_path=0.05,
            speed=speed,
            time_shift=0.1,
        ),
        optimizer=AdamW(base_lr=4e-3, b2=0.98, weight_decay=0.05, layer_decay=1.0, clip=1.0),
        schedule=Cosine(warmup_epochs=2),
        prune=Prune(keep_rate=1.0, shrink_start=1, shrink_epochs=4),
        loop=Loop(epochs=epochs, batch=64, loss="ce", ema=0.999, label_smoothing=0.1),
        precision=Precision(compute="float32"),
    )


def pretrained_arabic(
    task: str,
    *,
    classes: int,
    epochs: int,
    speed: tuple[float, float] = UNCHANGED,
    pitch: tuple[float, float] = UNCHANGED,
) -> Recipe:
    """`arabic` for the encoder of `audiomae-arabic-words-pretrain`: twice as wide, its first blocks slower."""
    micro = arabic("audiomae", task, classes=classes, epochs=epochs, speed=speed)
    return dataclasses.replace(
        micro,
        start=dataclasses.replace(micro.start, size="mini"),
        augment=dataclasses.replace(micro.augment, pitch=pitch, drop_path=0.1),
        optimizer=dataclasses.replace(micro.optimizer, base_lr=2e-3, layer_decay=0.85),
        schedule=Cosine(warmup_epochs=5),
        prune=dataclasses.replace(micro.prune, buckets=1),
        loop=dataclasses.replace(micro.loop, batch=128, evaluate_every=10),
    )


def in_other_rooms(recipe: Recipe) -> Recipe:
    """The recipe for speakers of whom some have few recordings: each as often, and each clip through another filter.

    Recordings of one day sound alike, whoever speaks, and the clips to be told are of other days.
    """
    return dataclasses.replace(
        recipe,
        augment=dataclasses.replace(recipe.augment, filter=10.0),
        loop=dataclasses.replace(recipe.loop, balanced=True),
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        made.name: made
        for made in (
            audiomae(
                "audiomae-as20k",
                "audioset",
                augment=Augment(mixup=0.5, time_mask=192, freq_mask=48, patch_mask=0.3),
                prune=Prune(shrink_start=30, shrink_epochs=20),
                loop=Loop(epochs=60, batch=32, loss="bce"),
            ),
            audiomae(
                "audiomae-esc50",
                "esc50",
                augment=Augment(time_mask=96, freq_mask=24, patch_mask=0.3),
                prune=Prune(shrink_start=20, shrink_epochs=40),
                loop=Loop(epochs=120, batch=128, loss="ce", seeds=ESC50_SEEDS),
                expected=(
                    Published(keep_rate=1.0, metric="accuracy", percent=94.30, gmacs=23.11, source=EARLIER_VERSION),
                    Published(keep_rate=0.5, metric="accuracy", percent=93.40, gmacs=11.37, source=EARLIER_VERSION),
                ),
            ),
            audiomae(
                "audiomae-speechcommands",
                "speechcommands",
                augment=Augment(mixup=0.5, noise=1.0, time_mask=48, freq_mask=48),
                prune=Prune(shrink_start=10, shrink_epochs=30),
                loop=Loop(epochs=90, batch=512, loss="bce"),
                expected=(
                    Published(keep_rate=1.0, metric="accuracy", percent=97.95, gmacs=5.61, source=EARLIER_VERSION),
                    Published(keep_rate=0.5, metric="accuracy", percent=97.28, gmacs=2.81, source=EARLIER_VERSION),
                ),
            ),
            audiomae(
                "audiomae-voxceleb1",
                "voxceleb1",
                augment=Augment(noise=1.0, time_mask=192, freq_mask=48),
                prune=Prune(shrink_start=20, shrink_epochs=40),
                loop=Loop(epochs=90, batch=64, loss="ce"),
            ),
            ast(
                "ast-as20k",
                "audioset",
                lr=1e-4,
                augment=Augment(mixup=0.5, time_mask=192, freq_mask=48),
                schedule=StepDecay(warmup_steps=1000, first=10, every=5, factor=0.5),
                prune=Prune(shrink_start=15, shrink_epochs=10),
                loop=Loop(epochs=30, batch=64, loss="bce"),
            ),
            ast(
                "ast-esc50",
                "esc50",
                lr=1e-5,
                augment=Augment(time_mask=96, freq_mask=24),
                schedule=StepDecay(),
                prune=Prune(shrink_start=5, shrink_epochs=15),
                loop=Loop(epochs=30, batch=48, loss="ce", seeds=ESC50_SEEDS),
            ),
            ast(
                "ast-speechcommands",
                "speechcommands",
                lr=2.5e-4,
                augment=Augment(mixup=0.6, noise=1.0, time_mask=48, freq_mask=48),
                schedule=StepDecay(),
                prune=Prune(shrink_start=5, shrink_epochs=15),
                loop=Loop(epochs=30, batch=128, loss="bce"),
            ),
            dataclasses.replace(
                ast(
                    "ast-voxceleb1",
                    "voxceleb1",
                    lr=1e-4,
                    augment=Augment(noise=1.0, time_mask=192, freq_mask=48),
                    schedule=StepDecay(warmup_steps=1000),
                    prune=Prune(shrink_start=5, shrink_epochs=15),
                    loop=Loop(epochs=30, batch=64, loss="ce"),
                ),
                source="ours, not published: AST's settings for Speech Commands with AudioMAE's data for VoxCeleb-1",
            ),
            words("ast"),
            words("audiomae"),
            arabic("ast", "words", classes=40, epochs=60, speed=OTHER_SPEEDS),
            pretrained_arabic("words", classes=40, epochs=60, speed=OTHER_SPEEDS, pitch=OTHER_PITCHES),
            arabic("ast", "speakers", classes=30, epochs=30),
            in_other_rooms(pretrained_arabic("speakers", classes=30, epochs=30)),
        )
    }
)
