import contextlib
import dataclasses
import io
import json

import pytest
import tyro

from jaxprune.training import learning, recipes, settings, variation
from jaxprune.training.recipes import RECIPES
from jaxprune.training.settings import (
    AdamL2,
    AdamW,
    Augment,
    Cosine,
    Data,
    Loop,
    Precision,
    Prune,
    Recipe,
    Start,
    StepDecay,
)

# batch, epochs, shrink start and length, patch mask, time and frequency mask, mixup, noise, loss: the published tables
AUDIOMAE = {
    "audiomae-as20k": (32, 60, 30, 20, 0.3, 192, 48, 0.5, 0, "bce"),
    "audiomae-esc50": (128, 120, 20, 40, 0.3, 96, 24, 0, 0, "ce"),
    "audiomae-speechcommands": (512, 90, 10, 30, 0, 48, 48, 0.5, 1, "bce"),
    "audiomae-voxceleb1": (64, 90, 20, 40, 0, 192, 48, 0, 1, "ce"),
}
AST = {
    "ast-as20k": (64, 30, 15, 10, 0, 192, 48, 0.5, 0, "bce"),
    "ast-esc50": (48, 30, 5, 15, 0, 96, 24, 0, 0, "ce"),
    "ast-speechcommands": (128, 30, 5, 15, 0, 48, 48, 0.6, 1, "bce"),
}


@pytest.mark.parametrize(("name", "row"), (AUDIOMAE | AST).items())
def test_a_published_recipe_is_its_row_of_the_table(name, row):
    made = recipes.recipe(name)
    loop, prune, augment = made.loop, made.prune, made.augment
    assert row == (
        loop.batch, loop.epochs, prune.shrink_start, prune.shrink_epochs, augment.patch_mask, augment.time_mask,
        augment.freq_mask, augment.mixup, augment.noise, loop.loss,
    )  # fmt: skip
    assert prune.blocks == (3, 6, 9)
    assert prune.update == "epoch"


@pytest.mark.parametrize("name", AUDIOMAE)
def test_what_all_audiomae_recipes_share(name):
    made = RECIPES[name]
    assert made.optimizer == AdamW(base_lr=1e-3, b1=0.9, b2=0.95, weight_decay=1e-4, layer_decay=0.75, clip=0.0)
    assert made.schedule == Cosine(warmup_epochs=4, floor=1e-5)
    assert made.peak_lr == 1e-3 * made.loop.batch / 256
    assert (made.augment.roll, made.augment.drop_path, made.prune.first_epoch) == (1, 0.1, 0)


@pytest.mark.parametrize(
    ("name", "lr", "schedule"),
    [
        ("ast-as20k", 1e-4, StepDecay(warmup_steps=1000, first=10, every=5, factor=0.5)),
        ("ast-esc50", 1e-5, StepDecay(first=5, every=1, factor=0.85)),
        ("ast-speechcommands", 2.5e-4, StepDecay(first=5, every=1, factor=0.85)),
    ],
)
def test_what_all_ast_recipes_share_and_their_learning_rates(name, lr, schedule):
    made = RECIPES[name]
    assert made.optimizer == AdamL2(base_lr=lr, b1=0.95, b2=0.999, weight_decay=5e-7)
    assert made.peak_lr == lr
    assert made.schedule == schedule
    assert (made.augment.roll, made.augment.drop_path, made.prune.first_epoch) == (0, 0, 1)


def test_there_are_seven_published_recipes_and_ours_say_so():
    ours = {"ast-voxceleb1"} | {
        f"{family}-{data}" for family in ("ast", "audiomae") for data in ("words", "arabic-words", "arabic-speakers")
    }
    assert set(RECIPES) == {*AUDIOMAE, *AST} | ours
    assert {name for name, made in RECIPES.items() if "ours, not published" in made.source} == ours


def test_esc50_is_run_on_five_folds_with_the_published_seeds():
    for name in ("audiomae-esc50", "ast-esc50"):
        assert RECIPES[name].data.folds == (1, 2, 3, 4, 5)
        assert RECIPES[name].loop.seeds == (12, 34, 56, 78, 90)


def test_scores_are_expected_only_where_one_is_known():
    known = {
        name: [(score.keep_rate, score.percent) for score in made.expected]
        for name, made in RECIPES.items()
        if made.expected
    }
    assert known == {
        "audiomae-esc50": [(1.0, 94.30), (0.5, 93.40)],
        "audiomae-speechcommands": [(1.0, 97.95), (0.5, 97.28)],
    }


def test_shrinking_stops_masks_and_nothing_else():
    before = RECIPES["audiomae-as20k"].augment
    after = before.while_shrinking()
    assert (after.time_mask, after.freq_mask, after.patch_mask) == (0, 0, 0)
    assert dataclasses.replace(before, time_mask=0, freq_mask=0, patch_mask=0.0) == after


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_a_file(name):
    made = RECIPES[name]
    assert Recipe.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("prune"),
        lambda data: data["loop"].update(epoch=3),
        lambda data: data["optimizer"].update(kind="SGD"),
        lambda data: data["schedule"].pop("kind"),
        lambda data: data.update(augment=None),
        lambda data: data.update(colour="red"),
        lambda data: data.update(data=5),
        lambda data: data.update(name=5),
        lambda data: data.update(expected=7),
        lambda data: data.update(expected=[[1]]),
        lambda data: data["prune"].update(blocks="369"),
        lambda data: data["optimizer"].update(base_lr="1"),
        lambda data: data["optimizer"].update(kind=[]),
        lambda data: data["data"].update(frames=1e400),
    ],
)
def test_json_that_is_no_recipe_is_refused(spoil):
    data = json.loads(json.dumps(RECIPES["ast-esc50"].to_json()))
    spoil(data)
    with pytest.raises(ValueError, match="not a jaxprune recipe"):
        Recipe.from_json(data)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Start(family="ast", size="large"), "the sizes are"),
        (lambda: Data.of("librispeech"), "known data sets are audioset"),
        (lambda: Data(dataset="own", frames=15), "frames is 15"),
        (lambda: Data(dataset="own", std=0.0), "std positive"),
        (lambda: Data(dataset="own", folds=(1, 1)), "each may occur once"),
        (lambda: Augment(mixup=1.1), "between 0 and 1"),
        (lambda: Augment(noise=float("nan")), "between 0 and 1"),
        (lambda: Augment(patch_mask=1.0), "below 1"),
        (lambda: Augment(time_mask=-1), "at least 0"),
        (lambda: AdamW(base_lr=0.0), "must be positive"),
        (lambda: AdamW(layer_decay=1.2), "at most 1"),
        (lambda: AdamL2(b1=1.0), "below 1"),
        (lambda: AdamL2(weight_decay=-1e-4), "0 or more"),
        (lambda: Cosine(warmup_epochs=-1.0), "0 or more"),
        (lambda: StepDecay(every=0), "at least 1"),
        (lambda: StepDecay(factor=0.0), "greater than 0"),
        (lambda: Start(family="ast", stride=12), "no ast of stride 12; the strides are 10, 16"),
        (lambda: Start(family="audiomae", stride=10), "no audiomae of stride 10; the strides are 16"),
        (lambda: Prune(keep_rate=0.0), "at most 1"),
        (lambda: Prune(blocks=(3, 3)), "each may occur once"),
        (lambda: Prune(first_epoch=1, shrink_start=0), "at least 1"),
        (lambda: Loop(epochs=0, batch=4), "epochs is 0"),
        (lambda: Loop(epochs=1, batch=10, accumulate=4), "equal parts"),
        (lambda: Loop(epochs=1, batch=4, seeds=()), "at least one"),
        (lambda: recipes.recipe("ast-esc51"), "choose one of audiomae-as20k"),
    ],
)
def test_settings_out_of_range_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loop": Loop(epochs=40, batch=128)}, "after 60 epochs, but the run has 40"),
        ({"schedule": Cosine(warmup_epochs=120.0)}, "leaves nothing"),
        ({"schedule": Cosine(floor=1e-3)}, "above its peak"),
        ({"augment": Augment(time_mask=513)}, "wider than clips"),
        ({"augment": Augment(time_shift=6.0)}, "a time shift of 6 s is longer than clips of 512 frames, 5.12 s"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(RECIPES["audiomae-esc50"], **changes)


def test_without_pruning_the_length_of_the_shrinking_does_not_matter():
    made = RECIPES["audiomae-esc50"]
    short = dataclasses.replace(
        made, loop=Loop(epochs=10, batch=128), prune=dataclasses.replace(made.prune, keep_rate=1.0)
    )
    assert short.prune.keep_rate == 1


def options(default: Recipe) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        tyro.cli(tyro.conf.AvoidSubcommands[Recipe], default=default, args=["--help"], console_outputs=True)
    return text.getvalue()


def test_the_command_line_offers_and_explains_every_field():
    text = " ".join(options(RECIPES["ast-esc50"]).replace("│", " ").split())
    assert "--prune.keep-rate" in text
    assert "Target: the keep rate of each pruning block" in text
    assert "--schedule.factor" in text
    assert "noqa" not in text
    assert "--optimizer.b1" in text
    assert text.count("--loop.") == len(dataclasses.fields(Loop)) + 1  # --loop.no-balanced


def test_options_make_a_variant():
    made = tyro.cli(
        tyro.conf.AvoidSubcommands[Recipe],
        default=RECIPES["audiomae-esc50"],
        args=["--prune.keep-rate", "0.5", "--optimizer.clip", "1", "--data.root", "/data", "--loop.seeds", "1", "2",
              "--augment.speed", "0.9", "1.1"],
    )  # fmt: skip
    expected = RECIPES["audiomae-esc50"]
    expected = dataclasses.replace(
        expected,
        prune=dataclasses.replace(expected.prune, keep_rate=0.5),
        optimizer=AdamW(clip=1.0),
        augment=dataclasses.replace(expected.augment, speed=(0.9, 1.1)),
        data=dataclasses.replace(expected.data, root="/data"),
        loop=dataclasses.replace(expected.loop, seeds=(1, 2)),
    )
    assert made == expected


def test_every_field_has_a_comment_for_its_help():
    """tyro shows the comment above a field; one that has none would be offered unexplained."""
    import ast
    import inspect

    found = 0
    for module in (settings, learning, variation):
        source = inspect.getsource(module)
        lines = source.splitlines()
        classes = [item for item in ast.parse(source).body if isinstance(item, ast.ClassDef)]
        fields = [node for item in classes for node in item.body if isinstance(node, ast.AnnAssign)]
        assert not [node.target.id for node in fields if not lines[node.lineno - 2].strip().startswith("# ")]
        found += len(fields)
    assert found > 50


def test_precision_is_one_of_two():
    with pytest.raises(Exception, match="float16"):
        Precision(compute="float16")


@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_speakers_are_trained_at_their_own_speed_and_pitch(family):
    words, speakers = (RECIPES[f"{family}-arabic-{task}"].augment for task in ("words", "speakers"))
    assert words.speed == (0.85, 1.15)
    assert (speakers.speed, speakers.pitch) == (variation.UNCHANGED, variation.UNCHANGED)
    assert (
        dataclasses.replace(words, speed=variation.UNCHANGED, pitch=variation.UNCHANGED, filter=speakers.filter)
        == speakers
    )


def test_speakers_who_spoke_on_few_days_are_drawn_as_often_and_heard_through_filters():
    recipe = RECIPES["audiomae-arabic-speakers"]
    assert (recipe.loop.balanced, recipe.augment.filter) == (True, 10)
    assert [name for name, other in RECIPES.items() if other.augment.filter or other.loop.balanced] == [recipe.name]
