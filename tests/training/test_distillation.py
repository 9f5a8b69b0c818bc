"""A teacher beside the labels: losses as PyTorch computes them, what is trained, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES, FRAMES, STEPS, Rewound, batches, corpus, model, random_batch, recipe

import jaxprune
from jaxprune.config import Card
from jaxprune.features import model_input
from jaxprune.models import topk
from jaxprune.training.distillation import Distillation, Sandwich, sigmoid_distance, softmax_distance, teacher_of
from jaxprune.training.finetune import task_of
from jaxprune.training.learning import Distill
from jaxprune.training.loop import Training
from jaxprune.training.settings import Augment, Loop, Recipe
from jaxprune.training.task import Sound

torch = pytest.importorskip("torch")
functional = torch.nn.functional
RATES = ("1", "0.75", "0.5")


def torch_softmax(student, teacher, temperature):
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, 1), functional.softmax(teacher / temperature, 1), reduction="none"
    )
    return temperature**2 * soft.sum(1)


def torch_sigmoid(student, teacher, temperature):
    soft = functional.binary_cross_entropy_with_logits(
        student / temperature, torch.sigmoid(teacher / temperature), reduction="none"
    )
    return temperature**2 * soft.mean(1)


PAIRS = [(softmax_distance, torch_softmax), (sigmoid_distance, torch_sigmoid)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_losses_and_their_gradients_are_pytorchs(ours, theirs, temperature):
    student, teacher = 3 * np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)
    found, gradient = jax.vmap(jax.value_and_grad(lambda s, t: ours(s[None], t[None], temperature=temperature)[0]))(
        jnp.asarray(student), jnp.asarray(teacher)
    )
    variable = torch.tensor(student, requires_grad=True)
    expected = theirs(variable, torch.tensor(teacher), temperature)
    expected.sum().backward()
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, variable.grad, rtol=1e-5, atol=1e-6)
    to_teacher = jax.grad(lambda t: ours(jnp.asarray(student), t, temperature=temperature).sum())(jnp.asarray(teacher))
    assert not np.any(to_teacher)


def made(**changes):
    """Nothing is drawn but what a test asks for."""
    return recipe(**{"augment": Augment(), "distill": Distill(teacher="x", weight=0.3, temperature=2.0)} | changes)


def sampled(*rates):
    return dataclasses.replace(recipe().prune, keep_rate=1.0, sample=rates, buckets=7)


def another(seed=5):
    """A teacher with other answers."""
    found = model()
    found.head.kernel[...] = jax.random.normal(jax.random.key(seed), found.head.kernel.shape)
    return found


def taught(recipe, teacher, **changes):
    both = jaxprune.training.teacher.with_teacher(model(), teacher)
    return Training(Distillation(recipe, both, steps_per_epoch=STEPS, seed=7), both, seed=7, **changes)


def logits(trained, batch, keep_rate):
    facts = recipe().data
    mel = model_input(batch.waveforms, batch.lengths, frames=FRAMES, mean=facts.mean, std=facts.std, padding="minimum")
    answers = jaxprune.compiled(trained)(mel, topk(trained, dict.fromkeys((0, 1), keep_rate))).logits
    return torch.tensor(np.asarray(answers))


def by_labels(logits, batch, loss):
    targets = torch.tensor(np.asarray(batch.targets))
    if loss == "ce":
        return functional.cross_entropy(logits, targets, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


@pytest.mark.parametrize(("loss", "soft"), [("ce", torch_softmax), ("bce", torch_sigmoid)])
def test_a_step_s_loss_is_the_labels_share_and_the_unpruned_teacher_s(loss, soft):
    """At the target of 0.5, with drop-path off: the student is pruned, the teacher is not."""
    one = made(loop=Loop(epochs=6, batch=8, loss=loss))
    teacher, batch = another(), random_batch()
    trained = taught(one, teacher)
    plan = trained.plan(11)
    assert plan.keep_rate_now == 0.5
    sound = Sound(*map(jnp.asarray, batch[:4]))
    found = jax.jit(trained.task.losses)(trained.model(), jax.random.key(0), sound, plan)
    student = logits(model(), batch, 0.5)
    expected = 0.7 * by_labels(student, batch, loss) + 0.3 * soft(student, logits(teacher, batch, 1.0), 2.0)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_the_teacher_is_an_argument_of_the_step_and_stays_as_it_is():
    teacher = another()
    trained = taught(made(), teacher)
    held = {name.removeprefix("teacher.") for name in trained.state.tables if name.startswith("teacher.")}
    assert "head.kernel" in held
    assert not [name for name in trained.state.params if name.startswith("teacher.")]
    moments = sum(leaf.size for leaf in jax.tree.leaves(trained.state.optimizer))
    assert moments < 2.1 * sum(leaf.size for leaf in trained.state.params.values())
    for seed in range(2):  # the learning rate of the first is 0
        trained.step(random_batch(seed=seed))
    np.testing.assert_array_equal(trained.state.tables["teacher.head.kernel"], teacher.head.kernel[...])
    assert np.any(trained.state.params["head.kernel"] != model().head.kernel[...])
    left = trained.task.end(trained.model())
    assert not hasattr(left, "teacher")
    assert jaxprune.checkpoint.leaves(left).keys() == jaxprune.checkpoint.leaves(model()).keys()


def test_parts_of_a_batch_add_up_to_it_with_a_teacher():
    one = made(prune=dataclasses.replace(recipe().prune, keep_rate=1.0))
    parts = dataclasses.replace(one, loop=dataclasses.replace(one.loop, accumulate=2))
    a, b = (taught(each, another()).step(random_batch()) for each in (one, parts))
    np.testing.assert_allclose(a.losses, b.losses, atol=1e-6)
    np.testing.assert_allclose((a.loss, a.gradient), (b.loss, b.gradient), atol=1e-6)


def sandwich(weight=1.0, rates=RATES):
    one = made(prune=sampled(*rates), distill=Distill(teacher="self", weight=weight, temperature=2.0))
    given = model()
    return Training(Sandwich(one, given, steps_per_epoch=STEPS, seed=7), given, seed=7)


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_each_step_of_a_sandwich_trains_the_highest_the_lowest_and_the_drawn_rate(weight):
    trained, batch = sandwich(weight), random_batch()
    plans = [trained.plan(step) for step in range(8)]
    assert {plan.keep_rate_now for plan in plans} == {1.0, 0.75, 0.5}
    sound, losses = Sound(*map(jnp.asarray, batch[:4])), jax.jit(trained.task.losses)
    first = logits(model(), batch, 1.0)
    for drawn, rates in ((0.75, (0.5, 0.75)), (0.5, (0.5,)), (1.0, (0.5,))):
        plan = next(plan for plan in plans if plan.keep_rate_now == drawn)
        expected = [by_labels(first, batch, "ce")]
        for rate in rates:
            student = logits(model(), batch, rate)
            soft = torch_softmax(student, first, 2.0)
            expected.append((1 - weight) * by_labels(student, batch, "ce") + weight * soft)
        found = losses(trained.model(), jax.random.key(0), sound, plan)
        np.testing.assert_allclose(found, torch.stack(expected).mean(0), rtol=2e-5)
    assert len({jax.tree.structure(plan) for plan in plans}) == 2  # with a rate between, and without


def test_the_teaching_pass_learns_from_the_labels_alone():
    """With a weight of 1 and students that are the teacher, all of the gradient is that of the first pass."""
    trained, batch = sandwich(rates=("1", "0.99")), random_batch()  # 0.99 of 32 patches are 32
    sound, plan = Sound(*map(jnp.asarray, batch[:4])), trained.plan(0)
    plain = Training(
        jaxprune.training.classification.Classification(
            made(prune=sampled("1"), distill=Distill()), model(), steps_per_epoch=STEPS, seed=7
        ),
        model(),
        seed=7,
    )

    def gradient(one, plan):
        def loss(kernel):
            weights = one.state.params | one.state.tables | {"head.kernel": kernel}
            return one.task.losses(one._program.model(weights), jax.random.key(0), sound, plan).mean()

        return jax.jit(jax.grad(loss))(one.state.params["head.kernel"])

    np.testing.assert_allclose(2 * gradient(trained, plan), gradient(plain, plain.plan(0)), atol=1e-6)


def test_at_most_ten_sizes_with_passes_beside():
    for rates in (("1", "0.9", "0.8", "0.7", "0.6", "0.5"), ("0.3-1",)):
        trained = sandwich(rates=rates)
        assert 2 < len({jax.tree.structure(trained.plan(step)) for step in range(300)}) <= 10


def test_a_sandwich_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    one = dataclasses.replace(made(prune=sampled("1", "0.5")), distill=Distill(teacher="self", weight=1.0))
    given, dataset = model(), corpus(tmp_path)
    rewound = Rewound(Training(Sandwich(one, given, steps_per_epoch=STEPS, seed=7), given, seed=7))
    with batches(dataset, one) as loader:
        reference = [step.loss for step in rewound.training().fit(loader)]
    again = rewound.training()
    with batches(dataset, one) as loader:
        losses = [step.loss for step in again.fit(loader, stop=lambda: int(again.state.step) == 5)]
        place, state = loader.get_state(), jax.tree.map(jnp.copy, again.state)
    with batches(dataset, one) as loader:
        loader.set_state(place)
        again = rewound.training()
        again.put(state)
        losses += [step.loss for step in again.fit(loader)]
    assert losses == reference


def saved(folder, **changes):
    """A teacher that fits the recipe but for the changes to its card and geometry."""
    geometry = {name: changes.pop(name) for name in ("classes", "frames", "mels") if name in changes}
    teacher = model(**geometry)
    card = Card(model=teacher.config, mean=-6.0, std=4.0, activation="softmax", **changes)
    return str(jaxprune.save(folder / "teacher", teacher, card=card))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": 4}, "has 4 classes, but the clips have 3"),
        ({"labels": CLASSES[::-1]}, "knows other classes than the clips', or in another order"),
        ({"frames": 128}, "its number of frames is 128, the run's 64"),
        ({"mels": 64}, "its number of mel bins is 64, the run's 128"),
        ({"padding": "zero"}, "its padding is log-mel 0, the run's the clip's minimum"),
        ({"trained": False}, "has random weights, so it has nothing to teach"),
    ],
)
def test_a_teacher_of_other_classes_or_features_is_refused_in_a_sentence(tmp_path, changes, said):
    one = made(distill=Distill(teacher=saved(tmp_path, **changes)))
    with pytest.raises(ValueError, match=f"the teacher .*{said}"):
        teacher_of(one, model(), labels=CLASSES)


def test_a_teacher_of_other_statistics_is_refused_and_the_fitting_one_is_taken(tmp_path):
    one = made(distill=Distill(teacher=saved(tmp_path, labels=CLASSES)))
    assert teacher_of(one, model(), labels=CLASSES).config == model().config
    other = dataclasses.replace(one, data=dataclasses.replace(one.data, mean=-5.0))
    with pytest.raises(ValueError, match=r"its feature mean is -6\.0, the run's -5\.0"):
        teacher_of(other, model(), labels=CLASSES)


def test_settings_that_cannot_be_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"distill\.weight is 1\.5; it must be between 0 and 1"):
        Distill(weight=1.5)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"distill\.temperature is .*; it must be positive"):
            Distill(temperature=temperature)
    for prune in (recipe().prune, sampled("0.7")):
        with pytest.raises(ValueError, match="needs lower ones to teach; draw them"):
            made(prune=prune, distill=Distill(teacher="self"))
    learned = dataclasses.replace(recipe().prune, method="dynamic")
    with pytest.raises(ValueError, match="learned pruning has its own teacher"):
        made(prune=learned)


def test_the_recipe_decides_the_task_and_reads_back():
    tasks = [task_of(made(prune=sampled(*RATES), distill=Distill(teacher=name))).__name__ for name in ("", "x", "self")]
    assert tasks == ["Classification", "Distillation", "Sandwich"]
    assert Recipe.from_json(json.loads(json.dumps(made().to_json()))) == made()
    older = recipe().to_json()
    del older["distill"]
    assert Recipe.from_json(older) == recipe()
