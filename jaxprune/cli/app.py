"""A page in the browser to try a model on: drop or record a sound, move the keep rate, compare methods.

    jaxprune app ast-words
    jaxprune app CHECKPOINT --host 0.0.0.0

The page is for this machine alone, unless --host opens it. Sounds are deleted before their answer is shown.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import tyro

from jaxprune.app.compare import Bench
from jaxprune.app.server import LARGEST_MB, Server
from jaxprune.cli import console as cli


def main(
    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    megabytes: int = LARGEST_MB,
) -> None:
    """Serve a page on which a model labels sounds at any keep rate, until Ctrl-C.

    Args:
        checkpoint: a directory of jaxprune convert or jaxprune finetune, or the name of a shipped model.
        host: the address to listen on; 0.0.0.0 opens the page to the whole network.
        port: the port; any free one if 0.
        megabytes: the largest sound that is taken.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port is {port}; it must be from 0 to {2**16 - 1}")
    bench = Bench(checkpoint)
    try:
        server = Server(bench, host=host, port=port, megabytes=megabytes)
    except OSError as error:
        why = f"{host}:{port} cannot be listened on ({error.strerror}); choose another --host or --port"
        raise ValueError(why) from error
    with server, suppress(KeyboardInterrupt):
        if not server.is_private:
            cli.notice("everyone who reaches this address can use the page; it asks for no password")
        print(f"{bench.name} is at {server.address} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
