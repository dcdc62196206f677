"""The OpenAPI document. It is JSON schema by hand: a column may have any name, and pydantic's fields may not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from forge_sweep.bundle import Bundle
from forge_sweep.preprocessing import Column
from forge_sweep.serving.bodies import ARROW, CSV, FORM, JSON
from forge_sweep.task import Task

if TYPE_CHECKING:
    from forge_sweep.serving.settings import Settings

EXAMPLES = 10
NULL = {"type": "null"}
TEXT = {"type": "string"}
LEFT_OUT = {"description": "A column of the training rows that is no feature; it is left out."}
FILE = {**TEXT, "format": "binary", "description": "A PNG or JPEG file."}

REFUSALS = {
    "400": "The body is not what its media type says.",
    "401": "A key is needed.",
    "408": "The body did not arrive in time.",
    "413": "The body is too long.",
    "415": "The media type is not read.",
    "422": "The rows do not fit the schema of the training rows; none was predicted.",
    "503": "Too many rows wait; try again.",
    "504": "No answer in time.",
}


def complete(document: dict[str, Any], bundle: Bundle, settings: Settings, *, key: bool) -> dict[str, Any]:
    """FastAPI's document with the endpoint that FastAPI does not know, and what callers have to show."""
    decides = any(head.kind in ("binary", "multilabel") for head in bundle.task.heads.values())
    threshold = {"threshold": {"type": "number"}} if decides else {}
    predictions = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    schema, images = bundle.preprocessor.schema, bundle.preprocessor.images
    columns = {column.name: _column_schema(column, column.name in images) for column in schema.columns}
    fields = {c.name: FILE if c.name in images else TEXT for c in schema.columns}

    def row_of(columns: dict[str, Any]) -> dict[str, Any]:
        known = {**dict.fromkeys(sorted(bundle.others), LEFT_OUT), **columns}
        return {**_fixed(columns), "properties": known, "additionalProperties": settings.ignore_extra}

    most = settings.most_rows(4 * sum(math.prod(column.shape) for column in schema.tensors))
    document.setdefault("components", {})["schemas"] = {
        "Row": row_of(columns),
        "Prediction": _prediction_schema(bundle.task),
        "Answer": _fixed({"model": TEXT, "version": TEXT, **threshold, "predictions": predictions}),
        "Warning": WARNING,
        "Error": ERROR,
    }
    row = {"$ref": "#/components/schemas/Row"}
    rows = {"type": "array", "items": row, "maxItems": most}
    tables = {media: {"schema": {"type": "string", "format": "binary"}} for media in (CSV, *ARROW)}
    form = {FORM: {"schema": row_of(fields)}}
    answered = {"description": "Predictions, in the order of the rows.", "content": _json_of("Answer")}
    predict = {
        "operationId": "predict",
        "summary": "Predict raw rows",
        "description": "An object is one row, an array of objects is several, a form is one row; CSV has a header. "
        f"At most {most} rows and {settings.max_body} bytes. "
        "Values that the training rows did not have are predicted, with a warning.",
        "requestBody": {"required": True, "content": {JSON: {"schema": {"oneOf": [row, rows]}}, **tables, **form}},
        "responses": {"200": answered, **{status: _refusal(status) for status in REFUSALS if status != "401"}},
    }
    document["paths"]["/predict"] = {"post": predict}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for answer in operation["responses"].values() if path != "/predict" else ():
                if JSON in answer.get("content", {}):  # FastAPI takes an answer of its own class for text
                    answer["content"][JSON] = {"schema": {"type": "object"}}
            if key and path not in ("/healthz", "/readyz"):
                operation["security"] = [{"bearer": []}, {"header": []}]
                operation["responses"]["401"] = _refusal("401")
    if key:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return document


def _column_schema(column: Column, image: bool) -> dict[str, Any]:
    """What a column takes; whatever is missing is null. Arrays are nested lists, images also base64."""
    if column.kind == "tensor":
        nested: dict[str, Any] = {"type": "number"}
        for size in reversed(column.shape):
            nested = {"type": "array", "items": nested, "minItems": size, "maxItems": size}
        nested["description"] = f"{column.dtype} array of shape {column.shape}"
        if not image:
            return nested
        about = f"a PNG or JPEG of {column.shape[0]} x {column.shape[1]} pixels, also after data:image/png;base64,"
        return {"anyOf": [{**TEXT, "contentEncoding": "base64", "description": about}, nested]}
    rare = "sometimes missing in train" if column.missing else "never missing in train"
    if column.kind == "numeric":
        about = f"{column.dtype}, {column.low:g} to {column.high:g}" if column.low is not None else column.dtype
        return {"type": ["number", "null"], "description": f"{about} in train; {rare}"}
    if column.kind == "boolean":
        return {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, NULL], "description": rare}
    kinds = ["string", "integer", "null"] if column.takes_integers else ["string", "null"]
    about = f"{len(column.categories)} categories in train; {rare}"
    return {"type": kinds, "description": about, "examples": list(column.categories[:EXAMPLES])}


def _prediction_schema(task: Task) -> dict[str, Any]:
    warnings = {"type": "array", "items": {"$ref": "#/components/schemas/Warning"}}
    if task.kind == "joint":
        heads = {name: _fixed(_prediction_properties(head)) for name, head in task.heads.items()}
        return _fixed({**heads, "warnings": warnings})
    return _fixed({**_prediction_properties(task), "warnings": warnings})


def _prediction_properties(task: Task) -> dict[str, Any]:
    if task.kind == "regression":
        properties = {"values": _fixed({str(name): {"type": "number"} for name in task.targets})}
    else:
        share = {"type": "number", "minimum": 0, "maximum": 1}
        properties = {"probabilities": _fixed(dict.fromkeys(task.class_names, share))}
    if task.kind in ("binary", "multiclass"):
        properties["label"] = {"enum": list(task.classes)}
    if task.kind == "multilabel":
        properties["labels"] = _fixed({name: {"enum": [0, 1]} for name in task.class_names})
    return properties


def _fixed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


CODES = {"enum": ["missing", "unknown-category", "below-range", "above-range"]}
WARNING = _fixed({"column": TEXT, "code": CODES, "seen": {}, "expected": TEXT})
MISFIT = _fixed({"row": {"type": ["integer", "null"]}, **dict.fromkeys(("column", "code", "seen", "expected"), TEXT)})
REFUSAL = {
    **dict.fromkeys(("code", "message", "fix"), TEXT),
    "misfits": {"type": "array", "items": MISFIT},
    "count": {"type": "integer"},
}
ERROR = _fixed({"error": {"type": "object", "properties": REFUSAL, "required": ["code", "message"]}})


def _refusal(status: str) -> dict[str, Any]:
    return {"description": REFUSALS[status], "content": _json_of("Error")}


def _json_of(name: str) -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
