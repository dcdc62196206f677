"""The OpenAPI document, with the columns of the model by their own names and types.

The schemas are written out as JSON schema: a column may have any name, and pydantic's fields may not.
"""

from __future__ import annotations

from typing import Any

from forge_sweep.bundle import Bundle
from forge_sweep.preprocessing import Column
from forge_sweep.serving.bodies import ARROW, CSV, JSON
from forge_sweep.serving.settings import Settings
from forge_sweep.task import Task

EXAMPLES = 10
NULL = {"type": "null"}
LABELS = {bool: "boolean", int: "integer", float: "number", str: "string"}

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
    schemas = {
        "Row": row_schema(bundle, settings),
        "Prediction": prediction_schema(bundle.task),
        "Answer": answer_schema(bundle.task),
        "Warning": WARNING,
        "Error": ERROR,
    }
    document.setdefault("components", {})["schemas"] = schemas
    document["paths"]["/predict"] = {"post": predict_operation(settings)}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path != "/predict":
                untyped(operation["responses"])
            if key and path not in ("/healthz", "/readyz"):
                operation["security"] = [{"bearer": []}, {"header": []}]
                operation["responses"]["401"] = refusal("401")
    if key:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return document


def untyped(responses: dict[str, Any]) -> None:
    """FastAPI takes an answer of its own class for text."""
    for answer in responses.values():
        if JSON in answer.get("content", {}):
            answer["content"][JSON] = {"schema": {"type": "object"}}


def row_schema(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """One row."""
    columns = bundle.preprocessor.schema.columns
    return {
        "type": "object",
        "properties": {column.name: column_schema(column) for column in columns},
        "required": [column.name for column in columns],
        "additionalProperties": settings.ignore_extra,
    }


def column_schema(column: Column) -> dict[str, Any]:
    """What a column takes; whatever is missing is null."""
    rare = "sometimes missing in train" if column.missing else "never missing in train"
    if column.kind == "numeric":
        about = f"{column.dtype}, {column.low:g} to {column.high:g}" if column.low is not None else column.dtype
        return {"type": ["number", "null"], "description": f"{about} in train; {rare}"}
    if column.kind == "boolean":
        return {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, NULL], "description": rare}
    kinds = ["string", "integer", "null"] if column.takes_integers else ["string", "null"]
    about = f"{len(column.categories)} categories in train; {rare}"
    return {"type": kinds, "description": about, "examples": list(column.categories[:EXAMPLES])}


def prediction_schema(task: Task) -> dict[str, Any]:
    """The prediction of one row."""
    warnings = {"type": "array", "items": {"$ref": "#/components/schemas/Warning"}}
    if task.kind == "regression":
        properties = {"values": fixed({str(name): {"type": "number"} for name in task.targets})}
    else:
        share = {"type": "number", "minimum": 0, "maximum": 1}
        properties = {"probabilities": fixed(dict.fromkeys(task.class_names, share))}
    if task.kind in ("binary", "multiclass"):
        properties["label"] = {"enum": list(task.classes)}
    if task.kind == "multilabel":
        properties["labels"] = fixed({name: {"enum": [0, 1]} for name in task.class_names})
    return fixed({**properties, "warnings": warnings})


def fixed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these keys and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def answer_schema(task: Task) -> dict[str, Any]:
    """The answer to one request."""
    text, predictions = {"type": "string"}, {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    threshold = {"threshold": {"type": "number"}} if task.kind in ("binary", "multilabel") else {}
    return fixed({"model": text, "version": text, **threshold, "predictions": predictions})


WARNING = fixed(
    {
        "column": {"type": "string"},
        "code": {"enum": ["missing", "unknown-category", "below-range", "above-range"]},
        "seen": {},
        "expected": {"type": "string"},
    }
)

MISFIT = fixed(
    {
        "row": {"type": ["integer", "null"]},
        "column": {"type": "string"},
        "code": {"type": "string"},
        "seen": {"type": "string"},
        "expected": {"type": "string"},
    }
)

ERROR = fixed(
    {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "fix": {"type": "string"},
                "misfits": {"type": "array", "items": MISFIT},
                "count": {"type": "integer"},
            },
            "required": ["code", "message"],
        }
    }
)


def predict_operation(settings: Settings) -> dict[str, Any]:
    """``POST /predict``."""
    row = {"$ref": "#/components/schemas/Row"}
    rows = {"type": "array", "items": row, "maxItems": settings.max_rows}
    content: dict[str, Any] = {JSON: {"schema": {"oneOf": [row, rows]}}}
    content |= {media: {"schema": {"type": "string", "format": "binary"}} for media in (CSV, *ARROW)}
    answer = {"description": "Predictions, in the order of the rows.", "content": json_of("Answer")}
    return {
        "operationId": "predict",
        "summary": "Predict raw rows",
        "description": "An object is one row, an array of objects is several; CSV has a header line. "
        f"At most {settings.max_rows} rows and {settings.max_body} bytes. "
        "Values that the training rows did not have are predicted, with a warning.",
        "requestBody": {"required": True, "content": content},
        "responses": {"200": answer, **{status: refusal(status) for status in REFUSALS if status != "401"}},
    }


def refusal(status: str) -> dict[str, Any]:
    """The answer to a request that is not answered."""
    return {"description": REFUSALS[status], "content": json_of("Error")}


def json_of(name: str) -> dict[str, Any]:
    """JSON of one of our schemas."""
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
