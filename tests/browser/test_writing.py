"""What the page does with a text: it streams, stops, repeats, resumes, and explains."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

from model.tokenizer.byte import ByteTokenizer
from tests.browser.conftest import FLAGS, Open
from tests.browser.proxy import Proxy
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server
from tests.support.wait import wait_for

GENERATED = "#text > span:nth-of-type(2)"


def fill(page: Any, prompt: str = "ROMEO:", length: int = 300, seed: int | None = 7) -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#max_new_tokens").fill(str(length))
    page.locator("#seed").fill("" if seed is None else str(seed))


def generate(page: Any) -> str:
    """The generated text, once it has come to its end."""
    page.locator("#generate").click()
    page.get_by_text("Finis: as long as asked").wait_for()
    return written(page)


def written(page: Any) -> str:
    text: str = page.locator(GENERATED).text_content()
    return text


def number(page: Any, measure: str) -> int:
    text = page.locator(measure).text_content().replace(",", "")
    return int(text) if text.isdigit() else 0


def test_it_streams_to_the_end(open_page: Open, server: Server) -> None:
    page = open_page()
    fill(page)
    assert generate(page) == server.text(prompt="ROMEO:", max_new_tokens=300, seed=7)
    assert page.locator("#status").text_content() == "Written: 300 characters."
    assert number(page, "#count") == 300
    assert number(page, "#rate") > 0
    assert page.locator("#first").text_content().endswith("s")
    assert page.locator("#seed-shown").text_content() == "7"
    assert page.locator("#text").get_attribute("aria-busy") == "false"


def test_text_shows_before_the_end(open_page: Open) -> None:
    page = open_page()
    fill(page, length=10_000_000)
    page.locator("#generate").click()
    page.wait_for_function("() => document.getElementById('text').textContent.length > 200")
    assert page.locator("#status").text_content() == "Writing…"
    page.wait_for_function("() => parseInt(document.getElementById('rate').textContent) > 0")
    page.locator("#stop").click()


def test_stop_frees_the_row_on_the_server_and_the_text_can_go_on(open_page: Open, server: Server) -> None:
    page = open_page()
    fill(page, length=10_000_000)
    page.locator("#generate").click()
    page.wait_for_function("() => document.getElementById('text').textContent.length > 200")
    cancelled = server.num_cancelled
    page.locator("#stop").click()
    wait_for(lambda: server.num_cancelled == cancelled + 1)
    assert server.busy == 0
    page.get_by_text("Stopped after").wait_for()
    before = written(page)
    page.get_by_role("button", name="Go on from here").click()
    page.wait_for_function(f"() => document.querySelector('{GENERATED}').textContent.length > {len(before) + 100}")
    page.keyboard.press("Escape")
    wait_for(lambda: server.num_cancelled == cancelled + 2)
    page.get_by_text("Stopped after").wait_for()
    after = written(page)
    assert after.startswith(before)
    assert after == server.text(prompt="ROMEO:", max_new_tokens=len(after), seed=7)


def test_run_again_gives_the_same_text_and_says_so(open_page: Open) -> None:
    page = open_page()
    fill(page, seed=None)
    first = generate(page)
    seed = page.locator("#seed-shown").text_content()
    page.get_by_role("button", name="Run again, same seed").click()
    page.get_by_text("Identical: all 300 characters").wait_for()
    assert written(page) == first
    assert page.locator("#seed-shown").text_content() == seed
    assert generate(page) != first, "with no seed given, a new text is a new text"


def test_a_text_that_differs_is_called_different(open_page: Open) -> None:
    """The page compares hashes itself: a server that breaks its promise is caught."""
    page = open_page()
    fill(page)
    generate(page)
    page.route("**/generate", lambda route: route.continue_(post_data=route.request.post_data.replace('"seed":7', '"seed":8')))
    page.get_by_role("button", name="Run again, same seed").click()
    page.get_by_text("Not the same, from character").wait_for()


def test_a_cut_connection_is_resumed(open_page: Open, server: Server, proxy: Proxy) -> None:
    """Cut within the headers of a resumed attempt, within an event, and between: the text is what it would have been."""
    page = open_page(url=proxy.url, expect_errors=True)
    fill(page, length=6_000)
    proxy.cuts = [2_000, 100, 20_000, 5_000]
    text = generate(page)
    assert proxy.num_cut == 4
    assert text == server.text(prompt="ROMEO:", max_new_tokens=6_000, seed=7)
    notes = page.locator("#events li").all_text_contents()
    assert notes
    assert all(note.startswith("Connection lost, resumed at character ") for note in notes)


def test_a_silent_connection_is_given_up_and_resumed(open_page: Open, server: Server, proxy: Proxy) -> None:
    """A router that forgets a connection tells nobody. The server is never silent for long, so silence is a loss."""
    page = open_page(url=proxy.url)
    page.clock.install()
    fill(page)
    proxy.cuts = [-1_000]
    page.locator("#generate").click()
    page.wait_for_function("() => document.getElementById('text').textContent.length > 6")
    page.clock.fast_forward(20_000)
    assert page.locator("#events li").count() == 0
    page.clock.fast_forward(10_000)
    page.locator("#events").get_by_text("Connection lost").wait_for()
    page.get_by_text("Finis: as long as asked").wait_for()
    assert written(page) == server.text(prompt="ROMEO:", max_new_tokens=300, seed=7)


def test_the_page_can_cut_its_own_connection(open_page: Open) -> None:
    page = open_page()
    fill(page)
    first = generate(page)
    page.get_by_role("button", name="Run again, cut halfway").click()
    page.get_by_text("Connection lost, resumed at character").first.wait_for()
    page.get_by_text("Identical: all 300 characters").wait_for()
    assert written(page) == first

    fill(page, length=10_000_000)
    page.locator("#generate").click()
    page.wait_for_function("() => document.getElementById('text').textContent.length > 200")
    page.get_by_role("button", name="Cut connection").click()
    page.locator("#events").get_by_text("resumed at character").wait_for()
    page.locator("#stop").click()


def test_a_stream_outlives_the_server(open_page: Open, checkpoint: Path) -> None:
    """SIGKILL while it writes; the server that takes its place goes on with the next character."""
    server = Server(checkpoint, *FLAGS)
    try:
        page = open_page(url=server.url, expect_errors=True)
        fill(page, length=30_000)
        page.locator("#generate").click()
        page.wait_for_function("() => document.getElementById('text').textContent.length > 100")
        server.end(signal.SIGKILL)
        page.locator("#events").get_by_text("Connection lost after").wait_for()
        server.restart()
        page.locator("#events").get_by_text("resumed at character").wait_for()
        page.get_by_text("Finis: as long as asked").wait_for()
        assert written(page) == server.text(prompt="ROMEO:", max_new_tokens=30_000, seed=7)
    finally:
        server.close()


def test_probabilities_on_hover_and_by_keys(open_page: Open, server: Server) -> None:
    page = open_page()
    fill(page, length=60)
    page.locator("#logprobs").check()
    text = generate(page)
    reply = server.http.post(
        "/generate", json={"prompt": "ROMEO:", "max_new_tokens": 60, "seed": 7, "logprobs": True, "stream": False}
    ).json()
    assert text == reply["text"]
    levels = [sum(-entry["logprob"] / math.log(2) > bits for bits in (1, 2, 4, 6)) for entry in reply["logprobs"]]
    shown = page.locator("#text .c").evaluate_all("all => all.map(c => Number(c.className.match(/s(\\d)/)[1]))")
    assert shown == levels
    assert page.locator("#legend").is_visible()
    mean = sum(-entry["logprob"] for entry in reply["logprobs"]) / math.log(2) / 60
    assert page.locator("#mean").text_content() == f"{mean:.2f} bits a character"

    visible = next(n for n, c in enumerate(text) if c.isalpha())
    page.locator("#text .c").nth(visible).hover()
    assert page.locator("#inspector").is_visible()
    assert page.locator("#inspector").text_content().startswith(f"{text[visible]} ")
    assert page.locator("#inspector li").count() == 5
    page.mouse.move(1, 1)
    assert page.locator("#inspector").is_hidden()

    page.locator("#text").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#text .c.current").get_attribute("data-n") == "58"
    assert page.locator("#inspector").get_attribute("role") == "status"


def test_characters_that_the_model_does_not_know(open_page: Open, server: Server) -> None:
    page = open_page(expect_errors=True)
    page.locator("#prompt").press_sequentially("Café 5\n😀!")
    assert page.locator("#mirror mark").all_text_contents() == ["é", "5", "😀"]
    assert page.locator("#prompt-note").text_content() == "The model has never seen é 5 😀"
    page.locator("#generate").click()
    page.get_by_text("The model has never seen some of these characters.").wait_for()
    assert page.locator("#prompt").get_attribute("aria-invalid") == "true"
    page.locator("#advanced summary").click()
    page.locator("#on_unknown").select_option("drop")
    page.locator("#seed").fill("7")
    assert generate(page) == server.text(prompt="Caf \n!", seed=7)
    assert page.locator("#problem").is_hidden()


def test_a_model_of_bytes_knows_every_character(open_page: Open, tmp_path: Path) -> None:
    """Its words are other ones, and what several bytes make is shown whole."""
    serving = Server(make_checkpoint(tmp_path / "bytes", tokenizer=ByteTokenizer()), *FLAGS)
    try:
        page = open_page(url=serving.url)
        page.locator("#prompt").press_sequentially("Café 😀")
        assert page.locator("mark").count() == 0
        assert page.locator("#max_new_tokens-hint").text_content() == "bytes to write"
        page.locator("#card").get_by_text("256 bytes").wait_for()
        page.locator("#max_new_tokens").fill("90")
        page.locator("#seed").fill("7")
        page.locator("#logprobs").check()
        text = generate(page)
        assert text == serving.text(prompt="Café 😀", max_new_tokens=90, seed=7)
        assert page.locator("#status").text_content() == "Written: 90 bytes."
        assert 0 < page.locator("#text .c").count() < 90
    finally:
        serving.close()


def test_a_refusal_names_its_field(open_page: Open) -> None:
    page = open_page(expect_errors=True)
    fill(page)
    generate(page)
    page.locator("#advanced summary").click()
    page.locator("#top_p").fill("0")
    page.locator("#advanced summary").click()
    page.locator("#generate").click()
    page.locator("#problem").get_by_text("One of the settings cannot be used.").wait_for()
    assert page.locator("#advanced").get_attribute("open") is not None
    assert page.locator("#top_p").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "top_p"
    described = page.locator("#top_p").get_attribute("aria-describedby").split()
    assert "greater than 0" in page.locator(f"#{described[0]}").text_content()
    assert len(written(page)) == 300, "a refusal does not take the last text away"
    page.locator("#top_p").fill("0.9")
    assert page.locator("#top_p").get_attribute("aria-invalid") is None
    generate(page)
    assert page.locator("#problem").is_hidden()


def test_a_server_that_is_gone(open_page: Open, checkpoint: Path) -> None:
    server = Server(checkpoint, *FLAGS)
    page = open_page(url=server.url, expect_errors=True)
    server.close()
    page.locator("#generate").click()
    page.get_by_text("The server cannot be reached.").wait_for()
    assert page.locator("#generate").get_attribute("aria-disabled") == "false"


def test_a_key_is_asked_for_and_kept_nowhere(open_page: Open, checkpoint: Path) -> None:
    server = Server(checkpoint, *FLAGS, variables={"FOLIO_API_KEYS": "open-sesame"})
    try:
        page = open_page(url=server.url, expect_errors=True, ready=False)
        page.get_by_label("This server asks for an API key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("this key is not valid here").wait_for()
        page.get_by_label("This server asks for an API key").fill("open-sesame")
        page.get_by_role("button", name="Use this key").click()
        page.locator("#state[data-state=ready]").wait_for()
        assert page.locator("#key-form").is_hidden()
        fill(page)
        generate(page)
        kept = page.evaluate("[location.href, document.cookie, ...Object.values(localStorage), ...Object.values(sessionStorage)].join()")
        assert "sesame" not in kept
        assert "sesame" not in page.content()
    finally:
        server.http.headers["Authorization"] = "Bearer open-sesame"
        server.close()
