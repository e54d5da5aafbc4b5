"""A request as the sampler of kernel.cu sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.params import SamplingParams
from service.worker.cuda.launches import Plan
from service.worker.cuda.layout import ROW


def row_state(plan: Plan, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> dict[str, NDArray[Any]]:
    """What a row holds of a request: `Row`, and for each token its bias, whether the prompt has it, how often it was generated."""
    size = plan.config.vocab_size
    bias = np.zeros(size)
    for token, addend in params.logit_bias:
        bias[token] += addend
    row = np.zeros((), ROW)
    row["seed"], row["index"] = params.seed, len(generated)
    row["temperature"], row["top_p"], row["min_p"] = params.temperature, params.top_p, params.min_p
    row["repetition"], row["frequency"] = params.repetition_penalty, params.frequency_penalty
    row["presence"], row["top_k"] = params.presence_penalty, min(params.top_k, 2**31 - 1)
    row["num_logprobs"] = -1 if params.num_logprobs is None else min(params.num_logprobs, plan.most_logprobs)
    return {
        "rows": row,
        "bias": bias,
        "in_prompt": (np.bincount(np.array(prompt, np.int64), minlength=size) > 0).astype(np.uint8),
        "counts": np.bincount(np.array(generated, np.int64), minlength=size).astype(np.int32),
    }
