"""Pretrains AudioMAE's encoder without labels, as a masked autoencoder.

    jaxprune pretrain audiomae-as2m-pretrain --data.root audioset --out runs/as2m
    jaxprune finetune audiomae-esc50 --data.root data/ESC-50 --start.checkpoint runs/as2m

The same command goes on with a run that was cut off. Own sounds: --data.dataset NAME --data.root FOLDER or a manifest,
which need not have labels.
"""

from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxprune.cli import console as cli
from jaxprune.cli.progress import Wording, follow
from jaxprune.parallel.processes import Launch, StopOnSignal, joined
from jaxprune.plots.reconstruction import draw_reconstructions
from jaxprune.training.events import Evaluation
from jaxprune.training.pretrain import Pictures, PretrainingOptions, pretrain
from jaxprune.training.pretraining_settings import PRETRAINING_RECIPES
from jaxprune.training.start import Sources

# A recipe a subcommand, every field of it an option with that recipe's default.
Recipes = tyro.extras.subcommand_type_from_defaults(PRETRAINING_RECIPES, prefix_names=False, sort_subcommands=False)
NOWHERE_ELSE, DEFAULTS, ALONE = Sources(), PretrainingOptions(), Launch()
PICTURES = "pictures"


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs, tyro.conf.AvoidSubcommands)
def main(
    recipe: Annotated[Recipes, tyro.conf.arg(name="")],
    sources: Annotated[Sources, tyro.conf.arg(name="")] = NOWHERE_ELSE,
    options: Annotated[PretrainingOptions, tyro.conf.arg(name="")] = DEFAULTS,
    launch: Launch = ALONE,
    out: Path | None = None,
    seed: int | None = None,
) -> int:
    """Pretrain an encoder by a recipe; the same command resumes a run that was cut off (exit code 143 on SIGTERM).

    Args:
        recipe: what to train on what, how.
        sources: where the clips are, beside --data.root.
        options: how to carry it out.
        launch: several processes that train together, each started with the same command but for its index.
        out: the run's directory; by default runs/RECIPE-SEED.
        seed: decides weights, order, masks and augmentation; by default the first of the recipe's seeds.
    """
    seed = recipe.loop.seeds[0] if seed is None else seed
    out = out or Path("runs") / f"{recipe.name}-{seed}"
    with StopOnSignal() as stop, joined(launch):
        events = pretrain(recipe, out, seed=seed, sources=sources, options=options, stop=stop)
        outcome = follow(events, out, title="pretraining", wording=PRETRAINING)
    return 143 if outcome.result is None else 0


def draw(pictures: Pictures, out: Path) -> str:
    """Writes the pictures of a step into the run's directory, and says where."""
    path = out / PICTURES / f"step-{pictures.step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    draw_reconstructions(
        pictures.mel,
        visible=pictures.visible,
        prediction=pictures.prediction,
        names=pictures.names,
        config=pictures.config,
        normalised=pictures.normalised,
        path=path,
    )
    return f"drew {path}"


def evaluation_in_words(event: Evaluation) -> str:
    """An evaluation as one line."""
    return f"after step {event.step}: loss {event.loss:.4f} on {event.clips} held-out clips"


def print_result(result: dict[str, Any], out: Path, *, seconds: float, speed: float | None) -> None:
    """Prints the table of a finished run."""
    rows = [(split, found["clips"], f"{found['loss']:.4f}") for split, found in result["scores"].items()]
    seen, whole = result["encoder_macs"], result["unmasked_encoder_macs"]
    steady = "" if speed is None else f", {speed:.0f} clips/s in the latest steps"
    notes = [
        f"encoder {seen / 1e9:.4f} GMACs a clip, {whole / seen:.2f} times less than without the mask "
        f"({whole / 1e9:.4f}); decoder {result['decoder_macs'] / 1e9:.4f}",
        f"model of step {result['saved_step']} ({result['saved']}): {result['model']}",
        f"{result['steps']} steps, {seconds / 60:.1f} minutes here{steady}, {result['device']}",
    ]
    cli.print_table(
        f"{result['data_set']}, {result['recipe']['name']}", ("held out", "clips", "loss"), rows, notes=notes
    )
    cli.notice(f"see {out / 'result.json'}, {out / 'metrics.jsonl'} and {out / PICTURES}")
    cli.notice(f"to train a classifier from it: jaxprune finetune RECIPE --start.checkpoint {out}")


PRETRAINING = Wording(evaluation=evaluation_in_words, table=print_result, further=draw)
