"""The CUDA kernels, emulated thread by thread in random order, equal the reference bit by bit: from source, and by way of NVRTC.

Two generations of the compiler write different PTX, for compute_75 and for compute_120: `make gpu-proof` runs every shape on both.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from model.exact.probes import COUNT, SUMS
from model.params import SamplingParams
from model.sampling import sample
from tests.gpu.checkpoints import Model, nasty_model, random_model
from tests.gpu.emulated import SOURCE, Emulated, load
from tests.gpu.proof import bits, check_draw, differing_in_decode, differing_in_prefill, random_params, random_texts, reference_logits

OLD, NEW = "compute_75", "compute_120"
WHOLE = os.environ.get("FOLIO_GPU_PROOF") == "whole"
SHAPES: dict[str, dict[str, Any]] = {
    "shipped": {"vocab_size": 65, "n_embd": 256, "n_head": 6, "block_size": 256},
    "small": {"vocab_size": 65, "n_embd": 64, "n_head": 2},
    "small-wide": {"vocab_size": 65, "n_embd": 64, "n_head": 2, "wide": True},
    "gelu-biases": {"vocab_size": 300, "n_embd": 96, "n_head": 12, "activation": "gelu_tanh", "qkv_bias": True},
    "odd": {"vocab_size": 65, "n_embd": 131, "n_head": 3},
    "large-vocabulary": {"vocab_size": 3000, "n_embd": 63, "n_head": 2, "n_layer": 1, "block_size": 37},
    "gpt2-like": {
        "vocab_size": 1500,
        "n_embd": 150,
        "n_head": 3,
        "n_layer": 1,
        "block_size": 40,
        "activation": "gelu_tanh",
        "qkv_bias": True,
        "wide": True,
        "plan": {"small_weights": 0, "vector_bytes": 4096},
    },
    "long-context": {"vocab_size": 67, "n_embd": 64, "n_head": 1, "n_layer": 1, "block_size": 600, "qkv_bias": True},
    "minute": {"vocab_size": 5, "n_embd": 6, "n_head": 2, "n_layer": 1, "block_size": 9},
}
TRANSLATED = {"small": OLD, "gpt2-like": NEW, "large-vocabulary": OLD, "gelu-biases": NEW}
"""What goes through NVRTC in CI: both generations, both ways of drawing, 8 and 16 bits."""


def cases() -> list[Any]:
    """(shape, target)."""
    pairs = [(name, SOURCE) for name in SHAPES]
    pairs += [(name, arch) for name in SHAPES for arch in (OLD, NEW)] if WHOLE else list(TRANSLATED.items())
    return [pytest.param(name, target, id=f"{name}-{target}", marks=pytest.mark.needs(target)) for name, target in pairs]


def model_of(name: str) -> Model:
    return random_model(1 + list(SHAPES).index(name), **SHAPES[name])


@pytest.mark.parametrize(("name", "target"), cases())
def test_logits_have_the_references_bits(name: str, target: str) -> None:
    """One row, two, some, and more than a block's items; prefill in pieces."""
    model = model_of(name)
    length = min(model.config.block_size, 260 if name == "long-context" else 14)
    if name != "long-context":
        for size in (1, 2, 7, 33) if target == SOURCE or WHOLE else (1, 7):
            assert differing_in_decode(model, target, size, 3 if size > 7 else 6) == 0, f"{size} rows"
    assert differing_in_prefill(model, target, length) == 0


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.needs(SOURCE)
def test_the_worst_weights_change_nothing(seed: int) -> None:
    activation = "gelu_tanh" if seed % 2 else "relu"
    model = nasty_model(seed, vocab_size=70, n_embd=40, n_head=4, block_size=32, activation=activation, qkv_bias=seed > 2, wide=seed > 3)
    assert differing_in_decode(model, SOURCE, 1, 8) == 0
    assert differing_in_decode(model, SOURCE, 7, 5) == 0
    assert differing_in_prefill(model, SOURCE, 14) == 0


def with_ties(model: Model) -> Model:
    """A third of the vocabulary shares its logits with others."""
    v = model.config.vocab_size
    for name in ("lm_head.weight", "lm_head.bias"):
        model.tensors[name][v // 3 : v // 3 * 2] = model.tensors[name][: v // 3 * 2 - v // 3]
    return model


@pytest.mark.parametrize(("name", "target"), cases())
def test_tokens_and_log_probabilities_are_the_references(name: str, target: str) -> None:
    """Every parameter of sampling, logits flat and peaked, with ties; many rows at once."""
    model, size, g = model_of(name), 24, np.random.default_rng(3)
    v = model.config.vocab_size
    for scale, draws in ((1.0, 6), (0.02, 3)) if v < 1000 else ((1.0, 2),):
        if scale != 1:
            with_ties(model)
            model.tensors["lm_head.weight"] *= np.float32(scale)
        emulated = Emulated(model, size, size, target=target, seed=5)
        for _ in range(draws):
            requests = []
            for row in range(size):
                prompt, generated = g.integers(0, v, 5).tolist(), g.integers(0, v, int(g.integers(0, 9))).tolist()
                requests.append((random_params(g, v), prompt, generated))
                emulated.set_row(row, *requests[-1])
            emulated.set_items(list(range(size)), g.integers(0, v, size).tolist(), [0] * size, limit=1)
            logits = emulated.step()
            for item, (params, prompt, generated) in enumerate(requests):
                token = check_draw(emulated, item, 0, logits[item], params, prompt, generated)
                assert emulated.arrays["counts"][item, token] == generated.count(token) + 1
                assert emulated.arrays["row"][item] == -1


@pytest.mark.parametrize(("name", "target"), cases())
def test_bursts_generate_what_the_reference_generates(name: str, target: str) -> None:
    """Rows of several parameters, each with as many tokens a burst as it likes; a second burst goes on where the first ended."""
    model = model_of(name)
    v, bursts = model.config.vocab_size, [(1, 3, 4, 2), (2, 2, 1, 3)]
    if model.config.block_size < 20:
        bursts = [(1, 2, 2, 1), (1, 1, 1, 2)]
    texts = random_texts(model, 4)
    requests = [
        SamplingParams(seed=row, temperature=0.9 * (row != 1), top_k=5 * (row == 2), min_p=0.05 * (row == 3), repetition_penalty=1.2)
        for row in range(4)
    ]
    emulated = Emulated(model, 4, 16, steps=4, target=target, seed=9)
    prompts = [texts[row % 3].tolist() for row in range(4)]
    generated: list[list[int]] = [[] for _ in requests]
    for row, params in enumerate(requests):
        emulated.set_row(row, params, prompts[row], [])
    body = [(row, token, at) for row in range(4) for at, token in enumerate(prompts[row][:-1])]
    emulated.set_items(*(list(x) for x in zip(*body, strict=True)))
    emulated.step(distinct=False, logits=False)
    for limits in bursts:
        last = [[*prompts[row], *generated[row]] for row in range(4)]
        emulated.set_items(list(range(4)), [text[-1] for text in last], [len(text) - 1 for text in last])
        emulated.arrays["limit"][:4] = limits
        for _ in range(max(limits)):
            emulated.step()
        for row, limit in enumerate(limits):
            generated[row] += emulated.arrays["out"][row, :limit].tolist()
    for row, params in enumerate(requests):
        text = [*prompts[row], *generated[row]]
        logits = model.reference()
        for n, token in enumerate(generated[row]):
            so_far = text[: len(prompts[row]) + n]
            assert token == sample(logits.next_logits(so_far), params, prompts[row], generated[row][:n]), f"row {row}, token {n} of {v}"


@pytest.mark.parametrize(("name", "target"), [case for case in cases() if case.values[0] in ("small", "large-vocabulary")])
def test_guesses_change_no_token(name: str, target: str) -> None:
    """Rows bring guesses, right ones, wrong ones and none: what is kept is what one token at a time would have drawn."""
    model = model_of(name)
    params = [SamplingParams(seed=row, frequency_penalty=0.7, repetition_penalty=1.3, num_logprobs=2) for row in range(3)]
    prompts = [text[:3].tolist() for text in random_texts(model, 3)]
    reference, wanted = model.reference(), []
    for row in range(3):
        tokens: list[int] = []
        while len(tokens) < 5:
            tokens.append(sample(reference.next_logits([*prompts[row], *tokens]), params[row], prompts[row], tokens))
        wanted.append(tokens)
    wrong = (wanted[1][1] + 1) % model.config.vocab_size
    guesses = [wanted[0][:3], [wanted[1][0], wrong, wanted[1][2]], []]
    emulated = Emulated(model, 3, 16, target=target, seed=2)
    body = [(row, token, at) for row in range(3) for at, token in enumerate(prompts[row][:-1])]
    emulated.set_items(*(list(x) for x in zip(*body, strict=True)))
    emulated.step(distinct=False, logits=False)
    for row in range(3):
        emulated.set_row(row, params[row], prompts[row], [])
    items = [(row, token, len(prompts[row]) - 1 + i) for row in range(3) for i, token in enumerate([prompts[row][-1], *guesses[row]])]
    emulated.set_items(*(list(x) for x in zip(*items, strict=True)), limit=1)
    logits = emulated.step(distinct=False, drafts=True)
    first = 0
    for row, kept in enumerate((4, 2, 1)):
        assert emulated.arrays["drawn"][first] == kept
        assert emulated.arrays["out"][first : first + kept, 0].tolist() == wanted[row][:kept]
        for i in range(kept):
            check_draw(emulated, first + i, 0, logits[first + i], params[row], prompts[row], wanted[row][:i])
        assert emulated.arrays["rows"]["index"][row] == kept
        counts = np.bincount(wanted[row][:kept], minlength=model.config.vocab_size)
        assert (emulated.arrays["counts"][row] == counts).all()
        first += 1 + len(guesses[row])


@pytest.mark.parametrize(("name", "target"), cases())
def test_a_copied_prefix_is_what_the_row_would_have_computed(name: str, target: str) -> None:
    """Whole words and parts of them, over what the row held before, and back."""
    model = model_of(name)
    length = min(model.config.block_size, 9)
    texts = random_texts(model, length)
    wanted = reference_logits(model, texts)
    emulated = Emulated(model, 3, length, target=target, seed=4)
    for row, text in ((0, texts[0]), (1, texts[1])):
        emulated.run([row] * length, text.tolist(), list(range(length)), distinct=False)
    for source, target_row, n in ((0, 2, length - 1), (2, 1, 5), (1, 2, 3)):
        emulated.copy_prefix(source, target_row, n)
        logits = emulated.run([target_row] * (length - n), texts[0][n:].tolist(), list(range(n, length)), distinct=False)
        assert (bits(logits) == bits(wanted[0][n:])).all(), (source, target_row, n)


@pytest.mark.parametrize("target", [pytest.param(t, marks=pytest.mark.needs(t)) for t in (SOURCE, OLD, NEW)])
def test_every_function_of_one_element_has_its_sums(target: str) -> None:
    """Probes: by the kernel, and by the compiler of the emulator in a plain loop."""
    model, wanted = model_of("small"), list(SUMS.values())
    assert Emulated(model, 1, 1, target=target).probe_sums(len(wanted), COUNT) == wanted
    if target == SOURCE:
        library = load(model.plan, target)
        assert [library.probe_sum(f, COUNT) for f in range(len(wanted))] == wanted


@pytest.mark.needs(SOURCE)
def test_a_wrong_bit_is_noticed() -> None:
    """The comparison is one: a model with another last bit in one scale has other logits."""
    model = model_of("small")
    texts = random_texts(model, 4)
    wanted = reference_logits(model, texts)[0, 0]
    emulated = Emulated(model, 1, 1)
    scale = emulated.arrays["head_scale"].view(np.int32)
    scale += 1
    assert (bits(emulated.run([0], [int(texts[0][0])], [0])[0]) != bits(wanted)).any()
