"""A small campaign of damaged inputs. The large one: `python -m tests.robustness.campaign --mutations 10000`."""

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.robustness import campaign
from tests.robustness.mutate import mutations
from tests.robustness.targets import TARGETS, Target

COUNT = 300
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through Linux' /proc and rlimits")


@pytest.fixture(scope="module")
def outcomes():
    return campaign.run(COUNT, seed=0)


def test_damaged_inputs_are_equal_refused_or_said(outcomes):
    faults = [one for one in outcomes if one.became not in campaign.FINE]
    assert not faults, campaign.table(outcomes) + "".join(f"\n{one}" for one in faults)


def test_every_kind_of_input_is_damaged_and_refused_at_times(outcomes):
    assert len(outcomes) == COUNT
    assert {one.target for one in outcomes if one.became != "equal"} == set(TARGETS)
    refusals = [one.words for one in outcomes if one.became == "refused"]
    assert len(refusals) > COUNT / 3
    assert not [words for words in refusals if not words.strip() or "Traceback" in words]


def test_a_campaign_sees_a_fault(tmp_path, monkeypatch):
    """Readers that do what must not be, in this process: the campaign calls each by its name."""

    def broken(folder: Path):
        if (text := (folder / "file").read_bytes()) == b"whole":
            return "whole", ()
        if len(text) == 5:
            return "other", ()
        raise KeyError("field")

    whole = Target(make=lambda folder: (folder / "file").write_bytes(b"whole"), read=broken, checked=lambda path: True)
    monkeypatch.setattr(campaign, "TARGETS", {"broken": whole})
    (tmp_path / "whole" / "broken").mkdir(parents=True)
    whole.make(tmp_path / "whole" / "broken")
    found = {
        campaign.case(number, 0, whole=tmp_path / "whole", folder=tmp_path / str(number), answers={}).became
        for number in range(40)
        if not (tmp_path / str(number)).mkdir()
    }
    assert {"CHANGED", "TRACEBACK"} <= found <= {"CHANGED", "TRACEBACK", "equal"}


@pytest.mark.parametrize("name", ["a.wav", "a.json", "a.npz"])
def test_damage_is_drawn_from_the_seed(name):
    data = {"a.wav": bytes(range(256)), "a.json": b'{"a": [1, {"b": 2}]}', "a.npz": npz()}[name]
    for damage in mutations(name).values():
        first, again = (damage(data, random.Random(7)) for _ in range(2))
        assert first == again


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.arange(3), b=np.zeros(5))
    return file.getvalue()
