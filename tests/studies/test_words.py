"""The model and the clips that come with the project."""

from helpers import TESTS
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.cli.options import check_labels
from jaxprune.data.batches import eval_batches
from jaxprune.data.published import Manifest
from jaxprune.evaluation.evaluate import evaluate, keep_policies

CLIPS, MODEL = TESTS / "words" / "words.csv", jaxprune.SHIPPED / "ast-words"


def test_the_shipped_model_knows_most_of_the_shipped_words():
    """Its accuracy on the whole test split is in the README; these are a sixteenth of it."""
    model, card, dataset = jaxprune.load(MODEL), jaxprune.load_card(MODEL), Manifest(path=CLIPS).read()
    check_labels(card, dataset)
    assert {len(dataset.labels), len({record.labels for record in dataset.clips("test")})} == {35}
    with eval_batches(dataset, "test", frames=model.config.frames, batch_size=70) as batches:
        found = evaluate(model, batches, card=card, policies=keep_policies(model, (1.0, 0.5)), single_label=True)
    assert found.clips == 210
    assert not found.unusable
    assert found.rates[1.0].metrics["top1"] > 0.5
    assert found.rates[0.5].metrics["top1"] < found.rates[1.0].metrics["top1"]


def test_what_ships_is_small():
    """At most 12 MB of weights and 6 MB of clips, so that a clone stays quick."""
    sizes = [sum(file.stat().st_size for file in path.rglob("*")) for path in (MODEL, CLIPS.parent)]
    assert sizes[0] < 12e6
    assert sizes[1] < 6.2e6
