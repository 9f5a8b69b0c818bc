"""Foreign files that lie about themselves: each is refused in one sentence, soon, and before any of it is believed."""

import json
import os
import pickle
import time

import numpy as np
import pytest
import torch
from jaxprune.convert import load_torch, pickles
from jaxprune.convert.containers import LARGEST_FILE
from jaxprune.convert.random_checkpoint import random_state, write_ast_official, write_huggingface
from jaxprune.convert.read import CheckpointError, read_torch
from safetensors.torch import save_file
from untrusted_cases import AST, refused, zipped

from jaxprune.config import ModelConfig

DOUBLED = b"K\x01" + b"q\x00h\x00\x86" * 40  # 1, then a pair of what came before, 40 times over
NESTED = b"K\x01" + b"\x85" * 900_000


@pytest.fixture(scope="module")
def state():
    return random_state(AST, seed=0)


@pytest.fixture
def saved(tmp_path, state):
    torch.save(state, tmp_path / "ast.pth")
    return tmp_path / "ast.pth"


def with_pickle(path, data):
    """A zip as torch.save writes it, of this pickle and no storage."""
    return zipped(path, [("archive/data.pkl", data), ("archive/version", b"3\n")])


def test_formats_without_checksums_say_so(tmp_path, saved, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name, said in (("a.safetensors", True), ("legacy.pth", True), ("ast.pth", False)):
        assert any("no checksums" in note for note in read_torch(tmp_path / name, num_heads=3).notes) is said


# --- the pickle


@pytest.mark.parametrize("data", [DOUBLED, NESTED], ids=["doubled", "nested"])
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_key_that_costs_for_ever_is_seen_before_torch_reads(tmp_path, data, kind):
    content = b"\x80\x02}" + data + b"K\x02s."
    path = tmp_path / "a.pth"
    if kind == "zip":
        with_pickle(path, content)
    else:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"\x80\x02}q\x00.", content, 1))
        assert path.stat().st_size > len(whole)
    refused(path, "nests values deeper or wider")


def test_nested_lists_are_counted_too(tmp_path):
    refused(with_pickle(tmp_path / "a.pth", b"\x80\x02" + b"]" * 500 + b"a" * 499 + b"."), "nests values deeper")


def test_a_pickle_of_endless_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 5000)
    path = with_pickle(tmp_path / "a.pth", b"\x80\x02(" + b"N" * 5001 + b"t.")
    refused(path, "more than 5,000 instructions")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"\x80\x02}", "pickle exhausted"),
        (b"\x80\x02a.", "takes what it never put there"),
        (b"\x80\x02h\x05.", "takes what it never put there"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x80\x02K\x01Q.", "no tensor's storage"),
    ],
)
def test_a_broken_pickle(tmp_path, content, fact):
    refused(with_pickle(tmp_path / "a.pth", content), fact)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_protocols_that_torch_reads_are_read_and_others_named(tmp_path, state, protocol, kind):
    path = tmp_path / "a.pth"
    torch.save({"model": state}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        named = protocol if protocol > 1 else "0 or 1"
        refused(path, f"unsupported pickle protocol {named}", "save it again with torch.save's own protocol 2")
        assert protocol not in (2, 3)
    else:
        read = read_torch(path, num_heads=3)
        assert all(np.array_equal(read.state[key], value) for key, value in state.items())
        assert protocol in (2, 3)


def test_every_instruction_of_a_training_checkpoint_is_known(tmp_path, state):
    """The look beforehand must not refuse a file that torch reads."""
    extras = {"list": [1, 2.5, None, True, "x"], "tuple": (1, (2, 3), ()), "big": 2**70, "bytes": b"abc", "set": {1, 2}}
    extras |= {"size": torch.Size([2, 3]), "dtype": torch.float16, "device": torch.device("cpu"), "complex": 1 + 2j}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    content = {"model": state, "extras": extras, "optimizer": optimizer.state_dict(), "int": torch.arange(3)}
    torch.save(content, tmp_path / "a.pth")
    torch.load(tmp_path / "a.pth", weights_only=True)
    assert read_torch(tmp_path / "a.pth", num_heads=3).ignored.keys() >= {"extras", "optimizer", "int"}


# --- odd tensors


def odd_tensors():
    dense = torch.ones(48)
    return {
        "nested": torch.nested.nested_tensor([torch.ones(3), torch.ones(4)]),
        "sparse": dense.to_sparse(),
        "negative view": torch.imag(torch.conj(torch.ones(48, dtype=torch.complex64))),
        "quantised": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        "expanded": torch.ones(1).expand(48),
    }


@pytest.mark.parametrize("kind", list(odd_tensors()))
def test_odd_tensors_are_refused_by_name(tmp_path, state, kind):
    torch.save(state | {"v.blocks.1.norm1.weight": odd_tensors()[kind]}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "v.blocks.1.norm1.weight")


def test_a_strided_tensor_is_read_in_its_own_order(tmp_path, state):
    turned = state["mlp_head.1.weight"].T.contiguous().T
    assert not turned.is_contiguous()
    torch.save(state | {"mlp_head.1.weight": turned}, tmp_path / "a.pth")
    read = read_torch(tmp_path / "a.pth", num_heads=3)
    np.testing.assert_array_equal(read.state["mlp_head.1.weight"], state["mlp_head.1.weight"])


def test_names_from_the_file_cannot_write_on_the_terminal(tmp_path, state):
    torch.save(state | {"v.\x1b[31mred\n.weight": torch.zeros(3)}, tmp_path / "a.pth")
    assert "\x1b" not in refused(tmp_path / "a.pth", r"v.\x1b[31mred\n.weight: unexpected")


@pytest.mark.parametrize("key", ["v.cls_token", "v.pos_embed"])
def test_large_sizes_that_do_not_fit_each_other_cost_nothing(tmp_path, state, key):
    torch.save(state | {key: torch.zeros(1, 300_000, 1)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "v.pos_embed: has shape")


def test_a_block_number_beyond_all_models_costs_nothing(tmp_path, state):
    torch.save(state | {"v.blocks.999.norm1.weight": torch.ones(48)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "numbers its blocks up to 999; at most 128 are read")


# --- files and configurations


@pytest.mark.parametrize("name", ["ast.pth", "hf/config.json", "hf/preprocessor_config.json", "hf/model.safetensors"])
def test_a_named_pipe_is_not_waited_for(tmp_path, name):
    write_huggingface(tmp_path / "hf", _equal_eps(), seed=0)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    source = tmp_path / name if name == "ast.pth" else tmp_path / "hf"
    with pytest.raises(CheckpointError, match=r"is not a regular file|without config|holds no weights"):
        read_torch(source)


@pytest.mark.parametrize(("name", "size"), [("ast.pth", LARGEST_FILE + 1), ("hf/config.json", 3 * 2**30)])
def test_a_huge_sparse_file_is_refused_by_its_size(tmp_path, name, size):
    write_huggingface(tmp_path / "hf", _equal_eps(), seed=0)
    with (tmp_path / name).open("ab") as file:
        file.truncate(size)
    with pytest.raises(CheckpointError, match=f"{name} has {size:,} bytes; at most"):
        read_torch(tmp_path / name if name == "ast.pth" else tmp_path / "hf")


@pytest.mark.parametrize(
    ("field", "value", "fact"),
    [
        ("num_hidden_layers", 100_000, "num_hidden_layers: is 100000, expected a whole number from 1 to 128"),
        ("num_hidden_layers", 128, "layers.127.mlp.fc2.bias: missing"),
        ("hidden_size", 100_000, "hidden_size: is 100000, expected a whole number from 1 to 16,384"),
        ("hidden_size", 16_320, "expected (1, 1, 16320)"),
        ("hidden_size", 10**400, "hidden_size: is 1000"),
        ("layer_norm_eps", 10**400, "layer_norm_eps: is 1000"),
        ("max_length", 0, "max_length: is 0"),
        ("patch_size", 200, "larger than the spectrogram"),
        ("num_mel_bins", 300, "takes 300 mel bins; the features have 1 to 255"),
        ("model_type", ["x"] * 10_000, "sets model_type to ['x', 'x'"),
    ],
)
def test_sizes_in_a_configuration_are_bounded(tmp_path, field, value, fact):
    write_huggingface(tmp_path, _equal_eps(), seed=0, layout="v5")
    (tmp_path / "preprocessor_config.json").unlink()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        read_torch(tmp_path)
    if field != "num_mel_bins":  # there the position table does not fit either
        assert any(fact in line for line in (str(caught.value), *caught.value.problems))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN', "\ud800".encode("utf-16", "surrogatepass"), b"\xff\xfe"])
def test_json_that_is_none(tmp_path, text):
    write_huggingface(tmp_path, _equal_eps(), seed=0)
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_torch(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,160]}}',
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}',
    ],
)
def test_safetensors_headers_that_lie(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    refused(path, "is not a complete safetensors file")


def test_a_safetensors_header_whose_length_begins_like_a_pickle(tmp_path, state):
    """The length's lowest byte may be 0x80, with which pickles begin, or 0x50, with which zips do."""
    for lowest in (0x80, 0x50):
        path = tmp_path / f"{lowest}.safetensors"
        for padding in range(0, 256, 4):
            save_file(state, path, metadata={"note": "x" * padding})
            if path.read_bytes()[0] == lowest:
                break
        assert path.read_bytes()[0] == lowest
        assert read_torch(path, num_heads=3).card.model.width == 48


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_numbers_that_are_not_finite_in_float32(tmp_path, state, value):
    torch.save(state | {"v.norm.bias": torch.full((48,), value, dtype=torch.float64)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "NaN or infinity", "v.norm.bias")


def test_mutations_of_a_checkpoint_are_read_the_same_or_refused(tmp_path, state):
    """Bytes changed at random places: never another answer, another exception or a wait."""
    write_ast_official(tmp_path / "ast.pth", AST, seed=0)
    whole, path = (tmp_path / "ast.pth").read_bytes(), tmp_path / "changed.pth"
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole) if rng.random() < 0.5 else 20_000, size=rng.integers(1, 4)):
            content[-at - 1] = rng.integers(256)
        path.write_bytes(content)
        try:
            found = read_torch(path, num_heads=3).state
        except CheckpointError:
            refusals += 1
        else:
            assert all(np.array_equal(found[key], value) for key, value in state.items())
    assert refusals > 30


def _equal_eps():
    return ModelConfig(
        family="ast", width=48, depth=2, heads=3, classes=7, frames=128, norm_eps=1e-12, head_norm_eps=1e-12
    )


def test_the_model_in_memory_is_guarded_alike(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete PyTorch checkpoint"):
        load_torch(saved, num_heads=3)
