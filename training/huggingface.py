"""Checkpoints to and from the directory that `transformers` reads as GPT-2: config.json, model.safetensors, tokenizer.json.

GPT-2's matrices lie transposed (its "Conv1D"), its queries, keys and values have biases, its head has none. Ours has one on the
head: it is moved into the final LayerNorm, whose bias b becomes b + d with W·d = the head's bias, exact where there are no more
tokens than features. A head size that does not divide the width cannot be held at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from model.checkpoint.files import dump_json, read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files, load_checkpoint
from model.checkpoint.manifest import MAX_JSON_BYTES, CheckpointError, parse_json, read_file
from model.config import Activation, Arithmetic, GPTConfig
from model.gpt import GPT
from model.tokenizer.base import Tokenizer, TokenizerError
from model.tokenizer.bpe import BYTES, BPETokenizer
from model.tokenizer.byte import ByteTokenizer
from model.tokenizer.char import CharTokenizer
from training.chat_template import chat_fields, to_tokenizer_config
from training.config import TrainingError
from training.data import load_text
from training.dataset import Dataset
from training.exact_loss import choose_arithmetic
from training.run_directory import writing

ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu_new": "gelu_tanh"}
BLOCK = {
    "ln_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
"""Our modules of a block, and GPT-2's."""
STARTS = ("<|endoftext|>", "\n")
"""What an empty prompt starts from: between texts, as GPT-2 has learned them, or at the beginning of a line."""
EXPECTED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def export_hf(source: Path, out: Path) -> None:
    """Write ``out``, which ``GPT2LMHeadModel.from_pretrained`` loads with equal logits. Raises TrainingError, CheckpointError."""
    checkpoint = load_checkpoint(source)
    config = checkpoint.config
    if config.attn_width != config.n_embd:
        raise TrainingError(
            f"GPT-2's format cannot hold {config.n_head} heads of {config.head_size} in a width of {config.n_embd}: the width must be a "
            f"multiple of the heads (train with --n-embd {config.attn_width}, or --n-head {nearest_divisor(config.n_embd, config.n_head)})"
        )
    tensors = to_gpt2(config, checkpoint.model.state_dict())
    with writing(out):
        out.mkdir(parents=True)
        (out / "config.json").write_bytes(dump_json(gpt2_config(config)))
        (out / "model.safetensors").write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        (out / "tokenizer.json").write_bytes(dump_json(hf_tokenizer(checkpoint.tokenizer)))
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.block_size}
        (out / "tokenizer_config.json").write_bytes(dump_json(about | to_tokenizer_config(checkpoint.manifest)))


def import_hf(source: Path, out: Path, data_files: Sequence[str] | None = None) -> tuple[GPTConfig, float | None]:
    """Make a checkpoint of a GPT-2 directory; its shape, and what its arithmetic costs in nats per token, None if not measured.

    Its activations are served in the fewest bits that cost at most 0.001 on ``data_files``, or else in 16: GPT-2's outliers need
    them. Raises CheckpointError for what is none, TrainingError for what cannot be held.
    """
    try:
        config = config_from_gpt2(source / "config.json")
        tokenizer = tokenizer_from_hf(source / "tokenizer.json")
        start = next((text for text in STARTS if text in tokenizer.ids), "")
        chat = chat_fields(source)
        data = read_file(source / "model.safetensors")
        model = GPT(config)
        model.load_state_dict(from_gpt2(config, safetensors.torch.load(data)))
    except (TrainingError, CheckpointError):
        raise
    except Exception as error:  # safetensors raises its own type; a missing tensor is a KeyError, a wrong shape a RuntimeError
        raise CheckpointError(f"{source} is not a GPT-2 that can be read: {' '.join(str(error).split())[:300]}") from None
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(f"{source / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, config.json says {config.vocab_size}")
    arithmetic: Arithmetic = "w8a16"
    cost = None
    ids = [i % config.vocab_size for i in range(256)]
    if data_files:
        val = Dataset(load_text(data_files), tokenizer, config.block_size, torch.device("cpu")).val
        arithmetic, cost = choose_arithmetic(model.eval(), val)
        ids = val[:256].tolist()
    model.config = replace(config, arithmetic=arithmetic)
    manifest = {"start": start, "val_loss": None, "imported": source.name, "exact_cost": None if cost is None else round(cost, 6)} | chat
    with writing(out):
        write_checkpoint(out, checkpoint_files(model.eval(), tokenizer, ids), manifest)
    read_checkpoint(out)
    return model.config, cost


def to_gpt2(config: GPTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under GPT-2's names, in its layout."""
    tensors = {"transformer.wte.weight": state["token_embedding.weight"], "transformer.wpe.weight": state["position_embedding.weight"]}
    for layer in range(config.n_layer):
        for ours, theirs in BLOCK.items():
            weight = state[f"blocks.{layer}.{ours}.weight"]
            bias = state.get(f"blocks.{layer}.{ours}.bias", torch.zeros(weight.shape[0]))
            tensors[f"transformer.h.{layer}.{theirs}.weight"] = weight.T if weight.ndim == 2 else weight
            tensors[f"transformer.h.{layer}.{theirs}.bias"] = bias
    tensors["transformer.ln_f.weight"] = state["ln_f.weight"]
    tensors["transformer.ln_f.bias"] = state["ln_f.bias"] + shift_for(state["lm_head.weight"], state["lm_head.bias"])
    tensors["lm_head.weight"] = state["lm_head.weight"]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def shift_for(weight: Tensor, bias: Tensor) -> Tensor:
    """The d with ``weight @ d == bias``. Raises TrainingError when there is none."""
    shift = torch.linalg.lstsq(weight.double(), bias.double()[:, None], driver="gelsd").solution[:, 0]
    if (weight.double() @ shift - bias).abs().max() > 1e-6 * max(1.0, bias.abs().max().item()):
        raise TrainingError("GPT-2's format has no bias on the head, and with more tokens than features this one cannot be moved elsewhere")
    result: Tensor = shift.float()
    return result


def from_gpt2(config: GPTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`to_gpt2`; names may lack ``transformer.`` (as OpenAI's own files do)."""
    theirs = {name.removeprefix("transformer."): tensor.float() for name, tensor in tensors.items()}
    state = {"token_embedding.weight": theirs["wte.weight"], "position_embedding.weight": theirs["wpe.weight"]}
    for layer in range(config.n_layer):
        for ours, name in BLOCK.items():
            weight = theirs[f"h.{layer}.{name}.weight"]
            state[f"blocks.{layer}.{ours}.weight"] = weight.T.contiguous() if weight.ndim == 2 else weight
            state[f"blocks.{layer}.{ours}.bias"] = theirs[f"h.{layer}.{name}.bias"]
    head = theirs.get("lm_head.weight", theirs["wte.weight"])
    return state | {
        "ln_f.weight": theirs["ln_f.weight"],
        "ln_f.bias": theirs["ln_f.bias"],
        "lm_head.weight": head.clone(),
        "lm_head.bias": torch.zeros(len(head)),
    }


def gpt2_config(config: GPTConfig) -> dict[str, Any]:
    """``config.json`` as transformers has it."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "architectures": ["GPT2LMHeadModel"],
        **EXPECTED,
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "activation_function": names[config.activation],
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def config_from_gpt2(path: Path) -> GPTConfig:
    """A GPT-2's ``config.json``. Raises TrainingError for what our model does not compute, ConfigError for bad sizes."""
    data = parse_json(path, read_file(path, 1 << 20))
    for name, expected in EXPECTED.items():
        if data.get(name, expected) != expected:
            raise TrainingError(f"{path}: {name} is {data[name]!r}, only {expected!r} can be imported")
    activation = data.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise TrainingError(f"{path}: activation_function is {activation!r}, only {' and '.join(ACTIVATIONS)} can be imported")
    if data.get("n_inner") not in (None, 4 * data["n_embd"]):
        raise TrainingError(f"{path}: n_inner is {data['n_inner']}, only four times n_embd can be imported")
    return GPTConfig(
        vocab_size=data["vocab_size"],
        block_size=data["n_positions"],
        n_layer=data["n_layer"],
        n_head=data["n_head"],
        n_embd=data["n_embd"],
        dropout=data.get("resid_pdrop", 0.1),
        qkv_bias=True,
        activation=ACTIVATIONS[activation],
    )


def hf_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """``tokenizer.json`` of the `tokenizers` library. Bytes are a BPE that merges nothing."""
    if isinstance(tokenizer, CharTokenizer):  # one token per character; an unknown one is an error there too
        return {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": dict(tokenizer.ids), "unk_token": "<unk>"},
        }
    if isinstance(tokenizer, ByteTokenizer):
        return {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": BYTES, "merges": []},
        }
    library: dict[str, Any] = tokenizer.to_json()["tokenizer"]
    return library


def tokenizer_from_hf(path: Path) -> Tokenizer:
    """Single characters or byte-level BPE. Raises CheckpointError for any other."""
    data = parse_json(path, read_file(path, MAX_JSON_BYTES))
    try:
        if data.get("model", {}).get("type") == "WordLevel":
            return characters_from_hf(data["model"].get("vocab"))
        return BPETokenizer.from_json({"tokenizer": data})
    except TokenizerError as error:
        raise CheckpointError(f"{path}: {error}") from None


def characters_from_hf(vocabulary: object) -> CharTokenizer:
    """A word-level vocabulary whose words are single characters. Raises TokenizerError."""
    if not isinstance(vocabulary, dict):
        raise TokenizerError("it has no vocabulary")
    by_id = sorted(vocabulary, key=lambda token: vocabulary[token])
    if [vocabulary[token] for token in by_id] != list(range(len(by_id))):
        raise TokenizerError("the ids of its tokens are not 0, 1, 2, …")
    return CharTokenizer(by_id)


def nearest_divisor(width: int, heads: int) -> int:
    """The number of heads nearest to ``heads`` that divides the width."""
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
