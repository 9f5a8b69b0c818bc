"""The program `jaxprune`: one module a command, and what commands share.

A command reads its options, calls the library, and prints or saves the result. `main` is the table of commands,
`console` the terminal, `options` the options of several commands, `recipe_names` mistakes in training commands'
arguments, `progress` a training run as it is shown, `memory` the pages that training takes its memory in, and
`compile_cache` keeps compiled programs for the next command. Nothing here is needed to use the library from Python.
`convert`, `validate` and `benchmark` need PyTorch and live in `jaxprune.convert`.
"""

__all__ = ["compile_cache", "console", "main", "memory", "options", "progress", "recipe_names"]
