"""Checkpoints of the hub, by Hugging Face's own client against a hub on this machine."""

import dataclasses
import importlib
import json
import socket
import sys

import numpy as np
import pytest
from helpers import small
from hub_server import served
from jaxprune.convert import hub as ours
from jaxprune.convert.mapping import to_torch
from jaxprune.convert.random_checkpoint import write_ast_official, write_huggingface
from jaxprune.convert.read import read_torch

import jaxprune

CONFIG = dataclasses.replace(small("ast", depth=2, width=24), norm_eps=1e-12, head_norm_eps=1e-12)
LABELS = tuple(f"label {i}" for i in range(CONFIG.classes))
NAME = "org/ast-small"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The hub, and the client that was told of it by its own environment variables."""
    with served() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub-home")))
        patch.setenv("HF_TOKEN", "hf_secret")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("HF_HUB_DISABLE_XET", "1")  # a protocol of its own, of which the hub below knows nothing
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setattr("time.sleep", lambda seconds: None)  # before it tries again
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            patch.delitem(sys.modules, name)  # it reads the variables when it is imported
        importlib.import_module("huggingface_hub.constants")
        yield hub
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hub):
    """A Hugging Face directory, and the same on the hub."""
    path = tmp_path_factory.mktemp("checkpoint") / "hf"
    write_huggingface(path, CONFIG, seed=3, labels=LABELS, mean=-1.5, std=2.5)
    hub.files[NAME] = {file.name: file.read_bytes() for file in path.iterdir()}
    return path


@pytest.fixture
def offline(monkeypatch, hub):
    monkeypatch.setattr(sys.modules["huggingface_hub.constants"], "HF_HUB_OFFLINE", True)


def test_a_name_is_converted_as_its_directory_is_and_the_card_pins_the_commit(hub, folder, run_command, tmp_path):
    code, _, told = run_command("convert", f"hf:{NAME}", tmp_path / "ours")
    assert code == 0, told
    card, expected = jaxprune.load_card(tmp_path / "ours"), read_torch(folder)
    assert card.source == f"hf:{NAME}@{hub.commit(NAME)} ({expected.layout})"
    assert dataclasses.replace(card, source="") == dataclasses.replace(expected.card, source="")
    weights = to_torch(jaxprune.load(tmp_path / "ours"))
    assert weights.keys() == expected.state.keys()
    for name, value in expected.state.items():
        np.testing.assert_array_equal(weights[name], value)
    assert "no checksums" not in told, "the hub told a SHA-256"
    assert "Bearer hf_secret" in hub.tokens


def test_a_commit_in_the_cache_needs_no_network(hub, folder, offline):
    commit = hub.commit(NAME)
    asked = len(hub.requests)
    for name in (f"hf:{NAME}", f"hf:{NAME}@{commit}", f"hf://{NAME}@main"):
        fetched = ours.fetch(name)
        assert fetched.name == f"hf:{NAME}@{commit}"
        assert (fetched.path / "model.safetensors").read_bytes() == hub.files[NAME]["model.safetensors"]
    assert len(hub.requests) == asked


def test_a_file_of_a_repository_without_configuration_is_named(hub, folder, run_command, tmp_path):
    write_ast_official(tmp_path / "ast.pth", small("ast", depth=2), seed=0)
    hub.files["org/pth"] = {"runs/ast.pth": (tmp_path / "ast.pth").read_bytes()}
    code, _, told = run_command("convert", "hf:org/pth/runs/ast.pth", tmp_path / "ours", "--num-heads", 3)
    assert code == 0, told
    source = jaxprune.load_card(tmp_path / "ours").source
    assert source == f"hf:org/pth@{hub.commit('org/pth')}/runs/ast.pth (AST, official)"
    code, _, told = run_command("convert", "hf:org/pth", tmp_path / "none")
    assert (code, "has no config.json on the hub" in told, "hf:org/pth/FILE.pth" in told) == (2, True, True)


def test_shards_are_fetched_by_their_index(hub, folder):
    state = hub.files[NAME]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "../out.safetensors"}}
    files = {"config.json": state["config.json"], "model.safetensors.index.json": json.dumps(index).encode()}
    hub.files["org/shards"] = files | {"model-1.safetensors": state["model.safetensors"]}
    path = ours.fetch("hf:org/shards").path
    assert (path / "model-1.safetensors").read_bytes() == state["model.safetensors"]
    assert not any("out.safetensors" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hf:org/nothing", "hf:org/nothing does not exist on the hub, or is private: check the name"),
        (f"hf:{NAME}@v9", f"hf:{NAME}@v9 does not exist on the hub in this revision"),
        (f"hf:{NAME}/weights.pth", f"hf:{NAME}/weights.pth is not a file on the hub"),
        ("hf:ast", "hf:ast is no name on the hub; they look like hf:ORG/NAME"),
        ("hf:org/gated", "hf:org/gated is gated: accept its terms on its page"),
        ("hf:org/large", "hf:org/large has model.safetensors of 99,999,999,999 bytes; at most 17,179,869,184"),
        ("hf:org/empty", "hf:org/empty holds no weights; looked for model.safetensors"),
        ("hf:org/cut", "hf:org/cut cannot be fetched or sent: "),
    ],
)
def test_what_cannot_be_had_is_one_sentence(hub, folder, run_command, tmp_path, name, sentence, monkeypatch):
    files = hub.files[NAME]
    hub.files |= {"org/gated": files, "org/large": dict(files), "org/empty": {"config.json": b"{}"}}
    hub.files["org/cut"] = files | {"model.safetensors": files["model.safetensors"] + b"cut"}
    hub.cut.add(ours.hashlib.sha256(hub.files["org/cut"]["model.safetensors"]).hexdigest())
    hub.gated.add("org/gated")
    if name == "hf:org/large":
        monkeypatch.setitem(hub.announced, "model.safetensors", 99_999_999_999)
    code, _, told = run_command("convert", name, tmp_path / "out")
    assert code == 2
    *notes, error = told.splitlines()
    assert sentence in error
    assert len(notes) == {"hf:org/cut": 2}.get(name, 0)  # it was tried again
    assert all(note.startswith("note: ") for note in notes)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_does_not_answer_is_two_notes_and_one_sentence(hub, folder, run_command, tmp_path, monkeypatch):
    with socket.socket() as closed:  # its port answers nobody once it is closed
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    constants = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    code, _, told = run_command("convert", "hf:org/elsewhere", tmp_path / "out")
    assert code == 2
    refused, again, error = told.splitlines()  # however often it asked
    assert refused.startswith("note: ")
    assert "Connection refused" in refused
    assert again == "note: Retrying in 1s [Retry 1/5]."
    assert error.startswith(f"error: hf:org/elsewhere is not in the cache, and cannot be had from {nobody} (")
    assert not (tmp_path / "out").exists()


def test_no_network_is_one_sentence(hub, folder, run_command, tmp_path, offline):
    code, _, told = run_command("convert", "hf:org/elsewhere", tmp_path / "out")
    assert code == 2
    assert "hf:org/elsewhere is not whole in the cache, and HF_HUB_OFFLINE keeps the hub off" in told


def test_a_damaged_cache_is_seen(hub, folder):
    hub.files["org/damaged"] = hub.files[NAME] | {"model.safetensors": hub.files[NAME]["model.safetensors"] + b" "}
    weights = ours.fetch("hf:org/damaged").path / "model.safetensors"
    weights.resolve().write_bytes(b"something else")
    with pytest.raises(ValueError, match="was damaged on its way or in the cache; delete it and fetch it again"):
        ours.fetch("hf:org/damaged")


def test_a_missing_client_is_named_with_its_extra(run_command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, told = run_command("convert", "hf:org/any", tmp_path / "out")
    assert code == 2
    assert 'huggingface_hub is not installed; this needs it: pip install "jaxprune[hub]"' in told


def test_a_model_goes_to_the_hub_with_a_card_and_comes_back_as_it_was(hub, run_command, tmp_path):
    card = jaxprune.Card(
        model=dataclasses.replace(CONFIG, norm_eps=1e-6, head_norm_eps=1e-6),
        mean=-4.5,
        std=3.5,
        activation="sigmoid",
        labels=LABELS,
        source="a recipe | of <tests>",
        padding="minimum",
        keep_rates=(0.7, 0.5),
    )
    jaxprune.save(tmp_path / "ours", jaxprune.build(card.model, seed=5), card=card)
    rows = [{"keep_rate": 0.7, "gmacs": 0.1234, "saving": 0.331, "top1": 0.875, "top5": 1.0, "loss": 0.3, "clips": 40}]
    result = {"source": card.source, "data": {"kind": "ESC50", "root": "/home/someone/ESC-50", "fold": 3}}
    result |= {"split": "test", "method": "topk", "blocks": [1], "dtype": "float32", "device": "cpu", "rates": rows}
    (tmp_path / "result.json").write_text(json.dumps(result))
    options = ("--format", "huggingface", "--upload", "me/pruned", "--private", "--results", tmp_path / "result.json")
    code, _, told = run_command("export", tmp_path / "ours", tmp_path / "hf", *options)
    assert code == 0, told
    assert f"{hub.address}/me/pruned/commit/{hub.commit('me/pruned')}" in told
    assert hub.private["me/pruned"]
    assert hub.files["me/pruned"] == {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    text = hub.files["me/pruned"]["README.md"].decode()
    assert "# me/pruned" in text
    assert "| 0.7 | 0.123 | 33.1 % | 87.5 | 100.0 | 40 |" in text
    assert "Data: `ESC50 fold=3`, test, topk at blocks 1. Computed in float32 on cpu." in text
    assert "a recipe / of (tests)" in text
    assert "keep rates (the share of patches that a pruning block keeps): 0.7 0.5." in text
    assert "someone" not in text
    code, _, told = run_command("convert", "hf:me/pruned", tmp_path / "back")
    assert code == 0, told
    back = jaxprune.load_card(tmp_path / "back")
    assert dataclasses.replace(back, source="") == dataclasses.replace(card, source="")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--format", "huggingface", "--upload", "me"), "'me' is no name of a repository; it looks like ORG/NAME"),
        (("--format", "huggingface", "--private"), "--private is for --upload, which was not given"),
        (("--format", "huggingface", "--keep-rate", "0.7", "--batch", "2"), "--keep-rate and --batch cannot be used"),
        (("--format", "onnx", "--upload", "me/x"), "--results, --upload and --private are for --format huggingface"),
        (("--format", "huggingface", "--results", "other.json"), "other.json was measured on another model"),
        (("--format", "huggingface", "--results", "none.json"), "none.json is not a result of jaxprune evaluate --out"),
    ],
)
def test_what_cannot_be_sent_is_one_sentence(hub, run_command, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    fields = {"data": {}, "split": "test", "method": "topk", "blocks": [], "dtype": "float32", "device": "cpu"}
    (tmp_path / "other.json").write_text(json.dumps(fields | {"source": "another", "rates": []}))
    (tmp_path / "none.json").write_text("[]")
    code, _, told = run_command("export", "ast-words", tmp_path / "out", *options)
    assert code == 2
    assert sentence in told
    assert not (tmp_path / "out").exists()


def test_sending_without_a_token_is_one_sentence(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        ValueError, match=r"refused by the hub with status 401; log in \(hf auth login\) or set HF_TOKEN"
    ):
        ours.upload(folder, "me/anonymous", private=False)
