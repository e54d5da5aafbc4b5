"""The engine's arithmetic in PyTorch: on CUDA as captured graphs, elsewhere eagerly. The only file that knows CUDA.

Purity by shape: a decode step always computes a whole tile of `TILE` rows, a prefill step always one chunk of `CHUNK` tokens, and
attention always spans the whole context behind a mask. So every matrix product has one shape, one kernel and one order of
additions, however many rows are in use; idle rows compute and are thrown away. What remains, that a kernel might treat the rows of
a tile differently, the start-up self-test checks on the machine at hand.

Prefill and decode have different shapes, so they may round differently: a replayed token goes through the decode path again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from model.checkpoint.files import Checkpoint
from model.gpt import GPT
from model.kv_cache import DecodeView, KVCache, PrefillView
from model.params import SamplingParams
from service.worker.runners.interface import DecodeSlot, PrefillChunk, SampledTokens
from service.worker.runners.torch_sampling import SamplerState, log_probabilities, sample

CHUNK = 64
CPU_TILE, CUDA_TILE = 16, 64


class TorchRunner:
    """A `Runner` on any device that torch knows. `rows` is rounded up to whole tiles."""

    def __init__(self, checkpoint: Checkpoint, *, rows: int, dtype: str, device: str) -> None:
        self.torch_device = torch.device(device)
        cuda = self.torch_device.type == "cuda"
        if cuda:  # one algorithm for each shape, chosen without timing, no reduced-precision sums
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self.tile = CUDA_TILE if cuda else CPU_TILE
        self.rows = -(-rows // self.tile) * self.tile
        self.chunk_size = CHUNK
        self.device, self.dtype = device, dtype
        capability = (
            "sm{}{}".format(*torch.cuda.get_device_capability(self.torch_device)) if cuda else torch.backends.cpu.get_cpu_capability()
        )
        self.kernels = f"torch-{torch.__version__}-{capability}-tile{self.tile}"
        self.model = GPT(checkpoint.config)
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()})
        self.model.to(device=self.torch_device, dtype=getattr(torch, dtype)).eval()
        self.cache = KVCache(checkpoint.config, self.rows, device=self.torch_device, dtype=getattr(torch, dtype))
        self.memory_bytes = self.cache.num_bytes
        self.vocab_size = checkpoint.config.vocab_size
        self.state = SamplerState.zeros(self.rows, self.vocab_size, self.torch_device)
        self.params: list[SamplingParams | None] = [None] * self.rows

        def whole(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=self.torch_device)

        self.token, self.position = whole(self.rows), whole(self.rows) - 1
        self.chunk_ids, self.chunk_row, self.chunk_start = whole(1, CHUNK), whole(1), whole(1)
        self.logits = torch.zeros(self.rows, self.vocab_size, dtype=torch.float32, device=self.torch_device)
        tiles = range(self.rows // self.tile)
        self.forward_steps = [self.graphed(partial(self.forward_tile, i)) for i in tiles]
        self.draw_steps = {(i, f): self.graphed(partial(self.draw_tile, i, f)) for i in tiles for f in (False, True)}
        self.prefill_step = self.graphed(self.prefill_chunk)

    # ---- the three things a device does --------------------------------------------------------------------------------

    @torch.no_grad()
    def forward_tile(self, index: int) -> None:
        """Encode the next token of every row of a tile, leaving the logits. Idle rows (position −1) write what is overwritten."""
        first = index * self.tile
        part = slice(first, first + self.tile)
        view = DecodeView(self.cache, first, self.position[part])
        self.logits[part] = self.model(self.token[part, None], view)[:, 0].float()

    @torch.no_grad()
    def draw_tile(self, index: int, any_filter: bool) -> None:
        """Draw a token for every active row of a tile, feed it back and advance."""
        part = slice(index * self.tile, (index + 1) * self.tile)
        state = self.state.rows(part.start, part.stop)
        active = self.position[part] >= 0
        drawn = sample(self.logits[part], state, any_filter=any_filter)
        state.advance(drawn, active.long())
        self.token[part] = torch.where(active, drawn, self.token[part])
        self.position[part] += active.long()

    @torch.no_grad()
    def prefill_chunk(self) -> None:
        """Encode CHUNK tokens of one row, padding included: what a padded tail writes is overwritten before it is looked at."""
        self.model.hidden(self.chunk_ids, PrefillView(self.cache, self.chunk_row, self.chunk_start, CHUNK))

    def graphed(self, step: Callable[[], None]) -> Callable[[], None]:
        """The same step as one launch, on CUDA. Captured on a side stream after warm-up, as torch's CUDA notes ask."""
        if self.torch_device.type != "cuda":
            return step
        side = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.torch_device))
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream(self.torch_device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    # ---- Runner ---------------------------------------------------------------------------------------------------------

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """See `Runner`."""
        self.params[row] = params
        self.state.set_row(row, params, prompt, generated)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """See `Runner`."""
        for chunk in chunks:
            if chunk.replay:
                self.replay(chunk)
                continue
            padded = list(chunk.tokens) + [0] * (CHUNK - len(chunk.tokens))
            self.chunk_ids.copy_(torch.tensor([padded]))
            self.chunk_row.fill_(chunk.row)
            self.chunk_start.fill_(chunk.start)
            self.prefill_step()

    def replay(self, chunk: PrefillChunk) -> None:
        """Known tokens through the decode path, one by one."""
        tile = chunk.row // self.tile
        self.position.fill_(-1)
        for offset, token in enumerate(chunk.tokens):
            self.token[chunk.row], self.position[chunk.row] = token, chunk.start + offset
            self.forward_steps[tile]()

    def decode(self, slots: Sequence[DecodeSlot]) -> list[SampledTokens]:
        """See `Runner`. One host sync at the end of the decode, and one a step where log-probabilities are asked for."""
        self.place([(c.row, c.token, c.position) for c in slots])
        limit = {c.row: c.num_steps for c in slots}
        tiles = sorted({c.row // self.tile for c in slots})
        filters = {t: any((p := self.params[c.row]) is not None and p.has_filter for c in slots if c.row // self.tile == t) for t in tiles}
        most = max(limit.values())
        drawn = torch.zeros(most, self.rows, dtype=torch.int64, device=self.torch_device)
        logprobs: dict[int, list[tuple[float, list[tuple[int, float]]]]] = {
            c.row: [] for c in slots if (p := self.params[c.row]) is not None and p.num_logprobs is not None
        }
        for step in range(most):
            if step and (done := [row for row, steps in limit.items() if steps == step]):
                self.position[torch.tensor(done, device=self.torch_device)] = -1
            for tile in tiles:
                self.forward_steps[tile]()
                self.draw_steps[tile, filters[tile]]()
            drawn[step] = self.token
            for row, found in logprobs.items():
                if step < limit[row]:
                    found.append(self.read_logprobs(row, int(self.token[row])))
        tokens = drawn.cpu().T.tolist()
        return [SampledTokens(tokens[c.row][: c.num_steps], logprobs.get(c.row)) for c in slots]

    def place(self, slots: Sequence[tuple[int, int, int]]) -> None:
        """Make exactly these (row, token, position) active."""
        token, position = [0] * self.rows, [-1] * self.rows
        for row, next_token, at in slots:
            token[row], position[row] = next_token, at
        self.token.copy_(torch.tensor(token))
        self.position.copy_(torch.tensor(position))

    def read_logprobs(self, row: int, token: int) -> tuple[float, list[tuple[int, float]]]:
        """The log-probability of ``token`` in the row's present distribution, and the most probable tokens."""
        params = self.params[row]
        assert params is not None and params.num_logprobs is not None
        values = log_probabilities(self.logits[row][None])[0]
        top, ids = values.sort(descending=True, stable=True)
        count = min(params.num_logprobs, self.vocab_size)
        return float(values[token]), list(zip(ids[:count].tolist(), top[:count].tolist(), strict=True))

    def next_logits(self, row: int, tokens: Sequence[int]) -> list[float]:
        """See `Runner`."""
        body = tokens[:-1]
        self.prefill([PrefillChunk(row, i, body[i : i + CHUNK]) for i in range(0, len(body), CHUNK)])
        self.place([(row, tokens[-1], len(tokens) - 1)])
        self.forward_steps[row // self.tile]()
        values: list[float] = self.logits[row].tolist()
        return values

    def close(self) -> None:
        """See `Runner`."""
        self.forward_steps.clear()
        self.draw_steps.clear()
