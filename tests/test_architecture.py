"""Who may import whom (docs/architecture.md). Imports for type checkers alone do not count."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(node: ast.AST) -> Iterator[str]:
    """Names of all modules that are imported below ``node``, inside functions too."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        for statement in node.orelse:
            yield from imports(statement)
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def offences(package: str, forbidden: tuple[str, ...]) -> list[str]:
    found = []
    for file in modules(package):
        for name in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if any(name == f or name.startswith(f + ".") for f in forbidden):
                found.append(f"{file.relative_to(ROOT)} imports {name}")
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("model", ("training", "service", "tests", "fastapi", "pydantic", "httpx")),
        ("training", ("service", "tests", "fastapi", "pydantic")),
        (
            "service/engine",
            ("training", "service.api", "service.app", "service.settings", "fastapi", "starlette", "pydantic", "os.environ"),
        ),
        ("service/api", ("training", "torch", "model.gpt", "model.generate", "model.checkpoint.loading", "model.sampling")),
        ("service", ("training", "tests")),
    ],
)
def test_a_package_imports_only_what_lies_below_it(package: str, forbidden: tuple[str, ...]) -> None:
    assert offences(package, forbidden) == []


def test_only_the_cluster_knows_ray() -> None:
    """It is an extra: the service runs without it, and nothing below relies on it."""
    found = [offence for package in ("model", "training", "service") for offence in offences(package, ("ray", "service.cluster"))]
    assert {offence.split()[0] for offence in found} == {"service/cluster.py"}


def test_nothing_is_unpickled_anywhere() -> None:
    for package in ("model", "training", "service"):
        assert offences(package, ("pickle", "torch.load", "dill", "joblib", "shelve", "marshal")) == []
        for file in modules(package):
            assert not re.search(r"(?<!safetensors\.)torch\.load\(", file.read_text(encoding="utf-8")), file


def test_the_engine_reads_no_environment() -> None:
    for file in modules("service/engine"):
        source = file.read_text(encoding="utf-8")
        assert "os.environ" not in source, file
        assert "getenv" not in source, file


@pytest.mark.parametrize(
    "module",
    [
        "model",
        "model.checkpoint.files",
        "model.config",
        "model.params",
        "model.tokenizer.base",
        "model.exact.generate",
        "model.exact.probes",
        "model.sampling",
        "model.window",
        "training.__main__",
        "service.app",
        "service.cluster",
    ],
)
def test_what_must_start_without_torch_does(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr or f"{module} imports torch"
