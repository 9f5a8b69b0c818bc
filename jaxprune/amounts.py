"""The amounts that a reduction is asked for by: keep rates, a saving, or ToMe's r.

`jaxprune.registry.reduced` turns a method's name and an amount into a policy.
"""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Saving:
    """A share of the unpruned model's multiply-accumulates to save, by pruning at `blocks` with one rate.

    Without blocks those of 3, 6 and 9 that the model has prune. Methods without pruning blocks take none.
    """

    share: float
    blocks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Merges:
    """ToMe's r, as `jaxprune.tome` reads it: the tokens that leave each block."""

    r: int | tuple[int, float] | Sequence[int]


Rates = float | Mapping[int, float]
Amount = Rates | Saving | Merges


def in_words(amount: Amount) -> str:
    """The amount, such as `0.7`, `0.7 at blocks 3 6 9`, `saving 0.3` or `r 4`."""
    match amount:
        case Saving(share, blocks):
            return f"saving {share:g}" + (f" at blocks {' '.join(map(str, blocks))}" if blocks else "")
        case Merges(r):
            return f"r {r}" if isinstance(r, int) else f"r {' '.join(f'{one:g}' for one in r)}"
        case Mapping():
            if len(set(amount.values())) == 1:
                return f"{next(iter(amount.values())):g} at blocks {' '.join(map(str, amount))}"
            return ", ".join(f"{rate:g} at block {block}" for block, rate in amount.items())
    return f"{amount:g}"
