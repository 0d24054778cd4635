"""The pytrees that travel between the parts."""

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

HostOrDevice = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""Where batches live: made by NumPy on the host, traced or moved by JAX, or, being planned, nowhere."""


@struct.dataclass
class KVCache:
    """Keys and values of every decoder layer for the tokens seen so far.

    All rows of a batch write the same slots, [index, index + new tokens), so a write is one contiguous
    update; a prompt shorter than its neighbours leaves slots that are not `valid`, before (left padding) or
    after (right padding) its tokens, and nothing ever attends to those. Where a token stands in its own text
    is told by its position, never by its slot, so a row gives the same result alone and in any batch.
    """

    keys: Float[Array, "layers b slots kv_heads head_dim"]
    values: Float[Array, "layers b slots kv_heads head_dim"]
    valid: Bool[Array, "b slots"]
    index: Int[Array, ""]

    @property
    def next_position(self) -> Int[Array, " b"]:
        """The position in its own text of the token each row takes next."""
        return self.valid.sum(-1, dtype="int32")

    def keep(self, valid: Bool[Array, "b n"]) -> "KVCache":
        """Of the n tokens written last, only those that are `valid`, as if the others had never been."""
        return self.replace(valid=jax.lax.dynamic_update_slice(self.valid, valid, (0, self.index - valid.shape[1])))

    def take(self, rows: Int[Array, " c"]) -> "KVCache":
        """The cache whose row i is row `rows[i]` of this one, as beam search wants it."""
        return self.replace(keys=self.keys[:, rows], values=self.values[:, rows], valid=self.valid[rows])
