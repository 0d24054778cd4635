"""Per network, how the keys found in files differ from the network's own: each exception is a line."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Exceptions to `rules` when reading.

    Attributes:
      ignored: patterns of keys that are no parameter of the network (buffers, copies, other networks).
      renames: (pattern, replacement) pairs, applied in order to the keys that are left.
      stand_ins: (key, other): where `key` is absent the tensor of `other` serves, as in tied embeddings.
    """

    ignored: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()

    def network_key(self, key: str) -> str | None:
        """The network's name for a key of a file; None where the key is to be ignored."""
        if any(re.fullmatch(pattern, key) for pattern in self.ignored):
            return None
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key


VISION_TOWER = Table(
    ignored=(
        r"(vision_model\.)?embeddings\.position_ids",  # a buffer, saved by transformers < 4.31
        # The rest of a whole CLIP.
        r"text_model\..*|text_projection\.weight|visual_projection\.weight|logit_scale",
    ),
    renames=((r"^(?!vision_model\.)", "vision_model."),),  # transformers 5 leaves the prefix out
)

MLLM = Table(
    ignored=(
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # a buffer, saved by transformers < 4.32
        r"model\.vision_tower\..*",  # LLaVA-1.5 saves the tower it did not train; ours has its own folder
    ),
    stand_ins=(("lm_head.weight", "model.embed_tokens.weight"),),  # tie_word_embeddings
)

T5 = Table(
    ignored=(r"(encoder|decoder)\.embed_tokens\.weight",),  # copies of shared.weight
)

VAE = Table(
    renames=(  # the attention of diffusers < 0.18, as in Stable Diffusion v1.5's own files
        (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
        (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
        (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
        (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
    ),
)

PLAIN = Table()
UNET = EDIT_HEAD = PLAIN
