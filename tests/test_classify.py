"""Clips to labels: windows, batches, one compilation."""

import dataclasses

import jax
import numpy as np
import pytest
from classify_cases import FOLDER, LABELS, bad_files, make
from helpers import small
from jaxprune.convert.mapping import to_flax
from jaxprune.convert.random_checkpoint import random_state
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune import inference
from jaxprune.audio import Clip, load_audio
from jaxprune.config import Card
from jaxprune.features import fit_frames, log_mel, normalize, sample_count
from jaxprune.inference import classify, classify_clips

SHORT = [FOLDER / name for name in ("crow.wav", "choir.flac", "vinyl.wav")]
KEEP = {0: 0.7, 1: 0.5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, card = make("ast", depth=10)
    return jaxprune.save(tmp_path_factory.mktemp("checkpoints") / "ast", model, card=card)


def agree(results, others):
    """The same labels, probabilities and kept patches, whatever batch they were computed in."""
    for one, other in zip(results, others, strict=True):
        assert [label for label, _ in one.top] == [label for label, _ in other.top]
        np.testing.assert_allclose([p for _, p in one.top], [p for _, p in other.top], rtol=0, atol=2e-6)
        assert one.kept.keys() == other.kept.keys()
        for block in one.kept:
            np.testing.assert_array_equal(np.sort(one.kept[block]), np.sort(other.kept[block]))


@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_a_batch_gives_what_each_clip_gives_alone_and_that_is_the_models_output(family):
    model, card = make(family)
    clips = list(map(load_audio, SHORT))
    together = classify_clips(clips, model, card=card, keep_rate=KEEP, top=99, batch=4).results
    alone = classify_clips(clips, model, card=card, keep_rate=KEEP, top=99, batch=1, mels=99).results
    assert len(together) == 7  # 0.5, 1.6 and 5 s in windows of 1.3 s: a full batch and one with a padding row
    agree(together, alone)
    mel = normalize(fit_frames(log_mel(clips[0].waveform)[None], frames=128), mean=card.mean, std=card.std)
    np.testing.assert_allclose(alone[0].mel, mel[0], rtol=0, atol=1e-4)  # log-mel's own rounding in quiet bins
    output = jaxprune.compiled(model)(np.stack([result.mel for result in alone]), jaxprune.topk(model, KEEP))
    for row, result in enumerate(together):
        odds = np.exp(np.asarray(output.logits[row], np.float64))
        expected = odds / (1 + odds) if card.activation == "sigmoid" else odds / odds.sum()
        assert [label for label, _ in result.top] == [LABELS[y] for y in np.argsort(-expected)]
        np.testing.assert_allclose([p for _, p in result.top], np.sort(expected)[::-1], rtol=0, atol=2e-6)
        assert {block: len(patch_ids) for block, patch_ids in result.kept.items()} == {0: 45, 1: 23}  # of 64
        for block, patch_ids in result.kept.items():
            assert set(patch_ids) == set(np.asarray(output.trace[block].patch_ids[row]))


def test_a_long_file_is_cut_into_consecutive_windows():
    model, card = make("ast")
    clip = load_audio(FOLDER / "tabla.ogg")
    samples = sample_count(128)
    pieces = [
        Clip(path=clip.path, waveform=clip.waveform[first : first + samples])
        for first in range(0, len(clip.waveform), samples)
    ]
    together = classify_clips([clip, *pieces], model, card=card, keep_rate=KEEP, batch=4, mels=5).results
    results, alone = together[: len(pieces)], together[len(pieces) :]
    assert [result.start for result in results] == [i * samples / 16000 for i in range(len(pieces))]
    assert [result.seconds for result in results] == [piece.seconds for piece in pieces]
    assert [result.frames for result in results] == [128] * (len(pieces) - 1) + [len(log_mel(pieces[-1].waveform))]
    agree(results, alone)
    assert [result.start for result in alone] == [0] * len(pieces)
    assert [result.mel is not None for result in together] == [True] * 5 + [False] * (len(together) - 5)


def test_many_files_compile_once(monkeypatch):
    model, card = make("audiomae")
    traces, embed = [], type(model).embed
    monkeypatch.setattr(type(model), "embed", lambda self, patches: traces.append(len(patches)) or embed(self, patches))
    report = classify_clips(
        list(map(load_audio, SHORT)), model, card=dataclasses.replace(card, labels=()), keep_rate=KEEP, batch=2
    )
    assert traces == [2]
    assert len(report.results) == 7
    assert (report.timed_batches, report.warmed_up) == (3, True)  # of four; the first is the warm-up
    assert report.batch == 2
    assert report.results[0].top[0][0].isdigit()  # a card without labels


def test_one_batch_is_no_larger_than_needed_and_runs_once(monkeypatch):
    model, card = make("ast")
    runs, timed = [], inference._timed
    monkeypatch.setattr(inference, "_timed", lambda *arguments: runs.append(1) or timed(*arguments))
    report = classify_clips(list(map(load_audio, SHORT[:2])), model, card=card, keep_rate=KEEP, batch=64)
    assert len(runs) == 1
    assert (report.batch, report.timed_batches, report.warmed_up) == (3, 1, False)
    assert report.milliseconds > 0
    assert report.compile_seconds > 0
    assert report.device == jax.devices()[0].device_kind
    assert report.macs == jaxprune.macs(model, jaxprune.topk(model, KEEP))
    assert report.unpruned_macs == jaxprune.macs(model, jaxprune.topk(model, {0: 1.0}))
    assert report.patches == 64
    assert report.saving == pytest.approx(1 - report.macs / report.unpruned_macs)


@pytest.mark.parametrize(
    "settings", [{"top": 0}, {"batch": 0}, {"mels": -1}, {"keep_rate": 1.2}, {"keep_rate": {4: 0.5}}]
)
def test_bad_settings_are_refused(settings):
    model, card = make("ast")
    with pytest.raises(ValueError, match=r"must be|blocks are 0 to 1"):
        classify_clips(list(map(load_audio, SHORT[:1])), model, card=card, **{"keep_rate": KEEP} | settings)


def test_files_are_read_window_by_window_and_give_what_their_clips_give(checkpoint, monkeypatch):
    """No more than a batch of windows is held: each is asked for when the ones before it are done."""
    card = jaxprune.load_card(checkpoint)
    expected = classify_clips(list(map(load_audio, SHORT)), jaxprune.load(checkpoint), card=card, keep_rate=0.7)
    asked, done, windows_of, timed = [], [], inference.windows_of, inference._timed

    def counted(path, **cut):
        for window in windows_of(path, **cut):
            asked.append(len(done))
            yield window

    monkeypatch.setattr(inference, "windows_of", counted)
    monkeypatch.setattr(inference, "_timed", lambda *arguments: done.append(1) or timed(*arguments))
    report = classify(SHORT, checkpoint, batch=2)
    assert asked == [0, 0, 1, 1, 2, 2, 3]
    agree(report.results, expected.results)
    assert [result.path for result in report.results] == [result.path for result in expected.results]
    (crow,) = classify(str(SHORT[0]), checkpoint, keep_rate={3: 0.7, 6: 0.7, 9: 0.7}).results  # one path, one window
    agree([crow], expected.results[:1])


def test_a_bad_file_costs_that_file(checkpoint, tmp_path):
    bad = bad_files(tmp_path)
    report = classify([bad["text"], SHORT[0], bad["missing"]], checkpoint)
    assert [result.path for result in report.results] == [SHORT[0]]
    assert list(report.refused) == [str(bad["text"]), str(bad["missing"])]
    assert all(reason.startswith(path) for path, reason in report.refused.items())
    with pytest.raises(ValueError, match=r"^none of the 2 files can be classified: .*text.*; .*empty"):
        classify([bad["text"], bad["empty"]], checkpoint)
    with pytest.raises(ValueError, match=r"^[^;]*text.wav: is not recognised as sound"):
        classify(bad["text"], checkpoint)
    with pytest.raises(ValueError, match="at least one sound file"):
        classify([], checkpoint)


def test_a_run_and_a_shipped_model_are_named_directly(checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(checkpoint)
    agree(classify(SHORT[0], tmp_path / "run").results, classify(SHORT[0], checkpoint).results)
    shipped = jaxprune.SHIPPED / "ast-words"
    agree(classify(SHORT[0], "ast-words").results, classify(SHORT[0], shipped).results)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_head_of_one_class_says_how_likely_it_is(activation):
    config = small("ast", depth=2, classes=1)
    model = to_flax(random_state(config, seed=0), config)
    card = Card(model=config, mean=-4.3, std=4.6, activation=activation, labels=("bird",))
    clip = load_audio(SHORT[0])
    (result,) = classify_clips([clip], model, card=card, keep_rate=KEEP, mels=1).results
    logit = float(jaxprune.compiled(model)(result.mel[None], jaxprune.topk(model, KEEP)).logits[0, 0])
    assert result.top == (("bird", pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)),)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_with_the_files_name(value):
    model, card = make("ast", depth=3)  # no other test's, to be broken
    model.head.bias[...] = np.full(10, value)
    with pytest.raises(ValueError, match=r"crow\.wav: the model's scores at 0 s are not finite numbers; check the"):
        classify_clips([load_audio(SHORT[0])], model, card=card, keep_rate=KEEP)


def test_no_clips_are_refused():
    model, card = make("ast")
    with pytest.raises(ValueError, match="at least one clip"):
        classify_clips([], model, card=card, keep_rate=KEEP)
