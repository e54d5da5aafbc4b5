"""The page itself: its form, its links, its card, its looks, and who can use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from service.api.schemas import GenerateBody
from tests.browser.conftest import VOCABULARY, Open
from tests.browser.test_writing import fill, generate, written
from tests.support.server import Server

PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 780}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
EVERYTHING: dict[str, Any] = {
    "prompt": "To be,\nor not & to = be?",
    "max_new_tokens": 40,
    "temperature": 0.75,
    "seed": 9007199254740991,
    "logprobs": True,
    "top_logprobs": 3,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.1,
    "frequency_penalty": -0.25,
    "presence_penalty": 0.5,
    "logit_bias": {"e": -2.5, " ": 1, "\n": -100},
    "stop": ["\n\n", "zz z"],
    "timeout_s": 30,
    "context": "sliding",
    "on_unknown": "drop",
    "echo": True,
}
TYPED = {"logit_bias": "e -2.5\n\\s 1\n\\n -100", "stop": "\\n\\n\nzz z"}


def body_of(page: Any) -> dict[str, Any]:
    """The body that the page sends when asked to write."""
    with page.expect_request("**/generate") as caught:
        page.locator("#generate").click()
    body: dict[str, Any] = json.loads(caught.value.post_data)
    return body


def test_every_parameter_goes_out_and_comes_back_in_a_link(open_page: Open) -> None:
    page = open_page()
    page.locator("#advanced summary").click()
    for name, value in EVERYTHING.items():
        control = page.locator(f"[form=request][name={name}]")
        if value is True:
            control.check()
        elif name in ("context", "on_unknown"):
            control.select_option(value)
        else:
            control.fill(TYPED.get(name, str(value)))
    assert body_of(page) == EVERYTHING | {"stream": True}
    page.locator("#finis").get_by_text("Finis").wait_for()
    assert page.locator("#status").text_content().startswith("Written: ")

    link = urlsplit(page.url)
    assert link.query == ""
    assert parse_qs(link.fragment)["prompt"] == [EVERYTHING["prompt"]]
    other = open_page("#" + link.fragment)
    assert other.locator("#advanced").get_attribute("open") is not None
    assert body_of(other) == EVERYTHING | {"stream": True}
    other.locator("#finis").get_by_text("Finis").wait_for()
    assert written(other) == written(page)


def test_a_link_brings_back_a_seed_that_the_page_has_drawn(open_page: Open) -> None:
    page = open_page()
    fill(page, seed=None)
    text = generate(page)
    other = open_page("#" + urlsplit(page.url).fragment)
    assert other.locator("#seed").input_value() == page.locator("#seed-shown").text_content()
    assert generate(other) == text


def test_the_forms_parameters_are_the_apis(open_page: Open, server: Server) -> None:
    """Names, ranges and defaults, so that no parameter is added to one side alone."""
    document = server.http.get("/openapi.json").json()
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    page = open_page()
    controls = page.evaluate(
        """[...document.getElementById("request").elements].filter(c => c.name).map(c => ({name: c.name, type: c.type,
            min: c.min === "" ? null : Number(c.min), max: c.max === "" ? null : Number(c.max), value: c.defaultValue}))"""
    )
    assert {control["name"] for control in controls} == set(schema) - {"stream", "max_tokens", "generated", "return_tokens", "receipt"}
    for control in (control for control in controls if control["type"] == "number"):
        spec = schema[control["name"]]
        assert control["min"] == spec.get("minimum", spec.get("exclusiveMinimum")), control
        if control["name"] not in ("max_new_tokens", "top_logprobs"):  # the server's limit and the alphabet's size
            assert control["max"] == spec.get("maximum"), control
        if control["name"] != "top_logprobs":
            assert float(control["value"]) == GenerateBody.model_fields[control["name"]].default, control
    assert page.locator("#max_new_tokens").get_attribute("max") == "10000000"
    assert page.locator("#top_logprobs").get_attribute("max") == str(len(VOCABULARY))


def test_the_models_card(open_page: Open, server: Server) -> None:
    page = open_page()
    card = page.locator("#card")
    card.get_by_text("sonnets.txt").wait_for()
    card.get_by_text("Provenance").click()
    text = card.inner_text()
    model = server.http.get("/info").json()["model"]
    for fact in (
        "94,275 characters",
        "300 steps",
        "2.050",
        f"{model['num_parameters']:,} parameters",
        model["checkpoint"],
        model["fingerprint"],
    ):
        assert fact in text
    assert card.locator("svg polyline").count() == 2
    assert "held-out from 2.79 to 2.16" in card.locator("svg").get_attribute("aria-label")


def test_by_keyboard_alone(open_page: Open, server: Server) -> None:
    page = open_page()
    tab_to(page, "prompt")
    page.keyboard.type("ROMEO:")
    tab_to(page, "generate")
    tab_to(page, "seed")
    page.keyboard.type("7")
    tab_to(page, "logprobs")
    page.keyboard.press("Space")
    page.keyboard.press("Control+Enter")
    page.get_by_text("Finis").wait_for()
    assert written(page) == server.text(prompt="ROMEO:", seed=7)
    tab_to(page, "text")
    page.keyboard.press("ArrowRight")
    assert page.locator("#inspector").is_visible()
    tab_to(page, "again")
    assert page.locator("#inspector").is_hidden()
    page.keyboard.press("Enter")
    page.get_by_text("Identical").wait_for()
    assert page.evaluate("document.activeElement.id") == "again", "the focus stays where it was"


def tab_to(page: Any, id: str) -> None:
    """Press Tab until a control has the focus, seeing that every stop on the way shows it."""
    for _ in range(40):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            """[document.activeElement, ...document.querySelectorAll(":has(> :focus)")]
                .some(e => getComputedStyle(e).outlineStyle !== "none")"""
        )
        assert outline, page.evaluate("document.activeElement.outerHTML")
        if page.evaluate("document.activeElement.id") == id:
            return
    raise AssertionError(f"Tab does not lead to #{id}")


def test_a_phone_never_scrolls_sideways(open_page: Open) -> None:
    page = open_page(**PHONE)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    fill(page, prompt="A" * 200, length=600, seed=None)
    page.locator("#logprobs").check()
    generate(page)
    for details in page.locator("details summary").all():
        details.click()
    page.locator("#text .c").nth(30).tap()
    assert page.locator("#inspector").is_visible()
    page.get_by_role("button", name="Run again, cut halfway").tap()
    page.get_by_text("Identical").wait_for()
    assert page.evaluate(wide) == 0
    right = page.locator("main").evaluate("main => main.getBoundingClientRect().right - parseFloat(getComputedStyle(main).paddingRight)")
    wider = "(all, right) => all.filter(e => e.checkVisibility() && e.getBoundingClientRect().right > right + 1).map(e => e.outerHTML)"
    assert page.locator("main section, main section > *, .field > *").evaluate_all(wider, right) == []
    small = page.locator("button:visible, select:visible, input:not([type=range]):visible, summary:visible").evaluate_all(
        "all => all.filter(e => e.type !== 'checkbox' && e.getBoundingClientRect().height < 32).map(e => e.outerHTML)"
    )
    assert small == [], "too small for a finger"


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_nothing_moves_while_the_page_loads(open_page: Open, options: dict[str, Any]) -> None:
    page = open_page(**options)
    page.locator("#card svg").wait_for()
    page.wait_for_timeout(200)
    shifts = page.evaluate(
        """new Promise(resolve => new PerformanceObserver(list => resolve(list.getEntries().map(e => e.value)))
            .observe({type: "layout-shift", buffered: true}) ?? setTimeout(() => resolve([]), 100))"""
    )
    assert sum(shifts) < 0.005


def test_the_policy_lets_nothing_else_in(server: Server) -> None:
    answer = server.http.get("/")
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["font-src"] == "'self'"
    assert "style=" not in answer.text
    assert 'rel="icon"' in answer.text
    assert "://" not in answer.text


def test_events_are_the_same_however_the_bytes_are_cut(open_page: Open) -> None:
    page = open_page()
    events = page.evaluate(
        """async () => {
            const { readEvents } = await import("/playground/sse.js");
            const bytes = new TextEncoder().encode(': hello\\nid: a.1\\ndata: {"text": "é😀"}\\n\\n' +
                'event:end\\r\\ndata: one\\r\\ndata: two\\r\\n\\r\\nevent: empty\\n\\ndata: never finished\\n');
            const found = new Set();
            for (let cut = 0; cut <= bytes.length; cut++) {
                const body = new ReadableStream({ start(controller) {
                    for (const part of [bytes.slice(0, cut), bytes.slice(cut)]) if (part.length) controller.enqueue(part);
                    controller.close();
                } });
                const events = [];
                for await (const event of readEvents(body)) events.push(event);
                found.add(JSON.stringify(events));
            }
            return [...found];
        }"""
    )
    assert [json.loads(each) for each in events] == [
        [
            {"type": "message", "id": "a.1", "data": '{"text": "é😀"}'},
            {"type": "end", "id": None, "data": "one\ntwo"},
        ]
    ]


CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
LOOKS = [
    ("light", "light", {}),
    ("dark", "dark", {}),
    ("phone-light", "light", PHONE),
    ("phone-dark", "dark", PHONE),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("playground")
    yield directory
    print(f"\nscreenshots: {directory}")


@pytest.mark.parametrize(("name", "scheme", "options"), LOOKS, ids=[look[0] for look in LOOKS])
def test_looks(open_page: Open, pictures: Path, name: str, scheme: str, options: dict[str, Any]) -> None:
    """Everything that can be on the page at once is there; every text has WCAG AA's contrast; a picture is kept to look at."""
    page = open_page(color_scheme=scheme, reduced_motion="reduce", expect_errors=True, **options)
    page.screenshot(path=pictures / f"{name}-empty.png")
    fill(page, length=400)
    page.locator("#logprobs").check()
    generate(page)
    page.get_by_role("button", name="Run again, cut halfway").click()
    page.get_by_text("Identical").wait_for()
    page.locator("#text").focus()
    page.keyboard.press("End")
    page.screenshot(path=pictures / f"{name}-written.png", full_page=True)
    assert page.evaluate(CONTRAST) == []

    page.locator("#prompt").fill("Café")
    for details in page.locator("details summary").all():
        details.click()
    page.locator("#generate").click()
    page.locator("#problem").wait_for()
    page.screenshot(path=pictures / f"{name}-refused.png", full_page=True)
    assert page.evaluate(CONTRAST) == []


def test_reduced_motion_is_respected(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    fill(page, length=10_000_000)
    page.locator("#generate").click()
    page.locator(".caret").wait_for()
    assert page.locator(".caret").evaluate("caret => getComputedStyle(caret).animationName") == "none"
    page.locator("#stop").click()
