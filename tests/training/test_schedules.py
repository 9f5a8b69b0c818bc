import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_mel, small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.config import ModelConfig
from jaxprune.cost import macs
from jaxprune.models import abstract
from jaxprune.reduction.policy import Policy, top_k_stages
from jaxprune.reduction.scores import ClsAttention
from jaxprune.reduction.selection import TopK, keep_count
from jaxprune.training.recipes import RECIPES
from jaxprune.training.schedules import compilations, keep_rate_schedule, learning_rate, slice_end, stages_at
from jaxprune.training.settings import AdamW, Cosine, Loop, Prune, StepDecay

CONFIG = small("ast")  # top-k does not depend on it
ESC50 = dataclasses.replace(RECIPES["audiomae-esc50"].prune, keep_rate=0.5)


def epochs(prune, count, *, steps_per_epoch=7):
    """The rate of every step, epoch by epoch."""
    schedule = keep_rate_schedule(prune, steps_per_epoch=steps_per_epoch)
    return [[schedule(epoch * steps_per_epoch + i) for i in range(steps_per_epoch)] for epoch in range(count)]


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 1000])
def test_released_keep_rates_of_audiomae_on_esc50(steps_per_epoch):
    rates = epochs(ESC50, 120, steps_per_epoch=steps_per_epoch)
    assert all(len(set(epoch)) == 1 for epoch in rates)  # held for an epoch
    of_epoch = [epoch[0] for epoch in rates]
    assert set(of_epoch[:21]) == {1.0}
    assert [round(of_epoch[i], 5) for i in (21, 40, 59)] == [0.99923, 0.75, 0.50077]
    assert set(of_epoch[60:]) == {0.5}


@pytest.mark.parametrize(("name", "base"), [(name, base) for name in RECIPES for base in (0.9, 0.7, 0.5, 1.0)])
def test_every_recipe_follows_the_cosine_of_its_own_epoch_count(name, base):
    prune = dataclasses.replace(RECIPES[name].prune, keep_rate=base)
    for i, rates in enumerate(epochs(prune, RECIPES[name].loop.epochs)):
        counts_from_1 = name.startswith("ast") and not name.endswith(("words", "speakers"))  # AST as published
        epoch = i + counts_from_1
        progress = min(max((epoch - prune.shrink_start) / prune.shrink_epochs, 0), 1)
        expected = base + (1 - base) * (math.cos(math.pi * progress) + 1) / 2
        np.testing.assert_allclose(rates, expected, rtol=1e-15)


def test_ast_begins_an_epoch_earlier_than_its_number_says():
    rates = [epoch[0] for epoch in epochs(RECIPES["ast-esc50"].prune, 30)]
    assert rates[4] == 1  # epoch 5, where the cosine is 1
    assert rates[3] == 1
    assert rates[5] < 1
    assert rates[18] > 0.7
    assert rates[19] == 0.7  # epoch 20


def test_evit_moves_every_step_and_meets_the_released_values_at_the_epochs():
    released, every_step = epochs(ESC50, 120), epochs(dataclasses.replace(ESC50, update="step"), 120)
    assert [a[0] for a in released] == [a[0] for a in every_step]
    falling = [rate for epoch in every_step[20:60] for rate in epoch]
    assert all(a > b for a, b in itertools.pairwise(falling))


def test_masking_stops_when_the_shrinking_begins_and_only_if_there_is_any():
    schedule = keep_rate_schedule(ESC50, steps_per_epoch=10)
    assert [schedule.shrinking(step) for step in (0, 199, 200, 700, 1199)] == [False, False, True, True, True]
    unpruned = keep_rate_schedule(dataclasses.replace(ESC50, keep_rate=1.0), steps_per_epoch=10)
    assert not any(unpruned.shrinking(step) for step in (0, 200, 1199))


def test_shrinking_in_no_time_is_a_step():
    prune = Prune(keep_rate=0.6, shrink_start=2, shrink_epochs=0)
    assert [epoch[0] for epoch in epochs(prune, 4)] == [1, 1, 0.6, 0.6]


def test_an_epoch_without_steps_is_refused():
    with pytest.raises(ValueError, match="larger than the data set"):
        keep_rate_schedule(ESC50, steps_per_epoch=0)


def test_both_ends_gather_exactly_and_the_way_between_is_masked():
    assert stages_at(1.0, ESC50, config=CONFIG, patches=256) == top_k_stages(dict.fromkeys((3, 6, 9), 1.0))
    assert stages_at(0.5, ESC50, config=CONFIG, patches=256) == top_k_stages(dict.fromkeys((3, 6, 9), 0.5))
    stages = stages_at(0.75, ESC50, config=CONFIG, patches=256)
    assert [int(stages[block].count) for block in (3, 6, 9)] == [192, 144, 108]
    end = 0.5 + 0.5 * 4 / 7  # 0.75 is half of the way; slices end at sevenths
    sizes = [keep_count(end, 256)]
    sizes += [keep_count(end, sizes[0])]
    sizes += [keep_count(end, sizes[1])]
    assert [stages[block].capacity for block in (3, 6, 9)] == sizes


@pytest.mark.parametrize("rate", [0.49, 1.01, float("nan")])
def test_a_rate_off_the_way_is_refused(rate):
    with pytest.raises(ValueError, match="does not occur"):
        stages_at(rate, ESC50, config=CONFIG, patches=256)


@pytest.mark.parametrize("base", [0.3, 0.5, 0.7, 0.9, 1 / 3])
def test_no_count_exceeds_its_capacity_and_slices_are_as_few_as_asked(base):
    prune = Prune(keep_rate=base)
    rates = np.linspace(base, 1, 2003)[1:-1].tolist()
    rates += [base + (1 - base) * j / 7 for j in range(1, 7)] + [math.nextafter(1, 0), math.nextafter(base, 1)]
    ends = {round(slice_end(rate, prune), 12) for rate in rates}
    assert len(ends) == 7
    assert all(slice_end(rate, prune) >= rate for rate in rates)
    for patches in (25, 110, 512):
        for rate in rates[::100] + rates[-8:]:
            stages, left = stages_at(rate, prune, config=CONFIG, patches=patches), patches
            for block in (3, 6, 9):
                left = keep_count(rate, left)
                assert int(stages[block].count) == left <= stages[block].capacity


PATCHES = {"T=128": 64, "T=512": 256, "T=1024": 512, "T=128 masked": 25, "T=512 masked": 110, "T=1024 masked": 220}


@functools.cache
def vit_base(patches):
    """With so many patches, whatever the picture they were cut from."""
    return abstract(ModelConfig.of_size("audiomae", "base", classes=527, frames=16 * patches, mels=16))


def gmacs(stages, *, patches):
    return macs(vit_base(patches), Policy(ClsAttention(), stages)) / 1e9


@pytest.mark.parametrize("patches", PATCHES.values(), ids=PATCHES)
@pytest.mark.parametrize(("base", "allowed"), [(0.7, 1.032), (0.5, 1.052)])
@pytest.mark.parametrize(("length", "update"), [*((n, "epoch") for n in (10, 15, 20, 30, 40)), (15, "step")])
def test_slices_cost_little(patches, base, allowed, length, update):
    """At most nine compilations (a tenth is left for patches masked out before the shrinking), and the shrinking alone
    computes at most `allowed` times what exact gathering would. A whole run is nearer to 1."""
    prune = Prune(keep_rate=base, shrink_start=2, shrink_epochs=length, update=update)
    steps = {"epoch": 1, "step": 3}[update]  # an epoch
    schedule = keep_rate_schedule(prune, steps_per_epoch=steps)
    rates = [schedule(step) for step in range(steps * (length + 4))]
    assert rates[0] == 1
    assert rates[-1] == base
    assert compilations(rates, prune, config=CONFIG, patches=patches) <= 9
    falling = [rate for rate in rates if base < rate < 1]
    spent = sum(gmacs(stages_at(rate, prune, config=CONFIG, patches=patches), patches=patches) for rate in falling)
    exact = sum(gmacs(top_k_stages(dict.fromkeys((3, 6, 9), rate)), patches=patches) for rate in falling)
    assert 1 < spent / exact <= allowed


def test_a_run_down_the_schedule_equals_exact_gathering_and_compiles_as_counted():
    model = jaxprune.build(small("audiomae", mels=64, depth=2))
    patches, mel = model.config.patches, jnp.asarray(random_mel(model.config))
    prune = Prune(keep_rate=0.5, blocks=(0, 1), shrink_start=1, shrink_epochs=12, buckets=2)
    schedule = keep_rate_schedule(prune, steps_per_epoch=1)
    rates = [schedule(step) for step in range(15)]
    traces = 0

    def read(output):
        nonlocal traces
        traces += 1
        return output.logits, output.trace[-1].patch_ids

    forward = jaxprune.compiled(model, read)
    policies = [Policy(model.score, stages_at(rate, prune, config=CONFIG, patches=patches)) for rate in rates]
    logits = [forward(mel, policy)[0] for policy in policies]
    assert traces == compilations(rates, prune, config=CONFIG, patches=patches) == 4
    for rate, found in list(zip(rates, logits, strict=True))[3::6]:
        exact, _ = forward(mel, jaxprune.topk(model, dict.fromkeys(prune.blocks, rate)))
        np.testing.assert_allclose(found, exact, atol=1e-6)

    # A rate just under 1 keeps every patch, in another order, which changes nothing.
    almost, order = forward(mel, Policy(model.score, stages_at(1 - 1e-9, prune, config=CONFIG, patches=patches)))
    np.testing.assert_allclose(almost, logits[0], atol=1e-6)
    assert (np.sort(order, axis=1) == np.arange(patches)).all()
    assert (np.asarray(order) != np.arange(patches)).any()


def of(name, **changes):
    return dataclasses.replace(RECIPES[name], **changes)


def test_audiomae_warms_up_for_four_epochs_and_ends_at_the_floor():
    rate = learning_rate(RECIPES["audiomae-esc50"], steps_per_epoch=10)
    peak = 1e-3 * 128 / 256
    np.testing.assert_allclose([rate(0), rate(20), rate(40), rate(1200)], [0, peak / 2, peak, 1e-5], rtol=1e-6)
    for step in range(0, 1201, 7):
        epoch = step / 10  # the position within the epoch counts
        cosine = 1e-5 + (peak - 1e-5) * 0.5 * (1 + math.cos(math.pi * (epoch - 4) / (120 - 4)))
        np.testing.assert_allclose(rate(step), peak * epoch / 4 if epoch < 4 else cosine, rtol=1e-5)


def test_no_warm_up_starts_at_the_peak():
    recipe = of("audiomae-esc50", schedule=Cosine(warmup_epochs=0.0))
    np.testing.assert_allclose(learning_rate(recipe, steps_per_epoch=10)(0), recipe.peak_lr, rtol=1e-6)


def test_ast_on_audioset_warms_up_in_stairs_and_halves_every_five_epochs_from_ten():
    rate = learning_rate(RECIPES["ast-as20k"], steps_per_epoch=320)
    found = [rate(step) for step in (0, 49, 50, 99, 975, 1000, 3199, 3200, 4799, 4800, 9599)]
    np.testing.assert_allclose(found, [0, 0, 5e-6, 5e-6, 9.5e-5, 1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 6.25e-6], rtol=1e-6)


def test_ast_on_esc50_falls_by_fifteen_percent_after_every_epoch_from_the_fifth():
    rate = learning_rate(RECIPES["ast-esc50"], steps_per_epoch=33)
    for epoch in range(30):
        expected = 1e-5 * 0.85 ** max(0, epoch - 4)
        np.testing.assert_allclose([rate(33 * epoch), rate(33 * epoch + 32)], expected, rtol=1e-5)


def test_step_decay_equals_pytorchs_milestones():
    torch = pytest.importorskip("torch")
    recipe = of("ast-as20k", schedule=StepDecay(first=3, every=4, factor=0.3), loop=Loop(epochs=30, batch=64))
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=recipe.peak_lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(range(3, 1000, 4)), gamma=0.3)
    rate = learning_rate(recipe, steps_per_epoch=5)
    for epoch in range(30):
        np.testing.assert_allclose(rate(5 * epoch + 2), optimizer.param_groups[0]["lr"], rtol=1e-5)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates_are_the_same_under_jit(name):
    rate = learning_rate(RECIPES[name], steps_per_epoch=9)
    steps = np.arange(0, 270, 4, dtype=np.int32)
    found, expected = jax.jit(jax.vmap(rate))(steps), [rate(int(step)) for step in steps]
    # A cosine that is nearly down cancels: its error is one of the whole rate's.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * max(expected))


def test_a_rate_can_be_raised_on_the_command_line_without_moving_its_course():
    base, twice = (
        learning_rate(of("audiomae-as20k", optimizer=AdamW(base_lr=lr), schedule=Cosine(floor=0.0)), steps_per_epoch=5)
        for lr in (1e-3, 2e-3)
    )
    np.testing.assert_allclose(
        [twice(step) for step in (3, 50, 299)], [2 * base(step) for step in (3, 50, 299)], rtol=1e-5
    )


def test_top_k_at_both_ends_is_the_published_stage():
    assert all(
        isinstance(stage, TopK)
        for rate in (0.7, 1.0)
        for stage in stages_at(rate, Prune(), config=CONFIG, patches=64).values()
    )
