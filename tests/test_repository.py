"""What the repository says of itself is there: files, targets, and the one way to run what CI runs."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.support.server import ROOT

PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
FOLDERS = "model|training|service|tests|deploy|benchmarks|docs|scripts"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_what_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)", text))
    assert {path for path in paths if not (ROOT / path.rstrip(".")).exists()} == set()
    assert set(re.findall(r"`make (?:-s )?([a-z-]+)", text)) <= TARGETS
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_ci_a_commit_and_a_person_run_the_same() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)$", script, re.MULTILINE) == ["check", "test"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for repository in hooks for hook in repository["hooks"]] == ["make check"]


def test_a_release_has_its_changes() -> None:
    """``## Unreleased`` comes first, and nothing was released without a section."""
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ · \d{4}-\d{2}-\d{2}", section) for section in sections[1:])
