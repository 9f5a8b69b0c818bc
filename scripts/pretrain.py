"""The command `jaxprune pretrain`, from a checkout."""

from jaxprune.cli.main import command

if __name__ == "__main__":
    command("pretrain")
