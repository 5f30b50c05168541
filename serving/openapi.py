"""The server's own description of itself, OpenAPI 3.1, with the columns of the model that it serves
at the moment.

In: the model's name, the limits, and the header of the checkpoint that serves (None: none yet).
Out: one JSON object.
"""

from typing import Any

from niwaki.model.features.schema import Schema
from niwaki.model.features.values import UNITS_PER_S, time_rule
from niwaki.model.published.checkpoint import Header
from niwaki.serving.bodies.arrow_rows import ARROW
from niwaki.serving.bodies.inference import DATATYPES, JSON_BYTES_HEADER, OUTPUT

Json = dict[str, Any]


def document(name: str, max_events: int, header: Header | None) -> Json:
    """The OpenAPI document."""
    event, example = _event(header.schema) if header else ({"type": "object"}, {})
    candidate = dict(list(example.items())[-1:])
    context = {column: value for column, value in example.items() if column not in candidate}
    events = {"type": "array", "items": event, "maxItems": max_events}
    part = {
        **event,
        "description": "Part of an event. No column is in the context and in a candidate. What the"
        " context has is read and hashed once.",
    }
    ask_events = {"type": "object", "properties": {"events": events}, "required": ["events"]}
    ask_candidates = {
        "type": "object",
        "properties": {"context": part, "candidates": {**events, "items": part}},
        "required": ["candidates"],
    }
    score: Json = {
        "summary": "Click probabilities of events, or of one context's candidates.",
        "requestBody": _body(
            {
                "oneOf": [
                    ask | {"additionalProperties": False} for ask in (ask_events, ask_candidates)
                ]
            },
            events={"events": [example]},
            candidates={"context": context, "candidates": [candidate, candidate]},
        ),
        "responses": {
            "200": _answer(
                "One probability each, in order, all by one version.",
                _object(
                    version={"type": "integer"},
                    probabilities=_list({"type": "number", "minimum": 0, "maximum": 1}),
                ),
                {"version": 12, "probabilities": [0.0421]},
            )
        }
        | _refusals("Refusal", 400, 408, 413, 415, 503),
    }
    score["requestBody"]["content"] |= {ARROW: _ARROW_BODY}
    score["responses"]["200"]["content"] |= {ARROW: _ARROW_ANSWER}
    version = str(header.version) if header else None
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"niwaki: {name}",
            "version": "1",
            "description": "Scores with the newest checkpoint.",
        },
        "paths": {
            "/score": {"post": score},
            "/v2": {
                "get": _get(
                    "This server.", _object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT))
                )
            },
            "/v2/health/live": {"get": _get("Whether the process runs.", _object(live=_BOOLEAN))},
            "/v2/health/ready": {
                "get": _ready("Whether it serves a checkpoint that is young enough.")
            },
            **_model_paths("/v2/models/{name}", [_parameter("name", name)], name, example),
            **_model_paths(
                "/v2/models/{name}/versions/{version}",
                [_parameter("name", name), _parameter("version", version)],
                name,
                example,
            ),
            "/metrics": {
                "get": {
                    "summary": "Prometheus metrics.",
                    "responses": {"200": {"description": "Metrics."}},
                }
            },
            "/openapi.json": {"get": _get("This document.", {"type": "object"})},
        },
        "components": {"schemas": _SCHEMAS},
    }


def _model_paths(path: str, parameters: list[Json], name: str, example: Json) -> Json:
    """The paths of the model, or of one version of it, in the Open Inference Protocol."""
    infer: Json = {
        "summary": "The same in the Open Inference Protocol: one tensor a column.",
        "parameters": [_JSON_BYTES],
        "requestBody": _body(
            {"$ref": "#/components/schemas/InferRequest"},
            events={"inputs": [_tensor(column, value) for column, value in example.items()]},
        ),
        "responses": {
            "200": _answer(
                "One probability an event.",
                {"$ref": "#/components/schemas/InferResponse"},
                {"model_name": name, "model_version": "12", "outputs": [_tensor(OUTPUT, 0.0421)]},
            )
        }
        | _refusals("ProtocolRefusal", 400, 404, 408, 413, 415, 503),
    }
    infer["requestBody"]["content"] |= _BINARY
    infer["responses"]["200"]["content"] |= _BINARY
    metadata = {"summary": "The columns and the version.", "responses": _metadata_responses()}
    ready = _ready("Whether it serves.", 404)
    return {
        path: {"parameters": parameters, "get": metadata},
        f"{path}/ready": {"parameters": parameters, "get": ready},
        f"{path}/infer": {"parameters": parameters, "post": infer},
    }


_TEXT, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
_JSON_BYTES = {
    "name": JSON_BYTES_HEADER,
    "in": "header",
    "description": "Bytes of the JSON before binary tensors; absent: all of the body is JSON.",
    "schema": {"type": "integer", "minimum": 1},
}
_BINARY = {
    "application/octet-stream": {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": f"The JSON, of {JSON_BYTES_HEADER} bytes, then the binary tensors of"
            " the protocol's extension binary_tensor_data.",
        }
    }
}


_ARROW_BODY = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "An Arrow IPC stream without compressed buffers: a column for each column of"
        " events or candidates, and perhaps the context, a JSON object, in the metadata of its"
        " schema, under the key context.",
    }
}
_ARROW_ANSWER = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "If asked for by the header accept: an Arrow IPC stream with the column"
        " probability, FP32, and the version in the metadata of its schema, under the key version.",
    }
}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _parameters(name: str, schema: Json) -> Json:
    """The parameters of a part of the protocol, of which one is read."""
    return {"type": ["object", "null"], "properties": {name: schema}}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_SIZE = {"type": ["integer", "null"], "minimum": 0}
_FLAG = {"type": ["boolean", "null"]}
_REASON = {"field": _TEXT, "rule": _TEXT, "value": _TEXT}
_TENSOR = _object(
    name=_TEXT,
    shape=_list({"type": "integer", "minimum": 0}),
    datatype={"enum": list(DATATYPES)},
)
_TENSOR["properties"] |= {"data": _list({}), "parameters": _parameters("binary_data_size", _SIZE)}
_OUTPUT = _object(name={"const": OUTPUT})
_OUTPUT["properties"] |= {"parameters": _parameters("binary_data", _FLAG)}
_READY = {
    "type": "object",
    "properties": {"ready": _BOOLEAN, "version": {"type": "integer"}},
    "required": ["ready"],
}
_SCHEMAS = {
    "Refusal": _object(error=_object(**_REASON)),
    "ProtocolRefusal": _object(error=_TEXT, **_REASON),
    "InferRequest": {
        "type": "object",
        "properties": {
            "id": {"type": ["string", "null"]},
            "inputs": {**_list(_TENSOR), "minItems": 1},
            "outputs": {**_list(_OUTPUT), "type": ["array", "null"]},
            "parameters": _parameters("binary_data_output", _FLAG),
        },
        "required": ["inputs"],
    },
    "InferResponse": _object(model_name=_TEXT, model_version=_TEXT, outputs=_list(_TENSOR)),
}
_REASONS = {
    400: "The body breaks a rule.",
    404: "No such model, or another version serves.",
    408: "The body did not arrive in time.",
    413: "The body or the number of events is beyond the limit.",
    415: "The body is of a type, charset or encoding that is not understood.",
    503: "Nothing has been published yet.",
}


_LISTS = {
    "type": ["array", "object", "string", "number", "boolean", "null"],
    "items": {"type": ["string", "number", "boolean", "null"]},
    "additionalProperties": {"type": ["number", "boolean", "null"], "minimum": 0},
    "description": "A list of values, or an object with the weight of each.",
}


def _event(schema: Schema) -> tuple[Json, Json]:
    """The JSON schema of an event, and an example."""
    properties: Json = {
        name: {"type": ["string", "number", "boolean", "null"]} for name in schema.categorical
    }
    properties |= {name: {"type": ["number", "boolean", "null"]} for name in schema.numeric}
    properties |= {name: _LISTS for name in schema.lists}
    example: Json = {name: "a" for name in schema.categorical}
    example |= {name: 1.0 for name in schema.numeric} | {name: ["a", "b"] for name in schema.lists}
    if schema.timestamp:
        kind = "number" if schema.timestamp_format in UNITS_PER_S else "string"
        properties[schema.timestamp] = {
            "type": [kind, "null"],
            "description": f"The event time; it {time_rule(schema)}.",
        }
    nested = {name.split(".")[0] for name in properties if "." in name}
    properties |= {name: {"type": ["object", "null"]} for name in nested if name not in properties}
    others = (schema.label, schema.weight, schema.sampling_ratio, *schema.ignore)
    properties |= {name: {"description": "Not read."} for name in others if name}
    return {"type": "object", "properties": properties, "additionalProperties": False}, example


def _tensor(name: str, value: str | float | list[str]) -> Json:
    """A tensor of one event."""
    return {
        "name": name,
        "shape": [1, len(value)] if isinstance(value, list) else [1],
        "datatype": "FP32" if isinstance(value, float) else "BYTES",
        "data": [value],
    }


def _body(schema: Json, **examples: Json) -> Json:
    named = {name: {"value": value} for name, value in examples.items()}
    return {
        "required": True,
        "description": "May be compressed: content-encoding gzip or deflate.",
        "content": {"application/json": {"schema": schema, "examples": named}},
    }


def _answer(description: str, schema: Json, example: Json | None = None) -> Json:
    content = {"schema": schema} | ({"example": example} if example else {})
    return {"description": description, "content": {"application/json": content}}


def _get(summary: str, schema: Json) -> Json:
    return {"summary": summary, "responses": {"200": _answer(summary, schema)}}


def _ready(summary: str, *statuses: int) -> Json:
    responses = {"200": _answer("It does.", _READY), "503": _answer("It does not.", _READY)}
    return {"summary": summary, "responses": responses | _refusals("ProtocolRefusal", *statuses)}


def _metadata_responses() -> Json:
    tensors = _list(_object(name=_TEXT, datatype=_TEXT, shape=_list({"type": "integer"})))
    schema = _object(
        name=_TEXT, versions=_list(_TEXT), platform=_TEXT, inputs=tensors, outputs=tensors
    )
    return {"200": _answer("The model.", schema)} | _refusals("ProtocolRefusal", 404, 503)


def _refusals(schema: str, *statuses: int) -> Json:
    return {
        str(status): _answer(_REASONS[status], {"$ref": f"#/components/schemas/{schema}"})
        for status in statuses
    }


def _parameter(name: str, value: str | None) -> Json:
    """A part of a path; of one value, unless that is not known yet."""
    schema = {"const": value} if value is not None else _TEXT
    return {"name": name, "in": "path", "required": True, "schema": schema}
