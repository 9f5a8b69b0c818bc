"""Sweeps: the front against every pair, what is measured again and what is not, the choice and the picture."""

import functools
import json
import statistics
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from quick import quick_compiling  # noqa: F401
from sweep_cases import CLIPS, DEVICE, make
from training_runs import FRAMES, corpus

from jaxprune.analysis.bootstrap import Bootstrap
from jaxprune.data.batches import eval_batches
from jaxprune.evaluation.evaluate import evaluate, keep_policies
from jaxprune.experiments import sweep
from jaxprune.experiments.ablation import score_settings, unpruned
from jaxprune.experiments.sweep import Store, measure_quality, measure_time, quality_key, time_key, timed
from jaxprune.experiments.sweep_points import Point, fastest, pareto, points
from jaxprune.plots.pareto import legend, looks, pareto_front, pareto_front_figure
from jaxprune.training.settings import Published

FEW = Bootstrap(resamples=50)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


def settings(*rates, score="mean"):
    return score_settings(make().model, scores=[score], rates=[{0: rate} for rate in rates])


STORED = {"kind": "jaxprune sweep", "version": 1, "about": {}, "quality": {}, "seconds": {}}


@pytest.mark.parametrize("seed", range(20))
def test_the_front_holds_what_no_other_point_beats(seed):
    rng = np.random.default_rng(seed)
    cost, quality = rng.integers(0, 6, (2, 25)) / 4  # many equal ones
    for i, on_front in enumerate(pareto(cost, quality)):
        beaten = any(
            cost[j] <= cost[i] and quality[j] >= quality[i] and (cost[j], quality[j]) != (cost[i], quality[i])
            for j in range(len(cost))
        )
        assert on_front == (not beaten)


def asking(store, dataset, asked, *, candidate=None, together=2):
    passes = []

    def batches():
        passes.append(len(passes))
        return eval_batches(dataset, "test", frames=FRAMES, batch_size=4)

    count = measure_quality(
        store, candidate or make(), settings=asked, batches=batches, single_label=True, together=together
    )
    return count, len(passes)


def test_only_what_is_missing_is_measured_and_every_group_is_saved(tmp_path, dataset, monkeypatch):
    path, about = tmp_path / "sweep.json", {"data set": "tones"}
    store = Store(path, about=about)
    assert asking(store, dataset, settings(0.9, 0.7, 0.5)) == (4, 2)  # and no pruning
    whole = json.loads(path.read_text())
    again = Store(path, about=about)
    assert asking(again, dataset, settings(0.9, 0.7, 0.5)) == (0, 0)
    assert asking(again, dataset, settings(0.9, 0.6, 0.5)) == (1, 1)
    assert asking(again, dataset, settings(0.9), candidate=make(1)) == (2, 1)
    cut = Store(tmp_path / "cut.json", about=about)
    asked, answer = [], sweep.answer

    def interrupted(*args, policies, **options):
        asked.append(list(policies))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(*args, policies=policies, **options)

    monkeypatch.setattr(sweep, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asking(cut, dataset, settings(0.9, 0.7, 0.5))
    cut = Store(tmp_path / "cut.json", about=about)
    assert asking(cut, dataset, settings(0.9, 0.7, 0.5)) == (2, 1)
    assert asked[2] == asked[1]
    assert json.loads((tmp_path / "cut.json").read_text()) == whole


def test_times_are_kept_by_batch_size_and_device(tmp_path, monkeypatch):
    timed = []

    def no_time(model, settings, *, batch, rounds):
        timed.append((batch, [setting.name for setting in settings]))
        return {setting.name: [0.5 * batch] * rounds for setting in settings}

    monkeypatch.setattr(sweep, "timed", no_time)
    store = Store(tmp_path / "sweep.json", about={})
    time = functools.partial(measure_time, store, make(), rounds=3, together=2)
    assert time(settings=settings(0.7, 0.5), batch=1, device="a") == 3
    assert time(settings=settings(0.7, 0.5), batch=1, device="a") == 0
    assert time(settings=settings(0.7, 0.5), batch=2, device="a") == 3
    assert time(settings=settings(0.7), batch=1, device="b") == 2
    assert time(settings=settings(0.7, 0.6), batch=1, device="a") == 1
    none = unpruned(make().model).name
    assert all(names[0] == none and len(set(names)) == len(names) for _, names in timed)  # always beside no pruning
    assert [batch for batch, _ in timed] == [1, 1, 2, 2, 1, 1]


def test_calls_are_timed_in_turn():
    model = make().model
    found = timed(model, [unpruned(model), *settings(0.5)], batch=2, rounds=3)
    assert [len(seconds) for seconds in found.values()] == [3, 3]
    assert all(second > 0 for seconds in found.values() for second in seconds)
    with pytest.raises(ValueError, match="they must be at least 1"):
        timed(model, [unpruned(model)], batch=0, rounds=3)


def test_points_join_what_was_measured(tmp_path, dataset):
    store, asked = Store(tmp_path / "sweep.json", about={}), settings(0.7, 0.5, score="attention")
    asking(store, dataset, asked)
    model, names = make().model, [unpruned(make().model).name, *(setting.name for setting in asked)]
    spent = dict(zip(names, ([4.0, 2.0, 3.0], [1.0, 2.0, 9.0], [3.0, 2.9, 2.8]), strict=True))
    for setting in [unpruned(model), *asked]:
        times = {"seconds": spent[setting.name], "unpruned_seconds": spent[names[0]]}
        store.seconds[time_key(setting, batch=8, device=DEVICE)] = times
    found = points(store, [make()], settings={"model 0": asked}, batches=[8], device=DEVICE, share=0.9, bootstrap=FEW)
    with eval_batches(dataset, "test", frames=FRAMES, batch_size=4) as batches:
        policies = keep_policies(model, (1.0, 0.7, 0.5), blocks=[0])
        expected = evaluate(model, batches, card=make().card, policies=policies, single_label=True).rates
    for point, measured, name in zip(found, expected.values(), names, strict=True):
        assert point.quality == pytest.approx(measured.metrics["top1"])
        assert point.drop == pytest.approx(expected[1.0].metrics["top1"] - point.quality)
        assert point.drop_low <= point.drop + 1e-9
        assert point.drop_high >= point.drop - 1e-9
        assert point.gmacs == measured.macs / 1e9
        assert point.macs_ratio == pytest.approx(expected[1.0].macs / measured.macs)
        assert point.speed_up == pytest.approx(3.0 / statistics.median(spent[name]))
        assert point.milliseconds == pytest.approx(1000 * statistics.median(spent[name]) / 8)
        assert point.clips_per_second * point.milliseconds == pytest.approx(1000)
        assert point.gain == pytest.approx(point.speed_up / point.macs_ratio)
    assert found[0].unsteady == pytest.approx(2 / 3)  # quartiles of 2, 3 and 4, three times each, are 2 and 4
    assert [point.pays for point in found[:2]] == [True, True]
    assert not found[2].pays  # faster, but not by the share asked for
    assert [point.best_by_time for point in found] == pareto(
        np.array([p.milliseconds for p in found]), np.array([p.quality for p in found])
    ).tolist()


def point(**changes) -> Point:
    made = {
        "candidate": "model",
        "score": "attention",
        "keep": "0.7",
        "blocks": "3,6,9",
        "batch": 1,
        "clips": 100,
        "metric": "top1",
        "quality": 0.9,
        "drop": 0.0,
        "drop_low": -0.01,
        "drop_high": 0.01,
        "gmacs": 10.0,
        "macs_ratio": 1.0,
        "milliseconds": 5.0,
        "clips_per_second": 200.0,
        "speed_up": 1.0,
        "gain": 1.0,
        "pays": True,
        "unsteady": 0.0,
        "best_by_macs": True,
        "best_by_time": True,
    }
    return Point(**made | changes)


def test_the_fastest_within_a_loss_is_chosen_for_each_batch_size():
    every = [
        point(score="unpruned", keep="1", blocks=""),
        point(keep="0.7", drop=0.01, clips_per_second=300.0),
        point(keep="0.5", drop=0.011, clips_per_second=400.0),
        point(batch=8, score="unpruned", keep="1", blocks="", clips_per_second=500.0),
        point(batch=8, keep="0.7", drop=0.01, clips_per_second=400.0),
    ]
    assert fastest(every, max_drop=0.01) == {1: every[1], 8: every[3]}
    assert fastest(every, max_drop=0.02) == {1: every[2], 8: every[3]}
    assert fastest(every, max_drop=0.0) == {1: every[0], 8: every[3]}


def test_a_store_of_other_things_is_refused(tmp_path):
    path = tmp_path / "sweep.json"
    Store(path, about={"data set": "tones", "compute type": "float32"}).save()
    Store(path, about={"data set": "tones", "compute type": "float32"})
    with pytest.raises(ValueError, match="a sweep with another data set, tones, not chirps; choose another folder"):
        Store(path, about={"data set": "chirps", "compute type": "float32"})
    for text, why in [
        ("{}", "is not a sweep of version 1"),
        ("[", "not valid JSON"),
        (json.dumps(STORED | {"quality": {"a": 1}}), "is damaged .*quality"),
        (json.dumps(STORED | {"seconds": {"a": {"seconds": [0], "unpruned_seconds": [1]}}}), "is damaged .*seconds"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=why):
            Store(path, about={})


def some_points() -> list[Point]:
    made = [
        point(score="unpruned", keep="1", blocks="", batch=batch, quality=0.97, milliseconds=6.0, gmacs=5.6)
        for batch in (1, 8)
    ]
    for batch in (1, 8):
        for score, worse in (("attention", 0.0), ("mean", 0.04)):
            for blocks in ("3,6,9", "0,4"):
                for keep in (0.7, 0.5):
                    cost = 5.6 * keep**0.7
                    made.append(
                        point(
                            score=score,
                            keep=f"{keep:g}",
                            blocks=blocks,
                            batch=batch,
                            quality=0.97 - worse - 0.03 * (1 - keep) - 0.01 * (blocks == "0,4"),
                            gmacs=cost,
                            milliseconds=cost + 0.5,
                            pays=not (batch == 1 and keep == 0.7),
                            best_by_macs=score == "attention" and blocks == "3,6,9",
                            best_by_time=score == "attention" and blocks == "3,6,9",
                        )
                    )
    return made


def test_the_picture_has_every_point_where_it_belongs(tmp_path):
    every = some_points()
    published = [Published(keep_rate=0.5, metric="accuracy", percent=93.4, gmacs=2.8, source="a paper")]
    figure = pareto_front_figure(every, title="words $", published=published, chosen=[every[2]])
    assert len(figure.axes) == 3  # cost, and each batch size
    for panel, x, batch in zip(figure.axes, ("gmacs", "milliseconds", "milliseconds"), (1, 1, 8), strict=True):
        drawn = {tuple(np.round(place, 6)) for line in panel.lines for place in zip(*line.get_data(), strict=True)}
        here = [one for one in every if one.batch == batch]
        assert drawn >= {tuple(np.round((getattr(one, x), 100 * one.quality), 6)) for one in here}
    assert (2.8, 93.4) in {place for line in figure.axes[0].lines for place in zip(*line.get_data(), strict=True)}
    hollow = [line for line in figure.axes[1].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == sum(not one.pays for one in every)
    colors, markers = looks(every)
    assert len(set(colors.values())) == len(colors) == 3
    texts = [one.get_label() for one in legend(every, colors=colors, markers=markers, published=True, chosen=True)]
    assert {"attention", "mean", "blocks 3,6,9", "blocks 0,4", "does not pay in time"} <= set(texts)
    names = pareto_front(every, title="words", path=tmp_path / "front.png", published=published)
    assert [name.name for name in names] == ["front.png", "front.svg"]
    assert matplotlib.image.imread(names[0]).shape[1] > 1000
    assert "published" in "".join(ElementTree.parse(names[1]).getroot().itertext())
    with pytest.raises(ValueError, match="no points"):
        pareto_front_figure([], title="")
    with pytest.raises(ValueError, match=r"\.gif"):
        pareto_front(every, title="", path=tmp_path / "front.gif")


def test_keys_tell_weights_settings_batches_and_devices_apart():
    one, two = settings(0.7, 0.5)
    keys = {quality_key(make(seed), setting) for seed in (0, 1) for setting in (one, two)}
    times = {time_key(s, batch=b, device=d) for s in (one, two) for b in (1, 2) for d in ("a", "b")}
    assert (len(keys), len(times)) == (4, 8)
