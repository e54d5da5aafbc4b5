"""A checkpoint that was damaged, swapped or made by an enemy is one line that names the file; nothing is ever unpickled."""

import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from model import load_checkpoint
from model.checkpoint.files import read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.checkpoint.manifest import MAX_MANIFEST_BYTES, CheckpointError
from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer

TEXT = "hello, checkpoint\n" * 20


def build() -> tuple[GPT, CharTokenizer]:
    tokenizer = CharTokenizer.from_text(TEXT)
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=8, n_layer=1, n_head=3, n_embd=8)), tokenizer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model, tokenizer = build()
    files = checkpoint_files(model, tokenizer, tokenizer.encode(TEXT))
    write_checkpoint(tmp_path / "c", files, {"start": "\n", "val_loss": 1.5})
    return tmp_path / "c"


def sign(path: Path) -> None:
    """Make the manifest agree with the files, as an attacker would."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"] = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit(path: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((path / name).read_bytes())
    change(data)
    (path / name).write_text(json.dumps(data))


def refuse(path: Path, name: str, message: str = "") -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert str(path / name) in text
    assert message in text
    assert "\n" not in text


def test_a_round_trip_changes_nothing(tmp_path: Path) -> None:
    model, tokenizer = build()
    write_checkpoint(tmp_path / "c", checkpoint_files(model, tokenizer, tokenizer.encode(TEXT)), {"start": "\n"})
    loaded = load_checkpoint(tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.model.state_dict().values(), strict=True))
    assert loaded.tokenizer.texts == tokenizer.texts
    assert loaded.config == model.config
    assert loaded.id == "sha256:" + hashlib.sha256((tmp_path / "c" / "manifest.json").read_bytes()).hexdigest()
    assert read_checkpoint(tmp_path / "c").start == tokenizer.ids["\n"]
    assert not loaded.model.training
    ids = torch.tensor([tokenizer.encode("hello")])
    assert torch.equal(loaded.model(ids), model.eval()(ids))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_rounded_weights_are_the_nearest_ones(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    model, tokenizer = build()
    write_checkpoint(tmp_path / "c", checkpoint_files(model, tokenizer, tokenizer.encode(TEXT), dtype), {})
    loaded = load_checkpoint(tmp_path / "c").model
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float())
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize(("value", "message"), [(float("inf"), "not finite"), (-65537.0, "magnitude 65537, at most 65536 can be served")])
def test_weights_that_exact_arithmetic_has_no_room_for_are_refused(path: Path, value: float, message: str) -> None:
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    tensors["blocks.0.mlp.up.weight"][3, 2] = value
    safetensors.torch.save_file(tensors, path / "model.safetensors")
    sign(path)
    refuse(path, "model.safetensors", f"blocks.0.mlp.up.weight holds a value {'that is ' if 'finite' in message else 'of '}{message}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "selftest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "flipped", "longer", "directory", "fifo", "unreadable link"])
def test_damage_to_any_file_is_found(path: Path, name: str, damage: str) -> None:
    file, data = path / name, (path / name).read_bytes()
    file.unlink()
    if damage == "directory":
        file.mkdir()
    elif damage == "fifo":
        os.mkfifo(file)  # reading it as a file would wait for ever
    elif damage == "unreadable link":
        file.symlink_to(path / "nowhere")
    elif damage != "missing":
        flipped = bytes([*data[:100], data[100] ^ 1, *data[101:]]) if len(data) > 100 else bytes([data[0] ^ 1]) + data[1:]
        file.write_bytes({"truncated": data[:-1], "empty": b"", "flipped": flipped, "longer": data + b"\n"}[damage])
    refuse(path, name)


@pytest.mark.parametrize("damage", ["missing", "truncated", "fifo", "huge", "deep", "format", "list", "no files", "bad start"])
def test_a_bad_manifest_is_refused(path: Path, damage: str) -> None:
    file = path / "manifest.json"
    data = file.read_bytes()
    if damage in ("missing", "fifo", "huge"):
        file.unlink()
    if damage == "fifo":
        os.mkfifo(file)
    elif damage == "huge":
        file.touch()
        os.truncate(file, MAX_MANIFEST_BYTES + 1)
    elif damage == "truncated":
        file.write_bytes(data[:-3])
    elif damage == "deep":
        file.write_bytes(b'{"a":' * 200_000)
    elif damage == "list":
        file.write_bytes(b"[]")
    elif damage != "missing":
        changes: dict[str, dict[str, object]] = {
            "format": {"format": 2},
            "no files": {"files": ["model.safetensors"]},
            "bad start": {"start": 5},
        }
        edit(path, "manifest.json", lambda m: m.update(changes[damage]))
    refuse(path, "manifest.json")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", ".", "a/b", ""])
def test_a_manifest_reaches_no_file_outside(path: Path, name: str) -> None:
    (path.parent / "outside").write_bytes(b"secret")
    edit(path, "manifest.json", lambda m: m["files"].update({name: hashlib.sha256(b"secret").hexdigest()}))
    refuse(path, "manifest.json", "not a plain file name")


def test_a_swapped_tokenizer_is_found(path: Path) -> None:
    other = CharTokenizer.from_text("another vocabulary of another length 0123456789")
    (path / "tokenizer.json").write_text(json.dumps(other.to_json()))
    refuse(path, "tokenizer.json", "sha256")
    sign(path)
    refuse(path, "tokenizer.json", "config.json says")


def header(tensors: dict[str, dict[str, Any]], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LIES = {
    "length beyond the file": header({}, length=1 << 40),
    "negative offsets": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"0000"),
    "offsets beyond the data": header({"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}, b"0000"),
    "overlap": header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"0000"),
    "huge shape": header({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}, b"0000"),
    "no JSON": struct.pack("<Q", 3) + b"abc",
    "nothing": b"",
    "pickle": pickle.dumps({"weights": print}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies_is_refused(path: Path, lie: str) -> None:
    (path / "model.safetensors").write_bytes(LIES[lie])
    sign(path)
    refuse(path, "model.safetensors")


def test_a_renamed_torch_file_is_not_unpickled(path: Path) -> None:
    torch.save(build()[0].state_dict(), path / "model.safetensors")
    sign(path)
    refuse(path, "model.safetensors", "not a valid safetensors file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected tensor 'extra'"),
        (lambda t: t.pop("ln_f.bias"), "lacks tensor 'ln_f.bias'"),
        (lambda t: t.update({"ln_f.bias": torch.zeros(9)}), "ln_f.bias has shape (9,)"),
        (lambda t: t.update({"ln_f.bias": torch.zeros(8, dtype=torch.int64)}), "dtype I64"),
        (lambda t: t["ln_f.bias"].__setitem__(3, float("nan")), "ln_f.bias holds a value that is not finite"),
        (lambda t: t["lm_head.weight"][0].__setitem__(0, float("inf")), "lm_head.weight holds a value that is not finite"),
    ],
)
def test_wrong_tensors_are_refused(path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, path / "model.safetensors")
    sign(path)
    refuse(path, "model.safetensors", message)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"n_layer": 10**9}),
        ("config.json", {"n_embd": 10**15}),
        ("config.json", {"n_head": 0}),
        ("config.json", {"backdoor": 1}),
        ("config.json", {"dropout": float("nan")}),
        ("tokenizer.json", {"characters": ["aa"]}),
        ("tokenizer.json", {"kind": "pickle"}),
    ],
)
def test_values_that_no_model_has_are_refused(path: Path, name: str, change: dict[str, object]) -> None:
    edit(path, name, lambda data: data.update(change))
    sign(path)
    refuse(path, name)


POISON = {
    "NaN": ("NaN", "is not a finite number"),
    "infinity": ("-Infinity", "is not a finite number"),
    "a float that overflows": ("1e400", "is not a finite number"),
    "beyond 64 bits": ("1" + "0" * 30, "is not a finite number"),
    "just beyond 64 bits": (str(2**64), "is beyond 64 bits"),
    "too many digits": ("1" * 10_000, "is not a finite number"),
    "half a character": (r'"\ud800"', "half of a surrogate pair"),
    "half a character as a name": (r'{"\udfff": 1}', "half of a surrogate pair"),
    "deep": ("[" * 200 + "]" * 200, "levels deep"),
}


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "tokenizer.json", "selftest.json"])
@pytest.mark.parametrize("poison", POISON)
def test_values_that_cannot_be_handed_on_are_refused_by_their_name(path: Path, name: str, poison: str) -> None:
    """They once made /info fail with 500, or the worker die eight times over a message that it could not write."""
    value, message = POISON[poison]
    data = (path / name).read_text()
    (path / name).write_text(data.replace("{", f'{{"outer": {{"bad": {value}}},', 1))
    if name != "manifest.json":
        sign(path)
    refuse(path, name, message)
    refuse(path, name, "outer.bad")


def test_a_path_that_is_no_directory_is_refused(path: Path) -> None:
    refuse(path / "config.json", "", "is not a directory")
    refuse(path.parent / "nowhere", "", "is not a directory")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the middle must not leave a directory that looks like a checkpoint."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    model, tokenizer = build()
    files = checkpoint_files(model, tokenizer, [0, 1])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path / "c", files, {})
    assert list(tmp_path.iterdir()) == []


def test_a_finished_checkpoint_is_never_overwritten(path: Path) -> None:
    model, tokenizer = build()
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(OSError, match=r"not empty|exists"):
        write_checkpoint(path, checkpoint_files(model, tokenizer, [0, 1]), {})
    assert (path / "manifest.json").read_bytes() == before


def test_a_copy_has_the_same_id(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "copy")
    assert read_checkpoint(path).id == read_checkpoint(tmp_path / "copy").id
