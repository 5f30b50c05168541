"""The Open Inference Protocol, version 2, with its extension for binary tensor data.

In: the bytes of a body, JSON and perhaps the bytes of tensors after it. Out: the events to score,
and an answer in the form that was asked for. A tensor is a column, of shape [B] or [B, 1]; one of
lists may have the shape [B, K], and in JSON its data may be B lists of any length, or maps. As in
`serving/bodies/wire.py`, whatever is wrong becomes a `RequestError`.

Shapes: B events, K values of each list.
"""

from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from niwaki.model.errors import FeatureError
from niwaki.model.features.event_rows import columns_to_batch
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.published.checkpoint import Header
from niwaki.pruning.errors import shorten
from niwaki.serving.bodies.wire import FINITE, Answer, RequestError, check_count, decode, to_batch

JSON_BYTES_HEADER = "inference-header-content-length"
"""Header with the length of the JSON before binary tensors."""
EXTENSIONS = ("binary_tensor_data",)
OUTPUT = "probability"


class Datatype(NamedTuple):
    """A datatype of the protocol."""

    kinds: frozenset[type]
    """Types of its values when they are read from JSON."""
    layout: np.dtype[Any] | None
    """Its values in binary data; None: each after its length in 4 bytes, little-endian."""


DATATYPES = {
    "BOOL": Datatype(frozenset({bool}), np.dtype("u1")),
    **{
        f"{sign}INT{8 * size}": Datatype(frozenset({int}), np.dtype(f"<{kind}{size}"))
        for sign, kind in (("U", "u"), ("", "i"))
        for size in (1, 2, 4, 8)
    },
    **{
        f"FP{8 * size}": Datatype(frozenset({int, float}), np.dtype(f"<f{size}"))
        for size in (2, 4, 8)
    },
    "BYTES": Datatype(frozenset({str}), None),
}


class TensorParameters(msgspec.Struct):
    """The parameters of a tensor that are read."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None
    """Bytes of the tensor after the JSON; None: its values are in `data`."""


class Tensor(msgspec.Struct):
    """A column of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | UnsetType | None = UNSET
    parameters: TensorParameters | None = None


class OutputParameters(msgspec.Struct):
    """The parameters of an output that are read."""

    binary_data: bool | None = None
    """True: the output is to be binary; None: as the request says for all outputs."""


class Output(msgspec.Struct):
    """An output that a request asks for."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(msgspec.Struct):
    """The parameters of a request that are read."""

    binary_data_output: bool | None = None
    """True: outputs are to be binary."""


class InferBody(msgspec.Struct):
    """The JSON of a request; what the protocol allows beyond this is not read."""

    inputs: list[Tensor]
    outputs: list[Output] | None = None
    id: str | None = None
    parameters: RequestParameters | None = None


class InferRequest(NamedTuple):
    """The request that a body holds, checked."""

    batch: EventBatch
    id: str | None
    binary: bool
    """True: the tensor of the answer is to be binary."""


def read_infer(
    body: bytes, json_bytes: int | None, schema: Schema, max_events: int
) -> InferRequest:
    """The request in the body of `POST /v2/models/{name}/infer`. `json_bytes`: length of its JSON,
    as the header says it; None: all of it is JSON."""
    if json_bytes is not None and json_bytes > len(body):
        rule = f"must be at most {len(body)}, the length of the body"
        raise RequestError(400, JSON_BYTES_HEADER, rule, str(json_bytes))
    asked = decode(body[:json_bytes], InferBody)
    for i, output in enumerate(asked.outputs or []):
        if output.name != OUTPUT:
            raise RequestError(400, f"outputs[{i}].name", f"must be {OUTPUT}", shorten(output.name))
    if not asked.inputs:
        raise RequestError(400, "inputs", "must hold at least one tensor")
    count = asked.inputs[0].shape[0] if asked.inputs[0].shape else 0
    check_count("inputs[0].shape", count, max_events)
    start = len(body) if json_bytes is None else json_bytes
    columns = _columns(asked.inputs, count, schema, body, start)
    try:
        batch = columns_to_batch(columns, count, schema)
    except (FeatureError, RecursionError):  # row by row, to say which value it is
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        position = {name: i for i, name in enumerate(columns)}
        batch = to_batch(
            rows, schema, lambda i, column: f"inputs[{position[column]}].data[{i}] ({column})"
        )
    return InferRequest(batch, asked.id, _is_binary(asked))


def infer_answer(
    header: Header, probabilities_B: np.ndarray, name: str, asked: InferRequest
) -> Answer:
    """The body that answers `POST /v2/models/{name}/infer`."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": [len(probabilities_B)]}
    data = probabilities_B.astype("<f4", copy=False).tobytes() if asked.binary else b""
    if asked.binary:
        output["parameters"] = {"binary_data_size": len(data)}
    else:
        output["data"] = probabilities_B.tolist()
    answer = {"model_name": name, "model_version": str(header.version), "outputs": [output]}
    text = msgspec.json.encode(answer | ({"id": asked.id} if asked.id is not None else {}))
    return Answer(text + data, len(text) if asked.binary else None)


def model_metadata(header: Header, name: str) -> dict[str, Any]:
    """The protocol's description of the model that `header` belongs to."""
    schema = header.schema
    columns = [(column, "BYTES", [-1]) for column in schema.categorical]
    columns += [(column, "FP32", [-1]) for column in schema.numeric]
    columns += [(column, "BYTES", [-1, -1]) for column in schema.lists]
    form = schema.timestamp_format
    kind = {"ms": "INT64", "us": "INT64", "ns": "INT64", "s": "FP64"}.get(form, "BYTES")
    columns += [(schema.timestamp, kind, [-1])] if schema.timestamp else []
    return {
        "name": name,
        "versions": [str(header.version)],
        "platform": "niwaki",
        "inputs": [
            {"name": column, "datatype": datatype, "shape": shape}
            for column, datatype, shape in columns
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1]}],
    }


def _is_binary(asked: InferBody) -> bool:
    for output in asked.outputs or []:
        if output.parameters and output.parameters.binary_data is not None:
            return output.parameters.binary_data
    return bool(asked.parameters and asked.parameters.binary_data_output)


def _columns(
    tensors: list[Tensor], count: int, schema: Schema, body: bytes, start: int
) -> dict[str, list[Any]]:
    """The values of each tensor by its name, one for each event. `start`: where binary data begins
    in `body`."""
    columns: dict[str, list[Any]] = {}
    for i, tensor in enumerate(tensors):
        where = f"inputs[{i}]"
        if tensor.name in columns:
            raise RequestError(
                400, f"{where}.name", "must differ from those before", shorten(tensor.name)
            )
        of_lists = tensor.name in schema.lists
        datatype = _datatype(tensor, where, count, of_lists)
        width = tensor.shape[1] if of_lists and len(tensor.shape) == 2 else None
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if size is None:
            read = _read_json_lists if of_lists else _read_json
            columns[tensor.name] = read(tensor, datatype, where, count)
            continue
        if tensor.data:
            raise RequestError(400, f"{where}.data", "must not be beside binary_data_size")
        if width == -1:
            raise RequestError(400, f"{where}.shape", "must be known where data are binary")
        field, end = f"{where}.parameters.binary_data_size", start + size
        if end > len(body):
            rule = f"must be in the body, after the JSON of {JSON_BYTES_HEADER} bytes"
            raise RequestError(400, field, rule, str(size))
        values = count if width is None else count * width
        if datatype.layout is None:
            found: list[Any] = _read_texts(body[start:end], where, values)
        else:
            if size != values * datatype.layout.itemsize:
                rule = f"must be {values} x {datatype.layout.itemsize}, as shape and datatype say"
                raise RequestError(400, field, rule, str(size))
            found = _read_numbers(
                np.frombuffer(body, datatype.layout, values, start), tensor.datatype, where
            )
        if width is not None:  # an empty text fills a list up, since binary data have no null
            found = _cut([None if value == "" else value for value in found], count, width)
        columns[tensor.name] = found
        start = end
    if start != len(body):
        rule = f"must end with its last binary tensor, after {start} bytes"
        raise RequestError(400, "body", rule, str(len(body)))
    return columns


def _cut(values: list[Any], count: int, width: int) -> list[list[Any]]:
    """The values of a matrix of shape [count, width] by its rows."""
    return [values[i * width : (i + 1) * width] for i in range(count)]


def _datatype(tensor: Tensor, where: str, count: int, of_lists: bool) -> Datatype:
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None:
        rule = f"must be one of {', '.join(DATATYPES)}"
        raise RequestError(400, f"{where}.datatype", rule, shorten(tensor.datatype))
    shape = tensor.shape
    if of_lists and len(shape) == 2 and shape[0] == count >= 0 and shape[1] >= -1:
        return datatype
    if shape not in ([count], [count, 1]):
        width = "K" if of_lists else "1"
        rule = f"must be [{count}] or [{count}, {width}], as the first is"
        raise RequestError(400, f"{where}.shape", rule, shorten(shape))
    return datatype


def _data(tensor: Tensor, where: str) -> list[Any]:
    if tensor.data is UNSET or tensor.data is None:
        raise RequestError(400, f"{where}.data", "must be there, or binary_data_size must")
    return tensor.data


def _read_json(tensor: Tensor, datatype: Datatype, where: str, count: int) -> list[Any]:
    """The values of `data`, flat or one list a row."""
    data = _data(tensor, where)
    if data and all(isinstance(value, list) and len(value) == 1 for value in data):
        data = [value[0] for value in data]
    if len(data) != count:
        rule = f"must hold {count} values, as its shape says"
        raise RequestError(400, f"{where}.data", rule, str(len(data)))
    _check_kinds(data, tensor, datatype, f"{where}.data")
    return data


def _read_json_lists(tensor: Tensor, datatype: Datatype, where: str, count: int) -> list[Any]:
    """The lists of `data`: one list, map or null for each event, or all values of a matrix, flat;
    or one value for each event, where the shape is [B]."""
    data, width = _data(tensor, where), tensor.shape[1] if len(tensor.shape) == 2 else None
    if len(data) == count and set(map(type, data)) <= {list, dict, type(None)}:
        for i, value in enumerate(data):
            if isinstance(value, list):
                _check_kinds(value, tensor, datatype, f"{where}.data[{i}]")
        return data
    _check_kinds(data, tensor, datatype, f"{where}.data")
    if width is None and len(data) == count:
        return data
    if width is None or len(data) != count * width:
        rule = f"must hold {count} lists, or as many values as its shape says"
        raise RequestError(400, f"{where}.data", rule, str(len(data)))
    return _cut(data, count, width)


def _check_kinds(data: list[Any], tensor: Tensor, datatype: Datatype, where: str) -> None:
    """Raise `RequestError` for a value of another datatype."""
    if set(map(type, data)) <= {*datatype.kinds, type(None)}:
        return
    i, value = next(
        (i, value)
        for i, value in enumerate(data)
        if value is not None and type(value) not in datatype.kinds
    )
    rule = f"must be of datatype {tensor.datatype}, or null"
    raise RequestError(400, f"{where}[{i}]", rule, shorten(value))


def _read_numbers(values_B: np.ndarray, datatype: str, where: str) -> list[Any]:
    """Binary values as JSON would have them; NaN is a missing value."""
    if datatype == "BOOL":
        if (values_B > 1).any():
            i = int(np.argmax(values_B > 1))
            raise RequestError(400, f"{where}.data[{i}]", "must be 0 or 1", str(values_B[i]))
        values_B = values_B.astype(bool)
    elif not np.isfinite(values_B).all():
        i = int(np.argmax(np.isinf(values_B)))
        if np.isinf(values_B[i]):
            raise RequestError(400, f"{where}.data[{i}]", FINITE, str(values_B[i]))
        return [None if value != value else value for value in values_B.tolist()]
    found: list[Any] = values_B.tolist()
    return found


def _read_texts(data: bytes, where: str, count: int) -> list[str]:
    """Binary elements of BYTES."""
    found: list[str] = []
    start = 0
    while len(found) < count and start + 4 <= len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            break
        try:
            found.append(data[start + 4 : end].decode())
        except UnicodeDecodeError as error:
            value = shorten(data[start + 4 : end])
            rule = "must be UTF-8"
            raise RequestError(400, f"{where}.data[{len(found)}]", rule, value) from error
        start = end
    if len(found) != count or start != len(data):
        rule = f"must be {count} elements, each after its length in 4 bytes, and no more"
        raise RequestError(400, f"{where}.data", rule)
    return found
