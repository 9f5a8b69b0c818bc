"""Fine-tunes AST or AudioMAE by a published recipe, with the keep rate falling on the way.

    jaxprune finetune ast-esc50 --data.root data/ESC-50 --start.checkpoint ast --out runs/esc50
    jaxprune finetune audiomae-speechcommands --data.root data/speech_commands_v0.02 --prune.keep-rate 0.5

The same command goes on with a run that was cut off. Own sounds: --data.dataset NAME --data.root FOLDER. All folds and
seeds of a recipe: jaxprune protocol.
"""

from pathlib import Path
from typing import Annotated

import tyro

from jaxprune.cli.progress import follow
from jaxprune.parallel.processes import Launch, StopOnSignal, joined
from jaxprune.training.finetune import finetune
from jaxprune.training.recipes import RECIPES
from jaxprune.training.run import Options
from jaxprune.training.start import Sources

# A recipe a subcommand, every field of it an option with that recipe's default.
Recipes = tyro.extras.subcommand_type_from_defaults(RECIPES, prefix_names=False, sort_subcommands=False)
NOWHERE_ELSE, DEFAULTS, ALONE = Sources(), Options(), Launch()


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs, tyro.conf.AvoidSubcommands)
def main(
    recipe: Annotated[Recipes, tyro.conf.arg(name="")],
    sources: Annotated[Sources, tyro.conf.arg(name="")] = NOWHERE_ELSE,
    options: Annotated[Options, tyro.conf.arg(name="")] = DEFAULTS,
    launch: Launch = ALONE,
    out: Path | None = None,
    seed: int | None = None,
) -> int:
    """Fine-tune a model by a recipe; the same command resumes a run that was cut off (exit code 143 on SIGTERM).

    Args:
        recipe: what to train on what, how.
        sources: where the clips are, beside --data.root.
        options: how to carry it out.
        launch: several processes that train together, each started with the same command but for its index.
        out: the run's directory; by default runs/RECIPE-KEEPRATE-SEED, or RECIPE-any-SEED.
        seed: decides weights, order and augmentation; by default the first of the recipe's seeds.
    """
    seed = recipe.loop.seeds[0] if seed is None else seed
    out = out or Path("runs") / f"{recipe.name}-{recipe.prune.in_names}-{seed}"
    with StopOnSignal() as stop, joined(launch):
        outcome = follow(finetune(recipe, out, seed=seed, sources=sources, options=options, stop=stop), out)
    return 143 if outcome.result is None else 0
