"""Training: from a recipe and a data set to a model. Fine-tuning lets the keep rate fall; pretraining needs no labels.

`settings` (with `learning`, `pruning` and `variation`) are a recipe's dataclasses, `recipes` the table of them, and
`start` fits one to the data at hand. `schedules`, `optim`, `augment`, `tempo`, `pitch` and `filters` turn settings into
functions. `task` says what the step and the loop must know of what is trained; `classification` is fine-tuning,
`dynamic` (with `dynamic_settings`, `dynamic_losses` and `teacher`) that of learned pruning, `distillation` that with a
teacher, `masked` is pretraining. `step` is one update on the device, `loop` the updates of a run, and `events` their
reports. `run_directory` and `checkpoints` are a run on disk, `tensorboard` its curves. `run` puts all of it together.
Its kinds are `finetune`, which `protocol` does for every fold and seed, and `pretrain`, with the settings and recipes
of `pretraining_settings`.

Reading clips is `jaxprune.data`'s matter, scores are `jaxprune.evaluation`'s, and devices and processes
`jaxprune.parallel`'s.
"""

__all__ = [
    "augment",
    "checkpoints",
    "classification",
    "distillation",
    "dynamic",
    "dynamic_losses",
    "dynamic_settings",
    "events",
    "filters",
    "finetune",
    "learning",
    "loop",
    "masked",
    "optim",
    "pitch",
    "pretrain",
    "pretraining_settings",
    "protocol",
    "pruning",
    "recipes",
    "run",
    "run_directory",
    "schedules",
    "settings",
    "start",
    "step",
    "task",
    "teacher",
    "tempo",
    "tensorboard",
    "variation",
]
