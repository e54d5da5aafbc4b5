"""``python -m model.exact CHECKPOINT --prompt TEXT``: the text after a prompt by the definition, and a digest of its first logits."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence

from model.checkpoint.manifest import CheckpointError
from model.params import SamplingParams
from model.tokenizer.base import UnknownCharacterError


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 2 for what the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m model.exact", description="Generate text with the reference of the exact arithmetic.")
    parser.add_argument("checkpoint", help="a checkpoint's directory")
    parser.add_argument("--prompt", default="", help="the text to go on from (default: none)")
    parser.add_argument("--tokens", type=int, default=64, help="how many tokens to write (default: 64)")
    parser.add_argument("--stride", type=int, default=1, help="how far a full window moves (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"):
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=SamplingParams.__dataclass_fields__[name].default)
    parser.add_argument("--top-k", type=int, default=0)
    options = vars(parser.parse_args(argv))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy loads: products of one token are too small to share
    from model.checkpoint.files import read_checkpoint
    from model.exact.generate import generate
    from model.exact.network import ExactModel

    path, text = options.pop("checkpoint"), options.pop("prompt")
    params = SamplingParams(max_new_tokens=options.pop("tokens"), **options)
    try:
        checkpoint = read_checkpoint(path)
        prompt = checkpoint.tokenizer.encode(text)
    except (CheckpointError, UnknownCharacterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model = ExactModel(checkpoint.config, checkpoint.tensors)
    logits = model.next_logits((prompt or [checkpoint.start])[-checkpoint.config.block_size :])
    print(f"logits sha256:{hashlib.sha256(logits.tobytes()).hexdigest()}")
    print(text + checkpoint.tokenizer.decode(list(generate(model, prompt, params, start=checkpoint.start))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
