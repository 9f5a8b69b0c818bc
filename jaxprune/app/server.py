"""The server behind the page: sounds come in, answers go out, and nothing of a sound stays.

It is for one person on one machine. A sound is bounded in size before it is read, lies in a temporary file while it is
decoded, and is gone before the answer. Other sites cannot use the page: requests with a foreign Origin or, on the
loopback address, a foreign Host are refused.
"""

import ipaddress
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from jaxprune.app.compare import MOST, Bench, Way
from jaxprune.app.fragment import answer
from jaxprune.report.html import STYLE

LARGEST_MB = 32
SECONDS = 30  # without a byte, after which a connection is closed
AT_ONCE = 4  # sounds that are read or wait for the model
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KINDS = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}


class Refused(ValueError):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: int, sentence: str):
        self.status = status
        super().__init__(sentence)


class Server(ThreadingHTTPServer):
    """The server of a bench on an address; port 0 takes any free one. Raises `OSError` for an address it cannot have.

    Sounds above `megabytes` are refused.
    """

    daemon_threads = True

    def __init__(self, bench: Bench, *, host: str = "127.0.0.1", port: int = 0, megabytes: int = LARGEST_MB):
        if megabytes < 1:
            raise ValueError(f"the largest upload is {megabytes} MB; it must be at least 1")
        self.bench, self.megabytes = bench, megabytes
        self.waiting = threading.BoundedSemaphore(AT_ONCE)
        self.pages = {f"/{name}": (kind, _asset(name)) for name, kind in _KINDS.items()}
        self.pages["/"] = self.pages["/page.html"]
        super().__init__((host, port), _Handler)
        self.is_private = ipaddress.ip_address(self.server_address[0]).is_loopback

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://{self.server_address[0]}:{self.server_port}/"

    def about(self) -> dict:
        """Facts about the model for the page's controls."""
        card = self.bench.card
        return {
            "name": self.bench.name,
            "methods": self.bench.methods,
            "keep_rate": min(card.keep_rates, default=0.7),
            "megabytes": self.megabytes,
            "most": MOST,
        }


def _asset(name: str) -> bytes:
    text = (files("jaxprune.app") / name).read_text(encoding="utf-8")
    return (STYLE + text if name.endswith(".css") else text).encode()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = SECONDS
    server_version, sys_version = "jaxprune", ""

    def log_message(self, format: str, *arguments: object) -> None:
        """Keeps quiet: the user looks at the page."""

    def do_GET(self) -> None:
        """The page and its parts."""
        try:
            self._check_sender()
            path = urlsplit(self.path).path
            if path == "/about":
                self._tell(200, self.server.about())
            elif path in self.server.pages:
                kind, content = self.server.pages[path]
                self._send(200, content, kind=kind)
            else:
                raise Refused(404, f"there is no {path!r:.80} here")
        except Refused as refused:
            self._tell(refused.status, {"error": str(refused)})

    def do_POST(self) -> None:
        """A sound, compared."""
        try:
            self._check_sender()
            asked = urlsplit(self.path)
            if asked.path != "/compare":
                raise Refused(404, f"there is no {asked.path!r:.80} here")
            with self._place():
                self._tell(200, self._compared(parse_qs(asked.query)))
        except Refused as refused:
            self._tell(refused.status, {"error": str(refused)})
        except (ValueError, OSError) as error:
            with suppress(OSError):  # the browser may be gone
                self._tell(400, {"error": str(error)})

    def _check_sender(self) -> None:
        """Refuses requests that another site had a browser make."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        name = urlsplit(f"//{host}").hostname
        if self.server.is_private and name not in ("127.0.0.1", "localhost", "::1"):
            raise Refused(403, "this page is for its own machine; start it with --host to open it")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, "another site asked for this; open the page itself")

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place among the sounds that are worked on, or a refusal at once."""
        if not self.server.waiting.acquire(blocking=False):
            raise Refused(503, "the model is busy; try again in a moment")
        try:
            yield
        finally:
            self.server.waiting.release()

    def _compared(self, query: dict[str, list[str]]) -> dict:
        name = _file_name(query.get("name", [""])[0])
        number = query.get("window", ["0"])[0]
        if not re.fullmatch(r"\d{1,6}", number):
            raise Refused(400, f"window is {number!r:.80}; it must be a whole number")
        ways = [Way.parse(text) for text in dict.fromkeys(query.get("way", []))]
        bench = self.server.bench
        with tempfile.TemporaryDirectory(prefix="jaxprune-app-") as folder:
            path = Path(folder, name)
            self._receive(path)
            try:
                compared = bench.compare(path, ways, number=int(number))
            except ValueError as error:
                raise Refused(400, str(error).replace(f"{folder}/", "")) from error
        html = answer(compared, bench, name=name)
        return {"html": html, "windows": compared.windows, "start": compared.window.start}

    def _receive(self, path: Path) -> None:
        """Writes the request's content to a file, once its size is known to be allowed."""
        length, largest = self.headers.get("Content-Length", ""), self.server.megabytes * 10**6
        if not length.isdecimal():
            raise Refused(411, "the sound's size was not told (Content-Length)")
        if int(length) > largest:
            self.close_connection = True
            raise Refused(
                413, f"the sound has {int(length) / 1e6:.1f} MB; at most {self.server.megabytes} MB are taken"
            )
        left = int(length)
        with path.open("wb") as file:
            while left:
                block = self.rfile.read(min(left, 2**16))
                if not block:
                    raise Refused(400, "the sound did not arrive whole")
                file.write(block)
                left -= len(block)

    def _tell(self, status: int, content: dict) -> None:
        self._send(status, json.dumps(content).encode(), kind="application/json")

    def _send(self, status: int, content: bytes, *, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _file_name(told: str) -> str:
    """A name for the sound's file: the user's, if any can be made of it."""
    name = "".join(char for char in re.split(r"[/\\]", told)[-1] if char.isprintable())[-80:].lstrip(".")
    return name or "sound"
