"""Signed checkpoints: who vouches for the bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.files import read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.checkpoint.manifest import SIGNATURE, CheckpointError
from model.checkpoint.signature import SignatureError, new_private_key, public_key_text, read_private_key
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer
from training.__main__ import main


@pytest.fixture
def tiny_checkpoint(small: GPT, tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    write_checkpoint(path, checkpoint_files(small, CharTokenizer("abcdefghijk"), [1, 2, 3]), {})
    return path


def test_signed_by_a_trusted_key(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key.pem"
    assert main(["sign", str(tiny_checkpoint), "--key", str(key), "--new-key"]) == 0
    trusted = public_key_text(read_private_key(key))
    assert f"FOLIO_TRUSTED_KEYS={trusted}" in capsys.readouterr().out
    assert key.stat().st_mode & 0o077 == 0
    other = public_key_text(new_private_key(tmp_path / "other.pem"))
    assert read_checkpoint(tiny_checkpoint, [other, trusted]).id.startswith("sha256:")
    with pytest.raises(CheckpointError, match="not made by any of the 1 trusted keys"):
        read_checkpoint(tiny_checkpoint, [other])


def test_a_changed_manifest_voids_the_signature(tiny_checkpoint: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    main(["sign", str(tiny_checkpoint), "--key", str(key), "--new-key"])
    manifest = tiny_checkpoint / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match=SIGNATURE):
        read_checkpoint(tiny_checkpoint, [public_key_text(read_private_key(key))])


def test_missing_signatures_and_bad_keys_are_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    trusted = public_key_text(new_private_key(tmp_path / "key.pem"))
    with pytest.raises(CheckpointError, match=r"manifest\.sig is missing.*folio-train sign"):
        read_checkpoint(tiny_checkpoint, [trusted])
    (tiny_checkpoint / SIGNATURE).write_bytes(b"\xff not base64")
    with pytest.raises(CheckpointError, match=SIGNATURE):
        read_checkpoint(tiny_checkpoint, [trusted])
    with pytest.raises(CheckpointError, match="44 characters"):
        read_checkpoint(tiny_checkpoint, ["nonsense"])
    with pytest.raises(SignatureError, match="cannot write"):
        new_private_key(tmp_path / "key.pem")  # never overwrites
    (tmp_path / "rubbish.pem").write_text("rubbish")
    assert main(["sign", str(tiny_checkpoint), "--key", str(tmp_path / "rubbish.pem")]) == 2
