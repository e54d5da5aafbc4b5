"""From the C sources to a loaded library: one file for a machine's architecture, with every instruction set of it inside.

It is built when the package is installed (``hatch_build.py``), again when the sources have changed, and brought by a wheel. There is no
cache: the library lies beside its sources, under a name that holds a hash of what it was made from and one of what is in it.

Only the standard library here: the build runs where nothing is installed yet.

    python service/worker/kernels/build.py
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARIES = SOURCES / "library"
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fvisibility=default", "-w")
X86 = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "avxvnni": ("-mavx2", "-mavxvnni"),
    "avx2": ("-mavx2",),
    "generic": ("-DGENERIC",),
}
ARM = {"dotprod": ("-march=armv8.2-a+dotprod",), "neon": (), "generic": ("-DGENERIC",)}
COMPILE_TIMEOUT_S = 300
STALE_S = 3600
"""A build's temporary directory that is older than this was left by one that was killed."""


class NativeUnavailable(RuntimeError):
    """No compiled kernels on this machine; the message says why, and what would help."""


def instruction_sets(machine: str = "") -> dict[str, tuple[str, ...]]:
    """Name → compiler flags of each instruction set that a kind of machine may have, the fastest first."""
    return {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}.get(
        (machine or platform.machine()).lower(), {"generic": ("-DGENERIC",)}
    )


def compiler() -> str:
    """The C compiler's path. Raises NativeUnavailable."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise NativeUnavailable("no C compiler found; `apt-get install gcc libc6-dev` makes generation several times faster")


def sources_key() -> str:
    """16 hex digits over everything that a library is made from."""
    digest = hashlib.sha256(repr((FLAGS, instruction_sets())).encode())
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def name_of(key: str, content: bytes) -> str:
    """A library's file name."""
    return f"kernels-{platform.machine().lower()}-{key}-{hashlib.sha256(content).hexdigest()[:16]}.so"


# ---- building ------------------------------------------------------------------------------------------------------------------------


def build(directory: Path = LIBRARIES) -> Path:
    """Compile, and put the library into ``directory`` in the place of older ones. Raises NativeUnavailable.

    One rename makes it appear, whole and on disk, so any number of processes may build at once and be killed at any moment.
    """
    cc = compiler()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        remove_leftovers(directory)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as temporary:
            built = Path(temporary) / "library"
            compile_all(cc, instruction_sets(), built)
            content = built.read_bytes()
            path = directory / name_of(sources_key(), content)
            with built.open("rb") as file:
                os.fsync(file.fileno())
            built.chmod(0o755)
            built.replace(path)
    except OSError as error:
        raise NativeUnavailable(f"cannot build the kernels in {directory}: {error.strerror or error}") from None
    for other in directory.glob("kernels-*.so"):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def compile_all(cc: str, sets: dict[str, tuple[str, ...]], output: Path) -> None:
    """Every instruction set that the compiler knows, and ``cpu.c``, linked into ``output``. Raises NativeUnavailable."""
    jobs = {name: [*flags, f"-DISA={name}", "kernel.c"] for name, flags in sets.items()} | {"cpu": ["cpu.c"]}

    def compile_one(name: str) -> str:
        return run([cc, *FLAGS, *jobs[name], "-c", "-o", f"{output}-{name}.o"])

    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        errors = dict(zip(jobs, pool.map(compile_one, jobs), strict=True))
    for name in ("cpu", "generic"):  # an older compiler may not know one of the others
        if errors[name]:
            raise NativeUnavailable(f"{cc} could not compile {jobs[name][-1]}: {errors[name]}")
    objects = [f"{output}-{name}.o" for name in jobs if not errors[name]]
    if error := run([cc, "-shared", *objects, "-o", str(output), "-lpthread"]):
        raise NativeUnavailable(f"{cc} could not link the kernels: {error}")


def run(command: list[str]) -> str:
    """The first line of what went wrong, or nothing. Paths of sources are relative, so that no directory's name gets into a library."""
    try:
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]


def remove_leftovers(directory: Path) -> None:
    """Temporary directories of builds that were killed."""
    for path in directory.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                shutil.rmtree(path)


# ---- loading -------------------------------------------------------------------------------------------------------------------------


def load(directory: Path = LIBRARIES) -> ctypes.CDLL:
    """The library of these sources, built first if there is none and a compiler is. Raises NativeUnavailable."""
    path = next((path for path in whole_libraries(directory) if not (distrust(directory) or distrust(path))), None)
    if path is None:
        path = build(directory)
        if reason := distrust(directory) or distrust(path):
            raise NativeUnavailable(reason)
    return open_library(path)


def whole_libraries(directory: Path) -> Iterator[Path]:
    """Those of these sources whose content is what their name says."""
    for path in sorted(directory.glob(f"kernels-{platform.machine().lower()}-{sources_key()}-*.so")):
        with contextlib.suppress(OSError):
            if path.name == name_of(sources_key(), path.read_bytes()):
                yield path


def open_library(path: Path) -> ctypes.CDLL:
    """Raises NativeUnavailable, for instance where files of this file system may not be executed."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the compiled kernels cannot be loaded: {error}") from None


def distrust(path: Path) -> str:
    """Why a file or directory may hold what another user wrote, or nothing. A library is code that runs with our rights."""
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return f"{path} is a link and was not loaded"
    if info.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user and was not loaded"
    if info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and not is_private_group(info)):
        return f"{path} may be written by others and was not loaded"
    return ""


def is_private_group(info: os.stat_result) -> bool:
    """Whether a file's group is its owner's alone: the one of the same name that many systems make for each user."""
    import grp
    import pwd

    try:
        group, owner = grp.getgrgid(info.st_gid), pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        return False
    return group.gr_name == owner and set(group.gr_mem) <= {owner}


if __name__ == "__main__":
    print(next(whole_libraries(LIBRARIES), None) or build())
