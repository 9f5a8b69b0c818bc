"""Clips to labels: windows, batches, one compilation; and the command line, its output and its refusals."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from helpers import ROOT, TESTS, small
from jaxprune.convert.mapping import to_flax
from jaxprune.convert.random_checkpoint import random_state
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune import inference
from jaxprune.audio import Clip, load_audio
from jaxprune.config import Card
from jaxprune.features import fit_frames, log_mel, normalize, sample_count
from jaxprune.inference import classify, classify_clips

SCRIPT = ROOT / "scripts" / "classify.py"
FOLDER = TESTS / "recordings"
SHORT = [FOLDER / name for name in ("crow.wav", "choir.flac", "vinyl.wav")]
LABELS = tuple(f"sound {y}" for y in range(10))
KEEP = {0: 0.7, 1: 0.5}


@functools.cache
def make(family: str, **changes):
    """A model of spread-out random weights, pruned well before its end, and its card."""
    config = small(family, **{"depth": 2} | changes)
    activation = {"ast": "sigmoid", "audiomae": "softmax"}[family]
    card = Card(
        model=config,
        mean=-4.3,
        std=4.6,
        activation=activation,
        labels=LABELS,
        source="random weights, seed 0",
        trained=False,
    )
    return to_flax(random_state(config, seed=0), config), card


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, card = make("ast", depth=10)
    return jaxprune.save(tmp_path_factory.mktemp("checkpoints") / "ast", model, card=card)


def bad_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.wav" for name in ("text", "empty", "short", "missing")}
    files["text"].write_text("these are words, not sound\n")
    files["empty"].write_bytes(b"")
    soundfile.write(files["short"], 0.1 * np.sin(np.arange(160)), 16000)
    return files


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


# The command line


@pytest.fixture
def run(run_script):
    """Runs the script in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_script, SCRIPT)


def test_the_table_and_the_json_say_the_same_from_anywhere(run, checkpoint, tmp_path):
    options = [checkpoint, FOLDER / "drum_loop.mp3", FOLDER / "crow.wav", "--keep-rate", "0.5", "--top", "2"]
    code, table, _ = run(*options)
    assert code == 0
    command = [sys.executable, SCRIPT, *options, "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts, notices = json.loads(done.stdout), done.stderr
    assert len(facts["windows"]) == 7  # 6.9 s in windows of 1.3 s, and the crow
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    for row, window in zip(cells, facts["windows"], strict=False):
        end = window["start"] + window["seconds"]
        labels = ", ".join(f"{guess['label']} ({guess['probability']:.3f})" for guess in window["top"])
        assert row == [window["path"], f"{window['start']:.2f}", f"{end:.2f}", labels]
        assert [len(patch_ids) for patch_ids in window["kept"].values()] == [32, 16, 8]
    cost = cells[-1]
    assert cost[0] == "0.5 at blocks 3 6 9"
    assert cost[1:3] == [f"{facts['gmacs']:.2f}", f"{facts['unpruned_gmacs']:.2f}"]
    assert cost[3] == f"{100 * facts['saving']:.1f} %"
    assert cost[6] == facts["device"]
    assert facts["milliseconds_per_window"] > 0
    assert facts["compile_seconds"] > 0
    assert facts["keep_rates"] == {"3": 0.5, "6": 0.5, "9": 0.5}
    # Random weights are flagged and what was done to the sound is said, beside the results and never inside the JSON.
    assert "random weights: the labels mean nothing" in table
    assert facts["random_weights"] is True
    assert "random weights" in notices
    assert "drum_loop.mp3: averaged 2 channels into one" in notices
    assert "drum_loop.mp3: resampled from 44100 Hz to 16000 Hz" in notices


def test_trained_weights_are_not_called_random_and_nameless_classes_get_numbers(run, tmp_path):
    model, card = make("ast", depth=2)
    card = dataclasses.replace(card, labels=(), source="audioset_0.4593.pth", trained=True)
    jaxprune.save(tmp_path / "x", model, card=card)
    code, out, err = run(tmp_path / "x", FOLDER / "crow.wav", "--blocks", "0", "1", "--rates", "0.8", "0.6")
    assert code == 0
    assert "random" not in out + err
    assert re.search(r"class \d \(0\.\d{3}\), class \d", out)
    assert "0.8 at block 0, 0.6 at block 1" in out


def test_pictures_are_written_and_bfloat16_is_a_choice(run, checkpoint, tmp_path):
    picture = tmp_path / "new" / "kept.svg"
    options = ["--keep-rate", "0.5", "--picture", picture, "--most-pictured", "1", "--dtype", "bfloat16", "--json"]
    code, text, notices = run(checkpoint, FOLDER / "choir.flac", *options)
    assert code == 0
    assert "the picture shows the first 1 of 2 windows" in notices
    assert json.loads(text)["dtype"] == "bfloat16"
    assert f"wrote {picture}" in notices
    assert "after block 9: 8 of 64" in picture.read_text()
    assert [path.name for path in picture.parent.iterdir()] == ["kept.svg"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("text", "is not recognised as sound"),
        ("empty", "is an empty file"),
        ("short", "lasts 10 ms, which is too short"),
        ("missing", "cannot be opened"),
    ],
)
def test_a_bad_file_is_one_sentence(run, checkpoint, tmp_path, name, why):
    bad = bad_files(tmp_path)[name]
    code, out, err = run(checkpoint, bad)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {bad}: {why}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("rate", "saved"), [("1", False), ("0.5", True)])
def test_a_shallow_model_prunes_at_those_of_the_default_blocks_that_it_has(run, tmp_path, rate, saved):
    model, card = make("ast", depth=4)
    jaxprune.save(tmp_path / "shallow", model, card=card)
    code, out, err = run(tmp_path / "shallow", FOLDER / "crow.wav", "--keep-rate", rate, "--json")
    facts = json.loads(out)
    assert (code, "error" in err) == (0, False)
    assert (list(facts["keep_rates"]), facts["saving"] > 0) == (["3"], saved)


def test_good_files_are_classified_and_bad_ones_named_with_exit_code_1(run, checkpoint, tmp_path):
    bad = bad_files(tmp_path)
    code, out, err = run(checkpoint, bad["text"], FOLDER / "crow.wav", bad["empty"], "--json")
    facts = json.loads(out)
    assert code == 1
    assert [window["path"] for window in facts["windows"]] == [str(FOLDER / "crow.wav")]
    assert list(facts["refused"]) == [str(bad["text"]), str(bad["empty"])]
    for name in ("text", "empty"):
        assert f"note: not classified: {bad[name]}: is " in err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--keep-rate", "0"], "keep rate 0.0 is not allowed; it must be greater than 0 and at most 1"),
        (["--keep-rate", "1.2"], "keep rate 1.2 is not allowed; it must be greater than 0 and at most 1"),
        (["--blocks", "3", "10"], "block 10 cannot prune: the model's blocks are 0 to 9"),
        (["--blocks", "-1"], "block -1 cannot prune"),
        (["--blocks", "3", "3"], "name each once"),
        (["--rates", "0.5"], "1 --rates were given for 3 --blocks"),
        (["--rates", "0.5", "0.5", "0.5", "--keep-rate", "0.5"], "choose one of them"),
        (["--picture", "kept.bmp"], "kept.bmp: pictures are written as .png, .svg, .pdf, not as .bmp"),
        (["--picture", "kept"], "kept: pictures are written as .png, .svg, .pdf, not as a file without suffix"),
        (["--picture", "kept.png", "--most-pictured", "0"], "--most-pictured is 0; it must be at least 1"),
        (["--top", "0"], "top is 0; it must be at least 1"),
    ],
)
def test_a_bad_option_is_one_sentence(run, checkpoint, options, why):
    code, out, err = run(checkpoint, FOLDER / "crow.wav", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1


def test_what_is_not_a_checkpoint_is_one_sentence(run, checkpoint, tmp_path):
    (tmp_path / "card.json").write_text((checkpoint / "card.json").read_text())
    for path, why in [
        (tmp_path / "none", "there is no"),
        (FOLDER, "is not a jaxprune checkpoint"),
        (FOLDER / "crow.wav", "is not a jaxprune checkpoint"),
        (tmp_path, "are missing"),
    ]:
        code, out, err = run(path, FOLDER / "crow.wav")
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert why in err
        assert err.count("\n") == 1
