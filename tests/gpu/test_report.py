"""What `make gpu` writes: a part that fails or is cut off loses nothing that was found before."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    return tmp_path


def test_what_was_found_before_a_failure_is_kept(folder: Path) -> None:
    """A checkpoint that is not there: the part has said what machine this is."""
    result = gpu.run_part("environment", 60, {"PATH": "", "PYTHONPATH": str(gpu.ROOT)}, ["--checkpoint", str(folder / "none")])
    assert result["cores"] >= 1
    assert "none" in result["problem"]


def test_a_part_has_its_limit(folder: Path) -> None:
    result = gpu.run_part("environment", 0.01, {"PYTHONPATH": str(gpu.ROOT)}, [])
    assert result["problem"] == "cut off after 0 s"


def test_the_table_has_what_there_is() -> None:
    rows = gpu.table({"rates": {"gpu": {"1": 23000.4, "256": 1.9e6}, "cpu": {"1": 15000}}}).splitlines()
    assert "| 1 | 23,000 | – | 15,000 |" in rows
    assert "| 256 | 1,900,000 | – | – |" in rows


def test_every_part_exists_and_eight_minutes_are_enough() -> None:
    from benchmarks.gpu_parts import PARTS

    assert list(gpu.PARTS) == list(PARTS)
    assert sum(gpu.PARTS.values()) <= 8 * 60
