"""One card: its name, its memory, kernels on it, and waiting for them, never without a limit."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.worker.cuda import driver as cu
from service.worker.cuda.launches import THREADS
from service.worker.cuda.layout import Space

OLDEST_DRIVER, OLDEST_CAPABILITY = 13000, (7, 5)
LIMIT_S = 2.0
"""Longest wait for the card. A burst takes milliseconds; what takes this long will not end. The API process loses patience later."""
BUSY_WAIT_S, NAP_S = 0.002, 0.0002
"""How long a wait asks again at once, and how long it sleeps between two questions after that."""
RESERVE = 256 << 20
"""Bytes that are left to the driver and to other programs."""
Array = NDArray[Any]


class Card:
    """The first GPU that the driver shows. Raises NoDriverError and CudaError, whose messages are for people."""

    def __init__(self) -> None:
        d = self.driver = cu.Driver()
        count, version, device, context = c_int(), c_int(), c_int(), c_void_p()
        d.cuInit(0)
        d.cuDriverGetVersion(byref(version))
        d.cuDeviceGetCount(byref(count))
        if not count.value:
            raise cu.CudaError(cu.CURES[cu.NO_DEVICE])
        d.cuDeviceGet(byref(device), 0)
        name = ctypes.create_string_buffer(128)
        d.cuDeviceGetName(name, 128, device)
        self.device, self.name = device, name.value.decode(errors="replace")
        self.capability = self.attribute(cu.CAPABILITY_MAJOR), self.attribute(cu.CAPABILITY_MINOR)
        self.multiprocessors = self.attribute(cu.MULTIPROCESSORS)
        if self.capability < OLDEST_CAPABILITY:
            raise cu.CudaError(f"{self.name} has compute capability {self.version(self.capability)}; CUDA 13 needs 7.5 or newer")
        if version.value < OLDEST_DRIVER:
            has = f"{version.value // 1000}.{version.value % 1000 // 10}"
            raise cu.CudaError(f"the NVIDIA driver is for CUDA {has}; 13.0 is needed, that is driver 580 or newer")
        d.cuDevicePrimaryCtxRetain(byref(context), device)
        self.stream = c_void_p()
        self.addresses: dict[str, int] = {}
        self.spaces: dict[str, Space] = {}
        self.in_flight: list[Array] = []
        self.is_computing = self.is_lost = False
        try:
            d.cuCtxSetCurrent(context)
            d.cuStreamCreate(byref(self.stream), cu.NON_BLOCKING)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def version(pair: tuple[int, int]) -> str:
        """``9.0``."""
        return f"{pair[0]}.{pair[1]}"

    @property
    def arch(self) -> str:
        """What the compiler calls it: sm_90."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def attribute(self, which: int) -> int:
        """A number that describes the card."""
        value = c_int()
        self.driver.cuDeviceGetAttribute(byref(value), which, self.device)
        return value.value

    # ---- memory ----------------------------------------------------------------------------------------------------------

    @property
    def free_bytes(self) -> int:
        """What may be taken."""
        free, total = c_size_t(), c_size_t()
        self.driver.cuMemGetInfo_v2(byref(free), byref(total))
        return max(0, free.value - RESERVE)

    def allocate(self, spaces: Mapping[str, Space]) -> None:
        """Memory for arrays, in their order, in one piece. It is filled with rubbish: nothing may depend on what was there."""
        offsets, total = {}, 0
        for name, space in spaces.items():
            offsets[name], total = total, total + -(-space.nbytes // 256) * 256
        base = c_uint64()
        self.driver.cuMemAlloc_v2(byref(base), max(total, 256))
        self.driver.cuMemsetD8Async(base, 0xA5, max(total, 256), self.stream)
        self.addresses |= {name: base.value + offset for name, offset in offsets.items()}
        self.spaces |= spaces

    def put(self, name: str, array: Array, index: int = 0) -> None:
        """Copy to an array, from its row ``index`` on. The copy is kept until the next wait."""
        self.wait_for_kernels()
        space = self.spaces[name]
        array = np.ascontiguousarray(array, space.dtype)
        row = space.nbytes // space.shape[0] if space.shape[0] else 0
        assert index * row + array.nbytes <= space.nbytes, f"{name} has no room for {array.nbytes} bytes"
        self.driver.cuMemcpyHtoDAsync_v2(self.addresses[name] + index * row, array.ctypes.data, array.nbytes, self.stream)
        self.in_flight.append(array)

    def get(self, name: str, count: int) -> Array:
        """The first ``count`` rows of an array, after a wait for all that comes before."""
        self.wait_for_kernels()
        space = self.spaces[name]
        out = np.empty((count, *space.shape[1:]), space.dtype)
        self.driver.cuMemcpyDtoHAsync_v2(out.ctypes.data, self.addresses[name], out.nbytes, self.stream)
        self.in_flight.append(out)
        self.wait()
        return out

    def wait_for_kernels(self) -> None:
        """Before a copy: the driver may wait inside one, since our memory is not pinned, and knows no limit."""
        if self.is_computing:
            self.wait()

    def wait(self) -> None:
        """Until the card has done everything so far. Raises CudaError, also when it takes too long."""
        began = time.monotonic()
        while not self.driver.is_done(self.stream):
            waited = time.monotonic() - began
            if waited > LIMIT_S:
                self.is_lost = True
                raise cu.CudaError(f"{self.name} has not answered for {LIMIT_S:g} s")
            time.sleep(0 if waited < BUSY_WAIT_S else NAP_S)
        self.is_computing = False
        self.in_flight.clear()

    # ---- kernels ---------------------------------------------------------------------------------------------------------

    def load(self, code: bytes, names: Sequence[str]) -> dict[str, c_void_p]:
        """The kernels of a cubin."""
        module, functions = c_void_p(), {name: c_void_p() for name in names}
        self.driver.cuModuleLoadData(byref(module), code)
        for name, function in functions.items():
            self.driver.cuModuleGetFunction(byref(function), module, name.encode())
        return functions

    def launch(self, function: c_void_p, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        """One kernel; its arguments are copied."""
        self.is_computing = True
        pointers = (c_void_p * len(arguments))(*(ctypes.cast(byref(argument), c_void_p) for argument in arguments))
        self.driver.cuLaunchKernel(function, *grid, 1, THREADS, 1, 1, 0, self.stream, pointers, None)

    def captured(self, launches: Callable[[], None]) -> c_void_p:
        """Launches as one graph."""
        graph, executable = c_void_p(), c_void_p()
        self.driver.cuStreamBeginCapture_v2(self.stream, cu.THREAD_LOCAL)
        try:
            launches()
        finally:
            self.driver.cuStreamEndCapture(self.stream, byref(graph))
        self.driver.cuGraphInstantiateWithFlags(byref(executable), graph, 0)
        self.driver.cuGraphDestroy(graph)
        return executable

    def run(self, graph: c_void_p) -> None:
        """Start a graph."""
        self.is_computing = True
        self.driver.cuGraphLaunch(graph, self.stream)

    def close(self) -> None:
        """Give the context back, and with it all memory. What the driver says to it no longer matters; a hanging card would hold it up."""
        if self.is_lost:
            return
        self.driver.functions["cuDevicePrimaryCtxRelease_v2"](self.device)
