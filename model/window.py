"""Which tokens the model sees once a text is longer than its context. No torch here.

Positions are learned and absolute, so when the window moves, everything in it is encoded afresh. With t tokens so far, context B
and stride S the window starts at ``s(t) = 0 if t <= B else S * ceil((t - B) / S)``: it stays until it is full, then jumps by S.
S = 1 is the textbook's sliding window, one full encoding for each token; a larger S encodes B + 1 - S tokens once every S tokens.
"""

from __future__ import annotations

STRIDE_FRACTION = 0.875
"""The stride of the anchored rule as a part of the context; docs/engine.md has the measurement."""


def default_stride(block_size: int) -> int:
    """The stride of the anchored rule, where nobody chose another.

    >>> default_stride(256)
    224
    """
    return max(1, int(block_size * STRIDE_FRACTION))


def window_start(num_tokens: int, block_size: int, stride: int) -> int:
    """Index of the first of ``num_tokens`` tokens that the model sees.

    >>> [window_start(t, block_size=8, stride=4) for t in (1, 8, 9, 12, 13)]
    [0, 0, 4, 4, 8]
    """
    if num_tokens <= block_size:
        return 0
    return stride * -(-(num_tokens - block_size) // stride)


def window_anchor(num_tokens: int, num_prompt: int, block_size: int, stride: int) -> int:
    """How many tokens there were when the present window was first encoded: at the prompt's end, or when it last moved.

    Tokens from the window's start to the anchor were encoded together, those after it one by one.
    """
    start = window_start(num_tokens, block_size, stride)
    first = 0 if start == 0 else block_size + start - stride + 1  # the least t with this start
    return max(first, num_prompt)
