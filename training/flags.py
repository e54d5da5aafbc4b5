"""One command-line flag for each field of TrainConfig, with the field's docstring as its help."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from training.config import TrainConfig


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Add the flags; one that is not given leaves None, so that the preset's value stands."""
    hints, documentation = get_type_hints(TrainConfig), field_docstrings(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind = hints[field.name]
        options: dict[str, Any] = {"help": f"{documentation[field.name]} (default preset: {field.default})".replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif choices := get_args(kind):
            options["choices"] = choices
        else:
            options |= {"type": kind, "metavar": kind.__name__.upper()}
        parser.add_argument("--" + field.name.replace("_", "-"), default=None, **options)


def given_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given on the command line."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in values.items() if name in names and value is not None}


def field_docstrings(cls: type) -> dict[str, str]:
    """The string literal under each annotated field."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found
