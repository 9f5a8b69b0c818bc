"""A whole pretraining run: on the loop of fine-tuning, resumed bit for bit, and a start for a classifier."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pretraining.pretraining_cases import ENCODER, manifest, model, options, recipe, saved
from quick import quick_compiling  # noqa: F401
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import CLASSES, Rewound, child_environment, corpus
from training_runs import recipe as finetuning_recipe

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.cli import pretrain as pretrain_command
from jaxprune.cli.main import command
from jaxprune.data.batches import eval_batches, train_batches
from jaxprune.data.own import Manifest, UnlabelledManifest
from jaxprune.data.shard_writer import write
from jaxprune.evaluation.reconstruction import held_out_loss, mask_keys
from jaxprune.features import model_input
from jaxprune.pretraining import RandomMask, TimeFrequencyMask, WindowDecoder
from jaxprune.pretraining import checkpoint as pretraining_checkpoint
from jaxprune.training.events import Evaluation, Step
from jaxprune.training.finetune import finetune
from jaxprune.training.loop import Training
from jaxprune.training.masked import MaskedPrediction
from jaxprune.training.pretrain import Pictures, pretrain
from jaxprune.training.pretraining_settings import PRETRAINING_RECIPES, PretrainingRecipe, recipe_from_json
from jaxprune.training.run import Beginning, Outcome
from jaxprune.training.run_directory import read_metrics
from jaxprune.training.settings import Augment, Precision, Recipe, Start
from jaxprune.training.start import Sources, starting_model

STEPS, EPOCHS = 2, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return manifest(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def finished_run(root, start, tmp_path_factory):
    """A whole run without interruption, and its events."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, list(pretrain(recipe(root=root, start=start), out, seed=7))


def test_a_run_is_that_of_fine_tuning_with_pictures(finished_run, start):
    out, events = finished_run
    kinds = [type(event) for event in events]
    assert kinds == [Beginning, *[Step, Step, Evaluation] * EPOCHS, Pictures, Outcome]
    notes = events[0].notes
    assert f"the decoder is that of {start}: {model().settings.decoder}" in notes
    assert {event.keep_rate for event in events if isinstance(event, Step | Evaluation)} == {0.5}
    result = events[-1].result
    assert (result["saved_step"], result["saved"]) == (EPOCHS * STEPS, "last")
    assert result["clips"] == {"train": 16, "validation": 6}
    assert result["encoder_macs"] < result["unmasked_encoder_macs"]
    assert result["scores"]["validation"]["loss"] == [e.loss for e in events if isinstance(e, Evaluation)][-1]
    pictures = events[-2]
    assert (len(pictures.names), pictures.visible.shape[1]) == (4, ENCODER.patches // 2)
    assert recipe_from_json(json.loads((out / "result.json").read_text())["recipe"]) == events[0].recipe
    card = jaxprune.load_card(out)
    assert (card.trained, card.decoder["kind"], card.padding) == (True, "window", "minimum")


def called(*arguments) -> int:
    with pytest.raises(SystemExit) as left:
        command("pretrain", [str(argument) for argument in arguments])
    return left.value.code


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl")]


def test_a_run_that_sigterm_ends_goes_on_as_if_nothing_was(finished_run, root, start, tmp_path, capsys, monkeypatch):
    """By the same command. The signal comes with the picture of the first epoch."""
    (whole, _), out, draw = finished_run, tmp_path / "run", pretrain_command.draw_reconstructions
    asked = [*options(root=root, start=start, out=out), "--pictures-every", "1", "--tensorboard"]
    with monkeypatch.context() as patched:
        end = lambda *given, **facts: (draw(*given, **facts), os.kill(os.getpid(), signal.SIGTERM))  # noqa: E731
        patched.setattr(pretrain_command, "draw_reconstructions", end)
        assert called(*asked) == 143
    assert 0 < len(losses(out)) < len(losses(whole))
    assert called(*asked) == 0
    said = capsys.readouterr()
    assert "held out" in said.out
    assert f"jaxprune finetune RECIPE --start.checkpoint {out}" in said.err
    assert losses(out) == losses(whole)
    of_steps = [line for line in read_metrics(out / "metrics.jsonl") if line["kind"] == "step"]
    curves = {kind: EventAccumulator(str(out / "tensorboard" / kind)).Reload() for kind in ("train", "evaluation")}
    shown = {point.step: point.value for point in curves["train"].Scalars("loss")}
    assert shown == {line["step"]: pytest.approx(line["loss"], rel=1e-6) for line in of_steps}
    assert [point.step for point in curves["evaluation"].Scalars("loss")] == [STEPS, 2 * STEPS, 3 * STEPS]
    ours, theirs = (leaves(pretraining_checkpoint.load(run)) for run in (whole, out))
    for name in ours:
        np.testing.assert_array_equal(ours[name][...], theirs[name][...], err_msg=name)
    pictures = [out / "pictures" / f"step-{epoch * STEPS:06d}.png" for epoch in (1, 2, 3)]
    assert all(picture.stat().st_size > 10_000 for picture in pictures)
    assert sorted((out / "pictures").iterdir()) == pictures


def test_two_devices_give_the_losses_of_one(finished_run, root, start, tmp_path):
    """Of every update and every epoch's held-out clips, which they share."""
    code = "import sys; from jaxprune.cli.main import command; command('pretrain', sys.argv[1:])"
    env = child_environment(XLA_FLAGS="--xla_force_host_platform_device_count=2")
    asked = [sys.executable, "-c", code, *options(root=root, start=start, out=tmp_path / "run")]
    done = subprocess.run(asked, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["device"].startswith("2 x")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(finished_run[0]), rtol=2e-5)


def test_shards_give_the_batches_of_the_files(root, start, tmp_path):
    """Shards come from labelled data; pretraining leaves the labels aside."""
    write(Manifest(path=labelled(root, tmp_path)).read(), tmp_path / "shards", samples="float32")
    made = recipe(root=root, start=start)
    stored = recipe(root=tmp_path / "shards", start=start)
    sources = [Sources().of(one, labelled=False).read() for one in (made, stored)]
    for split in ("train", "validation"):
        loaders = [eval_batches(one, split, frames=ENCODER.frames, batch_size=4) for one in sources]
        with loaders[0] as files, loaders[1] as shards:
            for ours, theirs in zip(files, shards, strict=True):
                for name in ("waveforms", "lengths", "weights"):
                    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_bfloat16_computes_so_and_its_loss_differs_little(root, start, training):
    made = recipe(root=root, start=start, decoder=model().settings.decoder, precision=Precision(compute="bfloat16"))
    half = pretraining_checkpoint.of_length(model(), frames=ENCODER.frames, dtype="bfloat16")
    trained = Training(MaskedPrediction(made, half, steps_per_epoch=STEPS), half, seed=7)
    clips = batch(root)
    found, exact = (float(one.step(clips).loss) for one in (trained, training.training()))
    assert 0 < abs(found - exact) < 0.01 * exact
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained.state.params)} == {"float32"}


def test_a_classifier_starts_from_a_run_with_a_fresh_head(finished_run):
    out, _ = finished_run
    made = finetuning_recipe(start=Start(family="audiomae", checkpoint=str(out)))
    found, notes = starting_model(made, CLASSES, seed=0)
    assert f"{out} is a pretraining model: its decoder is left out, and the head is new" in notes
    ours, theirs = leaves(found), leaves(pretraining_checkpoint.load(out))
    shared = ours.keys() & theirs.keys()
    assert ours.keys() - shared == {"head.kernel", "head.bias", "head_norm.scale", "head_norm.bias"}
    for name in shared:
        np.testing.assert_array_equal(ours[name][...], theirs[name][...], err_msg=name)


def test_runs_and_checkpoints_of_the_other_kind_are_refused(finished_run, root, start, tmp_path):
    out, _ = finished_run
    other = finetuning_recipe(data=dataclasses.replace(finetuning_recipe().data, root=str(labelled(root, tmp_path))))
    with pytest.raises(ValueError, match=f"{out} holds a run of pretraining, but test is a recipe of fine-tuning"):
        list(finetune(other, out, seed=7))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "recipe.json").write_text(json.dumps({"seed": 7} | other.to_json()))
    with pytest.raises(ValueError, match="holds a run of fine-tuning, but audiomae-arabic-words-pretrain is a recipe"):
        list(pretrain(recipe(root=root, start=start), tmp_path / "f", seed=7))
    classifier = jaxprune.build(ENCODER)
    card = jaxprune.config.Card(model=ENCODER, mean=0.0, std=1.0, activation="sigmoid")
    jaxprune.save(tmp_path / "c", classifier, card=card)
    with pytest.raises(ValueError, match=f"pretraining cannot go on from {tmp_path / 'c'}: it is a classifier"):
        list(pretrain(recipe(root=root, start=tmp_path / "c"), tmp_path / "g", seed=7))
    with pytest.raises(ValueError, match="it is a recipe of pretraining, not of fine-tuning"):
        Recipe.from_json(recipe(root=root, start=start).to_json())
    with pytest.raises(ValueError, match="it is a recipe of fine-tuning, not of pretraining"):
        PretrainingRecipe.from_json(other.to_json())


def labelled(root, folder):
    """The manifest with a column of labels."""
    lines = root.read_text().splitlines()
    rows = [f"{line},{CLASSES[i % 3]}" for i, line in enumerate(lines[1:])]
    (folder / "labelled.csv").write_text("\n".join(["path,split,labels", *rows]) + "\n")
    return folder / "labelled.csv"


def test_labels_are_not_needed_and_not_read(root, tmp_path):
    plain, with_labels = (UnlabelledManifest(path=path).read() for path in (root, labelled(root, tmp_path)))
    assert plain.labels == with_labels.labels == ()
    assert plain.records == with_labels.records
    made = recipe(root=root, start=tmp_path)
    assert isinstance(Sources().of(made, labelled=False), UnlabelledManifest)
    with pytest.raises(ValueError, match="it must have path, labels, split"):
        Sources().of(made).read()


def test_a_flat_folder_is_enough(start, tmp_path):
    """A recipe of fine-tuning refuses it."""
    corpus(tmp_path / "sounds", clips=20, tests=0)
    events = pretrain(recipe(root=tmp_path / "sounds", start=start), tmp_path / "run", seed=7)
    begun = next(events)
    events.close()
    assert begun.dataset.sizes() == {"train": 18, "validation": 2}
    assert begun.selects_on == "validation"
    assert f"{tmp_path}/sounds: 2 of 20 sounds, a share of 0.1" in " ".join(begun.notes)
    data = dataclasses.replace(finetuning_recipe().data, root=str(tmp_path / "sounds"))
    with pytest.raises(ValueError, match="in a folder per class"):
        next(finetune(finetuning_recipe(data=data), tmp_path / "other", seed=7))


@pytest.fixture(scope="module")
def training(root, start):
    made = recipe(root=root, start=start, decoder=model().settings.decoder)
    made = dataclasses.replace(
        made,
        loop=dataclasses.replace(made.loop, epochs=20),
        optimizer=dataclasses.replace(made.optimizer, base_lr=0.3),
    )
    return Rewound(Training(MaskedPrediction(made, model(), steps_per_epoch=STEPS), model(), seed=7))


def batch(root, *, frames=ENCODER.frames):
    dataset = UnlabelledManifest(path=root).read()
    with train_batches(dataset, frames=frames, batch_size=8, epochs=1, seed=0) as loader:
        return next(loader)


def test_the_loss_falls_on_a_few_clips(root, training):
    trained, clips = training.training(), batch(root)
    losses = [float(trained.step(clips).loss) for _ in range(trained.total_steps)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_the_seed_and_the_step_decide_the_masks(root, training):
    clips = batch(root)
    first, again = (float(training.training().step(clips).loss) for _ in range(2))
    later = training.training()
    later.put(later.state.replace(step=jax.numpy.int32(1)))
    assert first == again != float(later.step(clips).loss)
    assert training.training().compilations == 1


def test_the_held_out_loss_is_the_models_own_whatever_the_batch(root, start):
    dataset, made, mask = UnlabelledManifest(path=root).read(), model(), RandomMask(ratio=0.5)
    card = jaxprune.load_card(start)
    found = []
    for size in (4, 6):
        with eval_batches(dataset, "validation", frames=ENCODER.frames, batch_size=size) as loader:
            found.append(held_out_loss(made, loader, card=card, mask=mask, normalise=True))
    with eval_batches(dataset, "validation", frames=ENCODER.frames, batch_size=6) as loader:
        (clips,) = list(loader)
    mel = model_input(
        clips.waveforms, clips.lengths, frames=ENCODER.frames, mean=card.mean, std=card.std, padding=card.padding
    )
    visible = mask.draw(mask_keys(jax.numpy.asarray(clips.indices)), ENCODER)
    loss = float(jax.jit(made.loss)(mel, visible))
    assert [one.clips for one in found] == [6, 6]
    np.testing.assert_allclose([one.loss for one in found], loss, rtol=1e-5)


def test_the_published_recipe_is_the_scripts():
    made = PRETRAINING_RECIPES["audiomae-as2m-pretrain"]
    assert made.peak_lr == pytest.approx(4e-4)
    assert (made.model().encoder.width, made.model().encoder.patches) == (768, 512)
    assert made.mask.count(made.model().encoder) == 102
    assert made.decoder == WindowDecoder(width=512, depth=16, heads=16, window=4, shift=2)
    assert (made.loop.epochs, made.loop.batch, made.schedule.warmup_epochs, made.schedule.floor) == (33, 512, 3, 0)
    assert (made.optimizer.b1, made.optimizer.b2, made.optimizer.weight_decay) == (0.9, 0.95, 1e-4)
    assert (made.data.fill, made.augment.roll, made.normalise, made.bias_dropout) == ("zero", 1.0, True, 0.1)
    assert "never rolls" in made.source


@pytest.mark.parametrize("name", PRETRAINING_RECIPES)
def test_recipes_survive_a_file(name):
    made = dataclasses.replace(PRETRAINING_RECIPES[name], mask=TimeFrequencyMask(time_ratio=0.5))
    assert recipe_from_json(json.loads(json.dumps(made.to_json()))) == made


def test_weight_decay_spares_biases_and_norms_alone(root, start):
    task = MaskedPrediction(
        recipe(root=root, start=start, decoder=model().settings.decoder), model(), steps_per_epoch=STEPS
    )
    names = {name: leaf for name, leaf in leaves(model()).items() if "positions" not in name}
    spared = {name.split(".")[-1] for name, leaf in names.items() if not task.decayed(name, leaf.ndim)}
    assert spared == {"bias", "scale", "temperature"}
    assert task.decayed("extra_tokens", 2)
    assert task.decayed("mask_token", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": RandomMask(ratio=0.99)}, "mask ratio 0.99 leaves none of 32"),
        ({"augment": Augment(drop_path=0.1)}, "augment.drop_path is fine-tuning's"),
        ({"bias_dropout": 1.0}, "bias_dropout is 1"),
        ({"start": Start(family="ast", size="tiny")}, "masked pretraining is AudioMAE's"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_a_sentence(root, start, changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(recipe(root=root, start=start), **changes)
