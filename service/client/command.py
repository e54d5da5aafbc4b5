"""``folio-generate "ROMEO:" --max-new-tokens 500 --seed 7``: the text in a terminal, as it comes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from service.client.stream import DEFAULT_URL, FolioError
from service.client.sync import Folio

NUMBERS = {"max-new-tokens": int, "seed": int, "temperature": float, "top-k": int, "top-p": float, "min-p": float}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """The command. The exit status: 1 if there was no text or only a part of it."""
    parser = argparse.ArgumentParser(prog="folio-generate", description="Generate text with a Folio server and print it as it comes.")
    parser.add_argument("prompt", nargs="?", default="", help="the text to go on from; a newline if not given")
    for name, kind in NUMBERS.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help="as in POST /generate")
    parser.add_argument("--stop", action="append", default=argparse.SUPPRESS, help="end the text before this string; may be repeated")
    parser.add_argument("--echo", action="store_true", default=argparse.SUPPRESS, help="print the prompt first")
    parser.add_argument(
        "--url",
        default=os.environ.get("FOLIO_URL", DEFAULT_URL),
        help="the server [FOLIO_URL; default: %(default)s]",
    )
    parser.add_argument("--api-key", default=os.environ.get("FOLIO_API_KEY"), help="key [FOLIO_API_KEY, which `ps` does not show]")
    params = vars(parser.parse_args(argv))
    try:
        with Folio(params.pop("url"), params.pop("api_key")) as folio:
            for text in folio.stream(**params):
                print(text, end="", flush=True)
        print()
    except FolioError as error:
        print(f"folio-generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
