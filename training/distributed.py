"""Several processes with one batch between them: ``torchrun --nproc-per-node N -m training …``, srun or mpirun (DistributedDataParallel).

Every process draws the same batch and computes its own rows, so the data order is the same for any number of processes. They share
validation too; rank 0 alone writes. Where there is one process, nothing here costs anything.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model.gpt import GPT
from training.config import TrainingError
from training.step import Forward

TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: the first writes checkpoints and pictures meanwhile, perhaps to a slow disk."""


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

    def dist_mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def dist_max(self, value: int, device: torch.device) -> int:
        """The largest value of any process."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()


ONE_PROCESS = World()

LAUNCHERS = (  # rank, number of processes, rank on this machine
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # mpirun
)


def find_world(environment: Mapping[str, str]) -> World:
    """The world that a launcher describes in the environment; one process without one. Raises TrainingError for half a description."""
    for rank, size, local_rank in LAUNCHERS:
        if rank not in environment and size not in environment:
            continue
        if size == "SLURM_NTASKS" and "SLURM_STEP_ID" not in environment:
            continue  # a batch script of SLURM's, not one of srun's tasks
        try:
            world = World(int(environment[rank]), int(environment[size]), int(environment.get(local_rank, environment[rank])))
        except (KeyError, ValueError):
            raise TrainingError(f"{rank} and {size} in the environment must both be numbers; unset them to train alone") from None
        if not 0 <= world.rank < world.size:
            raise TrainingError(f"{rank}={world.rank} does not fit {size}={world.size}")
        if world.size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= set(environment):
            raise TrainingError(
                f"{size} says {world.size} processes: set MASTER_ADDR and MASTER_PORT to the host of the first one and a free port there"
            )
        return world
    return ONE_PROCESS


def join(device: str) -> World:
    """Become one of the processes that the environment describes. Raises TrainingError."""
    world = find_world(os.environ)
    if world.size > 1:
        on_cuda = device != "cpu" and torch.cuda.is_available()
        if on_cuda:
            if world.local_rank >= torch.cuda.device_count():
                raise TrainingError(
                    f"process {world.rank} wants GPU {world.local_rank} of this machine, which has {torch.cuda.device_count()}: "
                    "start one process for each GPU"
                )
            torch.cuda.set_device(world.local_rank)
        os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size)}  # where env:// looks
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=TIMEOUT)
    return world


def lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistBackendError) or "peer" in str(error) or "gloo" in str(error))


def leave() -> None:
    """Close the connections between processes, if there are any."""
    if dist.is_initialized():
        gc.collect()  # a model in a reference cycle would outlive this
        dist.destroy_process_group()
