"""``folio-verify receipt.json``: whether a text is what its receipt says, by a server or by a checkpoint on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from service.client.batch import BatchError
from service.client.batch_command import authorization, local_client
from service.client.stream_state import DEFAULT_URL, FolioError, client_options, error_of

VALID, INVALID, FAILED = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """The command. The exit status: 0 if the text is the receipt's, 1 if it is not, 2 if nobody could tell."""
    parser = argparse.ArgumentParser(prog="folio-verify", description="Check that a text is what its receipt says, on any machine.")
    parser.add_argument("receipt", type=Path, help="a receipt, or a whole reply that holds one (then its text is checked)")
    parser.add_argument("--text", type=Path, help="a file with the text; without it the receipt's own hash is checked")
    parser.add_argument("--checkpoint", type=Path, help="check here, with this checkpoint, without a server")
    parser.add_argument("--stride", type=int, help="the --stride of the server that made it, if it had one; with --checkpoint")
    parser.add_argument(
        "--url",
        default=os.environ.get("FOLIO_URL", DEFAULT_URL),
        help="the server [FOLIO_URL; default: %(default)s]",
    )
    parser.add_argument("--api-key", default=os.environ.get("FOLIO_API_KEY"), help="key [FOLIO_API_KEY, which `ps` does not show]")
    options = parser.parse_args(argv)
    try:
        verdict = asyncio.run(ask(options, read_question(options.receipt, options.text)))
    except (FolioError, BatchError, OSError, ValueError) as error:
        print(f"folio-verify: {error}", file=sys.stderr)
        return FAILED
    if verdict["valid"]:
        print(f"valid: {verdict['tokens']} tokens")
        return VALID
    print(f"not valid: {verdict['reason']}")
    if "at" in verdict:
        print(f"expected {verdict['expected']!r}, found {verdict['found']!r}")
    return INVALID


def read_question(receipt: Path, text: Path | None) -> dict[str, Any]:
    """The body of POST /verify. Raises OSError, ValueError."""
    try:
        document = json.loads(receipt.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{receipt} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{receipt} holds no receipt")
    question = {"receipt": document.get("receipt", document)}
    if text is not None:
        question["text"] = text.read_bytes().decode("utf-8")
    elif "receipt" in document and "text" in document:
        question["text"] = document["text"]
    return question


async def ask(options: argparse.Namespace, question: dict[str, Any]) -> dict[str, Any]:
    """The verdict. Raises FolioError, BatchError."""
    settings = client_options(options.url, options.api_key)
    remote = httpx.AsyncClient(**{**settings, "headers": authorization(options.api_key), "timeout": None})
    async with local_client(options.checkpoint, stride=options.stride) if options.checkpoint else remote as http:
        try:
            response = await http.post("/verify", json=question)
        except httpx.TransportError as error:
            raise FolioError("connection", str(error) or type(error).__name__) from error
    if response.status_code != 200:
        raise error_of(response)
    verdict: dict[str, Any] = response.json()
    return verdict


if __name__ == "__main__":
    sys.exit(main())
