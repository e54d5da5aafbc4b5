"""The reference page: Swagger UI, from files that a package ships; without JavaScript a list of the routes. Nothing from elsewhere."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

SWAGGER_UI = Path(str(files("fastapi_offline") / "static"))
ASSETS = {
    "swagger-ui-bundle.js": SWAGGER_UI / "swagger-ui-bundle.js",
    "swagger-ui.css": SWAGGER_UI / "swagger-ui.css",
    "reference.js": Path(__file__).parent / "reference.js",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""``data:`` holds the icons in Swagger UI's style sheet."""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{title}: reference</title>
<link rel="icon" href="playground/favicon.svg">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script src="docs/swagger-ui-bundle.js" defer></script>
<script src="docs/reference.js" defer></script>
</head>
<body>
<div id="reference"></div>
<noscript>
<h1>{title} {version}</h1>
<p>{description}</p>
<p>With JavaScript this page lets you try each request. Without it: <a href="openapi.json">openapi.json</a> says it all.</p>
<dl>
{routes}
</dl>
</noscript>
</body>
</html>
"""


def render(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    routes = "\n".join(
        f"<dt><code>{method.upper()} {escape(path)}</code></dt><dd>{escape(operation.get('description', ''))}</dd>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return PAGE.format(**{name: escape(text) for name, text in document["info"].items()}, routes=routes)
