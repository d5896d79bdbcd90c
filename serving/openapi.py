"""/openapi.json: the routes and their bodies, made of the pydantic models that read them."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

ERROR = {"type": "object", "properties": {"error": {"type": "object", "properties": {
    "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
    "code": {"type": ["string", "null"]}}, "required": ["message", "type", "param", "code"]}}, "required": ["error"]}
REFUSED = ("400", "401", "404", "408", "413", "415", "421", "429", "500", "504")
STREAMS = ("/v1/completions", "/v1/chat/completions")


def document(bodies: Mapping[str, tuple[type, Any]]) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes that take a body."""
    references, schemas = models_json_schema([(body, "validation") for body, _ in bodies.values()],
                                             ref_template="#/components/schemas/{model}")
    paths = {path: {"post": _operation(path, body, references[body, "validation"])}
             for path, (body, _) in bodies.items()}
    return {"openapi": "3.1.0", "info": {"title": "Temper", "version": "1"}, "paths": paths,
            "components": {"schemas": schemas["$defs"] | {"Error": ERROR}}}


def _operation(path: str, body: type, schema: Any) -> dict[str, Any]:
    good = {"application/json": {"schema": {"type": "object"}}}
    if path in STREAMS:
        good["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"summary": (body.__doc__ or "").strip(), "requestBody": {
        "required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "the answer", "content": good}} | {
            status: {"description": "refused", "content": error} for status in REFUSED}}
