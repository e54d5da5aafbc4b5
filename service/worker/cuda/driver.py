"""NVIDIA's driver API through ctypes: the thirty calls that we need, every one checked.

Why not ``cuda-python``: its bindings are compiled for each version of Python and load slower than the whole of this; the driver's functions
have kept their signatures for years, and the tests compile these against ``cuda.h``.
"""

from __future__ import annotations

import ctypes
import glob
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from service.worker.runners.interface import RunnerLost

LIBRARY = "libcuda.so.1"
SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [POINTER(c_int)],
    "cuDeviceGetCount": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuMemGetInfo_v2": [POINTER(c_size_t), POINTER(c_size_t)],
    "cuMemAlloc_v2": [POINTER(c_uint64), c_size_t],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuMemsetD8Async": [c_uint64, c_ubyte, c_size_t, c_void_p],
    "cuModuleLoadData": [POINTER(c_void_p), c_char_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuStreamCreate": [POINTER(c_void_p), c_uint],
    "cuStreamQuery": [c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, POINTER(c_void_p)],
    "cuGraphInstantiateWithFlags": [POINTER(c_void_p), c_void_p, c_ulonglong],
    "cuGraphDestroy": [c_void_p],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
}
"""Names with the suffix that cuda.h's macros give them, and what they take; all return a CUresult."""
SUCCESS, NOT_READY = 0, 600
NON_BLOCKING = THREAD_LOCAL = 1
"""A stream's flag, and the mode of a capture: what other threads do is none of its business."""
NO_DEVICE = 100
CURES = {
    46: "another process has the card to itself, or nobody may use it: nvidia-smi --compute-mode=DEFAULT",
    NO_DEVICE: "the NVIDIA driver shows no GPU: is one handed to this container, and CUDA_VISIBLE_DEVICES right?",
    802: "start nvidia-fabricmanager, or wait until it is ready",
    803: "the driver was changed under the running kernel module: restart the machine",
    804: "this image's CUDA libraries need driver 580 or newer on the host",
}
"""What helps against errors that a machine's administrator can end."""
MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR = 16, 75, 76


class NoDriverError(RuntimeError):
    """There is no NVIDIA driver on this machine."""


class CudaError(RunnerLost):
    """A call failed. An error of a kernel is met at a later call, and at every one after that: the process has to end."""


def gpu_is_expected() -> bool:
    """Whether this machine has, or looks as if it had, an NVIDIA GPU, so that doing without deserves a line."""
    if glob.glob("/proc/driver/nvidia/version") or glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg"):
        return True
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


class Driver:
    """``driver.cuInit(0)``: the calls of `SIGNATURES`, each of which raises CudaError unless it succeeds. Raises NoDriverError."""

    def __init__(self) -> None:
        try:
            self.lib = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise NoDriverError(f"no NVIDIA driver here ({error})") from None
        try:
            self.functions = {name: getattr(self.lib, name) for name in SIGNATURES}
        except AttributeError as error:
            raise CudaError(f"the NVIDIA driver is too old ({error}); 580 or newer is needed") from None
        for name, function in self.functions.items():
            function.argtypes, function.restype = SIGNATURES[name], c_int

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = self.functions[name]

        def call(*arguments: Any) -> None:
            if (code := function(*arguments)) != SUCCESS:
                raise CudaError(f"{name}: {self.error_name(code)}")

        setattr(self, name, call)
        return call

    def error_name(self, code: int) -> str:
        """``CUDA_ERROR_OUT_OF_MEMORY (2)``, and what helps, where that is known."""
        text = c_char_p()
        self.functions["cuGetErrorName"](code, ctypes.byref(text))
        cure = f": {CURES[code]}" if code in CURES else ""
        return f"{(text.value or b'CUDA error').decode()} ({code}){cure}"

    def is_done(self, stream: c_void_p) -> bool:
        """Whether everything that was put into a stream has happened. Raises CudaError if some of it failed."""
        code = self.functions["cuStreamQuery"](stream)
        if code not in (SUCCESS, NOT_READY):
            raise CudaError(f"cuStreamQuery: {self.error_name(code)}")
        return bool(code == SUCCESS)
