"""The command `jaxprune listen`, from a checkout."""

from jaxprune.cli.main import command

if __name__ == "__main__":
    command("listen")
