"""Fine-tuning: from a recipe and a data set to a model, while the keep rate falls.

`settings` (with `learning` and `variation`) are a recipe's dataclasses, `recipes` the table of them, and `start` fits
one to the data at hand. `schedules`, `optim`, `augment` and `tempo` turn settings into functions. `task` says what the
step and the loop must know of what is trained; `classification` is fine-tuning, `dynamic` (with `dynamic_settings`,
`dynamic_losses` and `teacher`) that of learned pruning. `step` is one update on the device, `loop` the updates of a
run, and `events` their reports. `run_directory` and `checkpoints` are a run on disk, `tensorboard` its curves.
`finetune` puts all of it together, `protocol` does it for every fold and seed.

Reading clips is `jaxprune.data`'s matter, scores are `jaxprune.evaluation`'s, and devices and processes
`jaxprune.parallel`'s.
"""

__all__ = [
    "augment",
    "checkpoints",
    "classification",
    "dynamic",
    "dynamic_losses",
    "dynamic_settings",
    "events",
    "finetune",
    "learning",
    "loop",
    "optim",
    "protocol",
    "recipes",
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
