"""``folio-generate "ROMEO:" --max-new-tokens 500 --seed 7``: the text in a terminal, as it comes; or a file of texts (`batch`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.client.batch import BatchError
from service.client.stream_state import DEFAULT_URL, FolioError
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
    batch = parser.add_argument_group("a file of texts", "started again it goes on after its last line, to the same bytes")
    batch.add_argument("--input", type=Path, help="a file with a body of POST /generate, or of OpenAI's batch format, in each line")
    batch.add_argument("--output", type=Path, help="the file to write: a line for each of the input, in its order")
    batch.add_argument("--checkpoint", type=Path, help="generate here, from this checkpoint, without a server")
    batch.add_argument("--concurrency", type=int, default=64, help="texts at once [default: %(default)s]")
    params = vars(parser.parse_args(argv))
    files = {name: params.pop(name) for name in ("input", "output", "checkpoint", "concurrency")}
    if (files["input"] is None) != (files["output"] is None):
        parser.error("--input and --output go together")
    try:
        if files["input"] is not None:
            write_texts(params, **files)
            return 0
        with Folio(params.pop("url"), params.pop("api_key")) as folio:
            for text in folio.stream(**params):
                print(text, end="", flush=True)
        print()
    except (FolioError, BatchError, OSError) as error:
        print(f"folio-generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def write_texts(params: dict[str, Any], input: Path, output: Path, checkpoint: Path | None, concurrency: int) -> None:
    """A file of texts. Raises FolioError, BatchError, OSError."""
    from service.client.batch_command import generate_file

    url, api_key = params.pop("url"), params.pop("api_key")
    del params["prompt"]
    defaults = {name.replace("-", "_"): value for name, value in params.items()}
    generate_file(input, output, defaults, url=url, api_key=api_key, checkpoint=checkpoint, concurrency=concurrency)


if __name__ == "__main__":
    sys.exit(main())
