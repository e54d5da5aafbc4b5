"""The compiled kernels as a file: built once, whole or not used, and never code that somebody else could have written."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from service.worker.kernels import build
from service.worker.kernels.build import NativeUnavailable

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One instruction set, not optimised."""
    monkeypatch.setattr(build, "instruction_sets", lambda machine="": {"generic": ("-DGENERIC", "-O0")})


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return build.build(tmp_path / "library")


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")


def test_it_is_built_once_and_loaded_without_a_compiler(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    assert build.load(library.parent).folio_supports(b"generic") == 1
    assert list(library.parent.iterdir()) == [library]


def test_other_sources_get_another_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the one of before goes."""
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    build.load(library.parent)
    (other,) = library.parent.iterdir()
    assert other.name != library.name


def test_the_same_sources_give_the_same_bytes(library: Path, tmp_path: Path) -> None:
    again = build.build(tmp_path / "elsewhere")
    assert again.name == library.name
    assert again.read_bytes() == library.read_bytes()


@pytest.mark.parametrize("size", [0, 100, -1], ids=["empty", "truncated", "one byte less"])
def test_a_damaged_library_is_built_again(library: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = library.read_bytes()
    library.write_bytes(whole[:size])
    with monkeypatch.context() as patch:
        without_compiler(patch)
        with pytest.raises(NativeUnavailable, match="no C compiler"):
            build.load(library.parent)
    build.load(library.parent)
    assert library.read_bytes() == whole


@pytest.mark.parametrize("what", ["file", "directory"])
@pytest.mark.parametrize("how", ["writable", "by a group", "a link", "another's"])
def test_what_another_user_could_have_written_is_not_loaded(library: Path, monkeypatch: pytest.MonkeyPatch, what: str, how: str) -> None:
    path = library if what == "file" else library.parent
    if how == "writable":
        path.chmod(0o757)
    if how == "by a group":
        path.chmod(0o775)
        monkeypatch.setattr(build, "is_private_group", lambda info: False)
    if how == "a link":
        path.rename(path.with_name("real"))
        path.symlink_to(path.with_name("real"))
    if how == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, 12345)
    assert build.distrust(path)
    without_compiler(monkeypatch)
    with pytest.raises(NativeUnavailable):
        build.load(library.parent)


def test_a_users_own_group_may_write(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where every user has a group and the umask is 002."""
    library.chmod(0o775)
    monkeypatch.setattr(build, "is_private_group", lambda info: True)
    assert not build.distrust(library)


def test_leftovers_of_killed_builds_go(library: Path) -> None:
    old, young = library.parent / ".build-old", library.parent / ".build-young"
    for path in (old, young):
        path.mkdir()
        (path / "library-generic.o").write_bytes(b"x")
    hours_ago = time.time() - 3 * build.STALE_S
    os.utime(old, (hours_ago, hours_ago))
    build.build(library.parent)
    assert not old.exists()
    assert young.exists(), "another process may be building"


def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeUnavailable, match="cannot build the kernels"):
        build.build(tmp_path / "file" / "library")
