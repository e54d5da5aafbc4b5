"""A GPT-2 of our size for llama.cpp's server: 5 layers, 256 wide, 65 tokens, random weights (speed does not depend on them).

    pip install gguf
    python -m benchmarks.peer_gguf S.gguf            # f16; --type q8_0 or f32
    llama-server -m S.gguf -c 16384 -np 64 -t 2 --port 8081
    python -m benchmarks.load --port 8081 --dialect llama --streams 64 --requests 256 --tokens 200

llama.cpp wants heads that divide the width, so it gets 4 heads of 64 where the described system has 6 of 42.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY = 5, 256, 4, 256, 65
TYPES = {name.lower(): gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=sorted(TYPES), default="f16", help="of matrices (default: f16)")
    options = parser.parse_args()
    write(options.out, options.type)


def write(path: Path, kind: str) -> None:
    """The whole file, with matrices of one of `TYPES`."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([chr(33 + i) for i in range(VOCABULARY)])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges([f"{chr(33)} {chr(34)}"])  # the loader wants at least one; ids are sent, so it is never used
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    def matrix(name: str, *shape: int) -> None:
        stored = TYPES["f32" if "position" in name else kind]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(rng.normal(0, 0.02, shape).astype(np.float32), stored), raw_dtype=stored)

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, np.float32))

    matrix("token_embd", VOCABULARY, WIDTH)
    matrix("position_embd", CONTEXT, WIDTH)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            vector(f"blk.{layer}.{norm}.weight", WIDTH, 1.0)
            vector(f"blk.{layer}.{norm}.bias", WIDTH, 0.0)
        for name, out, inner in (
            ("attn_qkv", 3 * WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_up", 4 * WIDTH, WIDTH),
            ("ffn_down", WIDTH, 4 * WIDTH),
        ):
            matrix(f"blk.{layer}.{name}", out, inner)
            vector(f"blk.{layer}.{name}.bias", out, 0.0)
    vector("output_norm.weight", WIDTH, 1.0)
    vector("output_norm.bias", WIDTH, 0.0)
    matrix("output", VOCABULARY, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
