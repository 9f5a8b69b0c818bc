"""Refusals of training commands: one sentence, exit code 2 and no traceback."""

import re

import pytest
from pretraining.pretraining_cases import manifest
from training.test_distillation import saved
from training_runs import CLASSES

from jaxprune.cli.main import COMMANDS, command, named

WORDS = ("finetune", "audiomae-words")
PRETRAIN = ("pretrain", "audiomae-arabic-words-pretrain")


def refused(capsys, name, *arguments):
    """The command's refusal, a single line."""
    with pytest.raises(SystemExit) as stopped:
        command(name, [str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    *_, last = said.splitlines()
    assert last.startswith("error: ")
    assert not re.search(r"Traceback|[│╭╮╰╯─]", said)
    return last


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("finetune", "audiomae-as2m-pretrain", "--data.root", "x"),
            "is a recipe of pretraining; its command is: jaxprune pretrain audiomae-as2m-pretrain",
        ),
        (
            ("protocol", "--out", "x", "audiomae-as2m-pretrain"),
            "is a recipe of pretraining; its command is: jaxprune pretrain audiomae-as2m-pretrain",
        ),
        (
            ("pretrain", "ast-esc50", "--out", "audiomae-esc50"),
            "ast-esc50 is a recipe of fine-tuning; its command is: jaxprune finetune ast-esc50",
        ),
        (("finetune", "audiomae-esc"), "has no recipe 'audiomae-esc'; did you mean 'audiomae-esc50'?"),
        (("pretrain", "x"), "has no recipe 'x'; choose among audiomae-as2m-pretrain, audiomae-arabic-words-pretrain"),
        (
            (*WORDS, "--prune.keep-rate", "0.7", "--prune.sample", "1", "0.5"),
            "a run reaches a target (--prune.keep-rate) or draws its keep rates (--prune.sample); give one of them",
        ),
        ((*WORDS, "--prune.sample", "1.2", "0.5"), "'1.2' in sample is outside (0, 1]"),
        ((*WORDS, "--prune.sample", "0-1"), "'0-1' in sample is outside (0, 1]"),
        ((*PRETRAIN, "--mask.ratio", "0.999"), "mask ratio 0.999 leaves none of 48; choose a smaller one"),
        ((*PRETRAIN, "--mask.ratio", "1"), "mask ratio 1.0 is not allowed; it must be at least 0 and less than 1"),
        ((*PRETRAIN, "--decoder.heads", "5"), "the decoder's width 96 cannot be split over 5 heads"),
        ((*WORDS, "--augment.pitch", "1.1", "0.9"), "pitch is 1.1 to 0.9; it must be two factors from 0.5 to 2"),
        ((*WORDS, "--distill.weight", "-1"), "distill.weight is -1.0; it must be between 0 and 1"),
        ((*WORDS, "--loop.epochs", "0"), "epochs is 0; it must be a whole number of at least 1"),
        ((*PRETRAIN, "--decoder.width", "30", "--decoder.heads", "4"), "width 30 cannot be split over 4 heads"),
        (("protocol", *WORDS[1:], "--out", "x", "--augment.mixup", "2"), "mixup is 2.0; it must be between 0 and 1"),
        ((*WORDS, "--distill.teacher", "self"), "the teacher is the model itself at its highest keep rate"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(capsys, arguments, sentence):
    assert sentence in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 4}, "has 4 classes, but the clips have 3"),
        ({"mels": 64}, "number of mel bins is 64, the run's 128"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, capsys, changes, sentence):
    path = manifest(tmp_path, clips=3, held_out=1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["path,split,labels", *(f"{line},{CLASSES[i % 3]}" for i, line in enumerate(lines[1:]))]))
    data = (
        "--data.dataset",
        "tones",
        "--data.root",
        path,
        "--data.frames",
        64,
        "--data.mean",
        -6,
        "--data.std",
        4,
        "--loop.batch",
        2,
    )
    sentences = refused(
        capsys, *WORDS, *data, "--distill.teacher", saved(tmp_path, **changes), "--out", tmp_path / "run"
    )
    assert f"error: the teacher {tmp_path}" in sentences
    assert sentence in sentences


def test_a_recipes_name_may_be_an_options_value(capsys):
    """So the checks let it pass, wherever the recipe stands; so does a request for help."""
    of_finetuning = named(COMMANDS["finetune"].check)
    for arguments in (["ast-esc50", "--out", "audiomae-as2m-pretrain"], ["--seed", "1", "ast-esc50"], ["--help"], []):
        of_finetuning(arguments)
