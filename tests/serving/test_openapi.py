"""The server's own description of itself is true: examples are answered, and no request that it
allows breaks it."""

import importlib

import pytest
from hypothesis import HealthCheck, given, settings


def test_every_example_in_the_openapi_document_is_answered(served):
    document = served.client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    asked = 0
    for path, operations in document["paths"].items():
        path = path.replace("{name}", served.scorer.name).replace("{version}", "12")
        for operation in (
            operations.get("post", {}).get("requestBody", {}).get("content", {}).values()
        ):
            for example in operation.get("examples", {}).values():
                assert served.client.post(path, json=example["value"]).status_code == 200
                asked += 1
        if "get" in operations:
            assert served.client.get(path).status_code == 200
    assert asked == 4


def test_the_openapi_document_names_the_columns_that_serve(served):
    document = served.client.get("/openapi.json").json()
    body = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    event = body["oneOf"][0]["properties"]["events"]["items"]
    assert set(event["properties"]) == {"user", "item", "noise", "age", "price", "ts", "label"}
    assert event["additionalProperties"] is False


def test_no_request_that_the_document_describes_or_forbids_is_more_than_a_client_error(served):
    """schemathesis makes them; each answer must be of a status and a shape that the document
    knows."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    checks = importlib.import_module("schemathesis.checks")
    conformance = importlib.import_module("schemathesis.specs.openapi.checks")
    schema = schemathesis.openapi.from_url(f"{served.client.base_url}/openapi.json")
    wanted = [
        checks.not_a_server_error,
        conformance.status_code_conformance,
        conformance.response_schema_conformance,
    ]
    asked = []

    def ask_all(operation) -> None:
        @settings(max_examples=20, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            case.call_and_validate(checks=wanted)
            asked.append(operation.label)

        ask()

    for found in schema.get_all_operations():
        ask_all(found.ok())
    assert set(asked) >= {
        "POST /score",
        "POST /v2/models/{name}/infer",
        "GET /v2/models/{name}",
        "POST /v2/models/{name}/versions/{version}/infer",
        "GET /metrics",
    }
