"""The CPU's fast path: one C file, compiled for the machine at hand at first start and kept.

`build` finds a compiler and the cached library, `runner` drives it. Without a compiler the engine runs on `torch_runner`.
"""
