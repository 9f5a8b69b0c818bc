"""Streaming against a plain loop over windows of the whole sound's log-mel, and events against hand-made scores."""

import dataclasses
import functools
import tracemalloc
from collections import deque
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from jaxprune.config import Card, ModelConfig
from jaxprune.features import fit_frames, log_mel, normalize
from jaxprune.models import build, jit_forward, topk
from jaxprune.streaming import Event, Listening, Segment, events, segments, stream

CONFIG = ModelConfig(family="audiomae", width=24, heads=3, depth=4, classes=5, frames=64)
CARD = Card(model=CONFIG, mean=-7.0, std=5.0, activation="sigmoid", labels=tuple("abcde"), source="a test")


@pytest.fixture(scope="module")
def model():
    built = build(CONFIG, seed=3)
    built.head.kernel[...] = 0.4 * jax.random.normal(jax.random.key(0), built.head.kernel[...].shape)
    return built


def glide(samples: int) -> np.ndarray:
    """A tone that glides and comes and goes, in noise that swells: all scores of the model go up and down with it."""
    time = np.arange(samples) / 16_000
    tone = np.maximum(0, np.sin(2.1 * time)) ** 2 * np.sin(2 * np.pi * (300 + 200 * np.sin(0.31 * time)) * time)
    noise = (1 + np.sin(0.9 * time)) * np.random.default_rng(0).normal(size=samples)
    return (0.3 * tone + 0.01 * noise).astype(np.float32)


def in_blocks(sound: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum([sizes[i % len(sizes)] for i in range(len(sound))])
    return [part for part in np.split(sound, ends[ends < len(sound)]) if len(part)]


@functools.cache
def forward_of(model):
    return jit_forward(model, lambda output: output.logits)


def whole(model, sound: np.ndarray, *, hop: int, card: Card) -> np.ndarray:
    """The scores of every window, from the log-mel of the whole sound."""
    mel, rows, start = np.asarray(log_mel(sound)), [], 0
    forward, policy = forward_of(model), topk(model, 0.7)
    while start == 0 or len(mel) > start - hop + CONFIG.frames:
        window = fit_frames(mel[None, start : start + CONFIG.frames], frames=CONFIG.frames, padding=card.padding)
        rows.append(forward(normalize(window, mean=card.mean, std=card.std), policy)[0])
        start += hop
    return np.asarray(jax.nn.sigmoid(np.stack(rows)))


@pytest.mark.parametrize(("batch", "padding"), [(1, "minimum"), (4, "zero")])
@pytest.mark.parametrize("samples", [5_000, 10_480, 10_481, 30_000, 50_123])
def test_blocks_of_any_size_give_the_scores_of_one_pass(model, samples, batch, padding):
    sound, card = glide(samples), dataclasses.replace(CARD, padding=padding)
    listening = Listening(hop=0.2, batch=batch)
    found = list(segments(model, in_blocks(sound, [1, 700, 3000, 160]), card=card, keep_rate=0.7, listening=listening))
    expected = whole(model, sound, hop=20, card=card)
    scores = np.stack([segment.scores for segment in found])
    np.testing.assert_allclose(scores[: len(expected)], expected, atol=2e-5)
    assert len(found) - len(expected) in (0, 1)  # what no window's middle reaches has the scores of the last
    np.testing.assert_array_equal(scores[len(expected) :], scores[len(expected) - 1 : len(found) - 1])
    assert [found[0].begin, *(one.end for one in found)] == [*(one.begin for one in found), samples / 16_000]


def test_events_of_a_stream_are_those_of_one_pass_for_blocks_of_any_size(model):
    sound, settings = glide(25 * 16_000 + 123), {"hop": 0.2, "threshold": 0.5}
    scores = whole(model, sound, hop=20, card=CARD)
    assert np.abs(scores[..., None] - [0.5, 0.25]).min() > 1e-5  # no rounding begins or ends an event
    ends = [min(0.42 + 0.2 * window, len(sound) / 16_000) for window in range(len(scores))]
    if ends[-1] < len(sound) / 16_000:
        scores, ends = np.concatenate([scores, scores[-1:]]), [*ends, len(sound) / 16_000]
    parts = zip([0.0, *ends], ends, scores, strict=False)
    heard = [Segment(begin=begin, end=end, scores=row) for begin, end, row in parts]
    expected = list(events(heard, labels=CARD.labels, listening=Listening(threshold=0.5)))
    assert len(expected) > 5

    def found(sizes: list[int], batch: int) -> list[Event]:
        blocks = in_blocks(sound, sizes)
        return list(stream(model, blocks, card=CARD, keep_rate=0.7, listening=Listening(**settings, batch=batch)))

    for batch in (1, 16):
        at_once = found([len(sound)], batch)
        assert [e.label for e in at_once] == [e.label for e in expected]
        for field in ("begin", "end", "score"):
            numbers = [[getattr(event, field) for event in told] for told in (at_once, expected)]
            np.testing.assert_allclose(*numbers, atol=2e-5)
        for sizes in ([160], [1600], [16_000], [1, 700, 30_000, 160]):
            assert found(sizes, batch) == at_once


def test_smoothing_averages_the_window_and_those_before(model):
    sound = [glide(40_000)]
    plain = list(segments(model, sound, card=CARD, listening=Listening(hop=0.2)))
    smooth = list(segments(model, sound, card=CARD, listening=Listening(hop=0.2, smooth=3)))
    for i, one in enumerate(smooth[:-1]):
        expected = np.mean([p.scores for p in plain[max(0, i - 2) : i + 1]], axis=0)
        np.testing.assert_allclose(one.scores, expected, rtol=1e-6)


def test_a_window_in_the_middle_is_told_where_its_middle_is(model):
    found = list(segments(model, [glide(48_000)], card=CARD, listening=Listening(hop=0.2)))
    assert found[0].end == pytest.approx(0.42)  # half of a window of 0.64 s and half a hop of 0.2 s
    assert [one.begin for one in found[1:4]] == pytest.approx([0.42, 0.62, 0.82])


def made(scores: list[list[float]]) -> list[Segment]:
    return [Segment(begin=i, end=i + 1, scores=np.array(row)) for i, row in enumerate(scores)]


def test_an_event_begins_at_the_threshold_and_ends_below_half_of_it():
    heard = made([[0.1, 0.9], [0.6, 0.3], [0.8, 0.2], [0.3, 0.0], [0.2, 0.7]])
    assert list(events(heard, labels=("dog", "cat"), listening=Listening(threshold=0.6))) == [
        Event(begin=0, end=2, label="cat", score=0.9),
        Event(begin=1, end=4, label="dog", score=0.8),
        Event(begin=4, end=5, label="cat", score=0.7),
    ]


def test_short_events_are_not_told():
    heard = made([[0.9], [0.0], [0.9], [0.9], [0.0]])
    found = list(events(heard, labels=("dog",), listening=Listening(shortest=1.5)))
    assert found == [Event(begin=2, end=4, label="dog", score=0.9)]


def test_stream_is_both_and_names_the_labels(model):
    sound = [glide(40_000)]
    listening = Listening(hop=0.2, threshold=0.3)
    heard = segments(model, sound, card=CARD, keep_rate=0.7, listening=listening)
    expected = list(events(heard, labels=CARD.labels, listening=listening))
    assert expected
    assert list(stream(model, sound, card=CARD, keep_rate=0.7, listening=listening)) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hop": -1.0}, "hop is -1.0 s; it must be positive"),
        ({"threshold": 0.0}, "threshold is 0.0; it must be above 0 and at most 1"),
        ({"threshold": 1.5}, "threshold is 1.5; it must be above 0 and at most 1"),
        ({"smooth": 0}, "smooth is 0; it must be at least 1"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"shortest": -1.0}, "shortest is -1.0 s; it must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Listening(**settings)


def test_memory_does_not_grow_with_the_sound(model):
    blocks, peaks = [glide(20 * 16_000)] * 9, []

    def watched() -> Iterator[Segment]:
        for segment in segments(model, blocks, card=CARD, listening=Listening(hop=0.64, batch=16)):
            peaks.append(tracemalloc.get_traced_memory()[1])
            yield segment

    tracemalloc.start()
    try:
        deque(events(watched(), labels=CARD.labels), maxlen=0)
    finally:
        tracemalloc.stop()
    assert len(peaks) > 250
    assert peaks[-1] < 1.02 * peaks[len(peaks) // 3]


def test_sound_that_cannot_be_listened_to_is_refused(model):
    def heard(*blocks: np.ndarray, hop: float = 0.2) -> list[Segment]:
        return list(segments(model, blocks, card=CARD, listening=Listening(hop=hop)))

    with pytest.raises(ValueError, match=r"the sound lasts 24.9 ms, which is too short"):
        heard(glide(399))
    with pytest.raises(ValueError, match=r"the samples after 0.0625 s are not all finite numbers"):
        heard(glide(1000), np.full(20, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"hop is 0.7 s; it must be from 0.01 s to the model's window of 0.64 s"):
        heard(glide(1000), hop=0.7)
    with pytest.raises(ValueError, match="without its card"):
        stream(model, [glide(1000)])
