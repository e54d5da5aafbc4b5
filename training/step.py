"""One optimizer step, a function of (seed, step) and the state before it.

    gather → forward → loss → backward → clip → optimizer

On CUDA the whole of it is captured into one graph after a few ordinary steps, because launching its some hundred kernels from
Python costs several times their arithmetic. (The CUDA path has not been run on a GPU yet: see docs/training.md.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from model.gpt import GPT
from model.uniform import mix64
from training.config import TrainConfig
from training.dataset import Dataset
from training.optim import Optimizers, dropout_at, set_learning_rates

WARM_UP_STEPS = 3
"""Ordinary steps before the capture: libraries start up and optimizer state comes into being."""

Forward = Callable[[Tensor], Tensor]


class TrainStep:
    """``loss = TrainStep(…)(step)``: the loss stays on the device, nothing here waits for it."""

    def __init__(
        self,
        model: GPT,
        forward: Forward,
        optimizers: Optimizers,
        data: Dataset,
        config: TrainConfig,
        dtype: torch.dtype,
        rows: range,
    ) -> None:
        self.model, self.forward, self.optimizers = model, forward, optimizers
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.dropout = config.dropout
        self.data, self.config, self.dtype = data, config, dtype
        self.rows = rows
        self.device = data.train.device
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)

    def __call__(self, step: int) -> Tensor:
        """Do step number ``step``, counted from 0; the loss before it, in nats per token."""
        self.prepare(step)
        loss = self.loss_and_gradient()
        self.update(self.optimizers)
        return loss

    def prepare(self, step: int) -> None:
        """Everything that differs from step to step: dropout and its seed, the learning rates, the batch's number."""
        if (dropout := dropout_at(self.config, step)) != self.dropout:
            self.dropout = dropout
            self.model.set_dropout(dropout)
        torch.manual_seed(mix64(mix64(self.config.seed * 1_000_003 + step) + self.rows.start) >> 1)
        set_learning_rates(self.optimizers, self.config, step)
        self.step.fill_(step)

    def loss_and_gradient(self) -> Tensor:
        """Forward and backward on this step's batch, in parts if it has to be; the gradient clipped."""
        for parameter in self.parameters:
            parameter.grad = None
        *parts, last = self.micro_batches()
        with self.without_exchange():
            losses = [self.micro_step(rows) for rows in parts]
        losses.append(self.micro_step(last))
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def micro_step(self, rows: range) -> Tensor:
        """Forward and backward of some rows; their share of the loss."""
        x, y = self.data.batch(self.config.seed, self.step, self.config.batch_size, rows)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.forward(x)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        if len(rows) < len(self.rows):
            loss = loss * (len(rows) / len(self.rows))
        torch.autograd.backward(loss)
        return loss.detach()

    def micro_batches(self) -> list[range]:
        """This process's rows, at most ``micro_batch_size`` at a time."""
        size = self.config.micro_batch_size or len(self.rows)
        return [self.rows[at : at + size] for at in range(0, len(self.rows), size)]

    def without_exchange(self) -> AbstractContextManager[None]:
        """Several processes exchange gradients once, with the last part."""
        return self.forward.no_sync() if isinstance(self.forward, DistributedDataParallel) else nullcontext()

    def update(self, optimizers: Optimizers) -> None:
        """Apply the gradient."""
        for optimizer in optimizers.values():
            optimizer.step()


class GraphedStep(TrainStep):
    """The same step, replayed as one CUDA graph, which is captured again when dropout has fallen by a 256th.

    Replaying draws fresh dropout: a graph takes seed and offset from the device's generator, which `prepare` seeds every step.
    """

    graph: torch.cuda.CUDAGraph | None = None
    graph_dropout = 0.0
    warm_ups = 0
    loss: Tensor

    def __call__(self, step: int) -> Tensor:
        self.prepare(step)
        if self.graph is not None and self.graph_dropout == self.dropout:
            self.graph.replay()
        elif self.warm_ups < WARM_UP_STEPS:
            return self.warm_up()
        else:
            self.capture()  # records, computes nothing
            assert self.graph is not None
            self.graph.replay()
        return self.loss.clone()  # the next replay overwrites it

    def warm_up(self) -> Tensor:
        """An ordinary step on a side stream, as capturing wants it before."""
        self.warm_ups += 1
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self.loss_and_gradient()
            self.update(self.optimizers)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def capture(self) -> None:
        """Record the step; gradients are allocated in the graph's own memory."""
        for parameter in self.parameters:
            parameter.grad = None
        self.graph = None  # the memory of the one before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.loss = self.loss_and_gradient()
            self.update(self.optimizers)
        self.graph, self.graph_dropout = graph, self.dropout


def build_step(
    model: GPT,
    forward: Forward,
    optimizers: Optimizers,
    data: Dataset,
    config: TrainConfig,
    dtype: torch.dtype,
    rows: range,
) -> TrainStep:
    """A graph on one GPU; ordinary steps on a CPU, and where several processes exchange gradients."""
    alone = len(rows) == config.batch_size
    kind = GraphedStep if data.train.device.type == "cuda" and alone else TrainStep
    return kind(model, forward, optimizers, data, config, dtype, rows)


def compile_step(step: TrainStep) -> None:
    """Compile the step's forward pass and try it, backward too; leave the step as it was when that fails."""
    plain = step.forward
    try:
        step.forward = torch.compile(plain)
        step.loss_and_gradient()  # its gradient is dropped by the first real step
    except Exception as error:  # whatever a compiler can throw
        step.forward = plain
        reason = (str(error).splitlines() or [""])[0][:200]
        print(f"--compile: {type(error).__name__}: {reason}; going on without", file=sys.stderr)
