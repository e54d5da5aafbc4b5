"""``python -m service.playground CHECKPOINT OUT``: a folder of files that generates in whatever browser opens it, with no server at all.

The folder can lie on any web server (``python -m http.server --directory OUT`` is one): the same seed gives the same text as the service.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.checkpoint.files import CONFIG, MODEL, TOKENIZER
from model.checkpoint.manifest import CheckpointError, Manifest, parse_json, read_file, read_manifest
from model.config import GPTConfig
from model.tokenizer.base import Tokenizer
from model.tokenizer.load import tokenizer_from_json
from model.window import default_stride

FOLDER = Path(__file__).parent
ALONE = FOLDER / "alone"
SHARED = (
    *("exact.js", "exact-arithmetic.js", "exact-sampling.js", "exact-text.js", "exact-worker.js", "safetensors.js"),
    *("card.js", "form.js", "page.js", "style.css", "favicon.svg"),
    *("eb-garamond.woff2", "eb-garamond-italic.woff2", "eb-garamond-license.txt"),
)
"""What the page has in common with the playground of a server."""
MAX_BYTES = 1 << 24
"""Of a checkpoint's JSON files."""


def describe(manifest: Manifest, config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the page has to know of the model, in the form of GET /info. Raises CheckpointError."""
    if tokenizer.kind not in ("char", "byte"):
        raise CheckpointError(f"{manifest.path} has tokens of the kind {tokenizer.kind!r}; the page knows characters and bytes")
    return {
        "checkpoint": manifest.id,
        "config": config.to_json(),
        "num_parameters": config.num_parameters,
        "block_size": config.block_size,
        "vocab_size": config.vocab_size,
        "tokenizer": tokenizer.kind,
        "vocabulary": list(tokenizer.texts) if tokenizer.kind == "char" else None,
        "context": {"default": "anchored", "stride": {"anchored": default_stride(config.block_size), "sliding": 1}},
        "device": "this browser",
        "manifest": {name: value for name, value in manifest.document.items() if name != "files"},
    }


def write_page(checkpoint: Path, out: Path) -> None:
    """Make the folder. Raises CheckpointError and OSError."""
    manifest = read_manifest(checkpoint)
    config, tokenizer = (parse_json(checkpoint / name, read_file(checkpoint / name, MAX_BYTES)) for name in (CONFIG, TOKENIZER))
    model = describe(manifest, GPTConfig.from_json(config), tokenizer_from_json(tokenizer))
    out.mkdir(parents=True, exist_ok=True)
    for path in (*(FOLDER / name for name in SHARED), *ALONE.iterdir(), manifest.path / MODEL):
        shutil.copyfile(path, out / path.name)
    (out / "model.json").write_text(json.dumps(model, ensure_ascii=False), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m service.playground", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint's directory, such as RUN/best")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    options = parser.parse_args(argv)
    try:
        write_page(options.checkpoint, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: try it with python -m http.server --directory {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
