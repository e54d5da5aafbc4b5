"""The sampler against a plain one written from the documentation alone, with lists, loops and Python's unbounded integers."""

import dataclasses
import math
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.exact.arithmetic import exp64
from model.params import MAX_SEED, SamplingParams
from model.sampling import ONE, draw, filtered, log_probabilities, rank_tokens, sample, weight
from model.uniform import u53, u53_tensor, uniform_tensor

V = 13
logit_lists = st.lists(st.floats(-8, 8, width=32), min_size=V, max_size=V)


def plain_sample(logits: list[float], p: SamplingParams, prompt: list[int], generated: list[int]) -> int:
    """One token, step by step: bias, repetition, frequency, presence, temperature, min-p, top-k, top-p, inverse CDF."""
    x = [logit + sum(addend for biased, addend in p.logit_bias if biased == token) for token, logit in enumerate(logits)]
    for token in set(prompt) | set(generated):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(generated):
        x[token] = x[token] - p.frequency_penalty * generated.count(token) - p.presence_penalty
    if p.temperature == 0:
        return x.index(max(x))
    scaled = [(value - max(x)) / p.temperature for value in x]
    weights = [round(Fraction(float(exp64(np.array(value)))) * 2**40) for value in scaled]
    order = sorted(range(len(x)), key=lambda token: (-weights[token], token))
    kept = [token for token in order if weights[token] >= round(Fraction(p.min_p) * 2**40)]
    kept = kept[: p.top_k] if p.top_k else kept
    mass = sum(weights[t] for t in kept)
    limit, reached = max(1, math.floor(round(Fraction(p.top_p) * 2**53) * mass / Fraction(2**53))), 0
    nucleus: set[int] = set()
    for token in kept:
        if reached >= limit:
            break
        nucleus.add(token)
        reached += weights[token]
    cdf = list(accumulate(weights[t] if t in nucleus else 0 for t in range(len(x))))
    target = u53(p.seed, len(generated)) * cdf[-1] // 2**53
    return next(t for t, c in enumerate(cdf) if c > target)


def draws(logits: NDArray[np.float32], count: int, **fields: float) -> NDArray[np.int64]:
    """Tokens ``0 … count - 1`` of the stream of seed 5 from one distribution."""
    params = SamplingParams(seed=5, **fields)  # type: ignore[arg-type]
    weights = filtered(weight(logits.astype(np.float64), float(logits.max()), params.temperature), params)
    return np.array([draw(weights, u53(5, index)) for index in range(count)])


def normal_logits(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=V).astype(np.float32)


@given(st.integers(0, MAX_SEED), st.integers(0, 2**40))
def test_the_tensor_hash_is_the_python_hash(seed: int, index: int) -> None:
    assert u53_tensor(torch.tensor([seed]), torch.tensor([index])).tolist() == [u53(seed, index)]
    assert uniform_tensor(torch.tensor([seed]), torch.tensor([index])).tolist() == [u53(seed, index) / 2**53]
    assert 0 <= u53(seed, index) < 2**53


def test_random_numbers_are_uniform_along_a_stream_and_across_seeds() -> None:
    n = 100_000
    for numbers in (
        uniform_tensor(torch.full((n,), 3), torch.arange(n)),
        uniform_tensor(torch.arange(n), torch.zeros(n, dtype=torch.int64)),
    ):
        counts = torch.histc(numbers, bins=100, min=0, max=1)
        chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum().item()
        assert chi_square < 160  # 99 degrees of freedom: p < 1e-4 beyond
        assert abs(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1].item()) < 0.02


def test_draws_follow_the_softmax() -> None:
    n, logits = 50_000, normal_logits()
    counts = np.bincount(draws(logits, n), minlength=V)
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum() * n
    assert ((counts - expected) ** 2 / expected).sum() < 40  # 12 degrees of freedom: p < 1e-4 beyond


def test_weights_are_probabilities_in_units_of_the_largest() -> None:
    x = np.random.default_rng(1).normal(0, 8, 1000)
    weights = weight(x, x.max(), 0.7)
    exact = np.array([math.exp((value - x.max()) / 0.7) * ONE for value in x])
    assert weights.max() == ONE
    assert np.abs(weights - exact).max() <= 0.5 + 1e-13 * ONE


parameters = st.builds(
    SamplingParams,
    seed=st.integers(0, MAX_SEED),
    temperature=st.sampled_from([0.0, 1e-9, 0.1, 0.7, 1.0, 2.5, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 5, V, V + 4]),
    top_p=st.one_of(st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.999, 1.0]), st.floats(0, 1)),
    min_p=st.one_of(st.sampled_from([0.0, 0.01, 1.0]), st.floats(0, 1)),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 10.0]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 0.4]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 2.0]),
    logit_bias=st.lists(st.tuples(st.integers(0, V - 1), st.floats(-100, 100)), max_size=3).map(tuple),
)


@settings(max_examples=400, deadline=None)
@given(logit_lists, parameters, st.lists(st.integers(0, V - 1), max_size=9), st.lists(st.integers(0, V - 1), max_size=9))
def test_every_filter_and_penalty_against_the_plain_sampler(
    logits: list[float], params: SamplingParams, prompt: list[int], generated: list[int]
) -> None:
    assert sample(np.array(logits, np.float32), params, prompt, generated) == plain_sample(logits, params, prompt, generated)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 2**53 - 1))
def test_a_draw_is_the_inverse_cdf_in_exact_integers(weights: list[int], fraction: int) -> None:
    weights[0] += 1
    cdf = list(accumulate(weights))
    expected = next(i for i, c in enumerate(cdf) if Fraction(c) > math.floor(Fraction(fraction, 2**53) * cdf[-1]))
    assert draw(np.array(weights), fraction) == expected
    assert weights[expected] > 0


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_k": V}, list(range(V))),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.0}, [0]),
        ({"min_p": 0.5}, [0, 1]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 5, "top_p": 0.5}, [0]),
        ({"min_p": 0.05, "top_p": 0.9}, [0, 1, 2]),
    ],
)
def test_filters_keep_what_they_say_and_nothing_else(fields: dict[str, float], kept: list[int]) -> None:
    x = np.log(np.array([0.51, 0.3, 0.18, *[1e-3] * (V - 3)]))
    weights = filtered(weight(x, x.max(), 1.0), SamplingParams(**fields))  # type: ignore[arg-type]
    assert np.flatnonzero(weights).tolist() == kept
    assert (weights[kept] == weight(x, x.max(), 1.0)[kept]).all()


def test_neutral_values_change_nothing() -> None:
    logits = normal_logits()
    for seed in range(200):
        plain = SamplingParams(seed=seed)
        expected = sample(logits, plain, [1], [2])
        for neutral in ({"top_k": V}, {"top_k": 10**9}, {"top_p": 1.0}, {"min_p": 0.0}, {"logit_bias": ((3, 0.0),)}):
            assert sample(logits, dataclasses.replace(plain, **neutral), [1], [2]) == expected, neutral


def test_addends_for_one_token_are_summed() -> None:
    logits = normal_logits()
    for seed in range(50):
        twice = SamplingParams(seed=seed, logit_bias=((3, 0.7), (3, 0.9)))
        assert sample(logits, twice, [], []) == sample(logits, SamplingParams(seed=seed, logit_bias=((3, 0.7 + 0.9),)), [], [])


def test_a_last_bit_moves_a_token_only_at_a_true_tie() -> None:
    """A sampler that numbers its candidates by rank turns one last bit into another text."""
    n, logits = 5_000, normal_logits()
    before = draws(logits, n)
    for token in range(V):
        changed = logits.copy()
        changed[token] = np.nextafter(changed[token], np.float32(np.inf))
        assert (draws(changed, n) != before).sum() <= 1


def test_ties_go_to_the_lower_id() -> None:
    flat = np.zeros(V, np.float32)
    for seed in range(50):
        assert sample(flat, SamplingParams(seed=seed, temperature=0.0), [], []) == 0
        assert sample(flat, SamplingParams(seed=seed, top_k=1), [], []) == 0
        assert sample(flat, SamplingParams(seed=seed, top_k=3), [], []) in (0, 1, 2)
        assert sample(flat, SamplingParams(seed=seed, top_p=0.2), [], []) in (0, 1, 2)
    assert rank_tokens(np.array([-1.0, -0.5, -0.5, -2.0]), 3) == [1, 2, 0]


def test_a_banned_token_never_comes_and_a_forced_one_always() -> None:
    for seed in range(200):
        assert sample(np.zeros(V, np.float32), SamplingParams(seed=seed, logit_bias=((4, 100.0),)), [], []) == 4
        assert sample(np.zeros(2, np.float32), SamplingParams(seed=seed, logit_bias=((1, -100.0),)), [], []) == 0


def test_log_probabilities_are_the_models_own() -> None:
    logits = normal_logits() * np.float32(3)
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    assert np.abs(log_probabilities(logits) - expected).max() < 1e-11
