"""What attention sees through the cache is what it sees without one."""

import pytest
import torch

from model.gpt import GPT
from model.kv_cache import DecodeView, KVCache, PrefillView


@pytest.mark.parametrize("prompt", [1, 3, 8])
def test_prefill_then_decode_equals_the_whole(small: GPT, prompt: int) -> None:
    ids = torch.randint(0, 11, (1, 8))
    whole = small(ids)
    cache = KVCache(small.config, rows=3)
    row, start = torch.tensor([1]), torch.tensor([0])
    parts = [small(ids[:, :prompt], PrefillView(cache, row, start, prompt))]
    parts += [small(ids[:, t : t + 1], DecodeView(cache, 1, torch.tensor([t]))) for t in range(prompt, 8)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_prefill_in_chunks_with_a_padded_tail(small: GPT) -> None:
    """A last chunk that is longer than its text folds its tail onto the last column, which is written again before it is read."""
    ids = torch.randint(0, 11, (1, 7))
    cache, row = KVCache(small.config, rows=1), torch.tensor([0])
    small(ids[:, :4], PrefillView(cache, row, torch.tensor([0]), 4))
    padded = torch.cat([ids[:, 4:], torch.zeros(1, 3, dtype=torch.int64)], 1)
    tail = small(padded, PrefillView(cache, row, torch.tensor([4]), 6))
    torch.testing.assert_close(tail[:, :3], small(ids)[:, 4:])
    eighth = torch.tensor([[3]])
    after = small(eighth, DecodeView(cache, 0, torch.tensor([7])))
    torch.testing.assert_close(after, small(torch.cat([ids, eighth], 1))[:, -1:])


def test_rows_do_not_see_each_other(small: GPT) -> None:
    texts = torch.randint(0, 11, (4, 8))
    cache = KVCache(small.config, rows=6)
    for row, length in enumerate((2, 5, 7, 1)):
        small(texts[row : row + 1, :length], PrefillView(cache, torch.tensor([row + 1]), torch.tensor([0]), length))
    positions = torch.tensor([2, 5, 7, 1])
    new = texts.gather(1, positions[:, None])
    logits = small(new, DecodeView(cache, 1, positions))
    for row, position in enumerate(positions.tolist()):
        torch.testing.assert_close(logits[row, 0], small(texts[row : row + 1, : position + 1])[0, -1])


def test_an_idle_row_is_left_as_it_is(small: GPT) -> None:
    """It may hold a prompt that is half encoded: an idle row once wrote its first column at every step of its neighbours."""
    cache = KVCache(small.config, rows=3)
    cache.k.fill_(5.0)
    cache.v.fill_(5.0)
    small(torch.zeros(2, 1, dtype=torch.int64), DecodeView(cache, 0, torch.tensor([-1, 3])))
    for stored in (cache.k, cache.v):
        assert (stored[:, 0] == 5.0).all()
        assert (stored[:, 2] == 5.0).all()
        assert not (stored[:, 1, :, 3] == 5.0).any()


def test_the_cache_takes_the_memory_that_it_says(small: GPT) -> None:
    assert KVCache(small.config, rows=3, dtype=torch.bfloat16).num_bytes == 2 * 2 * 3 * 3 * 8 * 5 * 2  # K and V·L·R·H·T·D·bytes
