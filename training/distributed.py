"""Several processes with one batch between them: ``torchrun --nproc-per-node N -m training …`` (DistributedDataParallel).

Every process draws the same batch and computes its own rows, so the data order is the same for any number of processes. Rank 0
alone writes and validates. Outside torchrun there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model.gpt import GPT
from training.config import TrainingError
from training.step import Forward


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """The rows of the batch that this process computes. Raises TrainingError when they do not divide."""
        if batch_size % self.size:
            raise TrainingError(f"--batch-size {batch_size} must be a multiple of the {self.size} processes")
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def device(self, chosen: torch.device) -> torch.device:
        """Each process of a machine has a GPU of its own."""
        return torch.device("cuda", self.local_rank) if self.size > 1 and chosen.type == "cuda" else chosen

    def wrap(self, model: GPT, device: torch.device) -> Forward:
        """The model with gradients averaged over all processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def share(self, value: float, device: torch.device) -> float:
        """Rank 0's value, for everyone."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def largest(self, value: int, device: torch.device) -> int:
        """The largest value of any process."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def meet(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()


def join(device: str) -> World:
    """The world that torchrun describes in the environment; one process without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return World()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if world.size > 1:
        on_cuda = device != "cpu" and torch.cuda.is_available()
        if on_cuda:
            torch.cuda.set_device(world.local_rank)
        dist.init_process_group("nccl" if on_cuda else "gloo")
    return world


def lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistBackendError) or "peer" in str(error) or "gloo" in str(error))


def leave() -> None:
    """Close the connections between processes, if there are any."""
    if dist.is_initialized():
        gc.collect()  # a model in a reference cycle would outlive this
        dist.destroy_process_group()
