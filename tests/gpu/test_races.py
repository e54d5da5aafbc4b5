"""Every barrier of the kernels is needed and none is missing: by ThreadSanitizer, and by running threads in other orders."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gpu.emulated import SOURCE, arguments_for, build
from tests.gpu.races import MODELS, barriers, record

pytestmark = pytest.mark.needs(SOURCE)
ORDERS = 8
WHOLE = os.environ.get("FOLIO_GPU_PROOF") == "whole"
OPTIONS = "report_signal_unsafe=0:halt_on_error=1:history_size=4"


@dataclass(frozen=True)
class Script:
    """Recorded steps, and the kernels that run them: in random order, and under ThreadSanitizer, where that works here."""

    path: Path
    shuffled: Path
    sanitized: Path

    def digest(self, order: int, without: int = 0) -> str:
        """Of all memory after the steps, one barrier left out; or how it crashed without."""
        arguments = [str(self.shuffled), str(self.path), str(order), str(without)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert without or done.returncode == 0, done.stderr
        return done.stdout or f"status {done.returncode}"

    def has_race(self, without: int = 0) -> bool:
        """Whether ThreadSanitizer reports one. It wants its memory where it expects it, so addresses are not randomised."""
        command = ["setarch", "-R", str(self.sanitized), str(self.path), "1", str(without)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TSAN_OPTIONS": OPTIONS}, check=False)
        if "unexpected memory mapping" in done.stderr or "setarch:" in done.stderr:
            pytest.skip(f"ThreadSanitizer does not run here: {done.stderr.splitlines()[0]}")
        return done.returncode != 0


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> list[Script]:
    """One for each of `MODELS`; vectors are measured by several warps although they are short."""
    folder, found = tmp_path_factory.mktemp("races"), []
    for name in MODELS:
        model = record(name, folder / name)
        plain = [*arguments_for(model.plan, SOURCE), "-DTEAM_ELEMENTS=16"]
        sanitize = ["-O1", "-g", "-fsanitize=thread", *plain[1:]]
        found.append(Script(folder / name, build(plain, "races.cpp", "-shuffled"), build(sanitize, "races.cpp", "-sanitized")))
    return found


def test_the_order_of_threads_changes_nothing(scripts: list[Script]) -> None:
    for script in scripts:
        assert len({script.digest(order) for order in range(ORDERS)}) == 1


def test_there_is_no_race(scripts: list[Script]) -> None:
    for script in scripts:
        assert not script.has_race()


def test_every_barrier_is_needed(scripts: list[Script]) -> None:
    """Left out, each is noticed: by another result in one of several orders or, where all orders give the same, by ThreadSanitizer.

    That takes a while, so it is asked about every fourth of those; `make gpu-proof` asks about all.
    """
    wanted = [script.digest(0) for script in scripts]
    quiet = [
        barrier
        for barrier in barriers()
        if all(script.digest(order, barrier) == digest for script, digest in zip(scripts, wanted, strict=True) for order in range(ORDERS))
    ]
    assert len(quiet) < len(barriers()) / 2
    assert [barrier for barrier in (quiet if WHOLE else quiet[::4]) if not any(script.has_race(barrier) for script in scripts)] == []
