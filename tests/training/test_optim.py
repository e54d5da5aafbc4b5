"""Muon and dropout that falls, each against its definition."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import load_checkpoint
from model.config import GPTConfig
from model.gpt import GPT, Block
from tests.training.processes import TINY
from training.data import load_text
from training.muon import Muon, orthogonalize
from training.optim import build_optimizers, dropout_at
from training.trainer import Trainer

SHAPES = [(24, 8), (8, 8), (32, 8), (8, 32)]


def matrices() -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES for _ in range(2)]


def test_muon_is_torchs_but_for_the_rounding_of_bfloat16() -> None:
    ours, theirs = matrices(), matrices()
    optimizers = [
        Muon([{"params": ours}], lr=0.02, weight_decay=0.1, dtype=torch.float32),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True),
    ]
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(ours, theirs, matrices(), strict=True):
        assert (a - b).norm() < 0.02 * (a - start).norm()


def test_stacked_matrices_are_moved_one_by_one() -> None:
    """Queries, keys and values in one parameter go where three parameters would go."""
    stacked, apart = matrices()[:1], [torch.nn.Parameter(part.clone()) for part in matrices()[0].detach().chunk(3)]
    gradient = torch.randn(24, 8, generator=torch.Generator().manual_seed(2))
    stacked[0].grad = gradient
    for parameter, part in zip(apart, gradient.chunk(3), strict=True):
        parameter.grad = part.clone()
    Muon([{"params": stacked, "parts": 3}], lr=0.1, weight_decay=0.1, dtype=torch.float32).step()
    Muon([{"params": apart}], lr=torch.tensor(0.1), weight_decay=0.1, dtype=torch.float32).step()
    torch.testing.assert_close(stacked[0], torch.cat(tuple(apart)))


def test_singular_values_come_near_one() -> None:
    x = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    values = torch.linalg.svdvals(orthogonalize(x))
    assert values.min() > 0.6 and values.max() < 1.3


def test_queries_keys_and_values_are_matrices_of_their_own() -> None:
    model = GPT(GPTConfig(vocab_size=8, block_size=7, n_layer=2, n_head=2, n_embd=8))
    groups = build_optimizers(model, replace(TINY, optimizer="muon"), torch.float32)["muon"].param_groups
    assert [(group["parts"], {tuple(p.shape) for p in group["params"]}) for group in groups] == [
        (3, {(24, 8)}),
        (1, {(8, 8), (32, 8), (8, 32)}),
    ]


def test_dropout_falls_with_the_learning_rate() -> None:
    config = replace(TINY, max_iters=10, warmup_iters=2, schedule="wsd", decay_fraction=0.4, dropout=0.25, dropout_descent=True)
    assert [dropout_at(config, step) for step in range(10)] == [*[0.25] * 7, 0.1875, 0.125, 0.0625]
    assert dropout_at(replace(config, dropout_descent=False), 9) == 0.25


def test_a_run_with_falling_dropout_drops_less_and_less(tmp_path: Path, text_file: Path) -> None:
    change = {"max_iters": 6, "warmup_iters": 1, "schedule": "wsd", "decay_fraction": 0.5, "dropout": 0.5, "dropout_descent": True}
    trainer = Trainer.start(replace(TINY, **change), load_text([str(text_file)]), tmp_path / "run")  # type: ignore[arg-type]
    seen = []
    for step in range(6):
        trainer.step(step)
        block = trainer.model.blocks[0]
        assert isinstance(block, Block)
        seen.append({block.dropout.p, block.attn.dropout, trainer.model.dropout.p})
    assert seen == [{0.5}, {0.5}, {0.5}, {0.5}, {round(256 / 3) / 256}, {round(128 / 3) / 256}]


def test_a_run_begins_with_the_weights_of_a_checkpoint_and_never_reads_the_calibration_slice(tmp_path: Path, text_file: Path) -> None:
    config = replace(TINY, max_iters=2, eval_interval=2, sample_chars=0)
    text = load_text([str(text_file)])
    Trainer.start(config, text, tmp_path / "first").run()
    first = load_checkpoint(tmp_path / "first" / "last")
    second = Trainer.start(replace(config, calibration_fraction=0.1), text, tmp_path / "second", init=first)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert len(second.data.calibration) == pytest.approx(0.09 * text.characters, abs=1)
    assert second.data.train.tolist() + second.data.calibration.tolist() == Trainer.resume(tmp_path / "first").data.train.tolist()
    second.run()
    origin = {"id": first.id, "steps": 2, "start": "\n"}
    assert Trainer.resume(tmp_path / "second").ancestors == {"init_from": origin}
    assert load_checkpoint(tmp_path / "second" / "last").manifest["init_from"] == origin
