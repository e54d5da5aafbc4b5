"""What turns text into token ids, token ids into logits, and logits into tokens.

The whole public surface is :func:`load_checkpoint`::

    from model import load_checkpoint
    c = load_checkpoint("model/pretrained")
    logits = c.model(ids)            # (B, T) token ids → (B, T, V) logits
    c.tokenizer, c.config, c.manifest

What needs torch is imported when it is first used: the API process imports parts of this package, and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.checkpoint.manifest import CheckpointError

if TYPE_CHECKING:
    from model.checkpoint.loading import LoadedCheckpoint as LoadedCheckpoint
    from model.checkpoint.loading import load_checkpoint as load_checkpoint

__all__ = ["CheckpointError", "LoadedCheckpoint", "load_checkpoint"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from model.checkpoint import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
