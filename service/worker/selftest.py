"""What must hold before the engine serves: known logits, and requests that do not notice each other."""

from __future__ import annotations

from model.checkpoint.files import Checkpoint
from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit

DEFAULT_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.15}


class SelfTestError(RuntimeError):
    """The engine does not compute what it must; the message names the difference."""


def run(core: EngineCore, checkpoint: Checkpoint) -> None:
    """Raises SelfTestError."""
    if not is_well_formed(checkpoint):
        raise SelfTestError(f"{checkpoint.path}/selftest.json must hold cases of known tokens and one logit for each token")
    known_answers(core, checkpoint)
    batch_invariance(core, checkpoint)


def is_well_formed(checkpoint: Checkpoint) -> bool:
    """Whether selftest.json holds what the kernels may be fed with: it is input like any other."""
    cases, vocab_size = checkpoint.selftest.get("cases"), checkpoint.config.vocab_size
    if not isinstance(cases, list) or not cases or not isinstance(checkpoint.selftest.get("tolerance", {}), dict):
        return False
    for case in cases:
        prompt, logits = (case.get("prompt"), case.get("logits")) if isinstance(case, dict) else (None, None)
        if not (isinstance(prompt, list) and 1 <= len(prompt) <= checkpoint.config.block_size):
            return False
        if not all(type(token) is int and 0 <= token < vocab_size for token in prompt):
            return False
        if not (isinstance(logits, list) and len(logits) == vocab_size and all(type(x) in (int, float) for x in logits)):
            return False
    return True


def known_answers(core: EngineCore, checkpoint: Checkpoint) -> None:
    """The logits of ``selftest.json``, in the first row and the last, within the tolerance of the engine's dtype."""
    dtype = core.runner.dtype
    tolerance = checkpoint.selftest.get("tolerance", {}).get(dtype, DEFAULT_TOLERANCE[dtype])
    for number, case in enumerate(checkpoint.selftest["cases"]):
        expected = case["logits"]
        for row in {0, core.runner.rows - 1}:
            logits = core.runner.next_logits(row, case["prompt"])
            worst = max(range(len(expected)), key=lambda i: abs(logits[i] - expected[i]))
            if not abs(logits[worst] - expected[worst]) <= tolerance:
                raise SelfTestError(
                    f"self-test case {number}: the logit of token {worst} is {logits[worst]:.5f}, selftest.json says "
                    f"{expected[worst]:.5f} (tolerance {tolerance} in {dtype}, kernels {core.runner.kernels})"
                )


def batch_invariance(core: EngineCore, checkpoint: Checkpoint) -> None:
    """The same requests alone, together, and together in other rows: equal tokens. Fills every row once, the worst case."""
    text = list(checkpoint.selftest["cases"][-1]["prompt"])
    block = core.block_size
    cases = [
        (text[:1], SamplingParams(seed=1, max_new_tokens=12)),
        (text, SamplingParams(seed=2, max_new_tokens=min(8, block))),
        (text[: block // 2], SamplingParams(seed=3, max_new_tokens=12, temperature=0.7, top_k=5, repetition_penalty=1.1)),
        ((text * (block // len(text) + 1))[: block - 2], SamplingParams(seed=4, max_new_tokens=6, top_p=0.9)),
    ]
    alone = [together(core, [case])[0] for case in cases]
    rows = core.runner.rows
    for shift in (0, 1):
        crowd = [cases[(i + shift) % len(cases)] for i in range(rows)]
        for i, tokens in enumerate(together(core, crowd)):
            expected = alone[(i + shift) % len(cases)]
            if tokens != expected:
                raise SelfTestError(
                    f"batch invariance: request {(i + shift) % len(cases)} gives {expected} alone and {tokens} as number {i} of {rows} "
                    f"(kernels {core.runner.kernels})"
                )


def together(core: EngineCore, requests: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    """The tokens of requests that are submitted at once."""
    tokens: list[list[int]] = [[] for _ in requests]
    for i, (prompt, params) in enumerate(requests):
        core.submit(Submit(i, i, prompt, [], params))
    while core.has_work:
        for output in core.step().outputs:
            tokens[output.sequence] += output.tokens
    return tokens
