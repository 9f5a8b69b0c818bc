"""A teacher that travels with the model in training: the same input, its own weights, never trained.

Its weights are fixed tables of the trained model. So the step gets them as arguments, and a run's checkpoints hold
them: a run that goes on has the teacher that it began with. A saved model has none.
"""

from flax import nnx

from jaxprune.models import Classifier, FixedTable


def with_teacher(model: Classifier, teacher: Classifier) -> Classifier:
    """A copy of the model that has a copy of the teacher as `teacher`, all of whose weights are `FixedTable`s.

    The teacher brings no predictors, because it runs unpruned.
    """
    taught, fixed = (nnx.merge(*nnx.split(one)) for one in (model, teacher))
    fixed.predictors = nnx.List([])
    for _, part in list(nnx.iter_modules(fixed)):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Param):
                setattr(part, name, FixedTable(value[...]))
    taught.teacher = fixed
    return taught


def without_teacher(model: Classifier) -> Classifier:
    """A copy of the model alone. It shares its weights with the given one."""
    alone = nnx.merge(*nnx.split(model))
    if hasattr(alone, "teacher"):
        del alone.teacher
    return alone
