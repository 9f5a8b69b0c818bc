"""Pictures: the right pixels are blank, axes point the right way, and files are whole."""

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from helpers import small

from jaxprune.features import log_mel
from jaxprune.inference import Result
from jaxprune.models import cut_patches
from jaxprune.plots.clips import left_of, mel_heights, picture_path, retained_patches, retained_patches_figure
from jaxprune.positions import covered, in_padding, patch_corners

CONFIGS = [
    small(family, depth=1, frames=frames, time_stride=time, freq_stride=freq)
    for family in ("ast", "audiomae")
    for frames, time, freq in [(120, 16, 16), (128, 10, 10), (115, 10, 12)]
]
STRIDES = [f"{c.family}-{c.frames}-{c.time_stride}-{c.freq_stride}" for c in CONFIGS]
both = pytest.mark.parametrize("config", CONFIGS, ids=STRIDES)


def some_patches(config, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(config.patches)[:count]


def under_patches(config, patch_ids) -> np.ndarray:
    """One patch and one pixel at a time, from the order in which each family walks its grid."""
    (nt, nf), seen = config.grid, np.zeros((config.frames, config.mels), bool)
    for patch in patch_ids:
        time, freq = (patch % nt, patch // nt) if config.family == "ast" else (patch // nf, patch % nf)
        for frame in range(16):
            for pixel in range(16):
                seen[time * config.time_stride + frame, freq * config.freq_stride + pixel] = True
    return seen


def result(config, *, kept, frames: int | None = None, name: str = "crow.wav", start: float = 0.0) -> Result:
    frames = config.frames if frames is None else frames
    mel = np.random.default_rng(1).standard_normal((config.frames, config.mels)).astype(np.float32)
    mel[frames:] = mel[:frames].min()
    return Result(
        path=Path(name), start=start, seconds=frames / 100, frames=frames, top=(("a $sound", 0.5),), kept=kept, mel=mel
    )


def pictured(figure):
    """The panels that hold spectrograms, row by row."""
    return [[panel for panel in row.axes if panel.images] for row in figure.subfigs]


@both
def test_corners_are_where_patches_are_cut(config):
    frame, mel = np.meshgrid(np.arange(config.frames), np.arange(config.mels), indexing="ij")
    pixels = cut_patches(jnp.asarray(1000 * frame + mel, jnp.float32)[None], config)[0, :, 0]
    np.testing.assert_array_equal(np.stack([pixels // 1000, pixels % 1000], axis=1), patch_corners(config))


@both
def test_coverage_is_what_a_loop_over_pixels_finds(config):
    for count in (0, 1, config.patches // 2, config.patches):
        patch_ids = some_patches(config, count)
        np.testing.assert_array_equal(covered(config, patch_ids), under_patches(config, patch_ids))


@both
def test_blank_pixels_are_those_no_kept_patch_covers(config):
    first = some_patches(config, config.patches // 2)
    kept = {3: first, 6: first[: len(first) // 3]}
    drawn = result(config, kept=kept)
    ((whole, *stages),) = pictured(retained_patches_figure([drawn], config))
    assert not np.ma.getmaskarray(whole.images[0].get_array()).any()
    for panel, patch_ids in zip(stages, kept.values(), strict=True):
        image = panel.images[0].get_array()  # f t, drawn with its first row at the bottom
        np.testing.assert_array_equal(np.ma.getmaskarray(image), ~under_patches(config, patch_ids).T)
        np.testing.assert_array_equal(image.data, drawn.mel.T)
        assert panel.images[0].origin == "lower"
        assert panel.images[0].cmap.get_bad().tolist() == [1, 1, 1, 1]


@both
def test_padding_is_cut_off_counted_and_marked(config):
    patch_ids = some_patches(config, config.patches // 2)
    drawn = result(config, kept={3: patch_ids}, frames=50, start=10.24)
    ((whole, stage),) = pictured(retained_patches_figure([drawn], config))
    corners = patch_corners(config)
    beyond = sum(corners[patch][0] >= 50 for patch in patch_ids)
    assert beyond == in_padding(config, patch_ids, frames=50).sum() > 0
    assert stage.get_title() == f"after block 3: {len(patch_ids)} of {config.patches} ({beyond} in padding)"
    shown = max(frame for frame, _ in corners if frame < 50) + 16
    for panel in (whole, stage):
        assert panel.images[0].get_array().shape == (config.mels, shown)
        assert panel.images[0].get_extent() == pytest.approx((10.24, 10.24 + shown / 100, 0, 128))
        assert len(panel.patches) == (shown > 50)  # the hatched rest of the last patch that holds sound


@pytest.mark.parametrize("hertz", [500, 1000, 4000, 7000])
def test_a_tone_lies_at_its_tick(hertz):
    tone = np.sin(2 * np.pi * hertz * np.arange(8000) / 16000).astype(np.float32)
    loudest = np.asarray(log_mel(tone)).mean(axis=0).argmax()
    assert mel_heights([hertz], mels=128)[0] == pytest.approx(loudest + 0.5, abs=0.6)  # a bin's half, and its triangle


def test_rows_go_to_pages_and_are_titled(tmp_path):
    config = CONFIGS[0]
    results = [result(config, kept={3: np.arange(9)}, name=f"{i}.wav", start=i / 10) for i in range(7)]
    written = retained_patches(results, config, path=tmp_path / "kept.svg")
    assert written == [tmp_path / "kept.svg", tmp_path / "kept-2.svg"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    text = ["".join(ElementTree.parse(path).getroot().itertext()) for path in written]
    assert "5.wav, 0.50 to 1.70 s, top label: a $sound (0.50)" in text[0]
    assert "6.wav, 0.60 to 1.80 s" in text[1]
    assert "after block 3: 9 of 56" in text[1]


def test_png_and_names_that_look_like_formulas(tmp_path):
    config = CONFIGS[2]
    drawn = result(config, kept={}, name="$x_$^ [b].wav")
    (path,) = retained_patches([drawn], config, path=tmp_path / "new" / "kept.PNG")
    assert matplotlib.image.imread(path, format="png").std() > 0.1


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.png, \.svg, \.pdf, not as \.jpg"):
        picture_path("kept.jpg")
    with pytest.raises(ValueError, match="no result carries its spectrogram"):
        retained_patches([], CONFIGS[0], path=tmp_path / "kept.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_patches_of_one_token_show_their_mean_with_lines_around_them(family):
    config = small(family, depth=1)
    groups = np.arange(config.patches)
    groups[[0, 1, 9]], groups[5] = 63, -1
    shown = dataclasses.replace(result(config, kept={3: np.arange(6, 64)}), groups={3: groups})
    patches, mel, title = left_of(shown, 3, config=config)
    assert patches.tolist() == [patch for patch in range(64) if patch != 5]
    assert title == "after block 3: 60 tokens of 63 patches"
    cut = {
        name: np.asarray(cut_patches(jnp.asarray(one)[None], config))[0]
        for name, one in (("before", shown.mel), ("after", mel))
    }
    mean = cut["before"][[0, 1, 9, 63]].mean(axis=0)
    for patch in (0, 1, 9, 63):
        np.testing.assert_allclose(cut["after"][patch], mean, atol=1e-6)
    alone = [patch for patch in range(64) if patch not in (0, 1, 9, 63)]
    np.testing.assert_array_equal(cut["after"][alone], cut["before"][alone])
    ((_, panel),) = pictured(retained_patches_figure([shown], config))
    (lines,) = panel.collections
    across, along = (1, 8) if family == "ast" else (8, 1)  # of the patch number, by time and by frequency
    places = {(patch // across % 8, patch // along % 8) for patch in (0, 1, 9, 63)}
    borders = {frozenset((one, other)) for one in places for other in neighbours(one) if other not in places}
    assert len(lines.get_segments()) == len(borders)


def neighbours(place):
    time, freq = place
    around = [(time - 1, freq), (time + 1, freq), (time, freq - 1), (time, freq + 1)]
    return [(t, f) for t, f in around if 0 <= t < 8 and 0 <= f < 8]
