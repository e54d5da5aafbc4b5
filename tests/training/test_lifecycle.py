"""Begin from a checkpoint, go on beyond the end, and come back from wherever the files have been."""

import errno
import os
import shutil
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import load_checkpoint
from model.checkpoint.files import read_checkpoint
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer
from tests.training.processes import TINY, flags
from training.__main__ import main
from training.config import TrainingError
from training.data import Text, load_text
from training.links import find_last, locate
from training.run_directory import RunDirectory, read_metrics
from training.trainer import Trainer
from training.transfer import adopt, extend_vocabulary, transfer

SHORT = replace(TINY, max_iters=10, warmup_iters=2, eval_interval=2, save_interval=4, sample_chars=10)
WSD = replace(SHORT, optimizer="muon", schedule="wsd", decay_fraction=0.5, dropout_descent=True)
FILES = ("last/model.safetensors", "last/optimizer.safetensors", "metrics.jsonl")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A finished run with a plateau."""
    torch.set_num_threads(1)  # before the fixture that does so for each test: sums depend on it
    run = tmp_path_factory.mktemp("first") / "run"
    Trainer.start(WSD, load_text([str(text_file)]), run).run()
    return run


# Begin from a checkpoint


def test_the_command_fine_tunes_on_another_text_in_the_checkpoints_shape(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No flag but the two: shape and tokens come from there, new characters are learned, and the result is served like any other."""
    other = tmp_path / "other.txt"
    other.write_text("Ünknown words: the of and\n" * 80, encoding="utf-8")
    assert main(["--init-from", str(first), "--data", str(other), "--out", str(tmp_path / "run"), "--max-iters", "4"]) == 0
    assert "python -m service --checkpoint" in capsys.readouterr().out
    before, after = load_checkpoint(first / "best"), load_checkpoint(tmp_path / "run" / "best")
    assert after.config == replace(before.config, vocab_size=after.tokenizer.vocab_size, dropout=0.2)
    assert after.tokenizer.texts[: before.tokenizer.vocab_size] == before.tokenizer.texts
    assert set(after.tokenizer.texts) == {*before.tokenizer.texts, *other.read_text(encoding="utf-8")}
    assert after.manifest["init_from"] == {"id": before.id, "steps": before.manifest["steps"], "start": "\n"}
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert f"Begun with the weights of `{before.id}`" in card and "--init-from CHECKPOINT" in card
    assert after.manifest["train"]["n_embd"] == before.config.n_embd


def test_known_tokens_keep_their_weights_and_new_ones_begin_as_the_mean(first: Path) -> None:
    source = load_checkpoint(first / "best")
    config = adopt(SHORT, source, ())
    text = Text.of("".join(source.tokenizer.texts) + "ÄÖ" * 30)
    tokenizer = extend_vocabulary(config, source, text)
    torch.manual_seed(0)
    model = GPT(config.model_config(tokenizer.vocab_size))
    transfer(source, model, tokenizer)
    known = source.tokenizer.vocab_size
    ids = torch.tensor([source.tokenizer.encode("the and of")])
    torch.testing.assert_close(model.eval()(ids)[..., :known], source.model(ids))
    for name in ("token_embedding.weight", "lm_head.weight", "lm_head.bias"):
        mean = source.model.state_dict()[name].mean(0)
        for row in model.state_dict()[name][known:]:
            torch.testing.assert_close(row, mean)
    shuffled = CharTokenizer(tokenizer.texts[::-1])  # the same tokens under other numbers
    other = GPT(config.model_config(shuffled.vocab_size))
    transfer(source, other, shuffled)
    assert torch.equal(other.token_embedding.weight.flip(0), model.token_embedding.weight)


def test_a_shorter_context_takes_the_first_positions_and_a_longer_one_is_refused(first: Path, text_file: Path, tmp_path: Path) -> None:
    source = load_checkpoint(first / "best")
    config = adopt(replace(SHORT, block_size=8), source, ["block_size"])
    trainer = Trainer.start(config, load_text([str(text_file)]), tmp_path / "run", init=source)
    assert torch.equal(trainer.model.position_embedding.weight, source.model.position_embedding.weight[:8])
    with pytest.raises(TrainingError, match="more than the 16 positions"):
        adopt(replace(SHORT, block_size=32), source, ["block_size"])
    with pytest.raises(TrainingError, match="--n-layer 3 does not fit the checkpoint, which has 1"):
        adopt(replace(SHORT, n_layer=3), source, ["n_layer"])


def test_the_shape_of_gpt2_is_kept(first: Path) -> None:
    source = load_checkpoint(first / "best")
    gpt2 = replace(source, config=replace(source.config, qkv_bias=True, activation="gelu_tanh"))
    config = adopt(SHORT, gpt2, ())
    assert config.model_config(source.config.vocab_size) == replace(gpt2.config, dropout=SHORT.dropout)


def test_frozen_parts_stay_and_slow_parts_move_less(first: Path, text_file: Path, tmp_path: Path) -> None:
    source = load_checkpoint(first / "best")
    text = load_text([str(text_file)])
    config = replace(SHORT, lr_factors="*embedding*=0,lm_head.weight=0.01", max_iters=2)
    trainer = Trainer.start(adopt(config, source, ()), text, tmp_path / "slow", init=source)
    even = Trainer.start(adopt(replace(config, lr_factors=""), source, ()), text, tmp_path / "even", init=source)
    for step in range(2):
        trainer.step(step)
        even.step(step)
    before, slow, fast = source.model.state_dict(), trainer.model.state_dict(), even.model.state_dict()
    assert torch.equal(slow["token_embedding.weight"], before["token_embedding.weight"])
    moved = {name: (state["lm_head.weight"] - before["lm_head.weight"]).norm() for name, state in (("slow", slow), ("fast", fast))}
    assert 0 < moved["slow"] < 0.05 * moved["fast"]
    trainer.run()
    Trainer.resume(tmp_path / "slow")


def test_an_average_begins_with_the_checkpoints_weights_too(first: Path, text_file: Path, tmp_path: Path) -> None:
    source = load_checkpoint(first / "best")
    trainer = Trainer.start(adopt(replace(SHORT, ema=0.9), source, ()), load_text([str(text_file)]), tmp_path / "run", init=source)
    assert all(torch.equal(a, b) for a, b in zip(trainer.served.parameters(), source.model.parameters(), strict=True))


# Beyond the end


def test_an_extended_run_is_bitwise_the_run_that_had_so_many_steps_from_its_beginning(first: Path, text_file: Path, tmp_path: Path) -> None:
    assert locate(first, "plateau") == (first / "step-000005").resolve()
    assert main(["resume", str(first), "--max-iters", "16", "--out", str(tmp_path / "longer")]) == 0
    Trainer.start(replace(WSD, max_iters=16), load_text([str(text_file)]), tmp_path / "whole").run()
    assert [(tmp_path / "longer" / f).read_bytes() for f in FILES] == [(tmp_path / "whole" / f).read_bytes() for f in FILES]
    assert read_checkpoint(tmp_path / "longer/last").manifest["extends"]["steps"] == 5
    assert [p.step for p in read_metrics(first)] == [2, 4, 6, 8, 10]  # the old run is as it was


def test_an_extended_run_resumes_bitwise(first: Path, tmp_path: Path) -> None:
    Trainer.extend(first, 16, tmp_path / "whole").run()
    parts = Trainer.extend(first, 16, tmp_path / "parts")
    while parts.state.step < 11:
        parts.advance(parts.progress())
    Trainer.resume(tmp_path / "parts").run()
    assert [(tmp_path / "whole" / f).read_bytes() for f in FILES] == [(tmp_path / "parts" / f).read_bytes() for f in FILES]


def test_what_cannot_be_extended(first: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has done 10 steps already"):
        Trainer.extend(first, 4, tmp_path / "shorter")
    assert Trainer.extend(first, 6, tmp_path / "joined").state.step == 5  # its plateau, in the middle of a descent of six
    run = tmp_path / "cosine"
    Trainer.start(SHORT, load_text([str(text_file)]), run).run()
    longer = Trainer.extend(run, 12, tmp_path / "longer")
    assert longer.state.step == 10
    longer.run()
    with pytest.raises(TrainingError, match="has done 10 steps already"):
        Trainer.extend(run, 10, tmp_path / "same")


# Wherever the files have been


@pytest.fixture
def no_symlinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `os.symlink` says on exFAT, SMB and many FUSE mounts."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "fsync", flush)


@pytest.mark.usefixtures("no_symlinks")
def test_without_symbolic_links_everything_goes_on(text_file: Path, tmp_path: Path) -> None:
    """It died at its first save."""
    run = tmp_path / "run"
    assert main(["--data", str(text_file), "--out", str(run), *flags(WSD)]) == 0
    assert {link: (run / link).read_text().strip() for link in ("last", "plateau")} == {"last": "step-000010", "plateau": "step-000005"}
    assert read_checkpoint(run / "last").manifest["steps"] == 10  # as the service opens it
    assert sorted(p.name for p in run.glob("step-*")) == sorted({(run / link).read_text().strip() for link in ("last", "best", "plateau")})
    assert main(["resume", str(run)]) == 0
    Trainer.extend(run, 16, tmp_path / "longer").run()
    with pytest.raises(TrainingError, match="holds a checkpoint"):
        RunDirectory(run).create(Trainer.resume(run).document())


def damaged_copies(run: Path, place: Path) -> dict[str, Path]:
    """The run as it comes out of `cp -rL`, out of a zip archive without links, and without its links."""
    copies = {name: place / name for name in ("followed", "zipped", "bare")}
    shutil.copytree(run, copies["followed"], symlinks=False)
    shutil.copytree(run, copies["bare"], symlinks=True)
    with zipfile.ZipFile(place / "run.zip", "w") as archive:
        for path in sorted(run.rglob("*")):
            if path.is_symlink():
                archive.writestr(str(path.relative_to(run)), os.readlink(path))
                (copies["bare"] / path.name).unlink()
            elif path.is_file():
                archive.write(path, path.relative_to(run))
        archive.extractall(copies["zipped"])
    return copies


@pytest.mark.parametrize("way", ["followed", "zipped", "bare"])
def test_a_copied_run_goes_on(first: Path, tmp_path: Path, way: str) -> None:
    expected = Trainer.resume(first)
    copy = damaged_copies(first, tmp_path)[way]
    trainer = Trainer.resume(copy)
    assert trainer.state == expected.state
    assert trainer.curve == expected.curve
    Trainer.extend(first, 16, tmp_path / "a").run()
    if way != "bare":  # whose plateau cannot be told from its last
        Trainer.extend(copy, 16, tmp_path / "b").run()
        assert [(tmp_path / "a" / f).read_bytes() for f in FILES] == [(tmp_path / "b" / f).read_bytes() for f in FILES]


def test_the_newest_whole_checkpoint_is_found_without_a_link(first: Path, tmp_path: Path) -> None:
    copy = damaged_copies(first, tmp_path)["bare"]
    newest = find_last(copy)
    assert newest is not None and newest.name == "step-000010"
    (newest / "model.safetensors").write_bytes(b"")
    older = find_last(copy)
    assert older is not None and older.name < "step-000010"


def test_a_name_in_a_file_leads_nowhere_else(tmp_path: Path) -> None:
    for content in ("../elsewhere", "/etc", "", ".", "..", "missing", "x" * 5000):
        (tmp_path / "last").write_text(content)
        assert locate(tmp_path, "last") is None
