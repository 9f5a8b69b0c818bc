"""A pruned model for others: a Hugging Face directory with its model card, sent to the hub if asked.

`jaxprune export --format huggingface` is its command.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxprune.cli.console import notice
from jaxprune.files import check_free, locked

from . import hub
from .command import export_checkpoint


def publish(
    checkpoint: Path,
    out: Path,
    *,
    results: Sequence[Path] = (),
    upload: str = "",
    private: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint as a directory that `transformers` loads, and uploads it to the repository `upload`, if any.

    `results` are files of `jaxprune evaluate --out`, which the README.md tells. Raises `ValueError` where the model has
    no such layout, a result is of another model, or the hub refuses.
    """
    if private and not upload:
        raise ValueError("--private is for --upload, which was not given")
    if upload:
        hub.check_repository(upload)
    with locked(out):
        check_free(out, marker="config.json", overwrite=overwrite)
        export_checkpoint(checkpoint, out, layout="huggingface", overwrite=overwrite, results=results, name=upload)
        if upload:
            notice(f"uploaded: {hub.upload(out, upload, private=private)}")
