"""Ablations against a plain loop that calls the model one clip at a time; seeds, ranges, refusals."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ablation_cases import CLIPS, FEW, make, run_once
from flax import nnx
from quick import quick_compiling  # noqa: F401
from training_runs import FRAMES, corpus

import jaxprune
from jaxprune.audio import load_audio
from jaxprune.experiments.ablation import (
    AS_MANY,
    RANGE,
    SCORES,
    mean_macs,
    range_settings,
    score_settings,
    seed_spread,
    summarize,
    unpruned,
)
from jaxprune.features import STATIC, model_input, sample_count
from jaxprune.positions import patch_corners
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.scores import Given
from jaxprune.reduction.selection import MaskedTopK, keep_count
from scripts.studies import released_ablation

RATES = {0: 0.7, 1: 0.5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


features = jax.jit(model_input, static_argnames=STATIC)


def spectrograms(dataset, family) -> list[np.ndarray]:
    """Each test clip's, by itself."""
    card, found = make(family)[1], []
    for record in dataset.clips("test"):
        waveform = load_audio(record.path).waveform[: sample_count(FRAMES)]
        padded = np.pad(waveform, (0, sample_count(FRAMES) - len(waveform)))[None]
        found.append(
            features(
                padded, np.array([len(waveform)]), frames=FRAMES, mean=card.mean, std=card.std, padding=card.padding
            )
        )
    return found


def pixels(mel, config, what) -> list[float]:
    """Each patch's mean or std in float64."""
    cut = [np.asarray(mel[0, t : t + 16, f : f + 16], np.float64) for t, f in patch_corners(config)]
    return [float({"mean": np.mean, "std": functools.partial(np.std, ddof=1)}[what](patch)) for patch in cut]


@functools.cache
def forward(family: str):
    """One clip at a time, compiled once for each number of patches kept."""
    return jaxprune.compiled(
        make(family)[0], lambda output: (output.logits[0], [block.score[0] for block in output.trace])
    )


def forced(family, mel, sets: dict[int, list[int]]):
    """The model's logits for one clip, keeping these patches of each block and no others, really gathered."""
    model, _ = make(family)
    values = np.zeros((model.config.depth, 1, model.config.patches), np.float32)
    for block, kept in sets.items():
        values[block, 0, kept] = 1
    stages = {block: MaskedTopK(jnp.int32(len(kept)), len(kept)) for block, kept in sets.items()}
    return forward(family)(mel, Policy(Given(jnp.asarray(values)), stages))[0]


def chosen(family, mel, name, rates) -> dict[int, list[int]]:
    """The kept patches after each block, one after the other, by sorting in plain Python."""
    model, _ = make(family)
    left, sets = list(range(model.config.patches)), {}
    for block, rate in rates.items():
        if name.endswith("attention"):
            # Before any pruning: attention is only asked about at one block.
            worth = dict(enumerate(forward(family)(mel, Policy(model.score, {}))[1][block].tolist()))
        else:
            worth = dict(enumerate(pixels(mel, model.config, name.removeprefix("lowest-"))))
        sign = 1 if name.startswith("lowest-") else -1
        left = sorted(left, key=lambda patch: (sign * worth[patch], patch))[: keep_count(rate, len(left))]
        sets[block] = left
    return sets


@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_scores_keep_and_answer_what_a_plain_loop_does(dataset, family):
    model, _ = make(family)
    names = [name for name in SCORES if not name.endswith("attention")]
    by_pixels = score_settings(model, scores=names, rates=[RATES])
    by_attention = score_settings(model, scores=["attention", "lowest-attention"], rates=[{0: 0.5}])
    settings = [*by_pixels, *by_attention]
    answers, exact = (run_once(dataset, settings, family=family, single_label=one) for one in (True, False))
    assert answers.index.tolist() == list(range(CLIPS))
    right = {setting.name: 0 for setting in settings}
    for i, mel in enumerate(spectrograms(dataset, family)):
        own = dataset.clips("test")[i].labels[0]
        for setting in settings:
            rates = dict(zip(setting.blocks, setting.rates, strict=True))
            sets = chosen(family, mel, setting.score, rates)
            logits = forced(family, mel, sets)
            np.testing.assert_allclose(exact.logits[setting.name][i], logits, atol=2e-5)
            assert {block: counts[i] for block, counts in answers.kept[setting.name].items()} == {
                block: len(kept) for block, kept in sets.items()
            }
            right[setting.name] += int(np.argmax(logits)) == own
    for row in summarize(model, answers, settings=settings, bootstrap=FEW)[1:]:
        assert row.metrics["top1"] == pytest.approx(right[row.setting.name] / CLIPS)
        assert row.macs == row.macs_as_run == jaxprune.macs(model, row.setting.policy_for(jnp.arange(1), {}))
    different = {tuple(np.ravel(exact.logits[setting.name])) for setting in settings}
    assert len(different) == len(settings)


def gap(values, after: float) -> float:
    """The middle of the widest of the next few gaps between values: a bound that rounding cannot cross."""
    ordered = np.unique(values)
    near = ordered[np.searchsorted(ordered, after) :][:6]
    widest = np.argmax(np.diff(near))
    return float(near[widest : widest + 2].mean())


def test_ranges_are_all_runs_of_intervals_but_the_whole():
    model, _ = make()
    found = range_settings(model, (0, 1, 2, 3), blocks=[0, 1])
    every = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
    assert [s.range for s in found] == [one for one in every + every for _ in range(2)]
    assert [s.score for s in found] == [RANGE, AS_MANY] * 10
    assert [s.range for s in range_settings(model, (-1, 1), blocks=[0], seed=None)] == [(-1, 1)]


@pytest.mark.parametrize(("family", "block"), [("ast", 0), ("audiomae", 1)])
def test_a_range_keeps_and_answers_what_a_plain_loop_does(dataset, family, block):
    model, _ = make(family)
    mels = spectrograms(dataset, family)
    means = np.array([pixels(mel, model.config, "mean") for mel in mels])
    lowest = np.sort(means.min(axis=1))
    bounds = (-math.inf, gap(means, lowest[CLIPS // 3]), means.max() + 1)
    settings = range_settings(model, bounds, blocks=[block])
    answers, exact = (run_once(dataset, settings, family=family, single_label=one) for one in (True, False))
    rows = {row.setting.name: row for row in summarize(model, answers, settings=settings, bootstrap=FEW)}
    for setting in [s for s in settings if s.score == RANGE]:
        low, high = setting.range
        counts, costs = [], []
        for i, mel in enumerate(mels):
            inside = [patch for patch, mean in enumerate(means[i]) if low < mean < high]
            if i < 4:  # each number of patches compiles
                logits = forced(family, mel, {block: inside})
                np.testing.assert_allclose(exact.logits[setting.name][i], logits, atol=2e-5)
            counts.append(len(inside))
            costs.append(jaxprune.macs(model, Policy(model.score, {block: MaskedTopK(jnp.int32(0), len(inside))})))
        assert answers.kept[setting.name][block].tolist() == counts
        row = rows[setting.name]
        expected = (np.mean(counts), np.std(counts, ddof=1), min(counts), max(counts))
        assert row.kept[block] == pytest.approx(expected)
        assert row.emptied == counts.count(0)
        assert row.macs == pytest.approx(np.mean(costs))
        assert row.macs_as_run == jaxprune.macs(model, jaxprune.topk(model, {}))
        control = next(s for s in settings if s.score == AS_MANY and s.range == setting.range)
        assert answers.kept[control.name][block].tolist() == counts
        partly = np.array([0 < count < model.config.patches for count in counts])
        differ = exact.logits[control.name][partly] != exact.logits[setting.name][partly]
        assert differ.any(axis=1).all()
    emptied = rows[settings[0].name]
    assert 0 < emptied.emptied < CLIPS  # the lowest range empties some clips and not all
    shares = [emptied.emptied / CLIPS, 1 - emptied.emptied / CLIPS]
    both = (emptied.of_emptied["top1"], emptied.of_others["top1"])
    assert np.dot(shares, both) == pytest.approx(emptied.metrics["top1"])


def test_random_seeds_differ_and_each_is_the_same_again_in_other_batches(dataset):
    model, _ = make()
    settings = score_settings(model, scores=["random"], rates=[RATES], seeds=(0, 1, 2))
    first, again, other = (
        run_once(dataset, settings, batch_size=size, single_label=False).logits for size in (4, 4, 7)
    )
    for setting in settings:
        np.testing.assert_array_equal(first[setting.name], again[setting.name])
        np.testing.assert_allclose(first[setting.name], other[setting.name], atol=2e-5)
    for one, two in [(0, 1), (0, 2), (1, 2)]:
        assert (first[settings[one].name] != first[settings[two].name]).any(axis=1).all()
    rows = summarize(model, run_once(dataset, settings), settings=settings, bootstrap=FEW)
    ((key, (mean, std)),) = seed_spread(rows, metric="top1").items()
    every = [row.metrics["top1"] for row in rows[1:]]
    assert key == ("random", "0.7/0.5", (0, 1))
    assert (mean, std) == pytest.approx((np.mean(every), np.std(every, ddof=1)))


def test_drops_are_clip_by_clip_and_against_another_model_where_asked(dataset):
    model, _ = make()
    settings = score_settings(model, scores=["std"], rates=[RATES])
    answers = run_once(dataset, settings)
    better = dataclasses.replace(answers, ranks={name: np.zeros_like(found) for name, found in answers.ranks.items()})
    none, pruned = summarize(model, answers, settings=settings, bootstrap=FEW)
    assert (float(none.drop.value), float(none.drop.low), float(none.drop.high)) == (0, 0, 0)
    assert float(pruned.drop.value) == pytest.approx(none.metrics["top1"] - pruned.metrics["top1"])
    assert float(pruned.accuracy.value) == pytest.approx(pruned.metrics["top1"])
    other = summarize(model, answers, settings=settings, base=better, bootstrap=FEW)[1]
    assert float(other.drop.value) == pytest.approx(1 - pruned.metrics["top1"])
    fewer = dataclasses.replace(
        answers,
        index=answers.index[1:],
        targets=answers.targets[1:],
        ranks={name: found[1:] for name, found in answers.ranks.items()},
        kept={name: {block: one[1:] for block, one in found.items()} for name, found in answers.kept.items()},
    )
    with pytest.raises(ValueError, match="the models answered other clips: 6 and 7 of them were usable"):
        summarize(model, answers, settings=settings, base=fewer)


def test_no_pruning_is_the_model_and_costs_all_of_it(dataset):
    model, _ = make("audiomae")
    answers = run_once(dataset, [], family="audiomae", single_label=False)
    name = unpruned(model).name
    expected = [forced("audiomae", mel, {}) for mel in spectrograms(dataset, "audiomae")]
    np.testing.assert_allclose(answers.logits[name], expected, atol=2e-5)
    assert mean_macs(model, answers.kept[name]) == jaxprune.macs(model, jaxprune.topk(model, {}))


def test_bad_settings_are_refused():
    model, _ = make()
    with pytest.raises(ValueError, match="there is no score 'loudness'; choose among attention, mean"):
        score_settings(model, scores=["loudness"], rates=[RATES])
    with pytest.raises(ValueError, match="block 2 cannot prune"):
        score_settings(model, scores=["mean"], rates=[{2: 0.5}])
    with pytest.raises(ValueError, match=r"'mean 0\.7/0\.5 at 0,1' is asked for more than once"):
        score_settings(model, scores=["mean", "mean"], rates=[RATES])
    for bounds in ((0.0,), (1.0, 0.5), (0.0, 0.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="give at least two, rising"):
            range_settings(model, bounds, blocks=[0])
    assert score_settings(model, scores=["mean"], rates=[{0: 1.0}]) == []


attend = nnx.jit(lambda block, tokens: block.attend(tokens, queries=slice(0, 1), mask=None)[0])
feed_forward = nnx.jit(lambda block, tokens: block.feed_forward(tokens))


@functools.cache
def embed(family):
    """A compiled function from one spectrogram to its embedded tokens."""
    model, _ = make(family)
    forward = jaxprune.compiled(model, lambda output: output.tokens_in[0])
    return lambda mel: forward(mel, jaxprune.topk(model, {}))


def slipped(family, mel, signal, rates):
    """The released indexing on one clip, token by token."""
    model, _ = make(family)
    p = model.config.extra_tokens
    tokens = list(np.asarray(embed(family)(mel)))
    names, signal = list(range(len(tokens))), list(signal)
    for number, block in enumerate(model.encoder.blocks):
        tokens = list(np.asarray(attend(block, jnp.asarray(np.array(tokens))[None])[0]))
        if number in rates:
            order = sorted(range(len(signal)), key=lambda i: (-signal[i], i))
            order = order[: math.ceil(rates[number] * (len(tokens) - p))]
            tokens, names, signal = ([values[i] for i in order] for values in (tokens, names, signal))
        tokens = list(np.asarray(feed_forward(block, jnp.asarray(np.array(tokens))[None])[0]))
    features = model.pool(jnp.asarray(np.array(tokens))[None], None)
    return np.asarray(model.head(model.head_norm(features))[0]), names


@pytest.mark.parametrize(("family", "what"), [("ast", "std"), ("audiomae", "mean")])
def test_the_released_indexing_token_by_token(dataset, family, what):
    model, _ = make(family)
    released = released_ablation.released
    compiled = nnx.jit(lambda model, mel, signal: released(model, mel, signal=signal, rates=RATES))
    for mel in spectrograms(dataset, family)[:2]:
        signal = pixels(mel, model.config, what)
        logits, kept = compiled(model, mel, jnp.asarray([signal], jnp.float32))
        expected, names = slipped(family, mel, signal, RATES)
        assert kept[0].tolist() == names
        np.testing.assert_allclose(logits[0], expected, atol=2e-5)
