"""The reference page: the OpenAPI document as static HTML. No script, no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; padding: .75rem; background: color-mix(in srgb, currentColor 7%, transparent); border-radius: .4rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); }
h2 { margin-top: 3rem; }
details { margin: .25rem 0; }
nav li { display: inline-block; margin-right: 1rem; }
nav ul { padding: 0; }
"""
LIMITS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "minLength": "length ≥", "maxLength": "length ≤", "maxItems": "items ≤"}
STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()


def render(document: dict[str, Any]) -> str:
    """The page."""
    operations = [(m.upper(), p, o) for p, methods in document["paths"].items() for m, o in methods.items()]
    links = "".join(f'<li><a href="#{anchor(m, p)}"><code>{m} {escape(p)}</code></a></li>' for m, p, _ in operations)
    sections = "".join("".join(operation(*each)) for each in operations)
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: reference</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body><header><h1>{title} {escape(document['info']['version'])}</h1><p>{escape(document['info']['description'])}</p>"
        f'<p>For machines: <a href="openapi.json">openapi.json</a>.</p></header>'
        f"<nav><ul>{links}</ul></nav><main>{sections}</main></body></html>"
    )


def anchor(method: str, path: str) -> str:
    """A section's name in the page's address."""
    return escape(f"{method.lower()}{path.replace('/', '-').replace('{', '').replace('}', '')}", quote=True)


def operation(method: str, path: str, spec: dict[str, Any]) -> Iterator[str]:
    """One route: what it takes, how to call it, and everything that it can answer."""
    yield f'<section id="{anchor(method, path)}"><h2><code>{method} {escape(path)}</code></h2><p>{escape(spec.get("description", ""))}</p>'
    for parameter in spec.get("parameters", []):
        described = escape(parameter.get("description", f"in {parameter['in']}"))
        yield f"<p><code>{escape(parameter['name'])}</code> ({parameter['in']}): {described}</p>"
    if body := spec.get("requestBody"):
        content = body["content"]["application/json"]
        yield fields(content["schema"])
        for example in content["examples"].values():
            yield f"<pre>{escape(curl(method, path, example['value']))}</pre>"
    else:
        yield f"<pre>{escape(curl(method, path, None))}</pre>"
    yield "<h3>Answers</h3>"
    for status, response in spec["responses"].items():
        yield f"<details><summary><code>{status}</code> {escape(response['description'])}</summary>"
        for media_type, content in response.get("content", {}).items():
            examples = [e["value"] for e in content.get("examples", {}).values()] or [content[k] for k in ("example",) if k in content]
            yield "".join(f"<p>{escape(media_type)}</p><pre>{escape(shown(example))}</pre>" for example in examples)
        yield "</details>"
    yield "</section>"


def curl(method: str, path: str, body: object) -> str:
    """A line to try."""
    if body is None:
        return f"curl {'' if method == 'GET' else f'-X {method} '}localhost:8000{path}"
    return f"curl -N localhost:8000{path} -H 'Content-Type: application/json' \\\n  -d '{json.dumps(body)}'"


def fields(schema: dict[str, Any]) -> str:
    """The fields of a body as a table."""
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{'required' if name in required else escape(json.dumps(field.get('default')))}</td>"
        f"<td>{escape(limits(field))}</td><td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<table><tr><th>field</th><th>default</th><th>type</th><th></th></tr>{rows}</table>"


def limits(field: dict[str, Any]) -> str:
    """A field's type and range in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(limits, field["anyOf"])))
    if "enum" in field:
        return " or ".join(map(json.dumps, field["enum"]))
    words = {
        "minimum": "≥",
        "maximum": "≤",
        "exclusiveMinimum": ">",
        "maxLength": "length ≤",
        "minLength": "length ≥",
        "maxItems": "items ≤",
    }
    parts = [f"{word} {field[key]}" for key, word in words.items() if key in field]
    items = f" of {limits(field['items'])}" if isinstance(field.get("items"), dict) else ""
    return " ".join([str(field.get("type", "")) + items, ", ".join(parts)]).strip()


def shown(example: object) -> str:
    """An example as text."""
    return example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
