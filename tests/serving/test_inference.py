"""The Open Inference Protocol as its clients speak it, in JSON: tensors, parameters, versions."""

import pytest

from tests.support.publisher import rows
from tests.support.served import error, tensor

# Tensors in JSON


def test_a_model_says_its_columns_and_version(served):
    metadata = served.client.get(f"/v2/models/{served.scorer.name}").json()
    assert metadata["versions"] == ["12"] and metadata["name"] == served.scorer.name
    assert {(column["name"], column["datatype"]) for column in metadata["inputs"]} == {
        ("user", "BYTES"),
        ("item", "BYTES"),
        ("noise", "BYTES"),
        ("age", "FP32"),
        ("price", "FP32"),
        ("ts", "INT64"),
    }
    assert served.client.get("/v2").json()["name"] == "niwaki"


def test_tensors_are_scored_as_the_same_events_are(served, publisher):
    events = rows(publisher.events)
    kinds = {"user": "BYTES", "item": "BYTES", "noise": "BYTES", "age": "FP32", "price": "FP64"}
    inputs = [
        tensor(name, kind, [event.get(name) for event in events]) for name, kind in kinds.items()
    ]
    answer = served.infer(
        {"inputs": inputs, "id": "q1", "outputs": [{"name": "probability"}]}
    ).json()
    assert answer["outputs"] == [tensor("probability", "FP32", publisher.answers[12])]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (
        served.scorer.name,
        "12",
        "q1",
    )


def test_a_column_may_be_a_matrix_of_one_column(served):
    flat = [tensor("user", "BYTES", ["u1", "u2"]), tensor("age", "INT64", [1, 2])]
    tall = [
        tensor("user", "BYTES", [["u1"], ["u2"]], [2, 1]),
        tensor("age", "INT64", [1, 2], [2, 1]),
    ]
    assert served.infer({"inputs": flat}).json() == served.infer({"inputs": tall}).json()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"inputs": []}, 400, "inputs: must hold at least one tensor"),
        ({}, 400, "inputs: must be there"),
        (
            {"inputs": [tensor("user", "FP8", ["a"])]},
            400,
            "inputs[0].datatype: must be one of BOOL, UINT8",
        ),
        (
            {"inputs": [tensor("user", "BYTES", [1])]},
            400,
            "inputs[0].data[0]: must be of datatype BYTES, or null, got 1",
        ),
        (
            {"inputs": [tensor("age", "FP32", [True])]},
            400,
            "inputs[0].data[0]: must be of datatype FP32",
        ),
        (
            {"inputs": [tensor("age", "FP32", [1, 2], [3])]},
            400,
            "inputs[0].data: must hold 3 values",
        ),
        (
            {"inputs": [tensor("age", "FP32", [1], [-1])]},
            400,
            "inputs[0].data: must hold -1 values",
        ),
        (
            {"inputs": [tensor("age", "FP32", [1], [1, 2])]},
            400,
            "inputs[0].shape: must be [1] or [1, 1]",
        ),
        (
            {"inputs": [tensor("age", "FP32", [1])] * 2},
            400,
            "inputs[1].name: must differ from those before",
        ),
        (
            {"inputs": [tensor("age", "FP32", [1]), tensor("price", "FP32", [1, 2])]},
            400,
            "inputs[1].shape: must be [1] or [1, 1], as the first is, got [2]",
        ),
        (
            {"inputs": [tensor("hue", "FP32", [1, 2])]},
            400,
            "inputs[0].data[0] (hue): must be a column of the schema",
        ),
        (
            {"inputs": [tensor("age", "FP64", [1, 1e39])]},
            400,
            "inputs[0].data[1] (age): must be finite in 32 bits, got 1e+39",
        ),
        (
            {"inputs": [tensor("age", "FP32", [1] * 101)]},
            413,
            "inputs[0].shape: must be at most 100, got 101",
        ),
        (
            {"inputs": [tensor("age", "FP32", [1])], "outputs": [{"name": "logit"}]},
            400,
            "outputs[0].name: must be probability, got 'logit'",
        ),
    ],
)
def test_a_mistake_in_a_tensor_is_named(served, body, status, text):
    response = served.infer(body)
    assert response.status_code == status
    assert response.json()["error"].startswith(text)


@pytest.mark.parametrize(
    ("column", "datatype", "data"),
    [
        ("user", "FP32", [4001.0, None, 17.0]),
        ("user", "FP64", [4001.0, -3.0, None]),
        ("user", "UINT64", [2**64 - 1, 0, None]),
        ("user", "BOOL", [True, False, None]),
        ("age", "BOOL", [True, False, None]),
        ("age", "BYTES", ["1.5", "-2", None]),
    ],
)
def test_a_tensor_means_what_the_same_values_in_events_mean(served, column, datatype, data):
    apart = served.score({"events": [{column: value} for value in data]})
    together = served.infer({"inputs": [tensor(column, datatype, data)]})
    assert together.status_code == apart.status_code
    if apart.status_code == 200:
        (output,) = together.json()["outputs"]
        assert output["data"] == apart.json()["probabilities"]
    else:
        assert together.json()["rule"] == error(apart)[2]


def test_a_boolean_is_of_no_other_datatype_and_a_number_no_boolean(served):
    for datatype, value in (("BOOL", 1), ("INT8", True), ("FP32", False), ("BYTES", True)):
        refused = served.infer({"inputs": [tensor("user", datatype, [None, value])]}).json()
        assert refused["field"] == "inputs[0].data[1]"
        assert refused["rule"] == f"must be of datatype {datatype}, or null"


def test_what_clients_write_as_null_is_as_if_it_were_absent(served):
    column = tensor("age", "FP32", [1.5, 2.5])
    plain = served.infer({"inputs": [column]}).json()
    nulls = {"id": None, "parameters": None, "outputs": None}
    assert served.infer({"inputs": [column | {"parameters": None}], **nulls}).json() == plain
    asked = {"outputs": [{"name": "probability", "parameters": None}], "parameters": {}}
    assert served.infer({"inputs": [column | {"parameters": {}}], **asked}).json() == plain
    unknown = {"content_type": "np", "sequence_id": 3}
    answer = served.infer({"inputs": [column | {"parameters": unknown}], "parameters": unknown})
    assert answer.json() == plain


# Versions


def test_the_version_that_serves_is_answered_by_its_number(served):
    model = f"/v2/models/{served.scorer.name}"
    for path in (model, f"{model}/ready"):
        by_number = path.replace(model, f"{model}/versions/12")
        answer = served.client.get(by_number)
        assert answer.status_code == 200
        assert answer.json().keys() == served.client.get(path).json().keys()
    body = {"inputs": [tensor("age", "FP32", [1.5, 2.5])], "id": "q"}
    answer = served.client.post(f"{model}/versions/12/infer", json=body)
    assert answer.json() == served.infer(body).json()


@pytest.mark.parametrize("version", ["11", "13", "012", "12.0", "latest", "12%20"])
def test_another_version_is_404_and_names_the_present_one(served, version):
    path = f"/v2/models/{served.scorer.name}/versions/{version}"
    body = {"inputs": [tensor("age", "FP32", [1.5])]}
    for answer in (
        served.client.get(path),
        served.client.get(f"{path}/ready"),
        served.client.post(f"{path}/infer", json=body),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("version: must be 12, which serves now, got ")


def test_a_version_serves_until_the_next_one_does(serve, publisher):
    served = serve()
    model = f"/v2/models/{served.scorer.name}"
    assert served.client.get(f"{model}/versions/12/ready").status_code == 503
    assert served.client.get(f"{model}/versions/12").status_code == 503
    served.publish(*publisher.first)
    body = {"inputs": [tensor("age", "FP32", [1.5])]}
    assert served.client.get(f"{model}/versions/12/ready").json()["ready"]
    served.publish(*publisher.checkpoint(13))
    late = served.client.post(f"{model}/versions/12/infer", json=body)
    assert late.status_code == 404 and "must be 13" in late.json()["error"]
    answer = served.client.post(f"{model}/versions/13/infer", json=body)
    assert answer.json()["model_version"] == "13"
    assert served.client.get("/v2/models/another/versions/13/ready").json()["field"] == "name"
