"""The chat template of a Hugging Face model, and the special tokens that templates name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.checkpoint.manifest import MAX_JSON_BYTES, CheckpointError, parse_json, read_file

SPECIAL = ("bos_token", "eos_token")


def chat_fields(source: Path) -> dict[str, Any]:
    """``chat_template`` and ``special_tokens`` for a manifest; nothing without a template. Raises CheckpointError.

    The template is ``chat_template.jinja``, or a text or list of named ones in ``tokenizer_config.json``, of which ``default`` counts
    (huggingface.co/docs/transformers/chat_templating).
    """
    path = source / "tokenizer_config.json"
    config = parse_json(path, read_file(path, MAX_JSON_BYTES)) if path.exists() else {}
    if (source / "chat_template.jinja").exists():
        template = read_file(source / "chat_template.jinja", MAX_JSON_BYTES).decode("utf-8", "replace")
    elif (found := default_of(config.get("chat_template"))) is not None:
        template = found
    else:
        return {}
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).from_string(template)
    except TemplateError as error:
        raise CheckpointError(f"the chat template of {source} is not Jinja2 that can be run: {error}; remove it or mend it") from None
    return {"chat_template": template, "special_tokens": {name: text for name in SPECIAL if (text := text_of(config.get(name)))}}


def to_tokenizer_config(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields of a manifest as ``tokenizer_config.json`` has them."""
    template = {name: manifest[name] for name in ("chat_template",) if name in manifest}
    return {**template, **manifest.get("special_tokens", {})}


def default_of(templates: object) -> str | None:
    """The template to chat with."""
    if isinstance(templates, list):
        named = {each.get("name"): each.get("template") for each in templates if isinstance(each, dict)}
        templates = named.get("default")
    return templates if isinstance(templates, str) else None


def text_of(token: object) -> str:
    """A special token is a text, or an object that has one."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
