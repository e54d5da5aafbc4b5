"""The same bytes for the same request, through every route, in every row, beside any neighbours: a real server, real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from tests.e2e.wire import Exchange, fetch, run, stream, text_of, together
from tests.support.checkpoints import BLOCK, TEXT
from tests.support.server import Server
from tests.support.wait import until

ROWS = 16
ENDLESS: dict[str, Any] = {"prompt": "abc", "max_new_tokens": 1_000_000}
GOLDEN: list[dict[str, Any]] = [
    {"prompt": "", "max_new_tokens": 90, "seed": 0},
    {"prompt": "abc", "max_new_tokens": 150, "seed": 7, "temperature": 0.7},
    {"prompt": "j" * (BLOCK + 5), "max_new_tokens": 60, "seed": 2**53 - 1, "top_k": 4, "top_p": 0.9},
    {"prompt": "a\nb", "max_new_tokens": 100, "temperature": 0, "seed": 1},
    {"prompt": "de fg", "max_new_tokens": 40, "seed": 3, "context": "sliding", "min_p": 0.02},
    {"prompt": "hi", "max_new_tokens": 120, "seed": 4, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1},
]


def random_body(rng: random.Random) -> dict[str, Any]:
    """Any mix of parameters, short and longer than the context."""
    body: dict[str, Any] = {
        "prompt": "".join(rng.choices(TEXT, k=rng.choice([0, 1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 100]))),
        "max_new_tokens": rng.choice([1, 2, 17, 70, 130]),
        "seed": rng.choice([0, 1, rng.randrange(2**53)]),
    }
    options: dict[str, list[Any]] = {
        "temperature": [0, 0.4, 1.0, 2.5],
        "top_k": [0, 1, 3, 99],
        "top_p": [0.5, 0.9, 1],
        "min_p": [0, 0.1],
        "repetition_penalty": [0.8, 1.3],
        "frequency_penalty": [-0.3, 0.5],
        "presence_penalty": [0.5],
        "stop": ["a", ["bc", "cab"], ["\n", "jj", " "], "abcdefgh"],
        "context": ["sliding", "anchored"],
        "echo": [True],
    }
    for name in rng.sample(sorted(options), rng.randrange(4)):
        body[name] = rng.choice(options[name])
    return body


def completion_body(body: dict[str, Any]) -> dict[str, Any]:
    """The same request for /v1/completions."""
    return {("max_tokens" if name == "max_new_tokens" else name): value for name, value in body.items()}


async def completion_stream(server: Server, body: dict[str, Any]) -> tuple[str, str]:
    """(joined text, finish_reason) of /v1's stream, which must end with [DONE]."""
    async with Exchange(server, {**completion_body(body), "stream": True}, "/v1/completions") as exchange:
        assert exchange.status == 200
        lines = (await exchange.body()).decode().split("\n\n")[:-1]
    assert lines[-1] == "data: [DONE]"
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1] if line.startswith("data: ")]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def test_every_route_gives_the_same_text_under_load(server: Server) -> None:
    """LESSONS 8, 9, 25: streamed text that differs from the final output, a seed that one route ignores."""
    rng = random.Random(8)
    bodies = [random_body(rng) for _ in range(60)]
    gate = asyncio.Semaphore(24)

    async def four_ways(body: dict[str, Any]) -> None:
        async with gate:
            read, reply, completion, (text, reason) = await together(
                stream(server, body),
                fetch(server, {**body, "stream": False}),
                fetch(server, completion_body(body), "/v1/completions"),
                completion_stream(server, body),
            )
            assert read.text == read.end["text"] == reply["text"] == completion["choices"][0]["text"] == text, body
            for name in ("finish_reason", "seed", "usage", "text_sha256", "checkpoint", "fingerprint", "prompt_truncated"):
                assert read.end[name] == reply[name]
            assert reply["finish_reason"] == completion["choices"][0]["finish_reason"] == reason
            assert reply["usage"] == completion["usage"]

    async def body() -> None:
        await together(*map(four_ways, bodies))

    run(body())


def test_golden_prompts_in_every_row(server: Server) -> None:
    """LESSONS 27, 28: llama.cpp's slots do not agree. ``k`` endless neighbours hold rows 0 to k-1, so a request starts in row k."""

    async def body() -> None:
        golden = [await text_of(server, each) for each in GOLDEN]
        neighbours: list[Exchange] = []
        readers: list[asyncio.Task[Any]] = []
        for row in range(ROWS):
            assert await together(*(text_of(server, each) for each in GOLDEN)) == golden, f"from row {row} on"
            assert await text_of(server, GOLDEN[row % len(GOLDEN)]) == golden[row % len(GOLDEN)], f"in row {row}"
            neighbours.append(await Exchange(server, {**ENDLESS, **({"seed": row} if row % 2 else {})}).__aenter__())
            await neighbours[-1].until(1)
            readers.append(asyncio.ensure_future(neighbours[-1].finish()))
        for reader, neighbour in zip(readers, neighbours, strict=True):
            reader.cancel()
            neighbour.reset()
        await asyncio.gather(*readers, return_exceptions=True)
        await until(lambda: server.busy == 0)

    run(body())


def test_golden_prompts_at_every_concurrency(server: Server) -> None:
    """LESSONS 27, 28: one at a time, 2 at a time, … more than there are rows."""

    async def body() -> None:
        golden = [await text_of(server, each) for each in GOLDEN]
        for width in (*range(1, ROWS + 1), ROWS + 1, 3 * ROWS):
            numbers = [i % len(GOLDEN) for i in range(width)]
            texts = await together(*(text_of(server, GOLDEN[i]) for i in numbers))
            assert texts == [golden[i] for i in numbers], f"{width} at a time"

    run(body())


def test_neighbours_with_and_without_seeds(server: Server) -> None:
    """LESSONS 22: a seed was ignored where a neighbour in the batch had none."""
    rng = random.Random(22)

    async def body() -> None:
        golden = [await text_of(server, each) for each in GOLDEN]
        for _ in range(6):
            others = [random_body(rng) for _ in range(2 * ROWS)]
            for other in others[::2]:
                del other["seed"]
            results = await together(*(text_of(server, each) for each in GOLDEN + others))
            assert results[: len(GOLDEN)] == golden
        unseeded = await together(*(fetch(server, {"prompt": "a", "max_new_tokens": 40, "stream": False}) for _ in range(8)))
        assert len({reply["seed"] for reply in unseeded}) == 8
        assert len({reply["text"] for reply in unseeded}) == 8
        for reply in unseeded:  # a seed that was drawn is returned, and gives the text again
            assert await text_of(server, {"prompt": "a", "max_new_tokens": 40, "seed": reply["seed"]}) == reply["text"]

    run(body())


def test_the_same_request_a_hundred_times(server: Server) -> None:
    """LESSONS 23, 24: the first of many identical requests differed from the rest; greedy flipped on a warm cache."""
    for body in ({"prompt": "abc" * 20, "max_new_tokens": 50, "seed": 5}, {"prompt": "jihg", "max_new_tokens": 50, "temperature": 0}):
        texts = {server.text(**body) for _ in range(50)}

        async def at_once(body: dict[str, Any] = body, texts: set[str] = texts) -> None:
            texts.update(await together(*(text_of(server, body) for _ in range(50))))

        run(at_once())
        assert len(texts) == 1


def test_stops_against_find(server: Server) -> None:
    """LESSONS 11, 12, 13: stops that stay in the output, leak into the stream before they complete, or swallow held text."""
    rng = random.Random(11)
    base = {"prompt": "ab", "max_new_tokens": 200, "seed": 12, "temperature": 0.9}

    def expected(text: str, stops: list[str]) -> tuple[str, str]:
        """The stop that is complete first wins, and of those that end together the one that starts first."""
        hits = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        return (text[: min(hits)[1]], "stop") if hits else (text, "length")

    async def one(text: str, stops: list[str], length: int) -> None:
        body: dict[str, Any] = {**base, "stop": stops, "max_new_tokens": length}
        read, reply = await together(stream(server, body), fetch(server, {**body, "stream": False}))
        assert (reply["text"], reply["finish_reason"]) == expected(text[:length], stops), stops
        assert (read.text, read.end["finish_reason"]) == (reply["text"], reply["finish_reason"]), stops

    async def body() -> None:
        text = await text_of(server, base)
        cases: list[tuple[list[str], int]] = []
        for _ in range(40):
            at = rng.randrange(150)
            cut = text[at : at + rng.randint(1, 9)]
            near = cut[:-1] + rng.choice(TEXT)  # most of it comes, then something else
            cases.append((rng.sample([cut, near, "zz" + cut, cut[1:] or "q"], rng.randint(1, 3)), 200))
        for end in range(20, 60, 4):  # the text ends within what could become a stop
            cases.append(([text[end - 3 : end] + rng.choice("xyz")], end))
        await together(*(one(text, stops, length) for stops, length in cases))

    run(body())


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("streamed", [True, False])
def test_too_much_is_refused_before_the_status_line(server: Server, path: str, streamed: bool) -> None:
    """LESSONS 16, 17: a stream that opens with 200 to say no."""
    length = "max_new_tokens" if path == "/generate" else "max_tokens"
    too_long: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "a" * 65_537}, "prompt"),
        ({"prompt": "a", length: 1_000_001}, length),
        ({"prompt": "ä"}, "prompt"),
    ]
    for fields, param in too_long:
        answer = server.post(path, stream=streamed, **fields)
        assert answer.status_code == (422 if path == "/generate" else 400)
        assert answer.json()["error"]["param"] == param
    enough: dict[str, Any] = {"prompt": "a" * 65_536, "seed": 1, length: 20}
    answer = server.post(path, stream=streamed, **enough)
    assert answer.status_code == 200
    if path == "/generate" and not streamed:
        assert answer.json()["prompt_truncated"] is True


def resident_kb(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_the_worst_request_on_every_row_at_once(server: Server) -> None:
    """LESSONS 33: out of memory inside the advertised limits. All that the engine needs is taken at start-up."""
    worst = {
        "prompt": "abcdefghij" * 6553,
        "max_new_tokens": 120,
        "context": "sliding",  # encodes the whole context for each token
        "logprobs": True,
        "top_logprobs": 65,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "stop": [c * 128 for c in "abcdefgh"],
        "logit_bias": dict.fromkeys(TEXT, 0.5),
        "stream": False,
    }

    async def body() -> None:
        alone = [await fetch(server, {**worst, "seed": seed}) for seed in (0, 1)]
        sizes = []  # at first the heap makes room for prompts that wait, 16 MB of them; what is not given back would add up
        for _ in range(6):
            replies = await together(*(fetch(server, {**worst, "seed": seed % 2}) for seed in range(2 * ROWS)))
            for seed, reply in enumerate(replies):
                assert (reply["text"], reply["logprobs"]) == (alone[seed % 2]["text"], alone[seed % 2]["logprobs"])
                assert len(reply["logprobs"]) == 120
                assert len(reply["logprobs"][0]["top"]) == len(TEXT)
            sizes.append(resident_kb(server.worker()))
        assert max(sizes[3:]) - max(sizes[:3]) < 16 << 10, f"the worker grows: {sizes}"

    run(body())
