"""Two processes train as one does: the same batches, the same losses, one writer. Gloo on the CPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.processes import ROOT, TIMEOUT, TINY, Run, finish, flags, launch, minutes_long
from training.config import TrainingError
from training.distributed import World
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
