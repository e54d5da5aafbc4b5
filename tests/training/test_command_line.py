"""The whole way as a user goes it, in real processes; and every mistake that a user makes, as one clear line."""

import json
import math
from pathlib import Path

import pytest

from model import load_checkpoint
from model.checkpoint.files import read_checkpoint
from tests.training.conftest import write_text
from tests.training.processes import Run, finish, flags, launch
from training import data
from training.__main__ import main
from training.config import TrainConfig
from training.flags import field_docstrings


def test_smoke_trains_and_evaluates_to_what_its_manifest_says(tmp_path: Path) -> None:
    text = write_text(tmp_path / "words.txt", 20_000)
    run = tmp_path / "run"
    short = ["--max-iters", "80", "--eval-interval", "40", "--save-interval", "40"]
    status, out, err = finish(launch(["--preset", "smoke", "--out", str(run), *short], FOLIO_DATA=str(text)))
    assert (status, err) == (0, "")  # no progress bar where there is no terminal
    assert f"python -m service --checkpoint {run}/best" in out
    manifest = json.loads((run / "best" / "manifest.json").read_bytes())
    assert manifest["val_loss"] < manifest["curve"][0]["val_loss"] < math.log(20)  # better than guessing, and improving
    assert manifest["train"]["max_iters"] == 80
    assert manifest["data"]["characters"] == 20_000
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len((run / "samples" / "step-000080.txt").read_text(encoding="utf-8")) == 200
    assert set(load_checkpoint(run / "best").tokenizer.texts) == set(text.read_text(encoding="utf-8"))
    status, out, err = finish(launch(["eval", str(run / "best"), "--data", str(text)]))
    assert status == 0, err
    result = json.loads(out)
    assert result["val_loss"] == round(manifest["val_loss"], 6)
    assert result["manifest_val_loss"] == manifest["val_loss"]
    assert (result["tokens"], result["block_size"], result["same_text"]) == (1999, 64, True)


@pytest.mark.parametrize(("tokens", "vocab_size"), [("byte", 256), ("bpe --vocab-size 270", 270)], ids=["byte", "bpe"])
def test_other_tokens_travel_with_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: str, vocab_size: int) -> None:
    """Trained, measured, exported; the loss is told per token and per character."""
    text, run, kind = tmp_path / "t.txt", tmp_path / "run", tokens.split()[0]
    text.write_text("the théâtre — 中文 🙂\n" * 300 + "".join(map(chr, range(0x100, 0x300))), encoding="utf-8")
    size = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --max-iters 10 --eval-interval 5 --sample-chars 20"
    assert main(["--data", str(text), "--out", str(run), *size.split(), "--tokenizer", *tokens.split()]) == 0
    checkpoint = load_checkpoint(run / "best")
    assert (checkpoint.tokenizer.kind, checkpoint.tokenizer.vocab_size) == (kind, vocab_size)
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("🙂 ≠ é")) == "🙂 ≠ é"
    capsys.readouterr()
    assert main(["eval", str(run / "best"), "--data", str(text)]) == 0
    result = json.loads(capsys.readouterr().out)
    ids = checkpoint.tokenizer.encode(text.read_text(encoding="utf-8"))
    characters = len(checkpoint.tokenizer.decode(ids[int(0.9 * len(ids)) + 1 :]))
    assert result["val_loss_per_character"] == pytest.approx(result["val_loss"] * result["tokens"] / characters, abs=2e-6)
    assert "nats per token** (" in (run / "README.md").read_text(encoding="utf-8")
    assert main(["export", str(run / "best"), str(tmp_path / "small"), "--data", str(text)]) == 0
    assert read_checkpoint(tmp_path / "small").tokenizer.kind == kind


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error with which a command refuses."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b"hello", "has 5 tokens: too few for a context of 256"),
        (b"ok \xff\xfe", "is not UTF-8 (byte 3) but looks like WINDOWS-1252; convert it"),
        ("text".encode("utf-16"), "is not UTF-8 (byte 0)"),
    ],
)
def test_a_text_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    assert message in complaint(capsys, "--data", str(file), "--out", str(tmp_path / "run"))
    assert str(file) in complaint(capsys, "--data", str(file), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_directory_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a directory without a .txt file" in complaint(capsys, "--data", str(tmp_path))


def test_without_a_network_the_way_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:1/input.txt")  # nothing listens there
    error = complaint(capsys, "--out", str(tmp_path / "run"))
    for word in ("ConnectError", "--data FILE", "FOLIO_DATA", "make train"):
        assert word in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cuda"), "torch sees no CUDA GPU here"),
        (("--n-head", "0"), "n_head must be an integer from 1"),
        (("--n-embd", "2"), "n_embd must be at least n_head"),
        (("--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--learning-rate", "nan"), "--learning-rate must be a number of at least 0"),
        (("--dropout", "1.5"), "--dropout must be at least 0 and less than 1"),
        (("--seed", str(2**53)), "--seed must be at most"),
        (("--max-iters", "-1"), "--max-iters must be at least 1"),
        (("--compile", "--device", "cpu"), "--compile needs a CUDA GPU"),
        (("--lr-factors", "blocks.9.*=0"), "no parameter is called 'blocks.9.*'"),
        (("--lr-factors", "blocks.0"), "is not PATTERN=FACTOR"),
        (("--lr-factors", "*=0"), "freezes every parameter"),
        (("--block-size", "100000"), "too few for a context of 100000"),
    ],
)
def test_values_that_make_no_sense(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in complaint(capsys, "--data", str(text_file), "--out", str(tmp_path / "run"), *arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(uninterrupted: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = uninterrupted.result()
    error = complaint(capsys, "--data", str(uninterrupted.text), "--out", str(uninterrupted.path))
    assert f"python -m training resume {uninterrupted.path}" in error
    assert uninterrupted.result() == before


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--out .` would have written over a README.md."""
    (tmp_path / "README.md").write_text("mine")
    assert "is not empty and holds no run" in complaint(capsys, "--data", str(text_file), "--out", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    (tmp_path / "README.md").unlink()
    tiny = flags(TrainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, max_iters=3, eval_interval=1, sample_chars=9))
    (tmp_path / "metrics.jsonl").touch()  # of a run that was killed before its first save
    (tmp_path / "step-by-step").mkdir()
    assert main(["--data", str(text_file), "--out", str(tmp_path), *tiny]) == 0
    assert (tmp_path / "step-by-step").exists()


def test_a_directory_that_cannot_be_written(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "Not a directory" in complaint(capsys, "--data", str(text_file), "--out", str(tmp_path / "file" / "run"))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path, text_file: Path) -> None:
    """The limit lets the small files through and stops the weights, as a disk does that is almost full."""
    run = tmp_path / "run"
    tiny = flags(TrainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, max_iters=2, eval_interval=1, sample_chars=9))
    assert main(["--data", str(text_file), "--out", str(run), *tiny]) == 0
    before = read_checkpoint(run / "last").id
    config = json.loads((run / "config.json").read_bytes())
    config["train"]["max_iters"] = 3
    (run / "config.json").write_text(json.dumps(config))
    status, _, err = finish(launch(["resume", str(run)], file_limit=12_000))
    assert status == 2
    assert err.startswith(f"error: cannot write {run}/")
    assert "File too large" in err
    assert err.count("\n") == 1
    assert read_checkpoint(run / "last").id == before
    assert list(run.glob(".*")) == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = flags(TrainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, max_iters=9, learning_rate=1e38, warmup_iters=0))
    error = complaint(capsys, "--data", str(text_file), "--out", str(tmp_path / "run"), *tiny)
    assert "the loss is nan at step 2: lower --learning-rate or use --dtype float32; nothing has been saved yet" in error
    assert not (tmp_path / "run" / "last").exists()


def test_eval_names_unknown_characters(uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.txt").write_text("ünknown " * 100, encoding="utf-8")
    error = complaint(capsys, "eval", str(uninterrupted.path / "best"), "--data", str(tmp_path / "other.txt"))
    assert "'\\xfc' at 0, 8, 16, 24, 32 …" in error


def test_resume_finds_its_text_or_asks_for_it(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.txt"
    own.write_bytes(text_file.read_bytes())
    tiny = flags(TrainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, max_iters=2, eval_interval=1, sample_chars=9))
    run = str(tmp_path / "run")
    assert main(["--data", str(own), "--out", run, *tiny]) == 0
    assert main(["resume", run]) == 0
    own.rename(tmp_path / "moved.txt")
    assert main(["resume", run, "--data", str(tmp_path / "moved.txt")]) == 0
    write_text(own, seed=9)
    capsys.readouterr()
    assert "is not the text of this run (own.txt, by its sha256); pass it with --data" in complaint(capsys, "resume", run)


def test_every_field_is_a_flag_with_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    documented = field_docstrings(TrainConfig)
    for name in TrainConfig().to_json():
        assert "--" + name.replace("_", "-") in text
        assert documented[name][:25] in text
    for command in ("resume", "eval", "report", "export", "import", "upgrade", "sign"):
        assert f"python -m training {command}" in text
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0


def test_dry_run_says_what_it_takes_and_writes_nothing(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = flags(TrainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, max_iters=100))
    assert main(["--dry-run", "--data", str(text_file), "--out", str(tmp_path / "run"), *tiny]) == 0
    out = capsys.readouterr().out
    for word in ("parameters", "TFLOP", "tokens/s, MFU", "memory", "100 steps in about"):
        assert word in out
    assert not (tmp_path / "run").exists()


def test_export_rounds_and_measures_again(uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "out", str(uninterrupted.text)
    assert main(["export", str(uninterrupted.path / "best"), str(out), "--data", text]) == 0
    checkpoint = read_checkpoint(out)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["config.json", "draft.safetensors", "manifest.json", "model.safetensors", "selftest.json", "tokenizer.json"]
    )
    assert checkpoint.manifest["weights_dtype"] == "bfloat16"
    capsys.readouterr()
    assert main(["eval", str(out), "--data", text]) == 0
    assert json.loads(capsys.readouterr().out)["val_loss"] == checkpoint.manifest["val_loss"]
    assert "is not empty" in complaint(capsys, "export", str(uninterrupted.path / "best"), str(out), "--data", text)


def test_report_draws_several_runs(uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "report.png"
    assert main(["report", str(uninterrupted.path), str(uninterrupted.path), "--out", str(picture)]) == 0
    best = min(json.loads(line)["val_loss"] for line in (uninterrupted.path / "metrics.jsonl").read_text().splitlines())
    assert f"| {best:.4f} |" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert "cannot be read: is" in complaint(capsys, "report", str(tmp_path))
