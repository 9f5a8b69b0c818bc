"""The tokens that go from block to block, and the interface of all that makes fewer of them.

`Tokens` is what the encoder carries: values, and what is known of each patch token. A `Reduction` gets them at one
block and returns what goes on. It acts before the block's attention, or between attention and MLP, by which of its two
methods it writes.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxprune.reduction import groups
from jaxprune.reduction.scores import BlockSignals


@struct.dataclass
class Tokens:
    """The tokens of a block. The first `extra_tokens` of `values` are never reduced; all other fields are of the rest.

    `patch_ids` are original positions, -1 for a token made from several. `alive` marks the tokens that are real: a dead
    one neither gives nor receives attention nor enters a mean. `held` says which patch token holds each original patch,
    counted without the extra tokens, -1 for none. `weights` are the patches that a token counts for in means and in
    merging. `key_bias` is added to its logits as a key. `decision` is DynamicViT's, 1 to keep and 0 to drop.

    None stands for what need not be computed: all alive, every token one patch, weights of 1, no bias, no decision.
    """

    values: Float[Array, "b s d"]
    patch_ids: Int[Array, "b n"]
    alive: Bool[Array, "b n"] | None = None
    held: Int[Array, "b n0"] | None = None
    weights: Float[Array, "b n"] | None = None
    key_bias: Float[Array, "b n"] | None = None
    decision: Float[Array, "b n"] | None = None
    extra_tokens: int = struct.field(pytree_node=False, kw_only=True)

    @property
    def patches(self) -> Float[Array, "b n d"]:
        """The values without the extra tokens."""
        return self.values[:, self.extra_tokens :]

    def with_patches(self, patches: Float[Array, "b n d"]) -> Float[Array, "b s d"]:
        """The extra tokens' values, then these."""
        return jnp.concatenate([self.values[:, : self.extra_tokens], patches], axis=1)

    def of_all(self, values: Any, *, extra: Any) -> Any:
        """A value of each patch token, `(b, n)`, with `extra` in front for the extra tokens. None stays None."""
        if values is None:
            return None
        return jnp.pad(values, ((0, 0), (self.extra_tokens, 0)), constant_values=extra)

    def groups(self, patches: int) -> Int[Array, "b n0"]:
        """`held`, made from the positions where every token is one patch. The model has so many `patches`."""
        if self.held is not None:
            return self.held
        return groups.of_positions(self.patch_ids, self.alive, patches=patches)

    def select(self, index: Int[Array, "b k"], *, alive: Bool[Array, "b k"] | None) -> "Tokens":
        """The patch tokens at `index`, in its order, of which `alive` (None: all) are real."""

        def taken(values):
            return None if values is None else jnp.take_along_axis(values, index, axis=1)

        values = self.with_patches(jnp.take_along_axis(self.patches, index[:, :, None], axis=1))
        held = self.held
        if held is not None:
            places = groups.of_positions(index, alive, patches=self.patch_ids.shape[1])
            held = groups.moved(held, places)
        return self.replace(
            values=values,
            patch_ids=taken(self.patch_ids),
            alive=alive,
            held=held,
            weights=taken(self.weights),
            key_bias=taken(self.key_bias),
            decision=taken(self.decision),
        )


class Reduction:
    """A block's way to make fewer tokens. A pytree, whose arrays go through `jax.jit`.

    A new one writes `before` or `between`, and `size_before` or `size` to say how many tokens it leaves. `ranks` says
    that it reads the policy's score.
    """

    ranks: ClassVar[bool] = False

    def before(self, tokens: Tokens) -> Tokens:
        """The tokens that the block's attention gets."""
        return tokens

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The tokens that the block's MLP gets, after attention and its residual.

        `seen` is of the tokens that attention got. What is not read of it costs nothing under jit.
        """
        return tokens

    @property
    def idle(self) -> bool:
        """True where it surely leaves every token as it is."""
        return False

    def size_before(self, patches: int) -> int:
        """Patch tokens that attention computes on, of `patches` entering the block."""
        return patches

    def size(self, patches: int) -> int:
        """Patch tokens that the MLP and the following block compute on, of `patches` in attention."""
        return patches

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """Multiply-accumulates of the reduction itself for one clip, where `patches` enter the block.

        Choosing by score has none.
        """
        return 0


UNCHANGED = Reduction()  # of a block that a policy does not name
