"""The reference itself: against a transcription in Python's own numbers, against floating point, and however a text is cut."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.checkpoint.files import read_checkpoint
from model.config import GPTConfig
from model.exact import arithmetic as ar
from model.exact.__main__ import main
from model.exact.generate import generate
from model.exact.network import Cache, ExactModel, product
from model.gpt import GPT
from model.params import SamplingParams
from model.sampling import sample
from model.window import window_start
from tests.model.random_models import CONFIGS, RandomModel, calm_model, random_model

Float = Any
"""A single float32; numpy's types widen them."""
SHIPPED = Path(__file__).parents[2] / "model" / "pretrained"


def bits(logits: NDArray[np.float32]) -> list[int]:
    return logits.view(np.int32).ravel().tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_any_way_of_cutting_a_text_gives_the_same_bits(name: str) -> None:
    source = random_model(name)
    model, rng = ExactModel(source.config, source.tensors), random.Random(name)
    tokens = [rng.randrange(source.config.vocab_size) for _ in range(min(source.config.block_size, 70))]
    expected = model.text_logits(tokens)
    assert np.isfinite(expected).all()
    assert len(set(bits(expected))) > expected.size // 4, "a model whose logits are all alike proves nothing"
    for longest in (1, 7):
        cache, parts = Cache(source.config), []
        while cache.length < len(tokens):
            piece = tokens[cache.length : cache.length + rng.randint(1, longest)]
            parts.append(model.logits(model.hidden(np.array([piece]), cache))[0])
        assert bits(np.concatenate(parts)) == bits(expected)


def test_sequences_side_by_side_do_not_notice_each_other() -> None:
    source = random_model("gelu")
    model, rng = ExactModel(source.config, source.tensors), np.random.default_rng(1)
    tokens = rng.integers(0, source.config.vocab_size, (5, 30))
    together = model.logits(model.hidden(tokens, Cache(source.config, 5)))
    for row in range(5):
        assert bits(together[row]) == bits(model.text_logits(tokens[row].tolist()))


def test_products_are_exact_at_the_limits() -> None:
    """The largest sums that a model may have: 4 · 8191 inputs of 255 and weights of 127."""
    k = 4 * 8191
    a = np.full((1, k), 255, np.float32)
    b = np.full((2, k), 127, np.float32)
    b[1, ::2] = -126
    assert product(a, b).tolist() == [[255 * 127 * k, 255 * (127 - 126) * (k // 2)]]
    assert product(a, b).max() < 2**31


def plain_logits(source: RandomModel, tokens: list[int]) -> list[Float]:
    """Logits after ``tokens``, one number at a time: the definition once more, without arrays, batches or a cache."""
    f32, config, t = np.float32, source.config, source.tensors
    wide = config.arithmetic == "w8a16"

    def quantise(y: list[Float], levels: int) -> tuple[list[int], Float]:
        a = max(abs(v) for v in y)
        if a < f32(2.0**-40):
            return [0] * len(y), f32(0)
        return [round(float(v * (f32(levels) / a))) for v in y], a / f32(levels)

    def small(value: Float) -> Float:
        return f32(0) if abs(value) < f32(2.0**-40) else value

    def linear(name: str, y: list[Float], levels: int = 127) -> list[Float]:
        q, scale = quantise(y, 32639 if wide else levels)
        out = []
        for o, row in enumerate(t[name + ".weight"]):
            w, scale_w = quantise(list(row), 127)
            acc = sum(x * v for x, v in zip(q, w, strict=True))
            bias = small(t[name + ".bias"][o]) if name + ".bias" in t else f32(0)
            out.append(np.array(acc, np.int64).astype(f32) * (scale * scale_w) + bias)
        return out

    def norm(name: str, x: list[int]) -> list[Float]:
        c = f32(len(x))
        mean = round(float(np.array(sum(x)).astype(f32) / c))
        v = np.array(sum((value - mean) ** 2 for value in x)).astype(f32)
        r = f32(1) / np.sqrt(v / c + f32(1e-5 * 2**24))
        parameters = zip(x, t[name + ".weight"], t[name + ".bias"], strict=True)
        return [f32(value - mean) * r * small(weight) + small(bias) for value, weight, bias in parameters]

    def add(x: list[int], y: list[Float]) -> list[int]:
        steps = [round(float(min(max(v * f32(4096), f32(-(2.0**26))), f32(2.0**26)))) for v in y]
        return [min(max(a + b, -(2**25)), 2**25) for a, b in zip(x, steps, strict=True)]

    def head(q: list[Float], ks: list[list[Float]], vs: list[list[Float]]) -> list[Float]:
        (q8, scale_q), keys, values = quantise(q, 127), [quantise(k, 127) for k in ks], [quantise(v, 127) for v in vs]
        root = f32(1) / np.sqrt(f32(config.head_size))
        scores = [f32(sum(a * b for a, b in zip(q8, k, strict=True))) * (scale_q * s * root) for k, s in keys]
        e = [ar.exp(np.array(score - max(scores)))[()] for score in scores]
        z = f32(sum(round(float(x * f32(2**20))) for x in e))
        weights = [x * s for x, (_, s) in zip(e, values, strict=True)]
        top = max(weights)
        if top == 0:
            return [f32(0)] * len(q)
        shares = [round(float(w * (f32(255) / top))) for w in weights]
        factor = (top / f32(255)) / (z * f32(2.0**-20))
        return [f32(sum(u * v[d] for u, (v, _) in zip(shares, values, strict=True))) * factor for d in range(len(q))]

    xs = []
    for position, token in enumerate(tokens):
        both = zip(t["token_embedding.weight"][token], t["position_embedding.weight"][position], strict=True)
        xs.append([min(max(round(float(a * f32(4096))) + round(float(b * f32(4096))), -(2**25)), 2**25) for a, b in both])
    for layer in range(config.n_layer):
        b, width, d = f"blocks.{layer}.", config.attn_width, config.head_size
        qkv = [linear(b + "attn.qkv", norm(b + "ln_1", x)) for x in xs]
        for i in reversed(range(len(xs))):
            heads: list[Float] = []
            for h in range(0, width, d):
                ks, vs = ([y[part * width + h : part * width + h + d] for y in qkv[: i + 1]] for part in (1, 2))
                heads += head(qkv[i][h : h + d], ks, vs)
            xs[i] = add(xs[i], linear(b + "attn.proj", heads))
            up = linear(b + "mlp.up", norm(b + "ln_2", xs[i]))
            if config.activation == "relu":
                xs[i] = add(xs[i], linear(b + "mlp.down", [max(v, f32(0)) for v in up], 255))
            else:
                xs[i] = add(xs[i], linear(b + "mlp.down", list(ar.gelu(np.array(up)))))
    return linear("lm_head", norm("ln_f", xs[-1]))


@pytest.mark.parametrize("name", ["one head", "odd", "gelu", "wide relu"])
def test_the_definition_once_more_without_arrays(name: str) -> None:
    source = random_model(name, seed=1)
    tokens = [3, 1, 4, 1, 5]
    assert bits(np.array(plain_logits(source, tokens))) == bits(ExactModel(source.config, source.tensors).next_logits(tokens))


@pytest.mark.parametrize(("arithmetic", "distance"), [("w8a8", 0.03), ("w8a16", 0.02)])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_logits_are_near_those_of_the_float_model(arithmetic: str, distance: float, activation: str) -> None:
    config = GPTConfig(vocab_size=50, block_size=40, n_layer=2, n_head=3, n_embd=64, activation=activation, arithmetic=arithmetic)  # type: ignore[arg-type]
    source, tokens = calm_model(config, scale=0.1), list(range(40))
    model = GPT(config).eval()
    model.load_state_dict({name: torch.from_numpy(w) for name, w in source.tensors.items()})
    with torch.no_grad():
        expected = model(torch.tensor([tokens]))[0].numpy()
    difference = np.abs(ExactModel(config, source.tensors).text_logits(tokens) - expected).max()
    assert difference < distance * np.abs(expected).max()


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 8, 13])
def test_generate_equals_brute_force_beyond_the_context(stride: int | None, length: int) -> None:
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=3, n_embd=16)
    model = ExactModel(config, calm_model(config).tensors)
    prompt = [i * 7 % 11 for i in range(length)]
    params = SamplingParams(max_new_tokens=25, seed=11, stride=stride, repetition_penalty=1.2, presence_penalty=0.3, top_p=0.95)
    tokens, expected = prompt or [2], list[int]()
    for _ in range(params.max_new_tokens):
        window = tokens[window_start(len(tokens), 8, stride or 1) :]
        expected.append(sample(model.next_logits(window), params, prompt, expected))
        tokens = [*tokens, expected[-1]]
    assert list(generate(model, prompt, params, start=2)) == expected
    assert len(set(expected)) > 3


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=3, n_embd=16)
    model = ExactModel(config, calm_model(config).tensors)
    texts = [list(generate(model, [1], SamplingParams(max_new_tokens=30, seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert list(generate(model, [1], SamplingParams(max_new_tokens=7, seed=1))) == texts[0][:7]


def test_more_tokens_than_the_context_are_refused() -> None:
    config = GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4)
    with pytest.raises(ValueError, match="5 tokens do not fit the context of 4"):
        ExactModel(config, calm_model(config).tensors).next_logits([1, 2, 0, 1, 2])


def test_the_command_line_prints_logits_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SHIPPED), "--prompt", "ROMEO:", "--tokens", "8", "--seed", "3"]) == 0
    digest, text = capsys.readouterr().out.split("\n", 1)
    checkpoint = read_checkpoint(SHIPPED)
    prompt = checkpoint.tokenizer.encode("ROMEO:")
    model = ExactModel(checkpoint.config, checkpoint.tensors)
    expected = checkpoint.tokenizer.decode(list(generate(model, prompt, SamplingParams(max_new_tokens=8, seed=3))))
    assert digest.startswith("logits sha256:")
    assert text == f"ROMEO:{expected}\n"


@pytest.mark.parametrize("arguments", [["/nowhere"], [str(SHIPPED), "--prompt", "☃"]])
def test_the_command_line_says_what_is_wrong_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
