"""Settings: checked once, frozen, secret where they must be."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, is_loopback


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


def test_keys_are_not_shown() -> None:
    settings = Settings(api_keys="hush-1", admin_key="hush-2")
    assert "hush" not in repr(settings) + str(settings.model_dump()) + str(settings.model_dump_json())


def test_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would load an engine of its own onto the same GPU."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    with pytest.raises(ValidationError, match="WEB_CONCURRENCY"):
        Settings()
