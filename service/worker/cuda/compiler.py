"""From kernel.cu to machine code for one card, by NVRTC, kept in a file that nobody else can have written."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "kernels"
HEADERS = ("arithmetic.h", "probe.h", "draw.cuh")
FLAGS = ("--std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
"""One rounding for each operation. What arithmetic.h uses is never fused; the flags hold for what a compiler may write instead."""
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
"""Turing to Blackwell: what CUDA 13 compiles for, and machine code is shipped for."""
NVCC_TIMEOUT_S = 300
SHIPPED = SOURCES / "cubins"
"""Machine code that came with the package, built by `python -m service.worker.cuda.cubins`."""


class CompileError(RuntimeError):
    """No machine code for this card; the message says why, and what would help."""


def find_nvrtc() -> list[str]:
    """NVRTC's builtins, if they are a file of their own, and NVRTC: of the wheel ``nvidia-cuda-nvrtc``, or of the system's toolkit."""
    for root in sys.path:
        files = sorted(str(path) for path in Path(root or ".").glob("nvidia/*/lib/libnvrtc*.so.*") if ".alt." not in path.name)
        if main := [path for path in files if "builtins" not in path]:
            return [*(path for path in files if "builtins" in path), main[-1]]
    return ["libnvrtc.so.13"]


class Nvrtc:
    """The run-time compiler."""

    def __init__(self) -> None:
        try:
            *builtins, main = find_nvrtc()
            for path in builtins:  # NVRTC itself would look for them in LD_LIBRARY_PATH alone
                ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            self.lib = ctypes.CDLL(main)
        except OSError as error:
            raise CompileError(f"no CUDA compiler ({error}); pip install nvidia-cuda-nvrtc") from None
        self.log = ""
        """What the last compilation said."""

    def compile(self, name: str, arch: str, options: list[str]) -> bytes:
        """A file of ``kernels/`` as a cubin (``arch`` sm_90) or as PTX (compute_90)."""
        program = c_void_p()
        texts = [(SOURCES / header).read_bytes() for header in HEADERS]
        headers, names = (c_char_p * len(texts))(*texts), (c_char_p * len(texts))(*(header.encode() for header in HEADERS))
        source = (SOURCES / name).read_bytes()
        self.check(self.lib.nvrtcCreateProgram(byref(program), source, name.encode(), len(texts), headers, names), "create", program)
        try:
            given = [option.encode() for option in (f"--gpu-architecture={arch}", *FLAGS, *options)]
            code = self.lib.nvrtcCompileProgram(program, len(given), (c_char_p * len(given))(*given))
            self.log = self.text("ProgramLog", program)
            self.check(code, f"compile {name} for {arch}", program)
            return self.bytes("CUBIN" if arch.startswith("sm_") else "PTX", program)
        finally:
            self.lib.nvrtcDestroyProgram(byref(program))

    def bytes(self, what: str, program: c_void_p) -> bytes:
        """One of a program's outputs."""
        size = c_size_t()
        self.check(getattr(self.lib, f"nvrtcGet{what}Size")(program, byref(size)), what, program)
        buffer = ctypes.create_string_buffer(max(size.value, 1))
        self.check(getattr(self.lib, f"nvrtcGet{what}")(program, buffer), what, program)
        return buffer.raw

    def text(self, what: str, program: c_void_p) -> str:
        """The same, as text."""
        return self.bytes(what, program).rstrip(b"\0").decode(errors="replace")

    def check(self, code: int, what: str, program: c_void_p) -> None:
        """Raises CompileError with the compiler's first error."""
        if code:
            error = re.search(r"^.*error.*$", self.log, re.MULTILINE)
            raise CompileError(f"NVRTC could not {what}: error {code}{f', {error[0]}' if error else ''}")

    @property
    def version(self) -> tuple[int, int]:
        """Of CUDA."""
        major, minor = c_int(), c_int()
        self.lib.nvrtcVersion(byref(major), byref(minor))
        return major.value, minor.value


def nvcc(name: str, arch: str, options: list[str]) -> bytes:
    """A cubin by the toolkit's compiler, where there is one. Raises CompileError."""
    if not (found := shutil.which("nvcc")):
        raise CompileError("no nvcc")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "code.cubin"
        command = [found, "--cubin", f"--gpu-architecture={arch}", *FLAGS, *options, "--output-file", str(output), str(SOURCES / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVCC_TIMEOUT_S, check=False)
        if done.returncode:
            raise CompileError(f"nvcc could not compile {name} for {arch}: {done.stderr.strip().splitlines()[-1:]}")
        return output.read_bytes()


def compile_code(name: str, arch: str, options: list[str]) -> bytes:
    """A cubin by NVRTC, or else by nvcc. Raises CompileError."""
    try:
        return Nvrtc().compile(name, arch, options)
    except CompileError as error:
        try:
            return nvcc(name, arch, options)
        except (CompileError, OSError, subprocess.TimeoutExpired):
            raise error from None


def file_of(name: str, arch: str, options: list[str]) -> str:
    """Names a build by all that its machine code depends on but the compiler, whose choice changes no bit."""
    texts = [(SOURCES / file).read_bytes() for file in (name, *HEADERS)]
    key = hashlib.sha256(b"\0".join([*texts, repr((arch, FLAGS, options)).encode()])).hexdigest()[:24]
    return f"{name.removesuffix('.cu')}-{arch}-{key}.cubin"


def is_ours(path: Path) -> bool:
    """Whether only this user or root can have written what is there."""
    status = path.lstat()
    return status.st_uid in (os.getuid(), 0) and not stat.S_ISLNK(status.st_mode) and not status.st_mode & 0o022


def machine_code(name: str, arch: str, options: list[str], cache: Path) -> bytes:
    """A cubin: shipped, cached, or compiled now and kept. Raises CompileError."""
    file = file_of(name, arch, options)
    for path in (SHIPPED / file, cache / file):
        if path.is_file() and is_ours(path) and is_ours(path.parent):
            return path.read_bytes()
    code = compile_code(name, arch, options)
    keep(cache / file, code)
    return code


def keep(path: Path, code: bytes) -> None:
    """Written whole or not at all; a cache that cannot be written, or that others can, is not used."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_ours(path.parent):
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(code)
        temporary.replace(path)
    except OSError:
        return
