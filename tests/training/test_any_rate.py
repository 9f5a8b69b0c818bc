"""Keep rates drawn anew for each step: what is drawn, its sizes, its losses, and what a run leaves behind."""

import collections
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from quick import quick_compiling  # noqa: F401
from training.test_finetune import clips, short, start  # noqa: F401
from training_runs import EPOCHS, STEPS, Rewound, batches, corpus, model, random_batch, recipe, training

from jaxprune.reduction.policy import Policy, stage_counts, top_k_stages
from jaxprune.reduction.selection import MaskedTopK, TopK
from jaxprune.training.classification import Classification
from jaxprune.training.events import AtRate, Evaluation
from jaxprune.training.finetune import finetune, many_sizes, masks_that_stay
from jaxprune.training.pruning import Prune
from jaxprune.training.recipes import RECIPES
from jaxprune.training.schedules import compilations, keep_rate_schedule, slice_end, stages_at
from jaxprune.training.settings import Recipe
from jaxprune.training.task import Sound
from jaxprune.training.tensorboard import curves

CONFIG = small("ast")  # top-k does not depend on it
SIX = ("1", "0.9", "0.8", "0.7", "0.6", "0.5")


def drawn(*sample, steps=4000, seed=0, **changes):
    schedule = keep_rate_schedule(Prune(sample=sample, **changes), steps_per_epoch=10, seed=seed)
    return [schedule(step) for step in range(steps)]


def test_a_list_is_drawn_evenly_and_with_weights_in_their_proportion():
    counts = collections.Counter(drawn(*SIX))
    assert counts.keys() == {1.0, 0.9, 0.8, 0.7, 0.6, 0.5}
    # Five standard deviations of a binomial.
    assert all(abs(count - 4000 / 6) < 5 * math.sqrt(4000 * 5 / 36) for count in counts.values())
    counts = collections.Counter(drawn("1:1", "0.7:3"))
    assert abs(counts[0.7] - 3000) < 5 * math.sqrt(4000 * 3 / 16)


def test_a_range_is_drawn_uniformly_and_may_stand_beside_a_rate():
    rates = np.array(drawn("0.5-0.9"))
    assert rates.min() >= 0.5
    assert rates.max() <= 0.9
    counts, _ = np.histogram(rates, bins=8, range=(0.5, 0.9))
    assert (abs(counts - 500) < 5 * math.sqrt(4000 * 7 / 64)).all()
    mixed = np.array(drawn("1:1", "0.5-0.6:1"))
    assert abs((mixed == 1).sum() - 2000) < 5 * math.sqrt(1000)
    assert ((mixed == 1) | (mixed <= 0.6)).all()


def test_the_seed_and_the_step_alone_decide_a_rate():
    one = drawn(*SIX, steps=50)
    assert one == drawn(*SIX, steps=50)
    assert one != drawn(*SIX, steps=50, seed=1)
    schedule = keep_rate_schedule(Prune(sample=SIX), steps_per_epoch=3, seed=0)
    assert [schedule(step) for step in reversed(range(50))] == one[::-1]


@pytest.mark.parametrize(
    "sample", [SIX, ("0.5-1",), ("0.05-1",), ("1:1", "0.5-1:3"), ("0.3-0.6",), tuple(f"{i / 20}" for i in range(5, 21))]
)
@pytest.mark.parametrize("patches", [25, 220, 512])
def test_a_run_compiles_at_most_ten_sizes_and_keeps_what_exact_gathering_keeps(sample, patches):
    prune, rates = Prune(sample=sample), drawn(*sample, steps=500)
    assert 1 < compilations(rates, prune, config=CONFIG, patches=patches) <= 10
    for rate in rates[:200]:
        stages = stages_at(rate, prune, config=CONFIG, patches=patches)
        counts = stage_counts(dict.fromkeys((3, 6, 9), rate), patches=patches)
        left = patches
        for block, stage in stages.items():
            match stage:
                case TopK():
                    left = stage.size(left)
                    assert left == counts[block]
                case MaskedTopK():
                    assert int(stage.count) == counts[block] <= stage.capacity
                    assert slice_end(rate, prune) >= rate


def test_a_list_of_at_most_ten_rates_masks_nothing():
    prune = Prune(sample=SIX, buckets=2)
    stages = [
        stage for rate in set(drawn(*SIX)) for stage in stages_at(rate, prune, config=CONFIG, patches=64).values()
    ]
    assert {type(stage) for stage in stages} == {TopK}
    assert compilations(drawn(*SIX), prune, config=CONFIG, patches=64) == 6


def test_losses_equal_those_of_exact_gathering_and_all_augmentation_stays_on():
    """Patches are masked out at every rate: the rate is of those that are left."""
    made = recipe(prune=dataclasses.replace(recipe().prune, keep_rate=0.7, sample=("0.4-1",)))
    trained, sound = training(made), Sound(*map(jnp.asarray, random_batch()[:4]))
    losses = jax.jit(trained.task.losses)
    plans = [trained.plan(step) for step in range(5)]
    assert len({plan.keep_rate_now for plan in plans}) == 5
    for step, plan in enumerate(plans):
        assert (plan.hidden, float(plan.amounts.time_mask), float(plan.amounts.freq_mask)) == (0.3, 24, 24)
        stages = top_k_stages(dict.fromkeys((0, 1), plan.keep_rate_now))
        exact = plan.replace(policy=Policy(plan.policy.score, stages))
        found, expected = (losses(trained.model(), jax.random.key(step), sound, each) for each in (plan, exact))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    made = recipe(prune=dataclasses.replace(recipe().prune, keep_rate=0.7, sample=("1", "0.5")))
    rewound, dataset = Rewound(training(made)), corpus(tmp_path)
    whole = rewound.training()
    with batches(dataset, made) as loader:
        reference = [step.loss for step in whole.fit(loader)]
    again, losses = rewound.training(), []
    with batches(dataset, made) as loader:
        for step in again.fit(loader, stop=lambda: int(again.state.step) == 5):
            losses.append(step.loss)
        place = loader.get_state()
    state = jax.tree.map(jnp.copy, again.state)
    with batches(dataset, made) as loader:
        loader.set_state(place)
        again = rewound.training()
        again.put(state)
        losses += [step.loss for step in again.fit(loader)]
    assert losses == reference


def test_the_schedule_of_a_published_recipe_stays_unused_beside_it():
    published = RECIPES["audiomae-esc50"]
    short = dataclasses.replace(published.loop, epochs=10)  # the schedule alone would take 60
    made = dataclasses.replace(published, prune=dataclasses.replace(published.prune, sample=SIX), loop=short)
    assert Recipe.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert made.prune.rates == (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    assert made.prune.watched == (1.0, 0.7, 0.5)


def test_recipes_from_before_there_was_a_sample_still_read():
    plain = RECIPES["ast-esc50"].to_json()
    del plain["prune"]["sample"]
    assert Recipe.from_json(plain) == RECIPES["ast-esc50"]


@pytest.mark.parametrize(
    ("sample", "rates", "watched"),
    [
        (("0.5-1",), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), (1.0, 0.7, 0.5)),
        (("0.55-0.75",), (0.75, 0.7, 0.6, 0.55), (0.75, 0.6, 0.55)),
        (("0.6", "1"), (1.0, 0.6), (1.0, 0.6)),
        (None, (0.7,), (0.7,)),
    ],
)
def test_the_rates_that_a_model_is_for(sample, rates, watched):
    assert (Prune(sample=sample).rates, Prune(sample=sample).watched) == (rates, watched)


def test_commas_write_the_same_recipe_as_spaces():
    assert Prune(sample=("1,0.9", "0.5-0.6")) == Prune(sample=("1", "0.9", "0.5-0.6"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": ()}, "sample names no keep rate; write some"),
        ({"sample": ("",)}, "sample names no keep rate; write some"),
        ({"sample": ("1", "half")}, "'half' in sample is no keep rate"),
        ({"sample": ("-0.5",)}, "'-0.5' in sample is no keep rate"),
        ({"sample": ("nan",)}, "'nan' in sample is no keep rate"),
        ({"sample": ("1.2", "0.5")}, r"'1.2' in sample is outside \(0, 1\]"),
        ({"sample": ("0-1",)}, r"'0-1' in sample is outside \(0, 1\]"),
        ({"sample": ("0.5-1.5",)}, r"'0.5-1.5' in sample is outside \(0, 1\]"),
        ({"sample": ("1-0.5",)}, "the range '1-0.5' in sample does not rise"),
        ({"sample": ("1:2", "0.5")}, "1 of 2 keep rates in sample have a weight"),
        ({"sample": ("1:2", "0.5:0")}, "the weight of '0.5:0' in sample is not positive"),
        ({"sample": ("1", "1.0")}, "names a keep rate twice"),
        ({"sample": SIX, "keep_rate": 0.5}, "keep_rate is 0.5 and sample 1 0.9 0.8 0.7 0.6 0.5"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(changes, said):
    with pytest.raises(ValueError, match=said):
        Prune(**changes)


def at(rate, score, **changes):
    values = {"macs": 5, "loss": 1.0, "top1": score, "top5": 1.0, "score": score}
    none = dict.fromkeys(("mean_average_precision", "auc", "d_prime"))
    return AtRate(**{"keep_rate": rate} | values | none | changes)


def test_an_evaluation_at_several_rates_is_their_mean_and_one_of_each():
    found = Evaluation.of([at(1.0, 0.9), at(0.5, 0.5)], step=3, clips=4, metric="accuracy")
    assert (found.score, found.top1, found.keep_rate, found.auc) == (pytest.approx(0.7), pytest.approx(0.7), None, None)
    assert curves(found)["score at 0.5"] == 0.5
    alone = Evaluation.of([at(0.5, 0.1)], step=3, clips=4, metric="accuracy")
    assert (alone.score, alone.keep_rate) == (0.1, 0.5)
    assert not any(" at " in name for name in curves(alone))


@pytest.mark.parametrize(
    ("prune", "hidden", "most"),
    [
        (Prune(sample=("0.5-1",), buckets=8), 0.3, 10),
        (Prune(sample=("0.5-1",), buckets=9), 0.3, 11),
        (Prune(keep_rate=0.5, shrink_epochs=4, buckets=8), 0.3, 11),
        (Prune(keep_rate=0.5, shrink_epochs=4), 0.3, 10),
        (Prune(sample=SIX, buckets=20), 0.0, 6),
    ],
)
def test_more_than_ten_sizes_are_told(prune, hidden, most):
    made = recipe()
    made = dataclasses.replace(made, prune=prune, augment=dataclasses.replace(made.augment, patch_mask=hidden))
    notes = many_sizes(made)
    assert bool(notes) is (most > 10)
    assert all(f"may compile {most} sizes" in note for note in notes)
    rates = [keep_rate_schedule(prune, steps_per_epoch=200, seed=0)(step) for step in range(1000)]
    assert compilations(rates, prune, config=CONFIG, patches=512) <= most


DRAWN, FALLING = Prune(sample=SIX, blocks=(0, 1)), Prune(keep_rate=0.5, blocks=(0, 1))


@pytest.mark.parametrize(
    ("prune", "masks", "names", "options"),
    [
        (DRAWN, (24, 16), "time_mask and freq_mask", "--augment.time-mask 0 --augment.freq-mask 0"),
        (DRAWN, (0, 16), "freq_mask", "--augment.freq-mask 0"),
        (DRAWN, (0, 0), None, None),
        (FALLING, (24, 16), None, None),
        (Prune(sample=("1",), blocks=(0, 1)), (24, 16), None, None),
    ],
)
def test_masks_that_drawn_rates_leave_on_are_told_with_the_options_against_them(prune, masks, names, options):
    augment = dataclasses.replace(recipe().augment, time_mask=masks[0], freq_mask=masks[1])
    made = dataclasses.replace(recipe(), prune=prune, augment=augment)
    notes = masks_that_stay(made)
    assert len(notes) == (names is not None)
    assert all(f"masks ({names}) stay on" in note and f"and {options} takes" in note for note in notes)
    last = Classification(made, model(), steps_per_epoch=STEPS).plan(EPOCHS * STEPS - 1).amounts
    stay = (float(last.time_mask), float(last.freq_mask)) == masks
    assert stay is (prune is not FALLING)


def test_a_run_tells_once_that_masks_stay_on(clips, start, tmp_path):  # noqa: F811
    made = dataclasses.replace(short(clips, start), prune=DRAWN)
    events = finetune(made, tmp_path / "run", seed=7)
    begun = next(events)
    events.close()
    assert sum("stay on while keep rates are drawn" in note for note in begun.notes) == 1
