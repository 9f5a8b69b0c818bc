"""Zip files that lie about their records: each is refused in one sentence, before its numbers are believed."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from jaxprune.convert.random_checkpoint import random_state
from jaxprune.convert.read import read_torch
from untrusted_cases import AST, refused, zipped


@pytest.fixture(scope="module")
def state():
    return random_state(AST, seed=0)


@pytest.fixture
def saved(tmp_path, state):
    torch.save(state, tmp_path / "ast.pth")
    return tmp_path / "ast.pth"


def records(path):
    """A zip's records in order, with what each holds."""
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def largest(path):
    return max(records(path), key=lambda record: len(record[1]))[0]


def test_a_file_packed_again_by_zipfile_is_read_as_it_was(saved, state):
    zipped(saved, records(saved))
    read = read_torch(saved, num_heads=3)
    assert all(np.array_equal(read.state[key], value) for key, value in state.items())


# --- the zip


def test_a_record_shorter_than_its_tensor_does_not_lend_its_neighbours_bytes(saved):
    name = largest(saved)
    zipped(saved, [(n, data[:-400] if n == name else data) for n, data in records(saved)])
    refused(saved, f"record {name.partition('/')[2]} has", "bytes where its tensors need")


def test_a_record_that_is_missing(saved):
    name = largest(saved)
    zipped(saved, [(n, data) for n, data in records(saved) if n != name])
    refused(saved, f"record {name.partition('/')[2]} is missing")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_flipped_bit_among_the_weights_is_seen_by_the_zips_own_checksum(saved, place):
    content = bytearray(saved.read_bytes())
    content[int(len(content) * place)] ^= 16
    saved.write_bytes(content)
    refused(saved, "the checksum of its record", "does not fit")


def test_compressed_records_are_not_taken_for_numbers(saved):
    zipped(saved, records(saved), zipfile.ZIP_DEFLATED)
    refused(saved, "packed again with compression", "save it again with torch.save")


def test_records_held_twice(saved):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(saved, [*records(saved), records(saved)[-1]])
    refused(saved, "holds records twice")


def test_a_zip_of_something_else_and_a_torchscript_archive(tmp_path):
    refused(zipped(tmp_path / "a.pth", [("a/readme", b"x")]), "not one of torch.save: it has no data.pkl")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "b.pt")
    refused(tmp_path / "b.pt", "TorchScript archive")


def test_a_zip_whose_list_of_records_would_fill_the_memory(saved):
    content = bytearray(saved.read_bytes())
    at = content.rfind(b"PK\x05\x06")
    struct.pack_into("<I", content, at + 12, 2**31)
    saved.write_bytes(content)
    refused(saved, "lists records over 2,147,483,648 bytes")


def test_a_list_of_records_that_points_before_the_file(saved):
    content = bytearray(saved.read_bytes())
    at = content.rfind(b"PK\x06\x06")  # torch writes the list's place in the zip64 record as well, which rules
    struct.pack_into("<Q", content, at + 48, struct.unpack_from("<Q", content, at + 48)[0] + 1000)
    saved.write_bytes(content)
    refused(saved, "is not a complete PyTorch checkpoint")
