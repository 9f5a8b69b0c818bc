"""The page's server on a free port: sounds in, answers out, and every refusal a sentence."""

import http.client
import json
import threading
import urllib.parse
from pathlib import Path

import pytest
from helpers import TESTS
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.app.compare import Bench
from jaxprune.app.server import Server
from jaxprune.inference import classify

CROW = (TESTS / "recordings" / "crow.wav").read_bytes()
GUITAR = (TESTS / "recordings" / "guitar.mp3").read_bytes()


@pytest.fixture(scope="module")
def server(quick_compiling):  # noqa: F811
    with Server(Bench("ast-words"), megabytes=1) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(server):
    """`ask(path, body, **headers) -> (status, headers, content)` of a POST, or of a GET without a body."""

    def call(path: str, body: bytes | None = None, **headers: str):
        connection = http.client.HTTPConnection(*server.server_address, timeout=300)
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.getheader("Content-Type", "").startswith("application/json")
        return answer.status, answer.headers, json.loads(content) if is_json else content.decode()

    return call


def query(**asked) -> str:
    return "/compare?" + urllib.parse.urlencode(asked, doseq=True)


def test_the_page_and_its_parts_are_served_and_may_load_nothing_else(ask):
    for path, inside in (("/", "Choose a sound"), ("/page.js", "getUserMedia"), ("/page.css", "--accent")):
        status, headers, content = ask(path)
        assert (status, inside in content) == (200, True)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "http:" not in content.replace("https and", "")
    assert ask("/about")[2]["methods"][0] == "topk"
    assert ask("/etc/passwd")[0] == 404


def test_a_sound_is_classified_as_the_library_does_and_leaves_no_file(ask, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, _, told = ask(query(name="<b>crow.wav", way=["topk:0.5", "tome:0.7"]), CROW)
    assert status == 200
    expected = classify(TESTS / "recordings" / "crow.wav", "ast-words", keep_rate=0.5)
    label, probability = expected.results[0].top[0]
    html = told["html"]
    assert f"{label} ({probability:.3f})" in html
    assert f"{expected.macs / 1e9:.3f}" in html
    assert f"{100 * expected.saving:.1f} %" in html
    for heading in ("the whole model", "topk at keep rate 0.5", "tome at keep rate 0.7"):
        assert f"<h3>{heading}</h3>" in html
    for block, kept in expected.results[0].kept.items():
        assert f"after block {block}: {len(kept)} of {expected.patches}" in html
    assert "&lt;b&gt;crow.wav" in html
    assert "<b>crow" not in html
    assert not list(tmp_path.iterdir())


def test_a_later_window_of_a_longer_sound_can_be_asked_for(ask):
    _, _, first = ask(query(name="guitar.mp3"), GUITAR)
    _, _, third = ask(query(name="guitar.mp3", window="2"), GUITAR)
    _, _, last = ask(query(name="guitar.mp3", window="999"), GUITAR)
    windows = jaxprune.classify(TESTS / "recordings" / "guitar.mp3", "ast-words", keep_rate=1.0).results
    assert [told["start"] for told in (first, third, last)] == [0, windows[2].start, windows[-1].start]
    label, probability = windows[2].top[0]
    assert f"{label} ({probability:.3f})" in third["html"]
    assert first["windows"] == len(windows)
    assert ask(query(name="crow.wav"), CROW)[2]["windows"] == 1


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "sentence"),
    [
        (query(name="broken.mp3"), b"ID3 and nothing more", {}, 400, "broken.mp3"),
        (query(name="empty.wav"), b"", {}, 400, "empty.wav"),
        (query(name="../../x.wav", way="topk:0.5"), b"no sound", {}, 400, "x.wav"),
        (query(name="a.wav", way="topk:0"), CROW, {}, 400, "'topk:0' is no way to reduce tokens"),
        (query(name="a.wav", way="best:0.5"), CROW, {}, 400, "there is no method 'best'"),
        (query(name="a.wav", way="dynamic:0.5"), CROW, {}, 400, "predictors"),
        (
            query(name="a.wav", way=[f"topk:0.{i}" for i in range(1, 6)]),
            CROW,
            {},
            400,
            "5 ways were asked for; at most 4",
        ),
        (query(name="a.wav", window="-1"), CROW, {}, 400, "window is '-1'"),
        (query(name="a.wav"), bytes(1_000_001), {}, 413, "the sound has 1.0 MB; at most 1 MB are taken"),
        ("/classify", CROW, {}, 404, "there is no '/classify' here"),
        (query(name="a.wav"), CROW, {"Origin": "http://elsewhere.example"}, 403, "another site asked for this"),
        (query(name="a.wav"), CROW, {"Host": "elsewhere.example"}, 403, "this page is for its own machine"),
    ],
)
def test_a_refusal_is_a_sentence_that_names_no_folder(ask, path, body, headers, status, sentence):
    answered, _, told = ask(path, body, **headers)
    assert answered == status
    assert sentence in told["error"]
    assert "jaxprune-app-" not in told["error"]


def test_a_busy_model_says_so_at_once(ask, server):
    while server.waiting.acquire(blocking=False):
        pass
    try:
        status, _, told = ask(query(name="a.wav"), CROW)
    finally:
        for _ in range(4):
            server.waiting.release()
    assert (status, told["error"]) == (503, "the model is busy; try again in a moment")
    assert ask(query(name="a.wav"), CROW)[0] == 200


def test_the_command_refuses_addresses_it_cannot_have(run_command, server):
    taken = run_command("app", "ast-words", "--port", server.server_port)
    assert taken[0] == 2
    assert f"127.0.0.1:{server.server_port} cannot be listened on (Address already in use)" in taken[2]
    assert run_command("app", "ast-words", "--port", "99999")[0] == 2
    assert run_command("app", Path("nowhere"))[0] == 2
