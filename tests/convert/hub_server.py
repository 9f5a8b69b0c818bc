"""A hub on 127.0.0.1 that speaks the protocol of Hugging Face's as far as its client asks: resolve, create, commit.

Repositories are in memory. Weights are large files: they are redirected to, and sent apart from the commit.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

LARGE = (".safetensors", ".bin", ".pth")


class Hub:
    """The repositories, `{name: {file: content}}`, and what was asked. `announced` sizes replace true ones."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.private: dict[str, bool] = {}
        self.announced: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.cut: set[str] = set()  # files whose content stops half way
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.address = self.elsewhere = ""  # the hub, and the host of its large files

    def commit(self, repo: str) -> str:
        """The commit of a repository's present files."""
        return hashlib.sha1(repr(sorted(self.files[repo].items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def tell(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def asked(self) -> list[str]:
        self.hub.requests.append((self.command, self.path))
        self.hub.tokens.add(self.headers.get("Authorization"))
        return [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]

    def do_HEAD(self):
        match self.asked():
            case ["blobs", digest]:
                self.send_blob(digest)
            case [owner, name, "resolve", revision, *file]:
                self.resolve(f"{owner}/{name}", revision, "/".join(file))
            case _:
                self.reply(404)

    do_GET = do_HEAD

    def resolve(self, repo: str, revision: str, file: str) -> None:
        hub = self.hub
        if repo not in hub.files:
            return self.reply(401, X_Error_Code="RepoNotFound")
        if repo in hub.gated:
            return self.reply(403, X_Error_Code="GatedRepo")
        commit = hub.commit(repo)
        if revision not in ("main", commit):
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if file not in hub.files[repo]:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = hub.files[repo][file]
        digest = hashlib.sha256(content).hexdigest()
        told = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if file.endswith(LARGE):
            hub.blobs.setdefault(digest, content)
            size = str(hub.announced.get(file, len(content)))
            linked = {"X_Linked_Size": size, "X_Linked_ETag": f'"{digest}"'}
            return self.reply(302, Location=f"{hub.elsewhere}/blobs/{digest}", **told, **linked)
        return self.reply(200, content, **told)

    def send_blob(self, digest: str) -> None:
        content = self.hub.blobs[digest]
        if digest in self.hub.cut and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.reply(200, content)

    def do_POST(self):
        asked, body = self.asked(), self.body()
        if not self.headers.get("Authorization"):
            return self.reply(401, b'{"error": "Invalid username or password."}')
        match asked:
            case ["api", "repos", "create"]:
                told = json.loads(body)
                repo = f"{told['organization']}/{told['name']}"
                if repo in self.hub.files:
                    return self.reply(409, json.dumps({"url": f"{self.hub.address}/{repo}"}).encode())
                private = told.get("private") or told.get("visibility") == "private"
                self.hub.files[repo], self.hub.private[repo] = {}, bool(private)
                self.tell({"url": f"{self.hub.address}/{repo}"})
            case ["api", "validate-yaml"]:
                self.tell({"warnings": [], "errors": []})
            case ["api", "models", _, _, "preupload", "main"]:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
                self.tell({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
            case [_, _, "info", "lfs", "objects", "batch"]:
                objects = [one | self.actions(one["oid"]) for one in json.loads(body)["objects"]]
                self.tell({"transfer": "basic", "objects": objects})
            case ["api", "models", owner, name, "commit", "main"]:
                self.tell(self.committed(f"{owner}/{name}", body))
            case _:
                self.reply(404)

    def actions(self, oid: str) -> dict:
        return {"authenticated": True, "actions": {"upload": {"href": f"{self.hub.address}/blobs/{oid}"}}}

    def do_PUT(self):
        (_, digest), content = self.asked(), self.body()
        assert hashlib.sha256(content).hexdigest() == digest
        self.hub.blobs[digest] = content
        self.reply(200)

    def committed(self, repo: str, body: bytes) -> dict:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.hub.files[repo][value["path"]] = self.hub.blobs[value["oid"]]
        commit = self.hub.commit(repo)
        return {"commitUrl": f"{self.hub.address}/{repo}/commit/{commit}", "commitOid": commit, "success": True}


@contextlib.contextmanager
def served() -> Iterator[Hub]:
    """A hub that runs inside the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address, hub.elsewhere = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
