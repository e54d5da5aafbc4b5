"""The sampler against a plain one written from the documentation alone, with lists and loops."""

import dataclasses
import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.params import MAX_SEED, SamplingParams
from model.sampling import SamplerState, log_probabilities, rank_tokens, sample, uniform, uniform_tensor

V = 13
logit_lists = st.lists(st.floats(-8, 8, width=32), min_size=V, max_size=V)


def plain_sample(logits: list[float], p: SamplingParams, prompt: list[int], generated: list[int]) -> int:
    """One token, step by step: bias, repetition, frequency, presence, temperature, min-p, top-k, top-p, inverse CDF."""
    x = list(logits)
    for token, addend in p.logit_bias:
        x[token] += addend
    for token in set(prompt) | set(generated):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(generated):
        x[token] -= p.frequency_penalty * generated.count(token) + p.presence_penalty
    if p.temperature == 0:
        return x.index(max(x))
    top = max(x)
    weight = [math.exp((value - top) / p.temperature) for value in x]
    order = sorted(range(len(x)), key=lambda token: (-weight[token], token))
    kept = [token for token in order if weight[token] >= p.min_p * weight[order[0]]]
    kept = kept[: p.top_k] if p.top_k else kept
    mass, reached = sum(weight[t] for t in kept), 0.0
    nucleus: list[int] = []
    for token in kept:
        if nucleus and p.top_p < 1 and reached >= p.top_p * mass:
            break
        nucleus.append(token)
        reached += weight[token]
    cdf = list(accumulate(weight[t] if t in nucleus else 0.0 for t in range(len(x))))
    target = uniform(p.seed, len(generated)) * cdf[-1]
    return min(next((t for t, c in enumerate(cdf) if c > target), len(x) - 1), max(nucleus))


def draw(logits: list[float], params: SamplingParams, prompt: list[int], generated: list[int], any_filter: bool = True) -> int:
    state = SamplerState.zeros(1, len(logits))
    state.set_row(0, params, prompt, generated)
    return int(sample(torch.tensor([logits]), state, any_filter=any_filter))


def draws(logits: Tensor, count: int, **fields: float) -> Tensor:
    """Tokens ``0 … count − 1`` of the stream of seed 5 from one distribution."""
    state = SamplerState.zeros(count, len(logits))
    state.seed.fill_(5)
    state.index.copy_(torch.arange(count))
    for name, value in fields.items():
        getattr(state, name).fill_(value)
    return sample(logits.expand(count, -1), state)


@given(st.integers(0, MAX_SEED), st.integers(0, 2**40))
def test_the_tensor_hash_is_the_python_hash(seed: int, index: int) -> None:
    assert uniform_tensor(torch.tensor([seed]), torch.tensor([index])).tolist() == [uniform(seed, index)]
    assert 0 <= uniform(seed, index) < 1


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


def test_a_quarter_of_a_million_draws_follow_the_softmax() -> None:
    n, logits = 250_000, torch.randn(V)
    counts = torch.bincount(draws(logits, n), minlength=V).double()
    expected = logits.double().softmax(-1) * n
    assert ((counts - expected) ** 2 / expected).sum().item() < 40  # 12 degrees of freedom: p < 1e-4 beyond


parameters = st.builds(
    SamplingParams,
    seed=st.integers(0, MAX_SEED),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.5, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 5, V, V + 4]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
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
    assert draw(logits, params, prompt, generated) == plain_sample(logits, params, prompt, generated)


@pytest.mark.parametrize(
    "fields",
    [{"top_k": 2}, {"top_k": V}, {"top_p": 0.6}, {"min_p": 0.5}, {"top_k": 5, "top_p": 0.5}, {"min_p": 0.05, "top_p": 0.9}],
)
def test_filters_keep_what_they_say_and_nothing_else(fields: dict[str, float]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.2, *[1e-3] * (V - 3)]).log()
    probs = logits.softmax(-1)
    seen = set(draws(logits, 20_000, **fields).tolist())
    expected = {plain_sample(logits.tolist(), SamplingParams(seed=s, **fields), [], []) for s in range(3000)}  # type: ignore[arg-type]
    assert seen == expected
    assert probs[list(seen)].min() >= probs[[t for t in range(V) if t not in seen]].max() if len(seen) < V else True


def test_neutral_values_change_no_bit() -> None:
    logits = torch.randn(V)
    plain = draws(logits, 20_000)
    for neutral in ({"top_k": V}, {"top_k": 10**9}, {"top_p": 1.0}, {"min_p": 0.0}, {"repetition": 1.0}, {"frequency": 0.0}):
        assert torch.equal(draws(logits, 20_000, **neutral), plain), neutral
    for seed in range(200):
        params = SamplingParams(seed=seed)
        assert draw(logits.tolist(), params, [1], [2], any_filter=False) == draw(logits.tolist(), params, [1], [2])
        assert draw(logits.tolist(), dataclasses.replace(params, logit_bias=((3, 0.0),)), [1], [2]) == draw(
            logits.tolist(), params, [1], [2]
        )


def test_a_last_bit_moves_a_token_only_at_a_true_tie() -> None:
    """A sampler that numbers its candidates by rank turns one last bit into another text."""
    n, logits = 50_000, torch.randn(V)
    u = uniform_tensor(torch.full((n,), 5), torch.arange(n))
    border = logits.double().softmax(-1).cumsum(-1)
    before = draws(logits, n)
    for token in range(V):
        changed = logits.clone()
        changed[token] = torch.nextafter(changed[token], torch.tensor(math.inf))
        moved = draws(changed, n) != before
        distance = (u[moved, None] - border).abs().amin(-1)
        assert (distance < 1e-6).all()
        assert moved.sum() <= 2


def test_ties_go_to_the_lower_id() -> None:
    flat = [0.0] * V
    for seed in range(50):
        assert draw(flat, SamplingParams(seed=seed, temperature=0.0), [], []) == 0
        assert draw(flat, SamplingParams(seed=seed, top_k=1), [], []) == 0
        assert draw(flat, SamplingParams(seed=seed, top_k=3), [], []) in (0, 1, 2)
        assert draw(flat, SamplingParams(seed=seed, top_p=0.2), [], []) in (0, 1, 2)
    assert rank_tokens([-1.0, -0.5, -0.5, -2.0], 3) == [1, 2, 0]


def test_a_banned_token_never_comes_and_a_forced_one_always() -> None:
    for seed in range(200):
        assert draw([0.0] * V, SamplingParams(seed=seed, logit_bias=((4, 100.0),)), [], []) == 4
        assert draw([0.0, 0.0], SamplingParams(seed=seed, logit_bias=((1, -100.0),)), [], []) == 0


def test_history_is_entered_for_active_rows_only() -> None:
    state = SamplerState.zeros(2, 4)
    state.advance(torch.tensor([3, 2]), torch.tensor([1, 0]))
    assert state.counts.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert state.index.tolist() == [1, 0]
    state.rows(1, 2).index.fill_(9)
    assert state.index.tolist() == [1, 9]


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.randn(2, V)
    torch.testing.assert_close(log_probabilities(logits).exp().sum(-1), torch.ones(2, dtype=torch.float64))
