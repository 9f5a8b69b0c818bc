"""The command `jaxprune export`, from a checkout."""

from jaxprune.cli.main import command

if __name__ == "__main__":
    command("export")
