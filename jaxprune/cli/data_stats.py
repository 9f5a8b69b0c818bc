"""Measures a data set before training on it, and prints the statistics to train with.

jaxprune data-stats speech-commands --root data/speech_commands_v0.02
jaxprune data-stats folder --root my_sounds --frames 512 --json stats.json
"""

from pathlib import Path

from jaxprune import files
from jaxprune.cli import console as cli
from jaxprune.cli.options import DataSource, held, read, with_data
from jaxprune.config import PADDING_IN_WORDS, Padding
from jaxprune.data.published import ESC50, AudioSet, SpeechCommands, VoxCeleb1
from jaxprune.data.records import Dataset, Split
from jaxprune.data.statistics import DatasetStats, measure
from jaxprune.features import STATISTICS

PUBLISHED = {ESC50: "esc50", SpeechCommands: "speechcommands", AudioSet: "audioset", VoxCeleb1: "voxceleb1"}


@with_data
def main(
    data: DataSource,
    *,
    split: Split = "train",
    padding: Padding = "minimum",
    frames: int | None = None,
    unusable: float = 0.01,
    json: Path | None = None,
) -> None:
    """Mean and deviation of log-mel features, lengths, sample rates and class balance of one split.

    Args:
        data: which data set, and where.
        split: which clips.
        padding: the log-mel that fills clips shorter than T in the model to be trained: the clip's own minimum, as in
            models trained here, or zero, as in Hugging Face's and the original AST's.
        frames: T, the input length in frames of 10 ms; by default the published one of a known data
            set, else that of the longest clip, at most 1024.
        unusable: the share of clips that may be damaged or silent.
        json: where to write everything as JSON.
    """
    with held(json):
        dataset = read(data)
        if frames is None and type(data) in PUBLISHED:
            frames = STATISTICS[PUBLISHED[type(data)]].frames
        with cli.progress("measuring", cli.Rate(digits=0)) as progress:
            bar = progress.add_task("", total=len(dataset.clips(split)))
            stats = measure(
                dataset,
                split,
                frames=frames,
                padding=padding,
                unusable=unusable,
                watch=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        cli.print_table(f"{stats.name}, {split}", ("", ""), rows(stats, dataset))
        for reason in stats.unusable.values():
            cli.notice(reason)
        if stats.padded:
            filled = f"{stats.padded} clips are shorter than {stats.frames} frames and padded with"
            cli.notice(f"{filled} {PADDING_IN_WORDS[padding]}, as a model with that padding sees them (--padding)")
        print(stats.recipe_lines)
        if json:
            files.write_text(json, stats.to_json() + "\n")


def rows(stats: DatasetStats, dataset: Dataset) -> list[tuple[str, object]]:
    """Each finding with its name."""
    rarest, commonest = (pick(stats.balance, key=stats.balance.__getitem__) for pick in (min, max))
    return [
        ("clips measured", stats.clips),
        ("clips that cannot be used", len(stats.unusable)),
        ("splits", ", ".join(f"{name} {size}" for name, size in dataset.sizes().items())),
        ("seconds, shortest / median / longest", " / ".join(f"{s:.3g}" for s in stats.seconds)),
        (f"longer than {stats.frames} frames", stats.longer_than_input),
        ("sample rates", ", ".join(f"{rate} Hz: {n}" for rate, n in stats.sample_rates.items())),
        ("channels", ", ".join(f"{channels}: {n}" for channels, n in stats.channels.items())),
        ("classes", f"{len(stats.balance)}, {'one' if stats.single_label else 'several'} per clip"),
        ("clips a class, rarest", f"{stats.balance[rarest]} {rarest}"),
        ("clips a class, commonest", f"{stats.balance[commonest]} {commonest}"),
        ("log-mel mean and std, as the model sees it", f"{stats.mean:.6f}  {stats.std:.6f}"),
        ("padded with the clip's minimum", "{:.6f}  {:.6f}".format(*stats.minimum_padded)),
        ("padded with 0, as AST measured", "{:.6f}  {:.6f}".format(*stats.zero_padded)),
        ("without padding", "{:.6f}  {:.6f}".format(*stats.unpadded)),
    ]
