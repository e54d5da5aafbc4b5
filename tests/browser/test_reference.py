"""The reference page: every request can be tried on it, nothing comes from elsewhere, and without JavaScript it still leads on."""

from __future__ import annotations

from typing import Any

from tests.browser.conftest import Open


def open_reference(open_page: Open, **options: Any) -> Any:
    page = open_page(ready=False, **options)
    page.goto(page.url + "docs")
    return page


def test_a_request_can_be_tried(open_page: Open) -> None:
    page = open_reference(open_page)
    operation = page.locator("#operations-generation-generate")
    operation.locator(".opblock-summary").click()
    operation.locator("textarea.body-param__text").fill('{"prompt": "To be", "max_new_tokens": 5, "seed": 7, "stream": false}')
    operation.locator("button.execute").click()
    answer = operation.locator(".live-responses-table .response").first
    assert answer.locator(".response-col_status").inner_text().split()[0] == "200"
    assert '"completion_tokens": 5' in answer.inner_text()


def test_without_javascript_it_lists_the_routes_and_links_the_document(open_page: Open) -> None:
    page = open_reference(open_page, java_script_enabled=False)
    assert "POST /v1/completions" in page.locator("noscript").inner_text()
    page.locator("noscript a").click()
    page.wait_for_url("**/openapi.json")
