"""Settings: checked once, frozen, secret where they must be."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import settings_table
from service.__main__ import OTHERS_VARIABLES, parse_args
from service.settings import REMOVED, Settings, is_loopback

DOCS = Path(__file__).parents[2] / "docs"
OTHER_VARIABLES = OTHERS_VARIABLES | {"FOLIO_RUNS", "FOLIO_MEMORY", "FOLIO_METRICS_KEY_FILE", "FOLIO_SLOW"}
"""Those of training, of the client, of the compose file, and of a test that takes minutes."""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    Settings(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_the_world_needs_keys_or_a_word(host: str) -> None:
    with pytest.raises(ValidationError, match="loopback only"):
        Settings(host=host)
    Settings(host=host, api_keys="k")
    Settings(host=host, allow_anonymous=True)


def test_variables_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLIO_PORT", "9000")
    monkeypatch.setenv("FOLIO_CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("FOLIO_MAX_BATCH", "")
    settings = Settings()
    assert (settings.port, settings.max_batch) == (9000, None)
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert Settings(port="9001").port == 9001


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("content", [None, "", " \n,"])
def test_a_key_file_without_keys_is_a_mistake(tmp_path: Path, content: str | None) -> None:
    """A mistake must not open the door."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    for name in ("api_keys_file", "admin_key_file"):
        with pytest.raises(ValidationError, match=str(path)):
            Settings.model_validate({name: path})
    with pytest.raises(ValidationError, match="holds no key"):
        Settings(api_keys=" , ")


def test_keys_have_names() -> None:
    keys = Settings(api_keys="alice:s3cret, 0th3r,  web.app-1:a+b/c=").client_keys()
    assert keys == {"alice": "s3cret", "key-2": "0th3r", "web.app-1": "a+b/c="}
    for wrong, why in (("a:x,a:y", "two keys are called a"), ("admin:x", "called admin"), ("a b:x", "key 1 must"), ("a:", "key 1 must")):
        with pytest.raises(ValidationError, match=why):
            Settings(api_keys=wrong)


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_setting_stops_the_start_and_names_its_successor(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Losing a rule about signatures silently would be unsafe."""
    monkeypatch.setenv(f"FOLIO_{name.upper()}", "1")
    with pytest.raises(ValidationError) as error:
        Settings()
    assert f"FOLIO_{name.upper()} is no setting any more" in str(error.value)
    successors = re.findall(r"FOLIO_([A-Z_]+)", REMOVED[name])
    assert all(successor.lower() in Settings.model_fields for successor in successors)
    assert name not in Settings.model_fields
    monkeypatch.setenv(f"FOLIO_{name.upper()}", "")
    Settings()


def test_the_page_of_settings_is_made_from_them() -> None:
    """`python -m service.settings_table > docs/settings.md` makes it again."""
    assert (DOCS / "settings.md").read_text() == "\n".join(settings_table.lines()) + "\n"


def test_pages_name_only_settings_that_there_are() -> None:
    known = {f"FOLIO_{name.upper()}" for name in (*Settings.model_fields, *REMOVED)} | OTHER_VARIABLES
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        assert set(re.findall(r"FOLIO_[A-Z_]+[A-Z]", page.read_text())) <= known, page


def test_trusted_keys_alone_ask_for_signatures() -> None:
    assert Settings(trusted_keys="a, b").engine_options().trusted_keys == ("a", "b")
    assert Settings().engine_options().trusted_keys is None
    with pytest.raises(ValidationError, match="holds no key"):
        Settings(trusted_keys=" ,")


@pytest.mark.parametrize("path", ["folio", "/a b", "//", "/a//b", "/a?b"])
def test_a_root_path_is_a_path(path: str) -> None:
    with pytest.raises(ValidationError, match="no path such as"):
        Settings(root_path=path)
    assert Settings(root_path="/a/b-c/").root_path == "/a/b-c"


def test_a_user_without_a_home_can_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A uid without an entry in passwd could not even ask for --help."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert str(Settings().cache).startswith(tempfile.gettempdir())
    assert str(parse_args([]).cache) in capsys.readouterr().err
    assert parse_args(["--cache", str(tmp_path)]).cache == tmp_path
    assert not capsys.readouterr().err


def test_keys_are_not_shown() -> None:
    settings = Settings(api_keys="hush-1", admin_key="hush-2")
    assert "hush" not in repr(settings) + str(settings.model_dump()) + str(settings.model_dump_json())


def test_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would load an engine of its own onto the same GPU."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    with pytest.raises(ValidationError, match="WEB_CONCURRENCY"):
        Settings()
