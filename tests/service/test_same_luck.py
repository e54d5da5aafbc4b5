"""``generated`` and ``return_tokens`` on the wire: a text goes on from any position, and says which tokens it is of."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.running import Running
from tests.support.events import events, joined

BODY: dict[str, Any] = {"prompt": "ROMEO:", "max_new_tokens": 40, "seed": 3}


def text_of(server: Running, **changes: Any) -> dict[str, Any]:
    answer = server.post(**{**BODY, "stream": False, **changes})
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def test_the_rest_follows_as_text_and_as_ids(shared: Running) -> None:
    whole = text_of(shared, return_tokens=True)
    assert len(whole["tokens"]) == 40
    for cut in (0, 1, 17, 39, 40):
        for generated in (whole["text"][:cut], whole["tokens"][:cut]):
            rest = text_of(shared, generated=generated, return_tokens=True)
            assert rest["text"] == whole["text"][cut:]
            assert rest["tokens"] == whole["tokens"][cut:]
            assert rest["usage"] == {"prompt_tokens": 6 + cut, "completion_tokens": 40 - cut, "total_tokens": 46}


def test_events_go_on_counting(shared: Running) -> None:
    whole = text_of(shared, return_tokens=True)
    found = events(shared.post(**BODY, generated=whole["text"][:10], return_tokens=True, echo=True).text)
    assert joined(found) == "ROMEO:" + whole["text"] == found[-1]["data"]["text"]
    first, *texts = found[:-1]
    assert (first["data"]["index"], first["data"]["text"]) == (10, "ROMEO:" + whole["text"][:10])
    assert texts[0]["data"]["index"] > 10
    assert [token for each in found[:-1] for token in each["data"]["tokens"]] == whole["tokens"][10:]


def test_a_cut_stream_of_it_goes_on(shared: Running) -> None:
    whole = text_of(shared)
    body = {**BODY, "generated": whole["text"][:10]}
    found = events(shared.post(**body).text)
    for at, event in enumerate(found[:-1]):
        rest = events(shared.post(**body, headers={"Last-Event-ID": event["id"]}).text)
        assert joined(found[: at + 1]) + joined(rest) == whole["text"][10:]
    prefix = found[0]["id"].rpartition(".")[0]
    for index, status in ((9, 422), (10, 200), (40, 200), (41, 422)):
        assert shared.post(**body, headers={"Last-Event-ID": f"{prefix}.{index}"}).status_code == status
    other = shared.post(**{**body, "generated": whole["text"][:11]}, headers={"Last-Event-ID": found[0]["id"]})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "resume_mismatch")


def test_nothing_given_is_nothing_said(shared: Running) -> None:
    """Neutral values equal omission, byte for byte; ids are sent on demand only."""
    plain = shared.post(**BODY, headers={"X-Request-Id": "x"}).text.partition("event: end")[0]
    neutral: object
    for neutral in ("", []):
        assert shared.post(**BODY, generated=neutral, return_tokens=False, headers={"X-Request-Id": "x"}).text.startswith(plain)
    assert '"tokens"' not in plain


@pytest.mark.parametrize(
    ("generated", "words"),
    [
        ("x" * 41, "has 41 tokens"),
        ([1] * 41, "has 41 tokens"),
        ([10**6], "is no token of this model"),
        ([-1], "token ids are 0 or greater"),
        ([1, "x"], "holds integers only"),
        (5, "text or a list of token ids"),
        (None, "text or a list of token ids"),
        ("中", "generated: the model does not know"),
        ("x" * 70_000, "at most 65536 characters"),
    ],
)
def test_what_cannot_have_been_generated_is_refused(shared: Running, generated: object, words: str) -> None:
    answer = shared.post(**BODY, generated=generated)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "generated"
    assert words in answer.json()["error"]["message"]


def test_an_address_takes_the_text(shared: Running) -> None:
    whole = text_of(shared)
    query = {"prompt": "ROMEO:", "seed": "3", "max_new_tokens": "40", "stream": "false", "generated": whole["text"][:7]}
    answer = shared.http.get("/generate", params=query)
    assert answer.json()["text"] == whole["text"][7:]
    plain = shared.http.get("/generate", params={**query, "generated": ""})
    assert answer.headers["etag"] != plain.headers["etag"]
