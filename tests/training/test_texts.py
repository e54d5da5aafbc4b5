"""Texts as people have them: several files, other encodings, other line ends, any size."""

import gzip
import random
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from model.tokenizer.base import UnknownCharacterError
from model.tokenizer.bpe import LONGEST, BPETokenizer, slices
from model.tokenizer.char import CharTokenizer
from tests.training.conftest import write_text
from tests.training.processes import TINY
from training import data, dataset
from training.config import TrainConfig, TrainingError
from training.data import Text, find_files, load_text
from training.dataset import Dataset, build_tokenizer, token_ids
from training.notes import notes, too_good
from training.run_directory import RunDirectory
from training.trainer import Trainer

WORDS = "naïve café, déjà vu – œuvre €5\n" * 60
CPU = torch.device("cpu")


def whole(text: Text) -> str:
    return "".join(text.chunks())


# Which files


def test_files_directories_and_globs_become_one_text(tmp_path: Path) -> None:
    for name, content in {"b.txt": "two\n", "a.txt": "one", "deep/c.txt": "three", "notes.md": "four"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    directory = load_text([str(tmp_path)])
    assert whole(directory) == "one\ntwo\nthree"  # each file begins a line
    assert (directory.characters, directory.name) == (13, f"{tmp_path.name} (3 files)")
    assert whole(load_text([str(tmp_path / "*.md"), str(tmp_path / "a.txt")])) == "four\none"
    assert [path.name for path in find_files([str(tmp_path / "**/*.txt")])] == ["a.txt", "b.txt", "c.txt"]
    with pytest.raises(TrainingError, match="no file matches"):
        load_text([str(tmp_path / "*.rst")])


def test_a_run_finds_its_files_and_its_validation_text_again(tmp_path: Path) -> None:
    for number in range(2):
        write_text(tmp_path / f"{number}.txt", seed=number)
    write_text(tmp_path / "val.text", 900, seed=3)
    config = replace(TINY, max_iters=4, eval_interval=2, save_interval=2, sample_chars=0)
    text = load_text([str(tmp_path / "*.txt")], [str(tmp_path / "val.text")])
    trainer = Trainer.start(config, text, tmp_path / "run")
    assert trainer.data.num_targets == len((tmp_path / "val.text").read_text(encoding="utf-8")) - 1
    assert len(trainer.data.train) == text.characters  # nothing of it is needed for validation
    trainer.run()
    resumed = Trainer.resume(tmp_path / "run")
    assert resumed.curve == trainer.curve
    assert torch.equal(resumed.data.val, trainer.data.val)
    write_text(tmp_path / "val.text", 900, seed=4)
    with pytest.raises(TrainingError, match="not the validation text"):
        Trainer.resume(tmp_path / "run")


# What is in them


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-damaged"])
def test_the_command_that_a_refusal_names_makes_the_text_readable(tmp_path: Path, encoding: str) -> None:
    content = WORDS if encoding != "latin-1" else WORDS.encode("latin-1", "ignore").decode("latin-1")
    content = content * 30  # more than one chunk of the guess
    file = tmp_path / "it's a text.txt"
    damaged = encoding == "utf-8-damaged"
    file.write_bytes(content.encode() + b"\xff" if damaged else content.encode(encoding))
    with pytest.raises(TrainingError) as caught:
        load_text([str(file)])
    hint = str(caught.value).split(": ")[-1]
    subprocess.run(hint, shell=True, cwd=tmp_path, check=False)  # iconv -c reports what it left out by its status
    assert whole(load_text([str(tmp_path / "new.txt")])).lstrip("\ufeff") == content


def test_a_compressed_text_is_named_and_unpacked_by_the_hint(tmp_path: Path) -> None:
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(WORDS.encode()))
    with pytest.raises(TrainingError, match="compressed with gzip") as caught:
        load_text([str(tmp_path / "t.txt.gz")])
    subprocess.run(str(caught.value).split(": ")[-1], shell=True, cwd=tmp_path, check=True)
    assert whole(load_text([str(tmp_path / "new.txt")])) == WORDS


def test_line_ends_are_one_kind_unless_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHUNK", 3)  # so that a CR and its LF come in two chunks
    file = tmp_path / "t.txt"
    file.write_bytes(b"a\r\nbc\rd\n\r\n" + "é🙂".encode())
    text = load_text([str(file)])
    assert whole(text) == "a\nbc\nd\n\né🙂"
    assert whole(load_text([str(file)], keep_line_ends=True)) == "a\r\nbc\rd\n\r\né🙂"
    assert list(notes(TrainConfig(), (), text)) == [f"line ends of {file} (CR, CR LF) are read as line feeds (--keep-line-ends)"]


def test_one_character_over_and_over_is_refused() -> None:
    with pytest.raises(TrainingError, match="one character over and over"):
        build_tokenizer(TINY, Text.of("a" * 5000))


def test_flags_without_effect_and_losses_without_meaning_are_said() -> None:
    given = {"muon_lr": 0.1, "vocab_size": 500, "decay_fraction": 0.2, "learning_rate": 1e-3, "micro_batch_size": 64}
    said = list(notes(replace(TrainConfig(), **given), given, Text.of("ab")))  # type: ignore[arg-type]
    assert said == [
        "--muon-lr has no effect without --optimizer muon",
        "--vocab-size has no effect without --tokenizer bpe",
        "--decay-fraction has no effect without --schedule wsd",
        "--micro-batch-size 64 has no effect: a batch has 64 sequences",
    ]
    assert list(notes(TrainConfig(optimizer="muon"), ["muon_lr"], Text.of("ab"))) == []
    assert too_good(0.01) and too_good(1.4) is None


# How large they are


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_tokens_are_those_of_the_whole_text_however_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["char", "byte", "bpe"]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "CHUNK", 1000)
    monkeypatch.setattr("model.tokenizer.bpe.SLICE", 2000)
    file = tmp_path / "t.txt"
    file.write_text("".join(random.Random(3).choices("ab é🙂\n", k=30_000)), encoding="utf-8")
    text = load_text([str(file)])
    tokenizer = build_tokenizer(replace(TINY, tokenizer=kind, vocab_size=300), text)
    expected = tokenizer.encode(file.read_text(encoding="utf-8"))
    assert token_ids(text, tokenizer).tolist() == expected
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(dataset, "IN_MEMORY", 100)
    mapped = token_ids(text, tokenizer)
    assert isinstance(mapped, np.memmap) and mapped.tolist() == expected
    monkeypatch.setattr(dataset, "encode", lambda *arguments: pytest.fail("the token file is built once"))
    assert token_ids(text, tokenizer).tolist() == expected
    assert len(list((tmp_path / "cache/folio/tokens").iterdir())) == 1


def test_unknown_characters_are_found_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHUNK", 100)
    (tmp_path / "t.txt").write_text("ab" * 200 + "ü", encoding="utf-8")
    with pytest.raises(UnknownCharacterError, match=r"at 400"):
        token_ids(load_text([str(tmp_path / "t.txt")]), CharTokenizer("ab"))


def test_a_large_text_needs_less_memory_than_four_times_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was 24 times: one Python integer for each character. numpy tells tracemalloc of its arrays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = 20_000_000
    with (tmp_path / "large.txt").open("w") as file:
        for _ in range(size // 2000):
            file.write("to be or not to be, \n"[:20] * 100)
    tracemalloc.start()
    try:
        text = load_text([str(tmp_path / "large.txt")])
        tokens = Dataset(text, build_tokenizer(TrainConfig(), text), 256, CPU)
        x, _ = tokens.batch(1, torch.tensor(3), 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.shape == (4, 256)
    assert (len(tokens.train), tokens.num_bytes) == (0.9 * size, size / 10 - 1)
    assert peak < 1.5 * size  # a chunk as code points and as ids, whatever the size of the text


def test_a_run_of_letters_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a " + "x" * 5000 + " b " + "-" * 3000 + "\n"
    assert "".join(slices([text])) == text
    assert max(map(len, slices(["x" * 80_000]))) == LONGEST
    tokenizer = BPETokenizer.from_text(text, 300)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert list(slices(["a word, and another\n" * 200])) == ["a word, and another\n" * 200]


# What a step takes


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path: Path) -> None:
    text = Text.of("to be or not to be " * 60)
    config = replace(TINY, dropout=0.0, dtype="float32", optimizer="adamw")
    at_once, in_parts = (Trainer(replace(config, micro_batch_size=size), text, RunDirectory(tmp_path)) for size in (0, 3))
    assert [len(rows) for rows in in_parts.step.micro_batches()] == [3, 3, 2]
    for step in range(3):
        assert in_parts.step(step).item() == pytest.approx(at_once.step(step).item(), rel=1e-5)
    for a, b in zip(at_once.model.parameters(), in_parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_sampled_validation_is_followed_by_the_whole_one(tmp_path: Path, text_file: Path) -> None:
    config = replace(TINY, max_iters=4, eval_interval=2, eval_tokens=100, sample_chars=0)
    trainer = Trainer.start(config, load_text([str(text_file)]), tmp_path / "run")
    trainer.run()
    assert trainer.curve[0].val_loss_whole is None
    whole_loss = trainer.curve[-1].val_loss_whole
    assert whole_loss is not None and whole_loss != trainer.curve[-1].val_loss
    exact = Trainer.start(replace(config, eval_tokens=0), load_text([str(text_file)]), tmp_path / "exact")
    exact.run()
    assert exact.curve[-1].val_loss == whole_loss
