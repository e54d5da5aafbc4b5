"""Two processes train as one does: the same batches, the same losses, one writer. Gloo on the CPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.config import GPTConfig
from model.gpt import GPT
from tests.training.processes import ROOT, TIMEOUT, TINY, Run, finish, flags, launch, minutes_long
from training.config import TrainingError
from training.device import choose_dtype
from training.distributed import ONE_PROCESS, World, find_world
from training.evaluate import mean_losses
from training.run_directory import read_metrics

FEW = ["--dropout=0", "--dtype=float32", "--max-iters=20", "--eval-interval=5"]


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """``torchrun --nproc-per-node 2 -m training …``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_have_the_losses_of_one(tmp_path: Path, text_file: Path) -> None:
    arguments = ["--data", str(text_file), *flags(TINY), *FEW]
    status, out, err = finish(torchrun("--out", str(tmp_path / "two"), *arguments))
    assert status == 0, err
    assert out.count("best validation loss") == 1  # rank 0 alone speaks
    run = Run(tmp_path / "one", text_file)
    run.process = launch(["--out", str(run.path), *arguments])
    assert run.wait() == 0, run.err
    one, two = read_metrics(run.path), read_metrics(tmp_path / "two")
    assert [p.step for p in two] == [5, 10, 15, 20]
    for a, b in zip(one, two, strict=True):
        assert b.val_loss == pytest.approx(a.val_loss, rel=1e-5)
        assert b.train_loss == pytest.approx(a.train_loss, rel=1e-5)


@minutes_long
@pytest.mark.slow
def test_a_dead_process_ends_them_all(tmp_path: Path, text_file: Path) -> None:
    run = Run(tmp_path / "run", text_file)
    run.process = torchrun("--data", str(text_file), "--out", str(run.path), *flags(TINY), "--max-iters=100000")
    assert run.wait_until(lambda: run.saved_step > 0)
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    rank_1 = next(pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(rank_1), signal.SIGKILL)
    out, err = run.process.communicate(timeout=TIMEOUT)
    assert run.process.returncode != 0
    assert "another process of this run is gone" in err or "saved at step" in out


def test_the_rows_of_a_batch_are_shared_out() -> None:
    assert [list(World(rank, 3).rows(6)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(TrainingError, match="--batch-size 7 must be a multiple of the 2 processes"):
        World(0, 2).rows(7)


PLACE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, ONE_PROCESS),
        ({"RANK": "0", "WORLD_SIZE": "1"}, World(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **PLACE}, World(3, 4, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", **PLACE}, World(1, 2, 1)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", **PLACE}, World(1, 2, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, ONE_PROCESS),  # in a batch script, before srun
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", **PLACE}, World(1, 2, 1)),
    ],
)
def test_the_world_of_every_launcher(environment: dict[str, str], world: World) -> None:
    """``RANK=1 WORLD_SIZE=2 python -m training`` trained alone, into the same run as its neighbour."""
    assert find_world(environment) == world


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "set MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "1"}, "RANK and WORLD_SIZE in the environment must both be numbers"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "must both be numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2", **PLACE}, "RANK=2 does not fit WORLD_SIZE=2"),
    ],
)
def test_half_a_world_is_refused(environment: dict[str, str], error: str) -> None:
    with pytest.raises(TrainingError, match=error):
        find_world(environment)


def test_processes_measure_one_loss_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its own windows: nobody waits for rank 0 longer than NCCL does."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=8, block_size=8, n_layer=1, n_head=2, n_embd=8))
    ids = torch.randint(0, 8, (500,), dtype=torch.uint8)
    monkeypatch.setattr("training.evaluate.EVAL_TOKENS", 32)
    parts: list[torch.Tensor] = []

    def collect(world: World, sums: torch.Tensor) -> torch.Tensor:
        parts.append(sums)
        return sums

    monkeypatch.setattr(World, "dist_mean", collect)
    for rank in range(3):
        mean_losses(model, ids, [1.0, 1.2], world=World(rank, 3))
    total = torch.stack(parts).sum(0)
    monkeypatch.undo()
    assert total[-1] == 499
    assert (total[:-1] / total[-1]).tolist() == pytest.approx(mean_losses(model, ids, [1.0, 1.2]), rel=1e-6)


def test_emulated_bfloat16_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4, a V100 and an RTX 20 say that they support it, and emulate it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_dtype("auto", torch.device("cuda")) == torch.float32
    assert choose_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16
