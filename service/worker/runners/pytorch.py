"""The exact arithmetic in PyTorch, on any device that it knows: the fallback where no kernel can be built, and a second opinion.

Eager tensors and nothing captured or compiled: sums are exact, so no shape has to be fixed for anything but speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint.files import Checkpoint
from model.config import GPTConfig
from model.exact import probes
from model.params import SamplingParams
from model.uniform import u53_tensor
from service.worker.runners import torch_arithmetic as ar
from service.worker.runners.interface import (
    DecodeSlot,
    PrefillChunk,
    PrefixCopy,
    RunnerUnavailable,
    SampledTokens,
    Speculation,
    TokenLogprobs,
)
from service.worker.runners.torch_network import TorchNetwork
from service.worker.runners.torch_sampling import SamplerState, log_probabilities, sample

MAX_PREFILL = 256
"""Tokens of one row in a pass."""
MAX_ROWS, MEMORY_SHARE = 256, 0.8
"""Rows on a GPU, and the share of its free memory that they may take; the rest is for the passes."""

PROBED: dict[str, Callable[..., Tensor]] = {
    "exp64": ar.exp64,
    "log64": ar.log64,
    "quantise": lambda y, a, levels: (y * ar.inverse(a, levels)).round().to(torch.int64),
    "high": lambda q: ar.digits(q)[0].to(torch.int64),
    "low": lambda q: ar.digits(q)[1].to(torch.int64),
    "linear_wide": ar.linear,
    "attention": torch.mul,
    "relu": torch.relu,
    "u53": u53_tensor,
    "logprob": lambda x, most, log_total: (x - most) - log_total,
}
"""What is probed under another name than its own in `torch_arithmetic`, or is not there."""


class TorchRunner:
    """A `Runner` on any device that torch knows. Raises RunnerUnavailable where that is not the case."""

    speculation = Speculation()

    def __init__(self, checkpoint: Checkpoint, *, rows: int | None, device: str, threads: int) -> None:
        config = checkpoint.config
        torch.set_num_threads(threads)
        self.torch_device = open_device(device)
        self.device, self.kernels = device, "torch"
        self.rows = self.turn_rows = rows or rows_that_fit(config, self.torch_device)
        try:
            self.network = TorchNetwork(config, checkpoint.tensors, self.rows, self.torch_device)
            self.state = SamplerState.zeros(self.rows, config.vocab_size, self.torch_device)
        except torch.OutOfMemoryError:
            raise RunnerUnavailable(f"torch: the memory of {device} has no room for {self.rows} rows; lower --max-batch") from None
        self.memory_bytes = self.rows * cache_bytes(config)
        self.params = [SamplingParams()] * self.rows

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """See `Runner`."""
        self.params[row] = params
        self.state.set_row(row, params, prompt, generated)

    @torch.inference_mode()
    def copy_prefix(self, copy: PrefixCopy) -> None:
        """See `CopiesPrefixes`."""
        for cached in (self.network.cache, self.network.scales):  # (L, 2, rows, H, T, …)
            cached[:, :, copy.target, :, : copy.num_tokens] = cached[:, :, copy.source, :, : copy.num_tokens]

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """See `Runner`."""
        for chunk in chunks:
            for i in range(0, len(chunk.tokens), MAX_PREFILL):
                self.forward([chunk.row], [chunk.start + i], [chunk.tokens[i : i + MAX_PREFILL]])

    def logits(self, chunks: Sequence[PrefillChunk]) -> NDArray[np.float32]:
        """See `Runner`. Chunks of one length, all of different rows, go through side by side."""
        lengths = {len(chunk.tokens) for chunk in chunks}
        if len(lengths) == 1 and len({chunk.row for chunk in chunks}) == len(chunks):
            batches = [list(chunks)]
        else:
            batches = [[chunk] for chunk in chunks]
        parts = [self.forward([c.row for c in batch], [c.start for c in batch], [c.tokens for c in batch]) for batch in batches]
        logits: NDArray[np.float32] = torch.cat([part.flatten(0, 1) for part in parts]).cpu().numpy()
        return logits

    @torch.inference_mode()
    def forward(self, rows: Sequence[int], starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """(B, N) tokens of B different rows, from a position on in each → (B, N, V) logits."""
        ids = torch.tensor([list(one) for one in tokens], device=self.torch_device)
        positions = torch.tensor(starts, device=self.torch_device)[:, None] + torch.arange(ids.shape[1], device=self.torch_device)
        return self.network.logits(ids, torch.tensor(rows, device=self.torch_device), positions, max(starts) + ids.shape[1])

    @torch.inference_mode()
    def decode(self, slots: Sequence[DecodeSlot]) -> list[SampledTokens]:
        """See `Runner`. Rows that need the most steps come first, so that those of a step are always the first ones."""
        order = sorted(range(len(slots)), key=lambda i: -slots[i].num_steps)
        ordered = [slots[i] for i in order]
        rows, token, position = (
            torch.tensor([getattr(slot, name) for slot in ordered], device=self.torch_device) for name in ("row", "token", "position")
        )
        params = [self.params[slot.row] for slot in ordered]
        steps: list[tuple[Tensor, list[TokenLogprobs | None]]] = []
        for step in range(ordered[0].num_steps):
            count = sum(slot.num_steps > step for slot in ordered)
            rows, token, position = rows[:count], token[:count], position[:count]
            length = max(slot.position for slot in ordered[:count]) + step + 1
            logits = self.network.logits(token[:, None], rows, position[:, None], length)[:, 0]
            token = sample(logits, self.state.at(rows), any_filter=any(p.has_filter for p in params[:count]))
            self.state.advance(rows, token)
            steps.append((token, token_logprobs(logits, token, params[:count])))
            position = position + 1
        tokens = [sampled.tolist() for sampled, _ in steps]
        found: dict[int, SampledTokens] = {}
        for place, i in enumerate(order):
            logprobs = [each for _, of_step in steps[: slots[i].num_steps] if (each := of_step[place]) is not None]
            asked = params[place].num_logprobs is not None
            found[i] = SampledTokens([of_step[place] for of_step in tokens[: slots[i].num_steps]], logprobs if asked else None)
        return [found[i] for i in range(len(slots))]

    @torch.inference_mode()
    def probe(self, function: int) -> int:
        """See `Runner`."""
        name = probes.PROBES[function].name
        arguments = (a.view(np.int64) if a.dtype == np.uint64 else a for a in probes.arguments(function))
        tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(self.torch_device) for a in arguments]
        result: Tensor = PROBED.get(name, getattr(ar, name, None))(*tensors)  # type: ignore[misc]
        return probes.fold(result.cpu().numpy())

    def close(self) -> None:
        """See `Runner`."""
        del self.network, self.state


def token_logprobs(logits: Tensor, tokens: Tensor, params: Sequence[SamplingParams]) -> list[TokenLogprobs | None]:
    """What each row has asked to know of a step; a tie goes to the lower id."""
    most = max((p.num_logprobs for p in params if p.num_logprobs is not None), default=None)
    if most is None:
        return [None] * len(params)
    logprobs = log_probabilities(logits)
    own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :most]
    best = [list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), logprobs.gather(1, ids).tolist(), strict=True)]
    return [None if p.num_logprobs is None else (own[i], best[i][: p.num_logprobs]) for i, p in enumerate(params)]


def cache_bytes(config: GPTConfig) -> int:
    """Memory of one row: keys and values of 8 bits, and a scale for each head and position."""
    return config.n_layer * 2 * config.n_head * config.block_size * (config.head_size + 4)


def rows_that_fit(config: GPTConfig, device: torch.device) -> int:
    """Rows for the memory that a GPU has left beside the weights; sampling takes some numbers for each token of the vocabulary."""
    free, _ = torch.cuda.mem_get_info(device)
    weights = 4 * config.num_parameters
    row = cache_bytes(config) + 64 * config.vocab_size + 4 * config.n_head * config.block_size * (4 + 2 * config.head_size)
    return max(1, min(MAX_ROWS, int((free * MEMORY_SHARE - weights) / row)))


def open_device(device: str) -> torch.device:
    """The device, after a first computation on it. Raises RunnerUnavailable, in one line with the way out."""
    if device == "cpu":
        return torch.device(device)
    if torch.version.cuda is None:
        raise RunnerUnavailable("torch: this PyTorch was installed without CUDA; install one with it (pytorch.org), or use --device cpu")
    torch.backends.cuda.matmul.allow_tf32 = False  # products of whole numbers in float32 are exact, in TF32 that is not known
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        (torch.ones(16, 16, device=device) @ torch.ones(16, 16, device=device)).sum().item()
    except Exception as error:  # torch has no type of its own for any of these
        reason = " ".join(str(error).split())[:200]
        if "no kernel image" in reason:
            name, known = torch.cuda.get_device_name(), " ".join(torch.cuda.get_arch_list())
            raise RunnerUnavailable(f"torch: this PyTorch has no kernels for the {name} (it knows {known}); install a newer one") from None
        if "driver" in reason:
            raise RunnerUnavailable(f"torch: the NVIDIA driver cannot be used, or is too old for this PyTorch: {reason}") from None
        raise RunnerUnavailable(f"torch: CUDA does not work: {reason}") from None
    return torch.device(device)
