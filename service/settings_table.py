"""``python -m service.settings_table > docs/settings.md``: the page of all settings, made from `Settings` itself."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.settings import PRETRAINED, REMOVED, Settings

INTRODUCTION = """# Settings

Every setting is a variable, and a flag of `python -m service` (`make serve ARGS="--port 9000"`); the flag wins. A flag that takes no
value has a counterpart: `--allow-anonymous` and `--no-allow-anonymous`, as a variable `1` and `0`. Keys are no flags, since a command
line is there for everybody on the machine to read. An empty variable counts as one that is not set; a `FOLIO_` variable that is no
setting is reported at the start and ignored. All are checked once, before anything is loaded.
"""


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting is a key."""
    return SecretStr in getattr(field.annotation, "__args__", ())


def default_text(field: FieldInfo) -> str:
    """A default as text, the same on every machine; nothing where there is none."""
    if field.default_factory is not None:
        return (field.default_factory.__doc__ or "").partition("\n")[0].replace("``", "").rstrip(".")
    if field.default == PRETRAINED:
        return "/".join(PRETRAINED.parts[-2:])
    if field.default is None or field.default in ("", ()):
        return ""
    if isinstance(field.default, bool):
        return str(int(field.default))
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def lines() -> Iterator[str]:
    """The page."""
    yield INTRODUCTION
    yield "| variable | flag | default | |"
    yield "|---|---|---|---|"
    for name, field in Settings.model_fields.items():
        flag = "" if is_secret(field) else f"`--{name.replace('_', '-')}`"
        default = f"`{text}`" if (text := default_text(field)) else ""
        yield f"| `FOLIO_{name.upper()}` | {flag} | {default} | {field.description} |"
    yield "\nSettings that are gone, and what does their work now; the service does not start while one of them is set:\n"
    yield from (f"- `FOLIO_{name.upper()}`: {successor}" for name, successor in REMOVED.items())


if __name__ == "__main__":
    print("\n".join(lines()))
