"""A headless Chromium over its debugging pipe, where one is installed: just enough to look at a page of ours."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
# Chromium reads from descriptor 3 and writes to 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str | None:
    """The program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `requests` are the addresses it asked for, `errors` what it complained of."""

    def __init__(self, to, answers):
        self._to, self._answers, self._number, self._session = to, answers, 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        return self._until(lambda said: said.get("id") == self._number)["result"]

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Loads a file in a window of this width; a narrow one is a phone's."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._until(lambda said: said.get("method") == "Page.loadEventFired")

    def run(self, script: str):
        """The value of a JavaScript expression; promises are waited for."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"][
            "value"
        ]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _until(self, is_it) -> dict:
        while True:
            raw = bytearray()
            while (byte := self._answers.read(1)) != b"\0":
                if not byte:
                    raise RuntimeError("Chromium has ended")
                raw += byte
            said = json.loads(raw)
            if "error" in said:
                raise RuntimeError(said["error"]["message"])
            if said.get("method") == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(said["params"]))
            if is_it(said):
                return said


@contextmanager
def browse(program: str, *, profile: Path) -> Iterator[Page]:
    """A browser of its own, ended with the block."""
    read_by_it, write = os.pipe()
    read, written_by_it = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(read_by_it), str(written_by_it), program, *options],
        pass_fds=(read_by_it, written_by_it),
        stderr=subprocess.DEVNULL,
    )
    os.close(read_by_it)
    os.close(written_by_it)
    with open(write, "wb") as to, open(read, "rb") as answers:
        try:
            yield Page(to, answers)
        finally:
            process.kill()
            process.wait()
