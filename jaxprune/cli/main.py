"""The program `jaxprune`: a table of commands, each imported when it is asked for.

Nothing heavy is imported here, so that `jaxprune --help` answers at once and a command loads only what it needs.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from jaxprune.cli.memory import restart_with_huge_pages


@dataclass(frozen=True)
class Command:
    """A function named by `module:function`, and its line in the help. `check`, named alike, reads arguments first."""

    where: str
    help: str
    check: str = ""


COMMANDS = {
    "convert": Command("jaxprune.convert.command:convert", "a PyTorch checkpoint to JAX, and back again"),
    "validate": Command("jaxprune.convert.validate:main", "prove that JAX computes what PyTorch does, stage by stage"),
    "classify": Command("jaxprune.cli.classify:main", "label sound files at any keep rate, window by window"),
    "listen": Command(
        "jaxprune.cli.listen:main", "events, from begin to end, in a long file, a pipe or a microphone's sound"
    ),
    "app": Command("jaxprune.cli.app:main", "a page in the browser: move the keep rate, see labels and kept patches"),
    "features": Command("jaxprune.cli.features:main", "show and save a sound's log-mel as the model sees it"),
    "export": Command("jaxprune.cli.export:main", "a pruned model for ONNX Runtime, OpenVINO or XLA"),
    "precision": Command("jaxprune.cli.precision:main", "bfloat16 and int8 against float32 at several keep rates"),
    "finetune": Command(
        "jaxprune.cli.finetune:main",
        "train by a recipe while the keep rate falls",
        check="jaxprune.cli.recipe_names:of_finetuning",
    ),
    "pretrain": Command(
        "jaxprune.cli.pretrain:main",
        "train AudioMAE's encoder without labels, by a recipe",
        check="jaxprune.cli.recipe_names:of_pretraining",
    ),
    "protocol": Command(
        "jaxprune.cli.protocol:main",
        "train every fold and seed of a recipe",
        check="jaxprune.cli.recipe_names:of_protocol",
    ),
    "evaluate": Command("jaxprune.cli.evaluate:main", "accuracy or mAP on a data set, beside the cost"),
    "extract": Command("jaxprune.cli.extract:main", "save scores, kept patches and logits of a data set"),
    "analyze": Command("jaxprune.cli.analyze:main", "the paper's statistics of an extraction"),
    "ablate": Command("jaxprune.cli.ablate:main", "prune by pixels, at random or upside down, and compare"),
    "sweep": Command("jaxprune.cli.sweep:main", "accuracy and measured time over many settings"),
    "report": Command("jaxprune.cli.report:main", "one HTML page about analyses, sweeps and ablations"),
    "benchmark": Command("jaxprune.convert.benchmark.command:main", "time the models next to PyTorch"),
    "data-stats": Command("jaxprune.cli.data_stats:main", "measure a data set before training on it"),
    "shard": Command("jaxprune.cli.shard:main", "decode a data set once, for faster reading"),
}


TRAINING = ("finetune", "pretrain", "protocol")  # commands that a CPU runs faster with huge pages


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names, and exits with its code. Arguments default to the program's."""
    own = arguments is None
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or [""]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"jaxprune {version('jaxprune')}")
    elif name in COMMANDS:
        if own and name in TRAINING:
            restart_with_huge_pages()
        command(name, rest)
    else:
        print(f"error: {mistaken(name)}" if name else usage(), file=sys.stderr)
        sys.exit(2)


def command(name: str, arguments: Sequence[str] | None = None) -> None:
    """Runs one command with the arguments after its name, and exits with its code."""
    from jaxprune.cli import console  # costs a second

    asked = COMMANDS[name]
    with console.errors_in_a_sentence():  # an optional package may be missing
        main = named(asked.where)
        if asked.check:
            named(asked.check)(sys.argv[1:] if arguments is None else arguments)
    console.run(main, program=f"jaxprune {name}", arguments=arguments)


def named(where: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, function = where.split(":")
    return getattr(importlib.import_module(module), function)


def usage() -> str:
    """The help: a line for each command."""
    lines = [f"  {name:<11} {one.help}" for name, one in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxprune COMMAND [OPTIONS]",
            "",
            "Token pruning for audio transformers in JAX.",
            "",
            *lines,
            "",
            "`jaxprune COMMAND --help` lists a command's options, `jaxprune --version` tells the version.",
        ]
    )


def mistaken(name: str) -> str:
    """A sentence on a command that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(COMMANDS)}"
    return f"there is no command {name!r}; {meant}"
