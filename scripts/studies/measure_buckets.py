"""Works out the cost of slices of the keep-rate schedule: programs to compile against arithmetic beyond exact ones.

python -m scripts.studies.measure_buckets audiomae-as20k --base 0.5 --compile-seconds 5.5 --step-seconds 57

Counts programs and multiply-accumulates of a recipe's whole schedule for several `prune.buckets`, and, given how long a
program takes to compile and an unpruned step to run (`scripts/benchmark.py --work step` tells both), the seconds that
each choice costs a run.
"""

import dataclasses
from functools import partial

from jaxprune.cli import console as cli
from jaxprune.config import ModelConfig
from jaxprune.cost import macs
from jaxprune.models import abstract
from jaxprune.reduction.policy import Policy, top_k_stages
from jaxprune.training.recipes import recipe as named
from jaxprune.training.schedules import compilations, keep_rate_schedule, stages_at


def main(
    name: str,
    /,
    *,
    base: float = 0.7,
    buckets: tuple[int, ...] = (1, 2, 3, 5, 7, 10, 20),
    steps_per_epoch: int = 625,
    compile_seconds: float = 5.0,
    step_seconds: float = 1.0,
) -> None:
    """Print the table for one recipe.

    Args:
        name: a recipe, as scripts/finetune.py knows it.
        base: keep rate that the schedule falls to.
        buckets: numbers of slices between 1 and the base rate.
        steps_per_epoch: updates in an epoch.
        compile_seconds: what one program takes to compile.
        step_seconds: what an unpruned step takes; a pruned one as much less as it has less arithmetic.
    """
    recipe = named(name)
    facts = recipe.data
    config = ModelConfig.of_size(recipe.start.family, "base", frames=facts.frames, classes=facts.classes)
    model = abstract(config)
    whole = macs(model, Policy(model.score, {}))
    prune = dataclasses.replace(recipe.prune, keep_rate=base)
    schedule = keep_rate_schedule(prune, steps_per_epoch=steps_per_epoch)
    rates = [schedule(epoch * steps_per_epoch) for epoch in range(recipe.loop.epochs)]

    def work(stages_of) -> float:
        """Arithmetic of all epochs, in unpruned steps."""
        return steps_per_epoch * sum(macs(model, Policy(model.score, dict(stages_of(rate)))) / whole for rate in rates)

    exact = work(lambda rate: top_k_stages(dict.fromkeys(prune.blocks, rate)))
    cells = []
    for count in buckets:
        sliced = dataclasses.replace(prune, buckets=count)
        programs = compilations(rates, sliced, config=config, patches=config.patches)
        sizes = partial(stages_at, prune=sliced, config=config, patches=config.patches)
        extra = work(sizes) - exact
        costs = (programs * compile_seconds, extra * step_seconds)
        cells.append((count, programs, f"{extra / exact:.2%}", *(f"{cost:,.0f}" for cost in (*costs, sum(costs)))))
    exactly = len(set(rates))
    cells.append(("exact", exactly, "0", f"{exactly * compile_seconds:,.0f}", "0", f"{exactly * compile_seconds:,.0f}"))
    headings = ["buckets", "programs", "more arithmetic", "compiling, s", "more computing, s", "together, s"]
    cli.print_table(f"{name} to keep rate {base:g}, {len(rates)} epochs of {steps_per_epoch} steps", headings, cells)


if __name__ == "__main__":
    cli.run(main)
