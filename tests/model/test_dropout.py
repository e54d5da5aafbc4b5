"""Dropout in its three places, and attention dropout against the textbook with the same mask."""

import math

import pytest
import torch
from torch import Tensor

from model.config import GPTConfig
from model.dropout import QUERY_BLOCK, Dropout, DropoutAttention, dropout_attention, gain, keep_mask
from model.gpt import GPT


def textbook(q: Tensor, k: Tensor, v: Tensor, scale: float, p: float) -> Tensor:
    """softmax → dropout → v over whole N×N matrices, drawing the masks block by block as the fast way does."""
    groups, n, _ = q.shape
    keep = torch.zeros(groups, n, n)
    for start in range(0, n, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n)
        keep[:, start:end, :end] = keep_mask((groups, end - start, end), p).to(keep.dtype)
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) * keep.to(q.dtype) * gain(p)) @ v


@pytest.mark.parametrize("n", [1, 63, 64, 65, 150])
def test_attention_dropout_equals_the_textbook_forward_and_backward(n: int) -> None:
    results = []
    torch.manual_seed(1)
    inputs = torch.randn(3, 4, n, 10, dtype=torch.float64)
    for attend in (textbook, DropoutAttention.apply):
        q, k, v = (x.clone().requires_grad_() for x in inputs[:, :])
        torch.manual_seed(7)
        out = attend(q, k, v, 0.3, 0.2)
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
        results.append((out, q.grad, k.grad, v.grad))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_the_gradient_written_by_hand_is_the_gradient() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same mask for every finite difference
        return dropout_attention(q, k, v, 0.5, 0.25)

    inputs = [torch.randn(1, 2, 67, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def test_the_mask_drops_the_share_that_it_says() -> None:
    kept = keep_mask((1000, 1001), 0.2).double().mean().item()
    assert kept == pytest.approx(1 - 51 / 256, abs=0.002)
    assert gain(0.2) == pytest.approx(1 / (1 - 51 / 256))


def test_dropout_is_the_identity_outside_training() -> None:
    x = torch.randn(5, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    y = Dropout(0.5).train()(x)
    assert torch.equal(y[y != 0], 2 * x[y != 0])
    assert 0 < (y == 0).sum() < 25


@pytest.mark.parametrize("place", ["embedding", "attention", "residual"])
def test_the_model_drops_in_all_three_places(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original script defined attention's dropout and never applied it."""
    model = GPT(GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.5)).train()
    probabilities = {"embedding": model.dropout, "residual": model.blocks[0].dropout}
    for name, module in probabilities.items():
        monkeypatch.setattr(module, "p", 0.5 if name == place else 0.0)
    monkeypatch.setattr(model.blocks[0].attn, "dropout", 0.5 if place == "attention" else 0.0)
    ids = torch.randint(0, 5, (2, 8))
    torch.nn.init.normal_(model.get_parameter("blocks.0.attn.qkv.weight"))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_a_seed_fixes_every_mask() -> None:
    model = GPT(GPTConfig(vocab_size=5, block_size=8, n_layer=2, n_head=2, n_embd=8)).train()
    ids = torch.randint(0, 5, (2, 8))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(model(ids))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
