"""`python -m convert` in a checkout: the same as `jaxprune convert`."""

from jaxprune.cli.console import run

from .command import convert

if __name__ == "__main__":
    run(convert)
