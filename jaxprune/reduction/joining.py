"""Two reductions in one block, one after the other: what makes hybrids of methods."""

from collections.abc import Mapping

from flax import struct

from jaxprune.reduction.scores import BlockSignals
from jaxprune.reduction.selection import Stage
from jaxprune.reduction.tokens import Reduction, Tokens


@struct.dataclass
class Before(Reduction):
    """Reduces by `first`, which acts before the block's attention, then by `rest`."""

    first: Reduction
    rest: Reduction

    def before(self, tokens: Tokens) -> Tokens:
        """The tokens that both leave for attention."""
        return self.rest.before(self.first.before(tokens))

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The second's: the first has acted."""
        return self.rest.between(tokens, seen)

    @property
    def idle(self) -> bool:
        """True where both are."""
        return self.first.idle and self.rest.idle

    def size_before(self, patches: int) -> int:
        """The second's size of the first's."""
        return self.rest.size_before(self.first.size_before(patches))

    def size(self, patches: int) -> int:
        """The second's."""
        return self.rest.size(patches)

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """Those of both."""
        sizes = {"width": width, "heads": heads, "extra_tokens": extra_tokens}
        return self.first.macs(patches, **sizes) + self.rest.macs(self.first.size_before(patches), **sizes)


@struct.dataclass
class Then(Reduction):
    """Prunes by `stage`, then reduces what is left by `rest`, which sees the signals of the tokens that were kept."""

    stage: Stage
    rest: Reduction

    def before(self, tokens: Tokens) -> Tokens:
        """The second's: a stage acts after attention."""
        return self.rest.before(tokens)

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The tokens after both."""
        selection = self.stage(seen.score, tokens.alive)
        if selection is not None:
            tokens = tokens.select(selection.index, alive=selection.alive)
            seen = seen.select(selection.index, held=tokens.held, extra_tokens=tokens.extra_tokens)
        return self.rest.between(tokens, seen)

    @property
    def idle(self) -> bool:
        """True where both are."""
        return self.stage.idle and self.rest.idle

    def size_before(self, patches: int) -> int:
        """The second's."""
        return self.rest.size_before(patches)

    def size(self, patches: int) -> int:
        """The second's size of the first's."""
        return self.rest.size(self.stage.size(patches))

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """The second's, for the tokens that it gets."""
        left = self.stage.size(patches)
        return self.rest.macs(left, width=width, heads=heads, extra_tokens=extra_tokens)


def in_turn(first: Mapping[int, Reduction], then: Mapping[int, Reduction]) -> dict[int, Reduction]:
    """Both, by block: at a block of both, the first's reduction, then the other's of what is left.

    Raises `ValueError` where the first's acts after attention and is no stage that only prunes.
    """
    stages = {**first, **then}
    for block in first.keys() & then.keys():
        one, other = first[block], then[block]
        if type(one).between is Reduction.between:
            stages[block] = Before(one, other)
        elif isinstance(one, Stage):
            stages[block] = Then(one, other)
        else:
            raise ValueError(
                f"at block {block} a {type(one).__name__} comes first, but only pruning can go before another "
                "reduction in the same block; give the two other blocks"
            )
    return dict(sorted(stages.items()))
