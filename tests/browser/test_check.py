"""“Check in this browser”: the page derives a text once more from the weights, and finds the character that is not what they give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import FLAGS, Open
from tests.support.events import events, joined
from tests.support.server import Server

Change = Callable[[str], str]
CHECKED = "Checked in this browser: every one of the"


def answer(route: Any, change: Change) -> None:
    """The server's answer to a request, its text changed by whoever stands between."""
    response = route.fetch()
    found = events(response.text())
    text = change(joined(found))
    end = found[-1]["data"] | {"text": text, "text_sha256": hashlib.sha256(text.encode()).hexdigest()}
    piece = {"index": end["usage"]["completion_tokens"], "text": text}
    body = f"id: {found[-2]['id']}\ndata: {json.dumps(piece)}\n\nevent: end\ndata: {json.dumps(end)}\n\n"
    route.fulfill(response=response, body=body)


Write = Callable[..., Any]


@pytest.fixture
def write(open_page: Open) -> Write:
    """``write("#prompt=…", change)``: the page, with a finished text."""

    def finished(fragment: str, change: Change | None = None) -> Any:
        page = open_page(fragment)
        if change:
            page.route("**/generate", partial(answer, change=change))
        page.locator("#generate").click()
        page.get_by_text("Finis:").wait_for()
        return page

    return finished


def check(page: Any) -> str:
    page.get_by_role("button", name="Check in this browser").click()
    page.locator("body:not(.running) #verdict:not(:empty)").wait_for()
    words: str = page.locator("#verdict").text_content()
    return words


@pytest.mark.parametrize(
    "fragment",
    [
        "#prompt=ROMEO%3A&seed=7&max_new_tokens=90",
        "#prompt=&seed=1&max_new_tokens=1",
        "#prompt=To+be&seed=3&max_new_tokens=70&temperature=0.7&top_k=9&repetition_penalty=1.2&logit_bias=e+-2.5",
        "#prompt=a&temperature=0&seed=4&max_new_tokens=40&frequency_penalty=0.5&top_p=0.9",
        "#prompt=To+be&seed=5&max_new_tokens=60&context=sliding&echo=1&min_p=0.05&presence_penalty=0.4",
        "#prompt=To+be&seed=6&max_new_tokens=300&stop=a%0Ae",
    ],
)
def test_an_honest_text_is_found_to_be_one(write: Write, fragment: str) -> None:
    """Windows crossed, an empty prompt, every kind of parameter."""
    page = write(fragment)
    assert check(page).startswith(CHECKED)
    assert check(page).startswith(CHECKED), "a second time, without fetching the weights"
    assert page.locator("#verdict.differs").count() == 0


@pytest.mark.parametrize("at", [0, 33, 79])
def test_one_forged_character_is_found(write: Write, at: int) -> None:
    page = write("#prompt=ROMEO%3A&seed=7&max_new_tokens=80", lambda text: text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :])
    assert check(page) == f"Not what the arithmetic gives, from character {at + 1} on."
    assert page.locator("#verdict.differs").is_visible()


def test_a_text_cut_short_is_found(write: Write) -> None:
    page = write("#prompt=ROMEO%3A&seed=7&max_new_tokens=80", lambda text: text[:-5])
    assert check(page) == "Not what the arithmetic gives, from character 76 on."


def test_weights_that_are_not_shared(open_page: Open, checkpoint: Path) -> None:
    server = Server(checkpoint, *FLAGS, variables={"FOLIO_SHARE_WEIGHTS": "false"})
    try:
        page = open_page("#prompt=a&seed=1&max_new_tokens=5", url=server.url, expect_errors=True)
        page.locator("#generate").click()
        page.get_by_text("Finis:").wait_for()
        assert check(page) == "It cannot be checked here: this server keeps its weights to itself."
    finally:
        server.close()
