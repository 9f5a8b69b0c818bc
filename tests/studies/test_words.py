"""The models and the clips that come with the project."""

import re
import warnings

import pytest
from helpers import TESTS
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.cli.options import check_labels
from jaxprune.data.batches import eval_batches
from jaxprune.data.published import Manifest
from jaxprune.evaluation.evaluate import evaluate, keep_policies

SHIPPED = sorted(jaxprune.SHIPPED.iterdir())
CLIPS, MODEL = TESTS / "words" / "words.csv", jaxprune.SHIPPED / "audiomae-english-words"


def test_the_shipped_model_knows_most_of_the_shipped_words():
    """Its accuracy on the whole test split is on its card; these are a sixteenth of it. Learned pruning at 0.7 saves a
    third, for under a point."""
    model, card, dataset = jaxprune.load(MODEL), jaxprune.load_card(MODEL), Manifest(path=CLIPS).read()
    check_labels(card, dataset)
    assert {len(dataset.labels), len({record.labels for record in dataset.clips("test")})} == {35}
    policies = keep_policies(model, (1.0, 0.7), method=card.method)
    with eval_batches(dataset, "test", frames=model.config.frames, batch_size=70) as batches:
        found = evaluate(model, batches, card=card, policies=policies, single_label=True)
    assert found.clips == 210
    assert not found.unusable
    assert found.rates[1.0].metrics["top1"] > 0.9
    assert found.rates[0.7].metrics["top1"] > found.rates[1.0].metrics["top1"] - 0.01
    assert found.rates[0.7].macs < 0.67 * found.rates[1.0].macs


@pytest.mark.parametrize("model", SHIPPED, ids=lambda path: path.name)
def test_what_ships_is_small(model):
    """At most 12 MB of weights a model and 6 MB of clips, so that a clone stays quick."""
    sizes = [sum(file.stat().st_size for file in path.rglob("*")) for path in (model, CLIPS.parent)]
    assert sizes[0] < 12e6
    assert sizes[1] < 6.2e6


@pytest.mark.parametrize("model", SHIPPED, ids=lambda path: path.name)
def test_what_ships_is_whole_and_names_no_folder_of_the_machine_that_made_it(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a card or weights without a digest
        jaxprune.load(model)
    for file in (file for file in model.rglob("*") if file.is_file()):
        assert not re.search(rb"/(work|home|root|tmp|usr|mnt)/", file.read_bytes()), file


def test_the_arabic_model_says_where_its_words_are_from_and_merges_by_itself():
    """Its clips are not part of the repository, so its accuracy is on its card and cannot be tested here. Speech of
    another language shows that it runs: it must not be taken for silence or for one word."""
    card = jaxprune.load_card("audiomae-arabic-words")
    for fact in ("Arabic Speech Commands", "Ghandoura, Hjabo and Al Dakkak", "CC BY 4.0", "2,400 test clips by tome"):
        assert fact in card.source
    assert (card.method, len(card.labels), card.trained) == ("tome", 40, True)
    report = jaxprune.classify(sorted(CLIPS.parent.rglob("*.flac"))[::12], "audiomae-arabic-words", keep_rate=0.7)
    assert (report.method, report.refused) == ("tome", {})
    assert report.saving == pytest.approx(0.34, abs=0.02)
    assert all(result.groups for result in report.results)
    assert len({result.top[0][0] for result in report.results}) > 5
