"""docs/lessons.md keeps its word: every rule is there, and every test that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "lessons.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (\d+) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_named_test_exists() -> None:
    named = set(NAMED.findall(DOCUMENT))
    assert len(named) > 50
    files = {file: functions(ROOT / file) for file, _ in named}
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in files[file]] == []
    assert DOCUMENT.count("::test_") == len(NAMED.findall(DOCUMENT)), "a test is named in another form, which is not checked"


def test_every_rule_has_its_row() -> None:
    rows = ROW.findall(DOCUMENT)
    assert [int(number) for number, *_ in rows] == list(range(1, 53))
    for number, threads, rule, held in rows:
        assert re.search(r"#\d+|CVE-|by reading", threads), number
        assert len(rule) > 20, number
        assert NAMED.search(held), number


def test_layers_are_pure_asgi() -> None:
    """LESSONS 30: Starlette's ``BaseHTTPMiddleware`` puts a queue between a reader and the generation."""
    for path in (ROOT / "service").rglob("*.py"):
        names = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert "BaseHTTPMiddleware" not in names, path
        assert '.middleware("http")' not in path.read_text(), path
