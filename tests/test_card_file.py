"""A card carries a digest of its own fields: a changed one is refused until it is accepted."""

import dataclasses
import hashlib
import json
import re
import warnings

import pytest
from helpers import small

import jaxprune
from jaxprune import checkpoint

CONFIG = small("ast", depth=1)
CARD = jaxprune.Card(model=CONFIG, mean=-4.2, std=4.5, activation="sigmoid", labels=tuple("abcdefghij"), source="test")


@pytest.fixture
def copy(tmp_path):
    return jaxprune.save(tmp_path / "model", jaxprune.build(CONFIG, seed=5), card=CARD)


def test_a_changed_digit_in_a_card_is_refused_until_it_is_accepted(copy):
    path = copy / "card.json"
    whole = path.read_text()
    path.write_text(whole.replace("-4.2", "-4.3"))
    accept = rf"was changed since it was written.*accept the change: python -c .*add_digest\('{re.escape(str(copy))}'\)"
    for read in (jaxprune.load, jaxprune.load_card):
        with pytest.raises(ValueError, match=accept):
            read(copy)
    checkpoint.add_digest(copy)
    assert jaxprune.load_card(copy) == dataclasses.replace(CARD, mean=-4.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxprune.load(copy)


def test_any_field_of_a_card_is_covered_by_its_digest_and_its_layout_is_not(copy):
    path = copy / "card.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(whole.items())), indent=7))
    assert jaxprune.load_card(copy) == CARD
    others = {"std": 4.4, "activation": "softmax", "source": "other", "trained": False, "padding": "zero"}
    others |= {"labels": whole["labels"][::-1], "weights_sha256": "0" * 64}
    assert {*others, "mean", "model", "card_sha256"} == {*whole}
    for name, value in others.items():
        path.write_text(json.dumps(whole | {name: value}))
        with pytest.raises(ValueError, match="was changed since it was written"):
            jaxprune.load_card(copy)


def test_the_digest_of_a_card_is_of_its_sorted_json(copy):
    fields = json.loads((copy / "card.json").read_text())
    found = fields.pop("card_sha256")
    assert found == hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
