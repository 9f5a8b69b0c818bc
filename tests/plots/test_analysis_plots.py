"""Pictures of statistics: what is drawn is what was computed, the right way up, and nothing where nothing is."""

import io
import warnings

import numpy as np
import pytest
from extractions import write_random
from helpers import small

from jaxprune.analysis.analyze import analyze
from jaxprune.analysis.bootstrap import Bootstrap
from jaxprune.analysis.extraction import read_extraction
from jaxprune.plots.analysis import (
    attention_figure,
    block_overlap_figure,
    clusters_figure,
    histograms_figure,
    kendall_figure,
    pictures,
    places_figure,
)

FEW = Bootstrap(resamples=20)
CONFIG = small("ast", depth=4)


@pytest.fixture(scope="module")
def analyses(tmp_path_factory):
    home = tmp_path_factory.mktemp("extractions")
    keeps = {"pruned": {1: 0.8, 2: 0.6}, "unpruned": {}}
    return {
        name: analyze(read_extraction(write_random(home / name, CONFIG, clips=7, keep=keep)), bootstrap=FEW)
        for name, keep in keeps.items()
    }


def drawn(container):
    """The line of values and the ends of the intervals of an error bar."""
    line, _, (bars,) = container
    ends = np.array(bars.get_segments())[:, :, 1]
    return line.get_ydata(), ends[:, 0], ends[:, 1]


def test_kendall_has_every_run_with_its_intervals_and_its_chance_level(analyses):
    runs = {f"$a_{i}$ run": analyses[name].kendall for i, name in enumerate(analyses)}
    figure = kendall_figure(runs)
    panels = np.array(figure.axes).reshape(2, 2)
    for row, definition in enumerate(("published", "tau_b")):
        for column, signal in enumerate(("mean", "std")):
            for container, found in zip(panels[row, column].containers, runs.values(), strict=True):
                estimate = getattr(found[signal], definition)
                for seen, expected in zip(drawn(container), (estimate.value, estimate.low, estimate.high), strict=True):
                    np.testing.assert_allclose(seen, expected)
    dotted = [line.get_ydata() for line in panels[0, 0].lines if line.get_linestyle() == ":"]
    np.testing.assert_array_equal(dotted, [found["mean"].chance for found in runs.values()])
    colors = [container[0].get_color() for container in panels[0, 0].containers]
    assert len(set(colors)) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_cluster_bars_are_counts(analyses):
    found = analyses["pruned"].kept.clusters
    (panel,) = clusters_figure(analyses["pruned"]).axes
    bars = [[bar.get_height() for bar in group] for group in panel.containers if hasattr(group, "patches")]
    np.testing.assert_array_equal(bars, [found.entering, *found.kept])


@pytest.mark.parametrize("family", ["ast", "audiomae"])
@pytest.mark.parametrize("strides", [(16, 16), (10, 12)])
def test_places_lie_where_their_patches_are(analyses, tmp_path, family, strides):
    config = small(family, depth=4, frames=96, time_stride=strides[0], freq_stride=strides[1])
    analysis = analyze(read_extraction(write_random(tmp_path / "x", config, clips=5, keep={1: 0.5})), bootstrap=FEW)
    figure = places_figure(analysis.kept.places, config)
    (heat,) = [panel for part in figure.subfigs for panel in part.axes if panel.images]
    image = heat.images[0]
    np.testing.assert_array_equal(image.get_array(), analysis.kept.places[1].grid.T)
    assert image.origin == "lower"
    assert image.get_clim() == (0, 1)
    left, right, bottom, top = image.get_extent()
    time, freq = config.grid
    first, last = 8 / 100, (8 + (time - 1) * strides[0]) / 100  # middles of the outermost patches, in seconds
    step = (right - left) / time
    assert (left + step / 2, right - step / 2) == pytest.approx((first, last))
    assert (bottom + strides[1] / 2, top - strides[1] / 2) == pytest.approx((8, 8 + (freq - 1) * strides[1]))


def test_histograms_are_blank_where_there_was_no_patch(analyses):
    found = analyses["pruned"].kept.histograms
    figure = histograms_figure(analyses["pruned"])
    before, after, share = [panel.collections[0].get_array() for panel in figure.axes[:3]]
    for seen in (before, after, share):
        np.testing.assert_array_equal(np.ma.getmaskarray(seen), (found.before == 0).T)
    np.testing.assert_allclose(after.data.T, found.log_density(found.after))
    np.testing.assert_allclose(share.compressed(), (found.after / np.maximum(found.before, 1)).T[(found.before > 0).T])
    assert "patches" in figure.axes[0].get_title()


def test_attention_stops_where_nothing_is_left_to_compare(analyses):
    found = analyses["pruned"].kept.attention
    upper, lower = attention_figure(analyses["pruned"]).axes
    for container, estimate in zip(upper.containers, (found.retained, found.pruned), strict=True):
        np.testing.assert_array_equal(container[0].get_ydata(), estimate.value)
    assert np.isnan(lower.containers[0][0].get_ydata()[-1])


def test_blocks_that_agree_are_told_in_numbers(analyses):
    panel = block_overlap_figure(analyses["unpruned"]).axes[0]
    shared = analyses["unpruned"].block_overlap.shared.value
    assert [text.get_text() for text in panel.texts] == [f"{100 * value:.0f}" for value in shared.ravel()]


def test_all_are_drawn_without_complaint(analyses):
    assert set(pictures(analyses["unpruned"], CONFIG)) == {"kendall", "block_overlap"}
    made = pictures(analyses["pruned"], CONFIG)
    assert set(made) == {"kendall", "block_overlap", "clusters", "places", "histograms", "attention"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in made.values():
            figure.savefig(io.BytesIO(), format="svg")
