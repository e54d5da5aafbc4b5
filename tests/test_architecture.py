"""Who may import whom, and how large a file may grow (docs/architecture.md)."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("model", "training", "service")
MAX_LINES = 250
MAX_FILES = 10
"""Beside ``__init__``, in a package of the service."""

AWAIT_THEIR_TASKS = {"service/client/asynchronous.py", "service/api/generation.py", "service/client/batch.py", "service/http/sse.py"}
"""Files that gather the tasks that they start."""

ONE_NAME_IN_SEVERAL_PACKAGES = {
    "__main__": "what `python -m` runs",
    "config": "of the model, and of a training run",
    "errors": "what a client is told, and what the engine says",
    "generate": "the sampler of the textbook, and the route",
    "interface": "what the API calls, and what the worker steps",
    "probes": "what a self-test asks of every function, and an orchestrator of the service",
    "sampling": "drawing a token, and drawing a run's samples",
}
"""Names that two packages may share, since each is the same kind of thing on its side."""

APPLICATION = {"__main__", "app", "cluster", "settings_table"}
"""The files of ``service`` that stand above its folders; the others lie below them."""


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


def names_below(package: str, but: tuple[str, ...]) -> tuple[str, ...]:
    """The modules and packages that lie directly in a package, as imports name them."""
    found = (ROOT / package).iterdir()
    stems = {path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return tuple(f"{package.replace('/', '.')}.{stem}" for stem in sorted(stems - {"__init__", *but}))


SERVICE_BUT_WORKER = names_below("service", but=("worker",))
ENGINE_IMPLEMENTATION = names_below("service/engine", but=("interface", "errors"))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("model", ("training", "service", "tests", "benchmarks", "fastapi", "pydantic", "httpx")),
        ("training", ("service", "tests", "fastapi", "pydantic")),
        (
            "service/engine",
            ("training", "service.api", "service.app", "service.settings", "fastapi", "starlette", "pydantic", "os.environ"),
        ),
        ("service/worker", ("training", *SERVICE_BUT_WORKER, "fastapi", "starlette", "pydantic", "os.environ")),
        ("service/http", ("training", "service.api", "service.app", "service.worker", *ENGINE_IMPLEMENTATION)),
        ("service/telemetry", ("training", "service.api", "service.app", "service.http", "service.worker", *ENGINE_IMPLEMENTATION)),
        ("service/api", ("training", "torch", "model.gpt", "model.exact", "model.checkpoint.loading", "model.sampling")),
        ("service", ("training", "tests")),
    ],
)
def test_a_package_imports_only_what_lies_below_it(package: str, forbidden: tuple[str, ...]) -> None:
    assert offences(package, forbidden) == []


@cache
def import_graph() -> dict[str, set[str]]:
    """Which of our modules each of them imports: inside functions and for type checkers alone too."""
    files = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for p in PACKAGES for f in modules(p)}
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                while name and name not in files:
                    name = name.rpartition(".")[0]
                graph[module] |= {name} - {module, ""}
    return graph


def reachable(module: str) -> set[str]:
    """Everything that a module imports, however far away."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        for name in import_graph()[ahead.pop()] - found:
            found.add(name)
            ahead.append(name)
    return found


def test_there_is_no_import_circle() -> None:
    """A circle under ``TYPE_CHECKING`` is one too: neither file can be understood, or moved, without the other."""
    assert {module for module in import_graph() if module in reachable(module)} == set()


def part_of(module: str) -> str:
    """The box of docs/architecture.md's picture that a module is in: its folder, or its place among the files of ``service``."""
    package, name, *_ = [*module.split("."), ""]
    if package != "service":
        return package
    if (ROOT / "service" / name).is_dir():
        return name
    return "app" if name in APPLICATION else "common"


def test_the_picture_of_the_packages_is_the_imports() -> None:
    graph = {module: imported for module, imported in import_graph().items() if module != "service"}
    imported = {(part_of(a), part_of(b)) for a, targets in graph.items() for b in targets if b != "service"}
    drawing = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```mermaid\n")[1].split("```")[0]
    arrows = re.findall(r"^  (\w+) --> (.+)$", drawing, re.MULTILINE)
    drawn = {(source, target) for source, targets in arrows for target in targets.split(" & ")}
    assert drawn == {(a, b) for a, b in imported if a != b}
    boxes = dict(re.findall(r'^  (\w+)\["(.+)"\]$', drawing, re.MULTILINE))
    assert boxes.keys() == {part for arrow in drawn for part in arrow}
    files = {file.stem for file in (ROOT / "service").glob("*.py")} - {"__init__"}
    assert {name for box in ("app", "common") for name in boxes[box].partition(": ")[2].split(", ")} == files


def test_no_file_is_too_large() -> None:
    scripts = (ROOT / "service").rglob("*.js")
    files = [*(file for package in PACKAGES for file in modules(package)), *scripts]
    large = {str(file.relative_to(ROOT)) for file in files if len(file.read_text(encoding="utf-8").splitlines()) > MAX_LINES}
    assert large == set()


def test_a_file_has_a_name_of_its_own() -> None:
    """Who looks for a file by its name finds one."""
    packages: dict[str, list[str]] = defaultdict(list)
    for file in (file for package in PACKAGES for file in modules(package)):
        packages[file.stem].append(str(file.relative_to(ROOT)))
    shared = {name: files for name, files in packages.items() if len(files) > 1 and name != "__init__"}
    assert shared.keys() - ONE_NAME_IN_SEVERAL_PACKAGES.keys() == set(), shared


def test_a_package_of_the_service_is_one_landing() -> None:
    for package in {file.parent for file in modules("service")} - {ROOT / "service" / "api"}:
        files = [file.name for file in package.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= MAX_FILES, (package, sorted(files))


def test_only_the_cluster_knows_ray() -> None:
    """It is an extra: the service runs without it, and nothing below relies on it."""
    found = [offence for package in ("model", "training", "service") for offence in offences(package, ("ray", "service.cluster"))]
    assert {offence.split()[0] for offence in found} == {"service/cluster.py"}


def test_tasks_are_started_where_their_end_is_seen() -> None:
    """One that nobody awaits ends by an error without a word: `service.background` starts those, and says what ended them."""
    pattern = re.compile(r"create_task\(|create_task,|ensure_future")
    found = {str(file.relative_to(ROOT)) for file in modules("service") if pattern.search(file.read_text(encoding="utf-8"))}
    assert found == {"service/background.py"} | AWAIT_THEIR_TASKS


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


def test_the_client_needs_httpx_alone() -> None:
    """It is what users import; they may have nothing else of the service's."""
    foreign = ["fastapi", "starlette", "pydantic", "uvicorn", "msgspec", "numpy", "torch", "service.app", "service.engine"]
    code = f"import sys, service.client; sys.exit(', '.join(name for name in {foreign} if name in sys.modules) or None)"
    result = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
