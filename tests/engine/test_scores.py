"""Scoring: tokens that are there already come out as they are, with the log-probabilities that generating them would have had."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from model.params import SamplingParams
from service.worker.messages import Submit
from tests.engine.conftest import BLOCK, Driver, MakeCore, random_request
from tests.engine.kernels import ENGINES

ANY = SamplingParams(max_new_tokens=BLOCK + 5, num_logprobs=3, temperature=1.7, seed=5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_texts_scores_are_those_of_its_generation(make_core: MakeCore, engine: str) -> None:
    """Across the end of the window too, beside texts that are sampled, and again after a worker that died."""
    rng = random.Random(3)
    driver = Driver(make_core(engine, rows=4))
    prompts = [random_request(rng)[0] for _ in range(3)]
    for number, prompt in enumerate(prompts):
        driver.submit(number, (prompt, ANY))
    driver.run()
    neutral = replace(ANY, temperature=1.0)
    for number, prompt in enumerate(prompts):
        given = driver.tokens[number]
        done = number * 3
        driver.tokens[10 + number], driver.logprobs[10 + number] = given[:done], []
        driver.core.submit(Submit(10 + number, 10 + number, prompt, given[:done], neutral, scored=given))
        driver.submit(20 + number, random_request(rng, longest=BLOCK))
    driver.run()
    for number in range(3):
        assert driver.tokens[10 + number] == driver.tokens[number]
        assert driver.logprobs[10 + number] == driver.logprobs[number][number * 3 :]


@pytest.mark.parametrize("engine", ENGINES[:1])
def test_the_least_likely_token_can_be_scored(make_core: MakeCore, engine: str) -> None:
    driver = Driver(make_core(engine, rows=1))
    vocab = 8
    for token in range(vocab):
        driver.tokens[token], driver.logprobs[token] = [], []
        params = SamplingParams(max_new_tokens=2, num_logprobs=vocab)
        driver.core.submit(Submit(token, token, [1, 2], [], params, scored=[token, token]))
    driver.run()
    for token in range(vocab):
        assert driver.tokens[token] == [token, token]
        (own, top), _ = driver.logprobs[token]
        assert dict(top).get(token, own) == own
