"""The reference gives the golden texts; tests of engines hold theirs against the same files (`goldens.check`)."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.files import Checkpoint
from model.params import SamplingParams
from tests.golden.goldens import Answer, Request, check, golden_file, reference, requests
from tests.golden.models import NAMES, golden_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_gives_the_golden_texts(name: str, folder: Path) -> None:
    checkpoint = golden_checkpoint(name, folder)
    assert json.loads(golden_file(name).read_text())["checkpoint"] == checkpoint.id, "another checkpoint: make golden"
    check(checkpoint, name, reference)


def test_the_requests_cover_every_parameter(folder: Path) -> None:
    neutral = SamplingParams()
    asked = requests(golden_checkpoint("char", folder))
    changed = {name for request in asked for name in SamplingParams.__slots__ if getattr(request.params, name) != getattr(neutral, name)}
    assert changed == set(SamplingParams.__slots__)


@pytest.mark.parametrize("name", NAMES)
def test_the_texts_are_lively(name: str, folder: Path) -> None:
    """A model that always says the same would hide every mistake: most texts differ, and cross a window."""
    golden = json.loads(golden_file(name).read_text())["requests"]
    assert len({entry["text_sha256"] for entry in golden}) == len(golden)
    assert sum(len(set(entry["begins"])) > 4 for entry in golden) >= 9
    block = golden_checkpoint(name, folder).config.block_size
    assert sum(entry["params"]["max_new_tokens"] + len(entry["prompt"]) > block for entry in golden) >= 4


def test_another_text_is_found(folder: Path) -> None:
    def seed_one_off(checkpoint: Checkpoint, asked: Sequence[Request]) -> list[Answer]:
        *rest, last = asked
        return reference(checkpoint, [*rest, replace(last, params=replace(last.params, seed=0))])

    with pytest.raises(AssertionError):
        check(golden_checkpoint("char", folder), "char", seed_one_off)
