"""The step and the loop: equal to exact gathering, augmentation that stops, few compilations, on many devices."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from quick import quick_compiling  # noqa: F401
from training_runs import (
    BATCH,
    EPOCHS,
    FRAMES,
    SHRINK,
    STEPS,
    Poisoned,
    Rewound,
    batches,
    child_environment,
    corpus,
    model,
    random_batch,
    recipe,
    training,
)

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.cli.compile_cache import counted
from jaxprune.data.batches import eval_batches
from jaxprune.data.records import Dataset
from jaxprune.evaluation.metrics import LOSS_OF, LOSSES
from jaxprune.features import model_input
from jaxprune.models import topk
from jaxprune.parallel.devices import Layout
from jaxprune.reduction.policy import Policy, top_k_stages
from jaxprune.training.events import Evaluation, NotFinite, Step
from jaxprune.training.loop import Training
from jaxprune.training.recipes import RECIPES
from jaxprune.training.settings import Augment, Loop, Precision, StepDecay

TOTAL = EPOCHS * STEPS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"))


@dataclasses.dataclass(frozen=True)
class Run:
    """A whole run: its events, its end, and its compiled training, with which other tests begin anew."""

    steps: list[Step]
    compilations: int
    cached: int
    left_at: int
    rewound: Rewound


@pytest.fixture(scope="module")
def run(dataset):
    made = recipe()
    trained = training(made)
    rewound = Rewound(trained)
    with batches(dataset, made) as loader:
        steps = list(trained.fit(loader))
    return Run(steps, trained.compilations, trained._program._step._cache_size(), int(trained.state.step), rewound)


def test_losses_of_a_whole_run_equal_those_of_exact_gathering(dataset, run):
    made, steps = recipe(), run.steps
    exact = training(made)
    plan = exact.plan

    def gathered(step):
        now = plan(step)
        stages = top_k_stages(dict.fromkeys(made.prune.blocks, now.keep_rate_now))
        return now.replace(policy=Policy(exact.task.score, stages))

    exact.plan = gathered
    with batches(dataset, made) as loader:
        reference = list(exact.fit(loader))
    assert [step.step for step in steps] == list(range(TOTAL))
    np.testing.assert_allclose([s.loss for s in steps], [s.loss for s in reference], atol=1e-5)
    assert exact.compilations > run.compilations
    assert run.compilations == run.cached <= 10
    assert run.compilations <= sum(step.compiled for step in steps) <= 2 * run.compilations


def test_the_run_follows_its_schedules(run):
    steps = run.steps
    rates = [step.keep_rate for step in steps]
    assert rates[: SHRINK * STEPS] == [1.0] * SHRINK * STEPS
    assert rates[-1] == 0.5
    assert sorted(rates, reverse=True) == rates
    assert len(set(rates)) == 5
    assert [step.epoch for step in steps] == [i // STEPS for i in range(TOTAL)]
    assert steps[0].lr == 0
    assert max(step.lr for step in steps) == pytest.approx(recipe().peak_lr)
    assert all(step.seconds > 0 and 0 <= step.waiting <= 1 and step.gradient > 0 for step in steps)
    assert run.left_at == TOTAL


@pytest.mark.parametrize("name", RECIPES)
def test_no_published_run_compiles_more_than_ten_sizes(name):
    """Counted as jit does: structures of the policy, and the shares of patches masked out."""
    published = RECIPES[name]
    made = dataclasses.replace(
        published,
        data=recipe().data,
        augment=dataclasses.replace(published.augment, time_mask=24),
        prune=dataclasses.replace(published.prune, keep_rate=0.5, update="step"),
        precision=Precision(compute="float32"),
        loop=dataclasses.replace(published.loop, batch=BATCH),
        schedule=StepDecay(),
    )
    trained = training(made, model=model(published.start.family, depth=10, width=12))
    plans = [trained.plan(step) for step in range(trained.total_steps)]
    sizes = {jax.tree.structure(plan) for plan in plans}
    assert (3 if made.prune.shrink_epochs else 1) <= len(sizes) <= 10


def test_the_models_passed_in_and_out_share_nothing_with_the_run():
    made = recipe()
    given = model()
    before = {name: np.array(leaf[...]) for name, leaf in leaves(given).items()}
    trained = training(made, model=given)
    out = trained.model()
    for seed in range(2):
        trained.step(random_batch(seed=seed))
    for name, leaf in leaves(given).items():
        np.testing.assert_array_equal(leaf[...], before[name])
    for name, leaf in leaves(out).items():
        np.testing.assert_array_equal(leaf[...], before[name])
    changed = {name for name, leaf in leaves(trained.model()).items() if (leaf[...] != before[name]).any()}
    assert changed == set(before) - {"positions"}  # AudioMAE's table is fixed


@pytest.mark.parametrize("step", [SHRINK * STEPS - 1, SHRINK * STEPS])
def test_masking_and_spec_augment_are_off_from_shrink_start_in_the_step_itself(step):
    """Without mixup, roll, noise and drop-path nothing random is left then: the step's losses are evaluation's."""
    made = recipe(augment=Augment(time_mask=24, freq_mask=24, patch_mask=0.3))
    trained, batch = training(made), random_batch()
    trained.put(trained.state.replace(step=jax.numpy.int32(step)))
    trusted, policy = trained.model(), topk(model(), dict.fromkeys(made.prune.blocks, 1.0))
    measured = trained.step(batch)
    mel = model_input(
        batch.waveforms, batch.lengths, frames=FRAMES, mean=made.data.mean, std=made.data.std, padding="minimum"
    )
    plain = LOSSES["ce"](jaxprune.compiled(trusted)(mel, policy).logits, jax.numpy.asarray(batch.targets))
    differ = np.abs(np.asarray(measured.losses) - np.asarray(plain)) > 1e-5
    assert differ.all() if step < SHRINK * STEPS else not differ.any()
    plan, on = trained.plan(step), step < SHRINK * STEPS
    assert (plan.hidden, float(plan.amounts.time_mask), float(plan.amounts.freq_mask)) == (0.3 * on, 24 * on, 24 * on)


def test_updates_share_the_arrays_of_their_plans():
    trained = training(recipe())
    first, second, shrinking, last = (trained.plan(step) for step in (0, 1, SHRINK * STEPS, TOTAL - 1))
    for one, other in ((first, second), (shrinking, last)):
        assert one.drop_path is other.drop_path
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (one.amounts, other.amounts)), strict=True))


def test_without_pruning_masking_goes_on_to_the_end():
    made = recipe(prune=dataclasses.replace(recipe().prune, keep_rate=1.0))
    trained = training(made)
    plans = [trained.plan(step) for step in range(TOTAL)]
    assert {(plan.keep_rate_now, plan.hidden, float(plan.amounts.time_mask)) for plan in plans} == {(1.0, 0.3, 24.0)}


def test_the_seed_and_the_step_decide_what_is_drawn():
    made, batch = recipe(augment=Augment(mixup=0.5, roll=1.0, noise=0.5, drop_path=0.1)), random_batch()
    rewound = Rewound(training(made, seed=0))
    first, again = (float(rewound.training().step(batch).loss) for _ in range(2))
    other = float(training(made, seed=1).step(batch).loss)
    later = rewound.training()
    later.put(later.state.replace(step=jax.numpy.int32(1)))
    assert first == again
    assert len({first, other, float(later.step(batch).loss)}) == 3


def test_parts_of_a_batch_add_up_to_it():
    """Without mixing and with nothing drawn, accumulation changes rounding only."""
    made = recipe(augment=Augment())
    parts = recipe(augment=Augment(), loop=Loop(epochs=EPOCHS, batch=BATCH, accumulate=4))
    one, four = training(made), training(parts)
    for trained in (one, four):
        trained.put(trained.state.replace(step=jax.numpy.int32(1)))
    a, b = one.step(random_batch()), four.step(random_batch())
    np.testing.assert_allclose(a.losses, b.losses, atol=1e-6)
    np.testing.assert_allclose((a.loss, a.gradient, a.lr), (b.loss, b.gradient, b.lr), atol=1e-6)


def test_bfloat16_computes_so_and_keeps_its_parameters_in_float32(run):
    made = recipe(precision=Precision())
    with pytest.raises(ValueError, match="compute dtype is float32, but the recipe test calls for bfloat16"):
        training(made)
    full = model()
    half = jaxprune.build(full.config, dtype=jax.numpy.bfloat16)
    nnx.update(half, nnx.state(full))
    trained, full = training(made, model=half), run.rewound.training()
    loss = float(trained.step(random_batch()).loss)
    assert 0 < abs(loss - float(full.step(random_batch()).loss)) < 0.05
    assert {leaf.dtype for leaf in trained.state.params.values()} == {jax.numpy.dtype("float32")}
    assert trained.model().dtype == jax.numpy.bfloat16


def test_evaluation_counts_every_clip_once_at_an_exact_rate(dataset, run):
    made = recipe()
    trained, trusted = run.rewound.training(), model()
    found = {}
    for metric in ("accuracy", "mAP"):
        with eval_batches(dataset, frames=FRAMES, batch_size=4) as loader, counted() as compiled:
            found[metric] = trained.evaluate(loader, keep_rates=(0.5,), metric=metric)
        trained.put(jax.tree.map(lambda leaf: leaf + 0, trained.state))  # other arrays
    assert compiled.programs == 0  # the second time
    with eval_batches(dataset, frames=FRAMES, batch_size=5) as loader:
        (whole,) = list(loader)
    mel = model_input(
        whole.waveforms, whole.lengths, frames=FRAMES, mean=made.data.mean, std=made.data.std, padding="minimum"
    )
    policy = topk(trusted, dict.fromkeys(made.prune.blocks, 0.5))
    logits = jaxprune.compiled(trusted)(mel, policy).logits
    right = (np.argmax(logits, axis=1) == np.argmax(whole.targets, axis=1)).mean()
    assert found["accuracy"].clips == 5
    assert found["accuracy"].score == found["accuracy"].top1 == right
    assert found["accuracy"].loss == pytest.approx(float(LOSSES["ce"](logits, jax.numpy.asarray(whole.targets)).mean()))
    assert found["accuracy"].auc is found["mAP"].top1 is None
    assert found["mAP"].score == found["mAP"].mean_average_precision > 0
    assert found["mAP"].loss == found["accuracy"].loss
    assert LOSSES[made.loop.loss] is LOSS_OF[made.card(trained.task.config).activation]


def evaluated(trained: Training, dataset: Dataset) -> list[float]:
    """Its loss and mean average precision."""
    with eval_batches(dataset, frames=FRAMES, batch_size=BATCH) as loader:
        found = trained.evaluate(loader, keep_rates=(0.5,), metric="mAP")
    return [found.loss, found.score]


def nothing_right(trained: Training) -> Evaluation:
    """An evaluation of the present step that costs nothing."""
    return Evaluation(
        step=int(trained.state.step), keep_rate=0.5, clips=1, loss=0.0, top1=0.0, top5=0.0,
        mean_average_precision=None, auc=None, d_prime=None, metric="accuracy", score=0.0,
    )  # fmt: skip


def test_epochs_end_with_an_evaluation_and_a_save(dataset, run):
    trained, saved = run.rewound.training(), []
    trained.put(trained.state.replace(step=jax.numpy.int32(4 * STEPS)))
    with batches(dataset, recipe()) as loader:
        events = [
            (type(event), event.step)
            for event in trained.fit(
                loader, evaluate=lambda: nothing_right(trained), save_every=3,
                save=lambda done, found: saved.append((done, found and found.step)),
            )
        ]  # fmt: skip
    assert saved == [(9, None), (10, 10), (12, 12)]
    assert events == [(Step, 8), (Step, 9), (Evaluation, 10), (Step, 10), (Step, 11), (Evaluation, 12)]


@pytest.mark.parametrize(("every", "due"), [(2, [8, 12]), (5, [10, 12])])
def test_evaluations_come_every_few_epochs_and_at_the_end(dataset, run, monkeypatch, every, due):
    trained, saved = run.rewound.training(), []
    loop = dataclasses.replace(trained.recipe.loop, evaluate_every=every)
    # The training is other tests', too.
    monkeypatch.setattr(trained, "recipe", dataclasses.replace(trained.recipe, loop=loop))
    trained.put(trained.state.replace(step=jax.numpy.int32(2 * STEPS)))
    with batches(dataset, recipe()) as loader:
        events = list(
            trained.fit(loader, evaluate=lambda: nothing_right(trained), save=lambda done, found: saved.append(done))
        )
    assert saved == due
    assert [event.step for event in events if isinstance(event, Evaluation)] == due


def test_a_loss_that_is_not_finite_names_its_clips_and_saves_nothing(dataset, run):
    made = recipe()
    trained, saved = run.rewound.training(), []

    with batches(dataset, made) as loader:
        poisoned = Poisoned(loader, number=4)
        with pytest.raises(NotFinite, match=r"loss \(nan\) of step 3 is not finite, nothing of it was saved") as error:
            list(trained.fit(poisoned, save=lambda done, found: saved.append(done)))
    assert (error.value.step, error.value.clips) == (3, poisoned.bad)
    assert saved == [2]


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="8 clips at a time cannot be shared by 3 devices"):
        training(recipe(), layout=Layout(jax.devices() * 3))


def test_a_model_of_another_recipe_is_refused():
    for changes, said in (({"classes": 4}, "classes is 4"), ({"frames": 32}, "frames is 32")):
        with pytest.raises(ValueError, match=said):
            training(recipe(), model=model(**changes))
    with pytest.raises(ValueError, match="family is ast"):
        training(recipe(), model=model("ast"))
    deep = recipe(prune=dataclasses.replace(recipe().prune, blocks=(1, 3)))
    with pytest.raises(ValueError, match=r"blocks \[3\] cannot prune"):
        training(deep)


EIGHT = """
import itertools, json, sys
from pathlib import Path
import jax
from jaxprune.parallel.devices import Layout, divided, whole
from training.test_loop import evaluated
from training_runs import batches, corpus, recipe, training
assert len(jax.devices()) == 8
made, dataset = recipe(), corpus(Path(sys.argv[1]))
for spread, steps in ((whole, 6), (divided, 4)):
    trained = training(made, layout=Layout(spread=spread))
    found = evaluated(trained, dataset)
    with batches(dataset, made) as loader:
        losses = [step.loss for step in itertools.islice(trained.fit(loader), steps)]
    arrays = jax.tree.leaves(trained.state)
    assert {len(leaf.sharding.device_set) for leaf in arrays} == {8}
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in arrays) / sum(leaf.nbytes for leaf in arrays)
    print(json.dumps([found, losses, trained.compilations, held]))
"""


def test_eight_devices_give_the_losses_of_one(tmp_path, run, dataset):
    """And its evaluation, with the weights and moments whole on each device, and divided: an eighth on each, but for
    what is too small."""
    env = child_environment(XLA_FLAGS="--xla_force_host_platform_device_count=8")
    command = [sys.executable, "-c", EIGHT, str(tmp_path / "tones")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = evaluated(run.rewound.training(), dataset)
    lines = done.stdout.splitlines()[-2:]
    # Sizes: masked; whole, and a masked one on the way down.
    for line, steps, sizes, share in zip(lines, (6, 4), (3, 1), (1, 1 / 8), strict=True):
        found, losses, compilations, held = json.loads(line)
        assert found == pytest.approx(alone, abs=1e-5)
        np.testing.assert_allclose(losses, [step.loss for step in run.steps[:steps]], atol=1e-5)
        assert compilations == sizes
        assert share <= held < share + 0.05
