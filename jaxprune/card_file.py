"""The card of a checkpoint as a file: its fields, a digest of the weights beside it, and a digest of all these.

    {"model": {...}, "mean": -4.2, ..., "weights_sha256": "...", "card_sha256": "..."}

The second digest is of the JSON without itself, with sorted names and no spaces, so that layout and order are free.
Fields are `jaxprune.config.Card`'s. Weights are `jaxprune.checkpoint`'s.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprune.config import Card
from jaxprune.json_files import read_json

CARD = "card.json"
LARGEST = 16 * 2**20  # bytes; a card of 10,000 long labels is below 1 MB
_WEIGHTS, _OWN = "weights_sha256", "card_sha256"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFile:
    """A card, the digest of the weights that it was written with (None in old ones), and its own digest's state.

    `signed` is false for a card older than its own digest. `intact` is false where the digest is of other fields.
    """

    card: Card
    weights: str | None
    signed: bool
    intact: bool

    @property
    def unprotected(self) -> str:
        """The things of which there is no digest, in words. Nothing where there are both."""
        return " or ".join(["of the weights"] * (self.weights is None) + ["of the card itself"] * (not self.signed))


def read_card(path: Path) -> CardFile:
    """Raises `ValueError` for what is no card. A card that was changed is not refused here."""
    try:
        fields = read_json(path, largest=LARGEST)
        digests = {name: fields.pop(name, None) for name in (_WEIGHTS, _OWN)} if isinstance(fields, dict) else {}
        for name, digest in digests.items():
            if not isinstance(digest, str | None):
                raise ValueError(f"{name} is {digest!r:.80}; it must be text")
        card = Card.from_json(fields)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a model card: {error}") from error
    weights, own = digests[_WEIGHTS], digests[_OWN]
    intact = own in (None, _digest(fields if weights is None else fields | {_WEIGHTS: weights}))
    return CardFile(card=card, weights=weights, signed=own is not None, intact=intact)


def card_text(card: Card, *, weights: str) -> str:
    """The content of the file for a card and the digest of its weights."""
    fields = card.to_json() | {_WEIGHTS: weights}
    return json.dumps(fields | {_OWN: _digest(fields)}, indent=1) + "\n"


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
