"""JavaScript engines that run tests/browser/exact: node, and browsers on a page that posts its answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.browser.conftest import CHROMIUM, CHROMIUM_FLAGS
from tests.support.wait import wait_for

LIMIT_S = 280.0
"""Minutes of JavaScript take seconds; a machine with other work may need some."""
FIREFOX = shutil.which("firefox-esr")
NODE = shutil.which("node")


class Folder(ThreadingHTTPServer):
    """Serves a folder, and keeps what is posted to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(FolderHandler, directory=str(path)))
        self.posted: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class FolderHandler(SimpleHTTPRequestHandler):
    def do_POST(self) -> None:  # http.server's name
        assert isinstance(self.server, Folder)
        self.server.posted.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def by_node(folder: Path) -> Any:
    (folder / "package.json").write_text('{"type": "module"}')
    assert NODE is not None
    done = subprocess.run([NODE, "node.mjs"], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_browser(command: Callable[[Path, str], list[str]], folder: Path) -> Any:
    """What the page of a folder posts in a browser that ``command(profile, url)`` starts."""
    (folder / "index.html").write_text('<!doctype html><meta charset="utf-8"><script type="module" src="page.js"></script>')
    profile = folder / "profile"
    profile.mkdir(exist_ok=True)
    with Folder(folder) as server, (folder / "log").open("w+") as log:
        process = subprocess.Popen(command(profile, f"http://127.0.0.1:{server.server_port}/"), stdout=log, stderr=log)
        try:
            wait_for(lambda: server.posted, (folder / "log").read_text, limit_s=LIMIT_S)
        finally:
            process.kill()
            process.wait()
            server.shutdown()
    return json.loads(server.posted[0])


def chromium(profile: Path, url: str) -> list[str]:
    return [str(CHROMIUM), "--headless=new", f"--user-data-dir={profile}", *CHROMIUM_FLAGS, url]


def firefox(profile: Path, url: str) -> list[str]:
    assert FIREFOX is not None
    return [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), url]


ENGINES: dict[str, tuple[bool, Callable[[Path], Any]]] = {
    "node": (NODE is not None, by_node),
    "chromium": (CHROMIUM.exists(), partial(by_browser, chromium)),
    "firefox": (FIREFOX is not None, partial(by_browser, firefox)),
}
"""Whether it is here, and how it runs a folder."""
