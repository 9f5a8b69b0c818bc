"""Training of learned pruning: its loss, its two speeds, its teacher, and a run that goes on."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jaxprune.convert.mapping import to_torch
from quick import quick_compiling  # noqa: F401
from reduction.torch_dynamic import Reference, distillation, gumbel, kl, ratio_loss
from training.test_loop import random_batch
from training_runs import BATCH, CLASSES, FRAMES, STEPS, Rewound, batches, corpus, model, recipe

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.config import Card
from jaxprune.features import model_input
from jaxprune.learned import drawn_decisions
from jaxprune.training.dynamic import NOISE, LearnedPruning
from jaxprune.training.dynamic_settings import Dynamic
from jaxprune.training.finetune import finetune
from jaxprune.training.loop import Training
from jaxprune.training.optim import optimizer
from jaxprune.training.pruning import Prune
from jaxprune.training.run import Outcome
from jaxprune.training.settings import AdamW, Augment, Cosine, Loop, Recipe, Start
from jaxprune.training.start import starting_model
from jaxprune.training.teacher import with_teacher

BLOCKS, KEEP, SEED, PATCHES = (1, 2), 0.6, 7, 32
RATIOS = (0.6, 0.6**2)


def learned(**changes) -> Recipe:
    """The recipe of the tests with predictors at two blocks and nothing that is drawn but their decisions."""
    fields = {
        "augment": Augment(),
        "prune": Prune(method="dynamic", keep_rate=KEEP, blocks=BLOCKS),
        "dynamic": Dynamic(alone=1),
        "loop": Loop(epochs=2, batch=BATCH),
        "schedule": Cosine(warmup_epochs=0.0),
    }
    return recipe(**fields | changes)


def student(**changes):
    """Three blocks; predictors that have something to say."""
    made = model(depth=3, width=24, predictors=BLOCKS, **changes)
    for predictor in made.predictors:
        predictor.decide.kernel[...] = 10 * jax.random.normal(jax.random.key(3), predictor.decide.kernel.shape)
    return made


def training(made: Recipe, start=None, *, steps: int = STEPS) -> Training:
    start = student() if start is None else start
    # The teacher is given here; `begin` would ask for a checkpoint.
    if made.dynamic.taught:
        start = with_teacher(start, start)
    task = LearnedPruning(made, start, steps_per_epoch=steps, seed=SEED)
    return Training(task, start, seed=SEED, pace=task.pace)


@pytest.mark.parametrize(("tokens", "bound"), [("square", "clip"), ("divergence", "batch")])
def test_a_steps_loss_is_pytorchs(tokens, bound):
    made = learned(dynamic=Dynamic(alone=1, tokens=tokens, bound=bound))
    trained, batch = training(made), random_batch()
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), 0), NOISE)
    noise = torch.tensor(np.asarray(jax.random.gumbel(key, (2, BATCH, PATCHES, 2))))
    state = {name: np.asarray(value) for name, value in to_torch(student()).items()}
    mel = model_input(
        batch.waveforms, batch.lengths, frames=FRAMES, mean=made.data.mean, std=made.data.std, padding="minimum"
    )
    theirs = Reference(state, heads=3, blocks=BLOCKS)
    logits, patches, stages = theirs.training(torch.tensor(np.asarray(mel)), gumbel(noise))
    teacher = Reference(state, heads=3, blocks=())
    logits_there, patches_there, _ = teacher.training(torch.tensor(np.asarray(mel)), None)
    decisions = [decision for _, decision in stages]
    labels = torch.tensor(batch.targets.argmax(axis=1))
    expected = (
        torch.nn.functional.cross_entropy(logits, labels)
        + 2 / 2 * ratio_loss(decisions, RATIOS, of_batch=bound == "batch")
        + 0.5 * kl(logits, logits_there).mean()
        + 0.5
        * distillation(
            theirs.norm(patches, "fc_norm"),
            theirs.norm(patches_there, "fc_norm"),
            kept=decisions[-1],
            mse=tokens == "square",
        )
    )
    measured = trained.step(batch)
    assert float(measured.loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert trained.compilations == 1


def moved(trained: Training, before: dict[str, np.ndarray]) -> set[str]:
    """The parts that have other weights than before."""
    names = {name for name, leaf in trained.state.params.items() if (np.asarray(leaf) != before[name]).any()}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("embeddings", [True, False])
def test_predictors_learn_alone_first_and_the_rest_follows_slowly(embeddings):
    trained = training(learned(dynamic=Dynamic(alone=1, embeddings=embeddings)))
    before = {name: np.array(leaf) for name, leaf in trained.state.params.items()}
    tables = {name: np.array(leaf) for name, leaf in trained.state.tables.items()}
    for seed in range(STEPS):
        trained.step(random_batch(seed=seed))
    assert moved(trained, before) == {"predictors"}
    trained.step(random_batch(seed=STEPS))
    rest = {"encoder", "patch_embed", "head", "head_norm", "predictors"}
    assert moved(trained, before) == (rest | {"extra_tokens"} if embeddings else rest)
    assert any(name.startswith("teacher.") for name in tables)
    for name, leaf in trained.state.tables.items():
        np.testing.assert_array_equal(leaf, tables[name])


def test_two_speeds_are_two_groups_of_pytorchs_optimiser():
    """The slow group's learning rate is 0 for three steps, then a hundredth; AdamW's decay goes with it."""
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal((4, 3)).astype(np.float32) for name in ("predictors.0.embed.kernel", "head.k")}
    fast, slow = (torch.nn.Parameter(torch.tensor(leaf)) for leaf in start.values())
    theirs = torch.optim.AdamW(
        [{"params": [fast]}, {"params": [slow], "lr": 0.0}], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1
    )

    def pace(name, step):
        return 1.0 if name.startswith("predictors") else jnp.where(step < 3, 0.0, 0.01)

    ours = optimizer(AdamW(weight_decay=0.1, layer_decay=1.0), 1e-2, depth=2, pace=pace)
    params = {name: jnp.asarray(leaf) for name, leaf in start.items()}
    state = ours.init(params)
    for step in range(6):
        theirs.param_groups[1]["lr"] = 0.0 if step < 3 else 1e-4
        gradients = {name: rng.standard_normal((4, 3)).astype(np.float32) for name in start}
        fast.grad, slow.grad = (torch.tensor(gradient) for gradient in gradients.values())
        theirs.step()
        updates, state = ours.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for name, tensor in zip(start, (fast, slow), strict=True):
        np.testing.assert_allclose(params[name], tensor.detach().numpy(), atol=1e-6)


def test_a_run_goes_on_bit_for_bit(tmp_path):
    made, dataset = learned(augment=Augment(time_mask=8, drop_path=0.1)), corpus(tmp_path)
    rewound = Rewound(training(made))
    with batches(dataset, made) as loader:
        whole = [step.loss for step in rewound.training().fit(loader)]
    again, losses = rewound.training(), []
    with batches(dataset, made) as loader:
        losses += [step.loss for step in again.fit(loader, stop=lambda: int(again.state.step) == 3)]
        place = loader.get_state()
    state = jax.tree.map(jnp.copy, again.state)
    with batches(dataset, made) as loader:
        loader.set_state(place)
        again = rewound.training()
        again.put(state)
        losses += [step.loss for step in again.fit(loader)]
    assert losses == whole
    assert len(losses) == 2 * STEPS


def kept_shares(trained: Training) -> list[float]:
    """The share of patches that each stage keeps in training, on average."""
    found, mel = trained.model(), jax.random.normal(jax.random.key(1), (16, FRAMES, 128))
    noise = jax.random.gumbel(jax.random.key(2), (2, 16, PATCHES, 2))
    trace = jaxprune.jit_forward(found)(mel, drawn_decisions(found, noise)).trace
    return [float(trace[block].decision.mean()) for block in BLOCKS]


def test_the_loss_falls_and_the_kept_share_approaches_the_ratio(tmp_path):
    made = learned(
        dynamic=Dynamic(alone=0, slow=0.3, classes_weight=0.0, tokens_weight=0.0, ratio_weight=10.0),
        prune=Prune(method="dynamic", keep_rate=0.8, blocks=BLOCKS),
        optimizer=AdamW(base_lr=0.3, layer_decay=1.0),
        loop=Loop(epochs=20, batch=BATCH),
    )
    trained = training(made, model(depth=3, width=24, predictors=BLOCKS))
    begun = kept_shares(trained)
    np.testing.assert_allclose(begun, (0.5, 0.25), atol=0.1)  # fresh predictors toss a coin
    with batches(corpus(tmp_path), made) as loader:
        losses = [step.loss for step in trained.fit(loader)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.5
    np.testing.assert_allclose(kept_shares(trained), (0.8, 0.64), atol=0.1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of classes of tones, and a trained model for them."""
    folder = tmp_path_factory.mktemp("own")
    for i, clip in enumerate(corpus(folder / "flat", clips=28, tests=0).records):
        split = "train" if i < 16 else "validation" if i < 22 else "test"
        home = folder / "tones" / split / CLASSES[clip.labels[0]]
        home.mkdir(parents=True, exist_ok=True)
        Path(clip.path).rename(home / Path(clip.path).name)
    made = model(depth=3, width=24)
    card = Card(model=made.config, mean=-6.0, std=4.0, activation="softmax", labels=tuple(sorted(CLASSES)))
    jaxprune.save(folder / "start", made, card=card)
    return folder


def started(clips, **changes) -> Recipe:
    fields = {
        "start": Start(family="audiomae", checkpoint=str(clips / "start")),
        "data": dataclasses.replace(recipe().data, root=str(clips / "tones")),
    }
    return learned(**fields | changes)


def test_a_whole_run_leaves_a_model_with_predictors_and_without_a_teacher(clips, tmp_path):
    made = started(clips)
    events = list(finetune(made, tmp_path / "run", seed=SEED))
    assert isinstance(events[-1], Outcome)
    result = events[-1].result
    out = jaxprune.load(tmp_path / "run")
    assert jaxprune.load_card(tmp_path / "run").model.predictors == out.config.predictors == BLOCKS
    assert not [name for name in leaves(out) if "teacher" in name]
    policy = jaxprune.dynamic(out, KEEP)
    assert result["macs"] == jaxprune.macs(out, policy) < result["unpruned_macs"]
    assert result["scores"]["test"]["rates"][0]["macs"] == result["macs"]
    assert "keep rate 0.6, learned" in jaxprune.load_card(tmp_path / "run").source
    trace = jaxprune.jit_forward(out)(jnp.zeros((1, FRAMES, 128)), policy).trace
    assert [trace[block].patch_ids.shape[1] for block in BLOCKS] == [19, 11]
    again = list(finetune(made, tmp_path / "run", seed=SEED))[-1].result
    assert again == json.loads(json.dumps(result))  # finished: not trained again
    again, notes = starting_model(started(clips, start=Start(family="audiomae", checkpoint=str(tmp_path / "run"))),
                                  tuple(sorted(CLASSES)), seed=0)  # fmt: skip
    assert not [note for note in notes if "predictors" in note]
    kept = leaves(again)["predictors.0.embed.kernel"][...]
    np.testing.assert_array_equal(kept, leaves(out)["predictors.0.embed.kernel"][...])
    given = Start(family="audiomae", checkpoint=str(tmp_path / "run"))
    topk = dataclasses.replace(made, start=given, prune=recipe().prune, loop=recipe().loop)
    plain, notes = starting_model(topk, tuple(sorted(CLASSES)), seed=0)
    assert not plain.config.predictors
    assert "the checkpoint's predictors, of blocks [1, 2], are left out" in notes


def test_a_teacher_that_knows_nothing_is_refused(clips):
    scratch, given = dataclasses.replace(started(clips), start=Start(family="audiomae", size="micro")), student()
    with pytest.raises(ValueError, match="whose weights are random; start from a trained one"):
        LearnedPruning.begin(scratch, given, CLASSES)
    with pytest.raises(ValueError, match="whose head is new; fine-tune that first"):
        LearnedPruning.begin(started(clips), given, ("a", "b", "c"))
    alone = dataclasses.replace(scratch, dynamic=Dynamic(alone=1, classes_weight=0.0, tokens_weight=0.0))
    assert LearnedPruning.begin(alone, given, ()) is given


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dynamic": Dynamic(alone=2)}, "the predictors would learn alone for 2 epochs, and the run has 2"),
        ({"prune": {"keep_rate": 1.0}}, "is trained for one keep rate below 1 at some blocks"),
        ({"prune": {"sample": ("1", "0.5"), "keep_rate": 0.7}}, "is trained for one keep rate below 1 at some blocks"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, said):
    def build():
        if isinstance(change.get("prune"), dict):
            return learned(prune=dataclasses.replace(learned().prune, **change["prune"]))
        return learned(**change)

    with pytest.raises(ValueError, match=said):
        build()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("ratio_weight", -1.0, "ratio_weight is -1.0; it must be 0 or more"),
        ("slow", 2.0, "slow is 2.0; it must be between 0 and 1"),
        ("alone", -1, "alone is -1; it must be a whole number of at least 0"),
    ],
)
def test_single_settings_are_checked(field, value, said):
    with pytest.raises(ValueError, match=said):
        Dynamic(**{field: value})


def test_a_model_with_other_predictors_is_refused():
    with pytest.raises(ValueError, match=r"predictors at blocks \[1\], but the recipe test calls for \[1, 2\]"):
        LearnedPruning(learned(), model(depth=3, predictors=(1,)), steps_per_epoch=1)


def test_recipes_from_before_there_was_learned_pruning_still_read():
    plain = recipe().to_json()
    del plain["dynamic"], plain["prune"]["method"]
    assert Recipe.from_json(plain) == recipe()
    assert Recipe.from_json(learned().to_json()) == learned()
