"""Pydantic's findings as our BadInput: field, limit, remedy. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import BadInput

T = TypeVar("T")

#: Fields whose meaning arrives in a later version: refused by name, never ignored.
LATER: Final = frozenset({"mcp", "secrets"})
SHOWN_ERRORS: Final = 20

_BOUNDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
    "pattern": "{}",
    "expected": "{}",
}
_REMEDIES = {
    "missing": "send this field",
    "extra_forbidden": "take it out; /openapi.json has the known fields",
    "json_invalid": "send one JSON object, UTF-8, with Content-Type: application/json",
}


_LIMITS = {
    "extra_forbidden": "fields this version knows",
    "missing": "present",
    "finite_number": "a finite number",
    "json_invalid": "JSON",
    "model_attributes_type": "a JSON object",
    "model_type": "a JSON object",
    "dict_type": "a JSON object",
    "list_type": "a JSON array",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
}


def bad_input(findings: Sequence[Mapping[str, Any]]) -> BadInput:
    """One BadInput for all of pydantic's findings (`ValidationError.errors()`); the first one leads, `errors` has all
    when there are several (20 at most)."""
    errors = [_one(finding) for finding in findings[:SHOWN_ERRORS]]
    if not errors:
        return BadInput("the request is not valid", field="body")
    first = errors[0]
    more: dict[str, Any] = {"errors": errors} if len(errors) > 1 else {}
    return BadInput(
        f"{first['field']}: {first['message']}",
        field=first["field"],
        limit=first["limit"],
        remedy=first["remedy"],
        **more,
    )


def _one(finding: Mapping[str, Any]) -> dict[str, str]:
    kind = str(finding.get("type", ""))
    context: Mapping[str, Any] = finding.get("ctx") or {}
    where = field_name(finding.get("loc", ()))
    if kind == "carrel":
        return {
            "field": where,
            "message": str(context["message"]),
            "limit": str(context["limit"]),
            "remedy": str(context["remedy"]),
        }
    if kind == "extra_forbidden" and where.rpartition(".")[2] in LATER:
        return {"field": where, "message": "not in this version", "limit": "absent", "remedy": "leave it out"}
    limit = "; ".join(text.format(context[key]) for key, text in _BOUNDS.items() if key in context)
    message = str(finding.get("msg", "not valid"))
    return {
        "field": where,
        "message": message[:300],
        "limit": limit or _kind_of(kind),
        "remedy": _REMEDIES.get(kind, "send a value within the limit"),
    }


def field_name(location: Sequence[Any]) -> str:
    """("body", "files", 3, "path") → `files[3].path`; parameters of query, path and headers by their own name."""
    parts = [part for part in location if not (isinstance(part, str) and part.endswith("[key]"))]
    if len(parts) > 1 and parts[0] in {"body", "query", "path", "header"}:
        parts = parts[1:]
        if len(parts) == 1 and isinstance(parts[0], int):  # the byte at which the JSON breaks
            return "body"
    name = ""
    for part in parts:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part}" if name else str(part)
    return name[:200].encode("utf-8", "replace").decode() or "body"


def _kind_of(kind: str) -> str:
    """ "int_type" → "a whole number": what pydantic wanted, when it names no bound."""
    if kind not in _LIMITS and kind.endswith(("_type", "_parsing")):
        return kind.rpartition("_")[0].replace("_", " ")
    return _LIMITS.get(kind, "")


def parsed(shape: TypeAdapter[T], text: str | bytes) -> T:
    """One JSON text as what it should be. Raises BadInput."""
    try:
        return shape.validate_json(text)
    except ValidationError as wrong:
        raise bad_input(wrong.errors(include_url=False, include_input=False)) from None
