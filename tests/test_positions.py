import dataclasses

import numpy as np
import pytest
import torch
from helpers import small
from jaxprune.convert.random_checkpoint import random_state

from jaxprune.positions import adapt_positions, published_positions, released_audiomae_cut, sincos_positions

RNG = np.random.default_rng(0)


def table_of(config):
    return RNG.standard_normal((config.extra_tokens + config.patches, config.width)).astype(np.float32)


@pytest.mark.parametrize(("frames", "start"), [(512, 16), (128, 28), (112, 29), (1008, 1)])
def test_a_shorter_ast_reads_the_middle_of_the_time_axis(frames, start):
    config = small("ast", frames=1024)
    table, count = table_of(config), frames // 16
    found = adapt_positions(table, config, frames=frames)
    assert (found[:2] == table[:2]).all()
    for f in range(8):
        for t in range(count):
            assert (found[2 + f * count + t] == table[2 + f * 64 + start + t]).all()


def test_a_longer_ast_interpolates_as_torch_does():
    config = small("ast", frames=128)
    table = table_of(config)
    grid = torch.tensor(table[2:]).reshape(1, 8, 8, 48).permute(0, 3, 1, 2)
    wider = torch.nn.functional.interpolate(grid, size=(8, 20), mode="bilinear")
    expected = wider.permute(0, 2, 3, 1).reshape(160, 48).numpy()
    np.testing.assert_allclose(adapt_positions(table, config, frames=320)[2:], expected, atol=3e-6)  # both in float32


def test_a_shorter_audiomae_keeps_the_first_rows_in_time():
    config = small("audiomae", frames=1024)
    table = table_of(config)
    assert (adapt_positions(table, config, frames=512) == table[: 1 + 32 * 8]).all()
    formula = sincos_positions(config)
    shorter = sincos_positions(dataclasses.replace(config, frames=512))
    np.testing.assert_allclose(adapt_positions(formula, config, frames=512), shorter)


def test_a_longer_audiomae_is_continued_by_formula_or_refused():
    config = small("audiomae", frames=128)
    longer = dataclasses.replace(config, frames=512)
    found = adapt_positions(sincos_positions(config), config, frames=512)
    np.testing.assert_allclose(found, sincos_positions(longer))
    with pytest.raises(ValueError, match="ask for at most 128 frames"):
        adapt_positions(table_of(config), config, frames=512)


def test_the_released_cut_reads_the_table_as_frequency_by_time():
    config = small("audiomae", frames=1024)
    table = table_of(config)
    found = released_audiomae_cut(table, config, frames=512)
    expected = table[1:].reshape(8, 64, 48)[:, :32].reshape(256, 48)
    assert (found[1:] == expected).all()
    assert (found[1:] != table[1:257]).any()


def test_a_learned_table_has_no_released_cut():
    config = small("ast", frames=1024)
    with pytest.raises(ValueError, match="AudioMAE's published slip; a model of family ast has none"):
        released_audiomae_cut(table_of(config), config, frames=512)


def test_the_sincos_table_follows_its_definition():
    config = small("audiomae", width=8, heads=2, frames=48, mels=32)  # 3 x 2 patches
    table = sincos_positions(config)
    assert (table[0] == 0).all()
    omega = [1, 10000 ** (-1 / 2)]
    for time in range(3):
        for freq in range(2):
            expected = [f(axis * w) for axis in (freq, time) for f in (np.sin, np.cos) for w in omega]
            np.testing.assert_allclose(table[1 + time * 2 + freq], expected)


@pytest.mark.parametrize("frames", [512, 1024, 1040, 2048])
def test_random_checkpoints_carry_the_published_table_of_any_length(frames):
    config = small("audiomae", width=8, heads=2, depth=1, frames=frames)
    table = random_state(config, seed=0)["pos_embed"][0].numpy()
    for r in range(config.patches):
        places = [f(place * 10000 ** (-i / 2)) for place in (r % 64, r // 64) for f in (np.sin, np.cos) for i in (0, 1)]
        np.testing.assert_allclose(table[1 + r], places, rtol=0, atol=1e-6)
    assert not table[0].any()


def test_the_table_of_overlapping_patches_is_not_swapped():
    config = small("audiomae", width=8, heads=2, frames=128, time_stride=10, freq_stride=10)
    np.testing.assert_array_equal(published_positions(config), sincos_positions(config))


def test_the_same_length_changes_nothing():
    config = small("ast")
    table = table_of(config)
    assert (adapt_positions(table, config, frames=128) == table).all()


def test_a_longer_audiomae_continues_the_published_table_with_swapped_sides():
    width, old = 8, small("audiomae", width=8, heads=2, frames=1024)
    table = np.zeros((1 + 1024, width))
    for r in range(1024):
        for i in range(width // 4):
            angle = 10000.0 ** (-4 * i / width)
            for half, place in enumerate((r % 64, r // 64)):
                table[1 + r, half * 4 + i] = np.sin(place * angle)
                table[1 + r, half * 4 + 2 + i] = np.cos(place * angle)
    published = table[: 1 + 512].astype(np.float32)
    found = adapt_positions(published, old, frames=2048)
    np.testing.assert_array_equal(found[:513], published)
    np.testing.assert_allclose(found, table, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be continued"):
        adapt_positions(published + np.float32(1e-4), old, frames=2048)
