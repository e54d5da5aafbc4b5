"""A browser, a server with a tiny model, and a page that must not complain nor call anyone else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from model.tokenizer.char import CharTokenizer
from tests.browser.proxy import Proxy
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
FLAGS = ("--max-new-tokens", "10000000", "--log-level", "error")
"""Of the server: texts that outlast every test, and nothing said of refusals that are expected."""
VOCABULARY = "\n !',.:?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MANIFEST: dict[str, Any] = {
    "start": "\n",
    "steps": 300,
    "seed": 1337,
    "train_loss": 1.98,
    "val_loss": 2.05,
    "data": {"name": "sonnets.txt", "sha256": "ab" * 32, "characters": 94_275},
    "curve": [{"step": s, "train_loss": 3 - s / 300, "val_loss": 3.1 - s / 320} for s in (100, 200, 300)],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium, and the end of Playwright's event loop before any other test needs one."""
    if not CHROMIUM.exists():
        reason = f"there is no {CHROMIUM}: scripts/install-chromium brings it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of characters."""
    return make_checkpoint(tmp_path_factory.mktemp("browser") / "tiny", tokenizer=CharTokenizer(VOCABULARY), manifest=MANIFEST)


@pytest.fixture(scope="package")
def server(checkpoint: Path) -> Iterator[Server]:
    serving = Server(checkpoint, *FLAGS)
    yield serving
    serving.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    between = Proxy(server.port)
    yield between
    between.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Open]:
    """``open_page("#seed=7", expect_errors=True, viewport=…)``: the playground, ready to write.

    After the test: nothing was logged as an error or a warning (but what Chromium says of a refused or broken request, where that
    is expected), and no other host was asked for anything.
    """
    contexts: list[Any] = []
    complaints: list[str] = []
    addresses: list[str] = []

    def start(fragment: str = "", *, url: str = server.url, expect_errors: bool = False, ready: bool = True, **options: Any) -> Any:
        contexts.append(browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options)))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)  # a busy machine may hold a new tab up for ten seconds

        def hear(message: Any) -> None:
            if message.type in ("error", "warning") and not (expect_errors and message.text.startswith("Failed to load resource")):
                complaints.append(message.text)

        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(url + "/" + fragment)
        if ready:
            page.locator("#state[data-state=ready]").wait_for()
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []
    assert {urlsplit(address).hostname for address in addresses} <= {"127.0.0.1"}
    assert not any(urlsplit(address).query for address in addresses), "a prompt never stands in a URL that is sent"
