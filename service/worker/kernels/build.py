"""From kernel.c to a loaded library, once for each kind of processor and number format."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-strict-aliasing")
DTYPES = {"float64": 0, "float32": 1, "bfloat16": 2}
COMPILE_SECONDS = 120


class NativeUnavailable(RuntimeError):
    """No native kernels on this machine; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded kernel. ``identity`` is a hash of its machine code: what fingerprints need to know."""

    handle: ctypes.CDLL
    identity: str
    path: Path


def compiler() -> str:
    """The C compiler's path. Raises NativeUnavailable."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return found
    raise NativeUnavailable("no C compiler found; `apt-get install gcc libc6-dev` makes generation several times faster")


def cpu_features() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features", "CPU part"))}))


def load(dtype: str, cache: Path) -> Library:
    """The kernel for a number format, compiled if ``cache`` has it not. Raises NativeUnavailable.

    Once compiled it is used for as long as source and processor are the same, also when the compiler has gone or changed, so that
    an upgrade of the system does not change a byte.
    """
    key = hashlib.sha256("\0".join([SOURCE.read_text(), *FLAGS, cpu_features()]).encode()).hexdigest()[:24]
    path = cache / f"kernel-{dtype}-{key}.so"
    if not path.exists():
        build(compiler(), dtype, path)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the compiled kernel {path} cannot be loaded: {error}") from None
    return Library(handle, hashlib.sha256(path.read_bytes()).hexdigest()[:16], path)


def build(cc: str, dtype: str, path: Path) -> None:
    """Compile to a temporary file and rename, so that processes may race. Raises NativeUnavailable."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise NativeUnavailable(f"cannot write compiled kernels to {path.parent}: {error.strerror}") from None
    command = [cc, *FLAGS, f"-DDTYPE={DTYPES[dtype]}", str(SOURCE), "-o", str(temporary), "-lm", "-lpthread"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{cc} failed: {error}") from None
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
        raise NativeUnavailable(f"{cc} could not compile {SOURCE.name}: {reason}")
    temporary.replace(path)
