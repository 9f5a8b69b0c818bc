"""What several scripts take as options, written for tyro: a data set, or a recipe with every field of it."""

from typing import Annotated

import tyro

from jaxprune.data.published import ESC50, AudioSet, Folder, Manifest, Shards, SpeechCommands, VoxCeleb1
from jaxprune.training.recipes import RECIPES

# A data set a subcommand, its fields as options.
DataSource = (
    Annotated[ESC50, tyro.conf.subcommand("esc50")]
    | Annotated[SpeechCommands, tyro.conf.subcommand("speech-commands")]
    | Annotated[AudioSet, tyro.conf.subcommand("audioset")]
    | Annotated[VoxCeleb1, tyro.conf.subcommand("voxceleb1")]
    | Annotated[Folder, tyro.conf.subcommand("folder")]
    | Annotated[Manifest, tyro.conf.subcommand("manifest")]
    | Annotated[Shards, tyro.conf.subcommand("shards")]
)
# A recipe a subcommand, every field of it an option with that recipe's default.
Recipes = tyro.extras.subcommand_type_from_defaults(RECIPES, prefix_names=False, sort_subcommands=False)
