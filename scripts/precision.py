"""The command `jaxprune precision`, from a checkout."""

from jaxprune.cli.main import command

if __name__ == "__main__":
    command("precision")
