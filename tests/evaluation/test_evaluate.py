"""One pass at many keep rates against a loop over single clips in plain Python; compilations; devices."""

import dataclasses
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from evaluation.evaluate_cases import BLOCKS, CLASSES, FRAMES, LABELS, RATES, corpus, make, run_once
from helpers import TESTS
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.audio import load_audio
from jaxprune.cli.options import check_labels
from jaxprune.data import records
from jaxprune.data.batches import Batches, eval_batches
from jaxprune.evaluation.evaluate import evaluate, keep_policies
from jaxprune.features import fit_frames, log_mel, normalize
from jaxprune.reduction.scores import PatchMean


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chirps")


@functools.cache
def clip_by_clip(folder: Path, family: str, rate: float, *, seed: int = 0) -> list[list[float]]:
    """Every clip's logits by itself: without padding, batches or our loading."""
    model, card = make(family, seed=seed)
    forward, logits = jaxprune.compiled(model, lambda output: output.logits), []
    policy = jaxprune.topk(model, dict.fromkeys(BLOCKS, rate))
    for record in corpus(folder).records:
        mel = features(load_audio(record.path).waveform[None])
        logits.append(forward(normalize(mel, mean=card.mean, std=card.std), policy)[0].tolist())
    return logits


features = jax.jit(lambda waveform: fit_frames(log_mel(waveform), frames=FRAMES))


def alike(one, other) -> None:
    """The same but for rounding in sums of losses."""
    assert list(one) == list(other)
    for rate, measured in one.items():
        assert measured == dataclasses.replace(other[rate], loss=measured.loss)
        assert measured.loss == pytest.approx(other[rate].loss, rel=1e-5)


def plain_loss(logits, classes) -> float:
    """Cross-entropy against a one at each class, the clips' mean."""
    own = [
        math.fsum(math.log(math.fsum(map(math.exp, row))) - row[y] for y in ys)
        for row, ys in zip(logits, classes, strict=True)
    ]
    return math.fsum(own) / len(own)


def plain_accuracy(logits, classes) -> dict[str, float]:
    places = [sorted(row, reverse=True).index(row[own]) for row, (own,) in zip(logits, classes, strict=True)]
    return {name: sum(p < k for p in places) / len(places) for name, k in (("top1", 1), ("top5", 5))}


def plain_ranking(logits, classes) -> dict[str, float]:
    precisions, areas = [], []
    for y in range(CLASSES):
        falling = sorted(((row[y], y in own) for row, own in zip(logits, classes, strict=True)), reverse=True)
        hits = [place for place, (_, hit) in enumerate(falling) if hit]
        if hits:
            precisions.append(sum((n + 1) / (place + 1) for n, place in enumerate(hits)) / len(hits))
        if 0 < len(hits) < len(falling):
            misses = [place for place, (_, hit) in enumerate(falling) if not hit]
            areas.append(sum(h < m for h in hits for m in misses) / (len(hits) * len(misses)))
    auc = sum(areas) / len(areas)
    d_prime = math.sqrt(2) * statistics.NormalDist().inv_cdf(auc)
    return {"mean_average_precision": sum(precisions) / len(precisions), "auc": auc, "d_prime": d_prime}


@pytest.mark.parametrize("family", ["ast", "audiomae"])
@pytest.mark.parametrize(("several", "plain"), [(False, plain_accuracy), (True, plain_ranking)])
def test_one_pass_equals_a_loop_over_clips_in_plain_python(folder, family, several, plain):
    (model, card), dataset = make(family), corpus(folder, several=several)
    found = run_once(model, card, dataset)  # 13 clips in batches of 4: three rows only fill
    assert (found.clips, found.classes, dict(found.unusable)) == (13, CLASSES, {})
    assert found.classes_present == (7 if several else 6)
    assert list(found.rates) == list(RATES)
    for rate, measured in found.rates.items():
        expected = plain(clip_by_clip(folder, family, rate), [record.labels for record in dataset.records])
        assert list(measured.metrics) == list(expected)
        assert measured.metrics == pytest.approx(expected, abs=1e-9)
        loss = plain_loss(clip_by_clip(folder, family, rate), [record.labels for record in dataset.records])
        assert measured.loss == pytest.approx(loss, rel=1e-5)
        policy = jaxprune.topk(model, dict.fromkeys(BLOCKS, rate))
        assert measured.macs == jaxprune.macs(model, policy)
        assert measured.saving == pytest.approx(1 - measured.macs / jaxprune.macs(model, jaxprune.topk(model, {})))
    if several:  # a finer measure, which tells that pruning is at work
        assert len({tuple(measured.metrics.values()) for measured in found.rates.values()}) == len(RATES)


def test_the_batch_size_changes_nothing(folder):
    (model, card), dataset = make("ast"), corpus(folder, several=True)
    whole, filled = (run_once(model, card, dataset, rates=(0.7,), batch_size=size) for size in (13, 4))
    assert whole.clips == filled.clips == 13
    alike(whole.rates, filled.rates)


def test_unusable_clips_are_named_and_left_out(folder):
    (model, card), dataset = make("ast"), corpus(folder, silent=(2, 9))
    found = run_once(model, card, dataset)
    assert sorted(found.unusable) == [dataset.records[i].path for i in (2, 9)]
    assert all("silent" in reason or "silence" in reason for reason in found.unusable.values()), found.unusable
    kept = tuple(record for i, record in enumerate(dataset.records) if i not in (2, 9))
    alone = run_once(model, card, dataclasses.replace(dataset, records=kept))
    assert found.clips == alone.clips == 11
    alike(found.rates, alone.rates)
    nothing = dataclasses.replace(dataset, records=(dataset.records[2], dataset.records[9]))
    with pytest.raises(ValueError, match=r"none of the 2 clips could be used"):
        run_once(model, card, nothing, unusable=1.0)


def test_several_rates_in_one_pass_equal_separate_passes_and_read_each_clip_once(folder, monkeypatch):
    (model, card), dataset = make("audiomae"), corpus(folder, several=True)
    read, heard = [], []
    monkeypatch.setattr(records, "load_audio", lambda path: read.append(path) or load_audio(path))
    together = run_once(model, card, dataset, watch=heard.append)
    assert sorted(read) == [record.path for record in dataset.records]
    assert heard == [4, 8, 12, 13]
    for rate in reversed(RATES):
        assert run_once(model, card, dataset, rates=(rate,)).rates == {rate: together.rates[rate]}


@pytest.fixture
def compiled():
    """Compilations of XLA since the test began: a list with an entry for each time."""
    times = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield times
    jax.monitoring.unregister_event_duration_listener(listen)


def test_each_rate_compiles_once_and_new_weights_do_not(folder, compiled, monkeypatch):
    dataset = corpus(folder, several=True)
    (model, card), (other, _) = (make("ast", seed=seed) for seed in (0, 1))
    run = functools.partial(run_once, dataset=dataset, batch_size=5)  # no other test's size
    traces, embed = [], type(model).embed
    monkeypatch.setattr(type(model), "embed", lambda self, patches: traces.append(len(patches)) or embed(self, patches))
    compiled.clear()
    first = run(model, card)
    assert len(compiled) == len(RATES) + 1  # and the features
    assert traces == [5] * len(RATES)
    second = run(other, dataclasses.replace(card, mean=-5.0), rates=RATES[1:])
    third = run(other, card, rates=RATES[1:])
    assert len(compiled) == len(RATES) + 1
    for rate in RATES[1:]:
        metrics = [found.rates[rate].metrics for found in (first, second, third)]
        assert metrics[0] != metrics[2] != metrics[1]
    expected = plain_ranking(clip_by_clip(folder, "ast", 0.7, seed=1), [record.labels for record in dataset.records])
    assert third.rates[0.7].metrics == pytest.approx(expected, abs=1e-9)
    compiled.clear()
    run(model, card, policies={0.6: jaxprune.topk(model, {1: 0.6}, score=PatchMean())})
    assert len(compiled) == 1


def test_a_moving_rate_compiles_once_when_masked(folder, compiled):
    (model, card), dataset = make("audiomae"), corpus(folder, several=True)
    exact = run_once(model, card, dataset)
    found = {}
    for rate in (0.9, 0.7):
        policies = {rate: jaxprune.masked_topk(model, dict.fromkeys(BLOCKS, rate))}
        compiled.clear()
        found[rate] = run_once(model, card, dataset, policies=policies)
        assert len(compiled) == (rate == 0.9)
    assert found[0.7].rates[0.7].metrics == pytest.approx(exact.rates[0.7].metrics)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_with_the_clips_name(folder, value):
    broken, card = make.__wrapped__("ast")  # one of its own, to be broken
    broken.head.bias[...] = np.full(CLASSES, value)
    why = r"4 clips of a batch have scores that are not finite numbers at keep rate 1, the first is .*00\.wav; check"
    for several in (False, True):
        with pytest.raises(ValueError, match=why):
            run_once(broken, card, corpus(folder, several=several))
    silent = corpus(folder, silent=(0, 2))  # rows without a clip are nobody's
    with pytest.raises(ValueError, match=r"2 clips of a batch .* the first is .*01\.wav"):
        run_once(broken, card, silent)


def test_bad_settings_are_refused(folder):
    model, card = make("ast")
    dataset = corpus(folder)
    for rates, blocks, why in [
        ((), BLOCKS, "keep rates are \\[\\]"),
        ((0.5, 0.5), BLOCKS, "each once"),
        ((0.5,), (1, 1), "blocks are \\[1, 1\\]"),
        ((0.0,), BLOCKS, "keep rate 0.0 is not allowed"),
        ((0.5,), (2,), "block 2 cannot prune"),
    ]:
        with pytest.raises(ValueError, match=why):
            keep_policies(model, rates, blocks=blocks)
    with pytest.raises(ValueError, match="at least one policy"):
        run_once(model, card, dataset, policies={})
    with pytest.raises(ValueError, match="labelled with 6 classes, but the model has 7"):
        run_once(model, card, dataclasses.replace(dataset, labels=LABELS[:6]))


def test_labels_must_agree(folder):
    (_, card), dataset = make("ast"), corpus(folder)
    check_labels(card, dataset)
    check_labels(dataclasses.replace(card, labels=()), dataset)
    swapped = dataclasses.replace(card, labels=(*LABELS[:5], LABELS[6], LABELS[5]))
    with pytest.raises(ValueError, match=r"another order .* class 5 is 'sound 6', not 'sound 5'; 6 is 'sound 5'"):
        check_labels(swapped, dataset)
    other = dataclasses.replace(card, labels=tuple("abcdefg"))
    with pytest.raises(ValueError, match=r"other classes; .* 0 is 'a', not 'sound 0'.* 4 is 'e', .* and 2 more$"):
        check_labels(other, dataset)
    with pytest.raises(ValueError, match="the checkpoint has 7 classes, but chirps 6"):
        check_labels(card, dataclasses.replace(dataset, labels=LABELS[:6]))


class Paced(Batches):
    """A loader's batches, decoded beforehand, `times` over, each of which takes so long to come."""

    blank = None  # an attribute here

    def __init__(self, loader, *, times: int, seconds: float):
        self.blank, self.unusable, self._seconds = loader.blank, {}, seconds
        self._left = iter(list(loader) * times)

    def __next__(self):
        time.sleep(self._seconds)
        return next(self._left)


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.3, 0.5, 1.0), (0.0, 0.0, 0.5)])
def test_devices_are_idle_while_data_are_awaited_and_busy_while_they_are_not(folder, seconds, least, most):
    """Evaluation itself takes some 10 ms a batch of 4, more on a busy machine; exact times are test_feed's matter."""
    (model, card), dataset = make("ast"), corpus(folder)
    policies = keep_policies(model, RATES, blocks=BLOCKS)
    with eval_batches(dataset, frames=FRAMES, batch_size=4) as loader:
        paced = Paced(loader, times=1 if seconds else 20, seconds=seconds)
    found = evaluate(model, paced, card=card, policies=policies, single_label=True)
    assert least <= found.device_idle <= most
    spent = found.seconds - found.compiling
    assert found.device_idle * spent <= found.waited + 1e-6 <= spent
    assert found.clips_per_second == pytest.approx(found.clips / spent)


SHARDED = """
import json, sys
from pathlib import Path
import jax
from flax import nnx
sys.path.insert(0, sys.argv[2])
import evaluation.test_evaluate as test
from jaxprune.parallel.devices import Layout, divided
layout = Layout(spread=divided)
model, card = test.make("ast")
nnx.update(model, layout.put(nnx.state(model)))
dataset = test.corpus(Path(sys.argv[1]), several=True)
found = test.run_once(model, card, dataset, rates=(0.7,), layout=layout)
print(json.dumps([jax.device_count(), found.to_json()["rates"]]))
"""


def test_two_devices_find_what_one_finds(folder):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, folder, TESTS]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    devices, (row,) = json.loads(done.stdout)
    (expected,) = run_once(*make("ast"), corpus(folder, several=True), rates=(0.7,)).to_json()["rates"]
    assert (devices, row) == (2, expected | {"loss": pytest.approx(expected["loss"], rel=1e-5)})
