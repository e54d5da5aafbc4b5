"""What training leaves for speculation to guess from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import model
from model import load_checkpoint
from model.checkpoint.manifest import read_manifest
from model.draft import FILE, read_draft
from training.__main__ import main

PRETRAINED = Path(model.__file__).parent / "pretrained"


def test_draft_counts_what_the_service_guesses_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the checkpoint, of its vocabulary, from the training part alone, and no part of the checkpoint's id."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(PRETRAINED, checkpoint)
    (checkpoint / FILE).unlink(missing_ok=True)
    before = read_manifest(checkpoint).id
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be: that is the question.\n" * 200 + "Zounds! " * 100)
    assert main(["draft", str(checkpoint), "--data", str(text)]) == 0
    assert FILE in capsys.readouterr().out
    assert read_manifest(checkpoint).id == before
    draft = read_draft(checkpoint / FILE, 65)
    assert len(draft.slots) > 100
    z = load_checkpoint(checkpoint).tokenizer.encode("Z")[0]
    assert z not in draft.tokens.tolist(), "counted what is for validation"
