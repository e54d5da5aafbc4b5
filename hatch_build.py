"""Builds the CPU kernels when the package is installed or a wheel is made; without a compiler the package is complete, but slower.

Machine code for GPUs is taken along where there is some.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """An editable install gets its library beside the sources; a wheel carries it and is then for one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it packs."""
        path = Path(self.root) / "service" / "worker" / "kernels" / "build.py"
        spec = importlib.util.spec_from_file_location("build_kernels", path)
        assert spec is not None and spec.loader is not None
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        if version != "editable":
            for cubin in sorted((kernels.SOURCES / "cubins").glob("*.cubin")):  # made by `python -m service.worker.cuda.cubins`
                build_data["force_include"][str(cubin)] = str(cubin.relative_to(self.root))
        try:
            library = next(kernels.whole_libraries(kernels.LIBRARIES), None) or kernels.build()
        except kernels.NativeUnavailable as error:
            self.app.display_warning(f"without compiled kernels, which makes generation several times slower: {error}")
            return
        if version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
            build_data["force_include"][str(library)] = str(library.relative_to(self.root))
