"""`python -m jaxprune`: the same as the program `jaxprune`."""

from jaxprune.cli.main import main

if __name__ == "__main__":
    main()
