"""The CUDA kernels on this CPU, thread by thread: built by g++ from their source, or from the PTX that NVRTC makes of it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.params import SamplingParams
from service.worker.cuda import layout
from service.worker.cuda.compiler import HEADERS, SOURCES, Nvrtc
from service.worker.cuda.launches import Plan
from service.worker.cuda.rows import row_state
from tests.gpu.checkpoints import Model
from tests.gpu.ptx import translate

EMULATOR = Path(__file__).with_name("emulator")
BUILDS = Path(os.environ.get("FOLIO_EMULATOR_CACHE", Path(tempfile.gettempdir()) / f"folio-emulator-{os.getuid()}"))
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-w"]
SOURCE = "source"
"""Not a PTX target: kernel.cu as g++ reads it."""


def digest(*parts: bytes) -> str:
    """Names a build."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def build(arguments: Sequence[str], main: str, suffix: str) -> Path:
    """What g++ makes of a file of ``emulator/``, made once."""
    files = [*sorted(EMULATOR.iterdir()), *(SOURCES / name for name in ("kernel.cu", "probe.cu", *HEADERS))]
    path = BUILDS / f"{Path(main).stem}-{digest(*(file.read_bytes() for file in files), repr(arguments).encode())}{suffix}"
    if not path.exists():
        BUILDS.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        include = [f"-I{SOURCES}", f"-I{EMULATOR}"]
        subprocess.run(["g++", *FLAGS, *arguments, *include, str(EMULATOR / main), "-o", str(temporary)], check=True)
        temporary.replace(path)
    return path


@functools.cache
def ptx_header(plan: Plan, arch: str) -> str:
    """The file with the translated PTX of a build."""
    options = plan.defines()
    texts = [(SOURCES / name).read_bytes() for name in ("kernel.cu", "probe.cu", *HEADERS)]
    path = BUILDS / f"ptx-{digest(*texts, repr((arch, options)).encode(), Path(__file__).with_name('ptx.py').read_bytes())}.inc"
    if not path.exists():
        nvrtc = Nvrtc()
        modules = [nvrtc.compile("kernel.cu", arch, options), nvrtc.compile("probe.cu", arch, [])]
        BUILDS.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text("\n".join(translate(module.rstrip(b"\0").decode()) for module in modules))
        temporary.replace(path)
    return str(path)


def arguments_for(plan: Plan, target: str) -> list[str]:
    """g++'s options for a build of the emulator."""
    if target == SOURCE:
        return ["-O2", *plan.defines()]
    return ["-O1", f'-DPTX="{ptx_header(plan, target)}"', *plan.defines()]


def load(plan: Plan, target: str) -> ctypes.CDLL:
    """The emulator with the kernels of a build."""
    library = ctypes.CDLL(str(build(["-shared", "-fPIC", *arguments_for(plan, target)], "emulator.cpp", ".so")))
    library.probe_sum.restype = ctypes.c_uint64
    sizes = [ctypes.sizeof(layout.Args), 8 * len(layout.LAYER), layout.ROW.itemsize]
    assert sizes == [library.size_of(i) for i in range(3)], "layout.py and kernel.cu disagree"
    return library


class Emulated:
    """A model's kernels with memory for some rows and items, everything that they write filled with rubbish."""

    def __init__(self, model: Model, rows: int, items: int, *, steps: int = 1, target: str = SOURCE, seed: int = 1) -> None:
        self.plan = plan = model.plan
        self.library, self.seed = load(plan, target), seed
        self.arrays: dict[str, NDArray[Any]] = dict(layout.weights(model.tensors, plan))
        for name, space in layout.spaces(plan, rows, items, steps).items():
            self.arrays[name] = (
                np.frombuffer(bytearray(b"\xa5" * max(space.nbytes, 8)), np.uint8)[: space.nbytes].view(space.dtype).reshape(space.shape)
            )
        for name in ("bias", "in_prompt", "counts", "drawn", "limit", "draft"):
            self.arrays[name][:] = 0
        self.arrays["row"][:] = -1
        pointers = [[self.address(f"{i}.{name}") for name in layout.LAYER] for i in range(plan.config.n_layer)]
        self.arrays["layers"] = np.array(pointers, np.uint64)
        self.args = layout.Args(**{name: self.address(name) for name in layout.POINTERS})
        self.args.num_rows, self.args.steps, self.args.root = rows, steps, layout.root(plan.config)

    def address(self, name: str) -> int:
        """Where an array lies."""
        return int(self.arrays[name].ctypes.data)

    def emulate(self, kernel: str, arguments: Sequence[Any], grid: tuple[int, int]) -> None:
        """One launch."""
        self.seed += 1
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.cast(ctypes.byref(a), ctypes.c_void_p) for a in arguments))
        assert self.library.emulate(kernel.encode(), pointers, *grid, self.seed) == 0, kernel

    def set_items(self, rows: Sequence[int], tokens: Sequence[int], positions: Sequence[int], *, limit: int = 0) -> None:
        """Items to compute; those of one row follow each other and, but for the first, hold guesses."""
        m = self.args.num_items = len(rows)
        for name, values in (("row", rows), ("token", tokens), ("position", positions)):
            self.arrays[name][:m] = values
        self.arrays["limit"][:], self.arrays["drawn"][:], self.arrays["draft"][:] = limit, 0, 0
        for i in range(1, m):
            if rows[i] == rows[i - 1] and rows[i] >= 0:
                self.arrays["draft"][i] = self.arrays["draft"][i - 1] + 1

    def step(self, *, distinct: bool = True, logits: bool = True, drafts: bool = False) -> NDArray[np.float32]:
        """One step of the items; (M, V) logits."""
        self.args.verifying = drafts
        for kernel, layer, grid in self.plan.launches(self.args.num_items, distinct=distinct, logits=logits, drafts=drafts):
            self.emulate(kernel, [self.args, ctypes.c_int(layer)], grid)
        return self.arrays["logits"][: self.args.num_items].copy()

    def run(self, rows: Sequence[int], tokens: Sequence[int], positions: Sequence[int], *, distinct: bool = True) -> NDArray[np.float32]:
        """Logits of items, nothing drawn."""
        self.set_items(rows, tokens, positions)
        return self.step(distinct=distinct)

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Give a row to a request."""
        for name, value in row_state(self.plan, params, prompt, generated).items():
            self.arrays[name][row] = value

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """What a row has cached of its first positions, to another row."""
        config = self.plan.config
        numbers = [ctypes.c_int(n) for n in (source, target, num_tokens)]
        self.emulate("copy_prefix", [self.args, *numbers], (config.n_head, config.n_layer))

    def probe_sums(self, functions: int, arguments: int) -> list[int]:
        """The sums of probe.h, by the kernel."""
        sums = np.zeros(functions, np.uint64)
        each = arguments // (64 * 256)
        for f in range(functions):
            values = [ctypes.c_void_p(sums.ctypes.data), ctypes.c_int(f), ctypes.c_uint64(0), ctypes.c_int(each)]
            self.emulate("probe", values, (64, 1))
        return [int(x) for x in sums]
