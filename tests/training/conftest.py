"""A text of our own and runs of a second or two: no test here needs a data set, a network or a GPU."""

import random
from pathlib import Path

import pytest
import torch

from tests.training.processes import Run

WORDS = ["the", "and", "of", "to", "a", "in", "that", "is", "was", "he", "for", "it", "with", "as", "his", "on", "be", "at", "by", "had"]


def write_text(path: Path, characters: int = 6000, seed: int = 0) -> Path:
    """Words in random order, with line ends and one character that is no ASCII."""
    choose, parts = random.Random(seed), ["é\n"]
    while sum(map(len, parts)) < characters:
        parts.append(choose.choice(WORDS) + choose.choice("    \n"))
    path.write_text("".join(parts)[:characters], encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delenv("FOLIO_DATA", raising=False)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("data") / "words.txt")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Run:
    """A tiny run that nothing disturbed: what every disturbed one must equal."""
    run = Run(tmp_path_factory.mktemp("runs") / "uninterrupted", text_file)
    assert run.start().wait() == 0
    return run
