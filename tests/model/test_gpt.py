"""The described system: its sizes, its initialisation, its three dropouts, its causality."""

import dataclasses
import math

import pytest
import torch

from model.config import ConfigError, GPTConfig
from model.gpt import GPT, MultiHeadAttention

DESCRIBED = GPTConfig(vocab_size=65)


@pytest.mark.parametrize(("block_size", "parameters"), [(256, 4_023_873), (128, 3_991_105)])
def test_number_of_parameters(block_size: int, parameters: int) -> None:
    config = GPTConfig(vocab_size=65, block_size=block_size)
    assert config.num_parameters == parameters == GPT(config).num_parameters


def test_heads_of_42_on_a_width_of_256() -> None:
    attention = MultiHeadAttention(DESCRIBED)
    assert (DESCRIBED.head_size, DESCRIBED.attn_width) == (42, 252)
    assert attention.qkv.weight.shape == (3 * 252, 256)
    assert attention.qkv.bias is None
    assert attention.proj.weight.shape == (256, 252)


@pytest.mark.parametrize(
    "config", [DESCRIBED, GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=2, n_embd=7, qkv_bias=True, activation="gelu_tanh")]
)
def test_parameter_shapes_are_those_of_the_state_dict(config: GPTConfig) -> None:
    assert {name: tuple(t.shape) for name, t in GPT(config).state_dict().items()} == config.parameter_shapes


def test_logits_have_the_shape_of_the_ids_and_the_vocabulary(small: GPT) -> None:
    assert small(torch.randint(0, 11, (3, 8))).shape == (3, 8, 11)
    assert small(torch.zeros(1, 1, dtype=torch.int64)).shape == (1, 1, 11)
    with pytest.raises(ValueError, match="9 tokens do not fit the context of 8"):
        small(torch.zeros(1, 9, dtype=torch.int64))


def test_initial_weights_are_gpt2s() -> None:
    model = GPT(DESCRIBED)
    expected = {"token_embedding.weight": 0.02, "blocks.0.attn.qkv.weight": 0.02, "lm_head.weight": 0.02}
    expected |= {f"blocks.4.{name}.weight": 0.02 / math.sqrt(10) for name in ("attn.proj", "mlp.down")}
    for name, std in expected.items():
        assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.03), name
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


def test_the_initial_loss_is_that_of_guessing() -> None:
    logits = GPT(DESCRIBED).eval()(torch.randint(0, 65, (4, 256)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 65, (4 * 256,)))
    assert loss.item() == pytest.approx(math.log(65), abs=0.05)


def test_no_token_sees_the_future(small: GPT) -> None:
    ids = torch.randint(0, 11, (1, 8))
    for position in range(1, 8):
        changed = ids.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 11
        assert torch.equal(small(ids)[:, :position], small(changed)[:, :position])
        assert not torch.allclose(small(ids)[:, position], small(changed)[:, position])


def test_attention_is_scaled_by_the_head_size() -> None:
    """The original script scaled by the width of the model instead: scores four times too small."""
    attention = MultiHeadAttention(GPTConfig(vocab_size=2, n_head=3, n_embd=16)).eval()
    x = torch.randn(2, 6, 16)
    q, k, v = attention.qkv(x).split(15, dim=-1)
    heads = []
    for h in range(3):
        part = slice(5 * h, 5 * h + 5)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * 5**-0.5
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


def test_the_final_norm_is_applied(small: GPT) -> None:
    """The original script defined it and never called it."""
    ids = torch.randint(0, 11, (1, 8))
    before = small(ids)
    torch.nn.init.constant_(small.ln_f.weight, 2.0)
    torch.testing.assert_close(small(ids) - small.lm_head.bias, 2 * (before - small.lm_head.bias))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 0}, "n_layer must be an integer from 1"),
        ({"n_layer": 10**9}, "n_layer must be an integer from 1 to 1024"),
        ({"n_head": True}, "n_head must be of type int"),
        ({"n_head": 300}, "n_embd must be at least n_head"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"dropout": float("nan")}, "dropout must be in"),
        ({"block_size": 256.0}, "block_size must be of type int"),
        ({"activation": "swish"}, "activation must be 'relu' or 'gelu_tanh'"),
        ({"n_embd": 8192}, "n_embd must be an integer from 1 to 8191"),
        ({"block_size": 8192}, "block_size must be an integer from 1 to 8191"),
        ({"vocab_size": 2**22 + 1}, "vocab_size must be an integer from 1 to 4194304"),
        ({"arithmetic": "w4a4"}, "arithmetic must be 'w8a8' or 'w8a16', got 'w4a4': a newer Folio may know it"),
        ({"rope": True}, "unknown configuration field 'rope': a newer Folio may know it"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTConfig.from_json({**DESCRIBED.to_json(), **change})


def test_a_configuration_survives_json() -> None:
    assert GPTConfig.from_json(DESCRIBED.to_json()) == DESCRIBED
    wide = dataclasses.replace(DESCRIBED, arithmetic="w8a16")
    assert GPTConfig.from_json(wide.to_json()) == wide
    assert "arithmetic" not in DESCRIBED.to_json()  # checkpoints of before keep their bytes, and so their ids
    assert GPTConfig.from_json({"vocab_size": 3, "dropout": 0}).dropout == 0
    with pytest.raises(ConfigError, match="vocab_size is missing"):
        GPTConfig.from_json({})
