"""The closed formulas against a window that is moved token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.params import SamplingParams
from model.window import window_anchor, window_start


def walk(num_tokens: int, num_prompt: int, block_size: int, stride: int) -> tuple[int, int]:
    """(start, anchor) by the rule itself: the window stays until it is full, then jumps by the stride."""
    start, anchor = 0, num_prompt
    for tokens in range(1, num_tokens + 1):
        while tokens - start > block_size:
            start += stride
            anchor = max(tokens, num_prompt)
    return start, anchor


@given(st.data(), st.integers(1, 40))
def test_start_and_anchor(data: st.DataObject, block_size: int) -> None:
    stride = data.draw(st.integers(1, block_size))
    num_tokens = data.draw(st.integers(1, 200))
    num_prompt = data.draw(st.integers(0, num_tokens))
    start, anchor = walk(num_tokens, num_prompt, block_size, stride)
    assert window_start(num_tokens, block_size, stride) == start
    assert window_anchor(num_tokens, num_prompt, block_size, stride) == anchor
    assert 1 <= num_tokens - start <= block_size


def test_a_stride_of_one_slides() -> None:
    assert [window_start(t, 4, 1) for t in range(1, 9)] == [0, 0, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("params", "greedy", "filters", "penalises"),
    [
        (SamplingParams(), False, False, False),
        (SamplingParams(temperature=0.0, top_k=3), True, False, False),
        (SamplingParams(top_k=3), False, True, False),
        (SamplingParams(top_p=0.9), False, True, False),
        (SamplingParams(min_p=0.1), False, True, False),
        (SamplingParams(repetition_penalty=1.1), False, False, True),
        (SamplingParams(presence_penalty=-1.0), False, False, True),
    ],
)
def test_what_parameters_say_about_themselves(params: SamplingParams, greedy: bool, filters: bool, penalises: bool) -> None:
    assert (params.is_greedy, params.has_filter, params.has_penalty) == (greedy, filters, penalises)
