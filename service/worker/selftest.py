"""What must hold before an engine serves: every bit that arithmetic and checkpoint say is known (docs/arithmetic.md).

*Probes* prove the functions of one element: quantising to 8 bits hides a wrong last bit from the logits of many tokens. *Digests* prove
everything else, in every row: one token at a time, a whole window in one pass, and all rows side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.files import Checkpoint
from model.exact.digests import KnownAnswers, Logits, from_cases, known_answers
from model.exact.network import ExactModel
from model.exact.probes import SUMS
from service.worker.runners.interface import PrefillChunk, Runner


class SelfTestError(RuntimeError):
    """The engine does not compute what it must; the message names the difference."""


Say = Callable[[str], None]
"""Told before every step what the test is at: however long a large model takes, it is never silent for longer than a step."""


def run(runner: Runner, checkpoint: Checkpoint, say: Say) -> None:
    """Raises SelfTestError, or CheckpointError for answers that are none."""
    for number, (name, known) in enumerate(SUMS.items()):
        say(f"self-test: {name}")
        if (found := runner.probe(number)) != known:
            raise SelfTestError(f"{runner.kernels}: {name} is wrong on this machine (its probe gives {found:016x}, not {known:016x})")
    answers = known_answers(checkpoint.selftest, checkpoint.config)
    if answers is None:  # trained before there were digests
        say("self-test: computing what is known")
        answers = from_cases(ExactModel(checkpoint.config, checkpoint.tensors), checkpoint.selftest)
    check_rows(runner, answers, say)


def check_rows(runner: Runner, answers: KnownAnswers, say: Say) -> None:
    """Raises SelfTestError."""
    rows = range(runner.rows)
    compare(runner, answers, "text", lambda tokens: one_by_one(runner, 0, tokens, say))
    say("self-test: a whole window at once")
    compare(runner, answers, "moved", lambda tokens: runner.logits([PrefillChunk(0, 0, tokens)]))
    start = answers.passes("start")[0]
    for row, logits in zip(rows[1:], side_by_side(runner, rows[1:], start, say), strict=True):
        compare(runner, answers, "start", always(logits), f" in row {row}")


def compare(runner: Runner, answers: KnownAnswers, name: str, logits: Logits, where: str = "") -> None:
    """Raises SelfTestError."""
    if (found := answers.digest(name, logits)) != answers.digests[name]:
        raise SelfTestError(f"{runner.kernels}: the logits of {name!r}{where} are wrong on this machine (their digest is {found[:16]}…)")


def always(logits: NDArray[np.float32]) -> Logits:
    """For logits that are there already."""
    return lambda tokens: logits


def one_by_one(runner: Runner, row: int, tokens: Sequence[int], say: Say) -> NDArray[np.float32]:
    """(tokens, V) logits, each token in a step of its own."""
    parts = []
    for at, token in enumerate(tokens):
        say(f"self-test: token {at + 1} of {len(tokens)}")
        parts.append(runner.logits([PrefillChunk(row, at, [token])]))
    return np.concatenate(parts)


def side_by_side(runner: Runner, rows: Sequence[int], tokens: Sequence[int], say: Say) -> NDArray[np.float32]:
    """(rows, tokens, V) logits of the same tokens in every row, a token of each in every step."""
    if not rows:
        return np.zeros((0, len(tokens), 1), np.float32)
    parts = []
    for at, token in enumerate(tokens):
        say(f"self-test: {len(rows)} rows side by side, token {at + 1} of {len(tokens)}")
        parts.append(runner.logits([PrefillChunk(row, at, [token]) for row in rows]))
    return np.stack(parts, axis=1)
