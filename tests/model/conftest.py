import pytest
import torch

from model.config import GPTConfig
from model.gpt import GPT


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    torch.manual_seed(0)


@pytest.fixture
def small() -> GPT:
    """Heads of 5 on a width of 16: as in the described system, the width is no multiple of the heads."""
    return GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=3, n_embd=16)).eval()
