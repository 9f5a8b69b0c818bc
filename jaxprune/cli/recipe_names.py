"""Mistakes in the arguments of a training command that are told before its options are read.

The options' parser would answer a recipe's name that it does not know with a page about options. And it cannot tell a
keep rate that was typed from a recipe's own.
"""

import difflib
from collections.abc import Collection, Sequence

from jaxprune.training.pretraining_settings import PRETRAINING_RECIPES
from jaxprune.training.recipes import RECIPES


def of_finetuning(arguments: Sequence[str]) -> None:
    """Raises `ValueError` for a recipe that fine-tuning does not have, and for a keep rate beside ones to draw."""
    _check_recipe(arguments, RECIPES, others=PRETRAINING_RECIPES, command="finetune", theirs="pretrain")
    _check_draws(arguments)


def of_protocol(arguments: Sequence[str]) -> None:
    """The same for every fold and seed."""
    _check_recipe(arguments, RECIPES, others=PRETRAINING_RECIPES, command="protocol", theirs="pretrain")
    _check_draws(arguments)


def of_pretraining(arguments: Sequence[str]) -> None:
    """Raises `ValueError` for a recipe that pretraining does not have."""
    _check_recipe(arguments, PRETRAINING_RECIPES, others=RECIPES, command="pretrain", theirs="finetune")


def _check_recipe(
    arguments: Sequence[str], recipes: Collection[str], *, others: Collection[str], command: str, theirs: str
) -> None:
    if set(arguments) & set(recipes):
        return
    # A word after an option may be its value.
    words = [word for before, word in zip(["", *arguments], arguments, strict=False) if not before.startswith("-")]
    if found := next((word for word in words if word in others), None):
        kind = {"pretrain": "pretraining", "finetune": "fine-tuning"}[theirs]
        raise ValueError(f"{found} is a recipe of {kind}; its command is: jaxprune {theirs} {found}")
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], [*recipes, *others], n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(recipes)}"
        raise ValueError(f"jaxprune {command} has no recipe {arguments[0]!r}; {meant}")


def _check_draws(arguments: Sequence[str]) -> None:
    typed = {word.partition("=")[0].replace("_", "-") for word in arguments}
    if {"--prune.keep-rate", "--prune.sample"} <= typed:
        raise ValueError(
            "a run reaches a target (--prune.keep-rate) or draws its keep rates (--prune.sample); give one of them"
        )
