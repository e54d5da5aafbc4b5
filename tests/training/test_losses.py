"""What a loss means: exact, per byte, calibrated on text that the model never saw."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import GPTConfig
from model.gpt import GPT
from tests.training.processes import TINY
from training.__main__ import main
from training.data import load_text
from training.evaluate import bits_per_byte, find_temperature, mean_losses, window_batches
from training.trainer import Trainer


def overconfident(factor: float) -> tuple[GPT, torch.Tensor]:
    """A model whose logits are ``factor`` times those of the distribution that made the text."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=8, block_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.0)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    truth = torch.linspace(-1.5, 1.5, 8)
    model.lm_head.bias.data = truth * factor
    return model, torch.multinomial(truth.softmax(0), 20_000, replacement=True)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3, 1.8])
def test_the_temperature_undoes_overconfidence(factor: float) -> None:
    model, ids = overconfident(factor)
    temperature = find_temperature(model, ids)
    assert temperature == pytest.approx(factor, abs=0.05)
    plain, calibrated = mean_losses(model, ids, [1.0, temperature])
    assert calibrated <= plain


def test_samples_of_a_text_are_evenly_spaced_windows_and_always_the_same() -> None:
    ids = torch.arange(1001)
    windows = torch.cat(list(window_batches(ids, 10, 100)))
    assert windows[:, 0].tolist() == list(range(0, 1000, 100))
    assert torch.equal(windows[:, -1] - windows[:, 0], torch.full((10,), 10))
    assert sum(part.shape[0] * (part.shape[1] - 1) for part in window_batches(torch.arange(1006), 10, 0)) == 1005
    (short,) = window_batches(torch.arange(5), 10, 3)
    assert short.tolist() == [[0, 1, 2, 3, 4]]


def test_bits_per_byte_of_guessing_among_256_bytes_are_eight() -> None:
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)


def test_every_loss_stands_in_the_manifest_and_eval_measures_it_again(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, max_iters=6, eval_interval=6, calibration_fraction=0.2)
    trainer = Trainer.start(config, load_text([str(text_file)]), tmp_path / "run")
    trainer.run()
    out = capsys.readouterr().out
    manifest = json.loads((tmp_path / "run/last/manifest.json").read_bytes())
    assert main(["eval", str(tmp_path / "run/last"), "--data", str(text_file)]) == 0
    measured = json.loads(capsys.readouterr().out)
    for name in ("val_loss", "train_loss_eval", "bits_per_byte", "temperature", "val_loss_calibrated"):
        assert measured[name] == pytest.approx(manifest[name], abs=1e-6)
    assert f"{manifest['val_loss_calibrated']:.4f} at temperature {manifest['temperature']}" in out
    assert f"(dropout off {manifest['train_loss_eval']:.4f})" in out
    text = text_file.read_text(encoding="utf-8")
    val = text[int(0.9 * len(text)) + 1 :]
    assert manifest["bits_per_byte"] == pytest.approx(manifest["val_loss"] / math.log(2) * len(val) / len(val.encode()))


def test_the_training_loss_without_dropout_is_over_as_much_text_as_validation(tmp_path: Path, text_file: Path) -> None:
    trainer = Trainer.start(replace(TINY, max_iters=1, eval_interval=1, sample_chars=0), load_text([str(text_file)]), tmp_path / "run")
    trainer.run()
    windows = torch.cat(list(window_batches(trainer.data.train, TINY.block_size, trainer.data.num_targets)))
    assert 0 <= trainer.data.num_targets - windows.shape[0] * TINY.block_size < TINY.block_size
    x, y = windows[:, :-1].long(), windows[:, 1:].long()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(trainer.model.eval()(x).flatten(0, 1), y.flatten())
    assert trainer.curve[-1].train_loss_eval == pytest.approx(loss.item(), rel=1e-5)
