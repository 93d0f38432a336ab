"""What a graph's file asks of its reader: opset, and the weights that it does not hold. Needs no `onnx` package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from cloud.errors import InferenceFailed

MAX_BYTES = 256 << 20  # int8 towers hold their weights
TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16}  # TensorProto.DataType
EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class Wanted:
    """A weight that the reader brings."""

    name: str
    shape: tuple[int, ...]
    dtype: type


@dataclass(frozen=True)
class GraphFile:
    """opset: of the standard operators; wanted: weights to bring."""

    opset: int
    wanted: tuple[Wanted, ...]

    def take(self, weights: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
        """The wanted ones of `weights`, in the graph's precision. Raises `InferenceFailed` where they do not fit."""
        taken = {}
        for each in self.wanted:
            value = weights.get(each.name)
            if value is None or value.shape != each.shape:
                found = "missing" if value is None else f"of shape {value.shape}, not {each.shape}"
                raise InferenceFailed(f"{path}: its weight {each.name} is {found}: graph and weights do not fit")
            taken[each.name] = np.asarray(value, each.dtype, order="C")
        return taken


def read_graph(path: Path) -> GraphFile:
    """Raises `InferenceFailed`, which names the file, when it is missing or no graph."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InferenceFailed(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
        model = _model_class().FromString(path.read_bytes())
        wanted = tuple(
            Wanted(each.name, tuple(each.dims), TYPES[each.data_type])
            for each in model.graph.initializer
            if each.data_location == EXTERNAL
        )
    except (OSError, DecodeError, KeyError) as error:
        raise InferenceFailed(f"{path}: is no ONNX graph that can be read ({error})") from error
    return GraphFile(max((each.version for each in model.opset_import if not each.domain), default=0), wanted)


@lru_cache(maxsize=1)
def _model_class() -> type:
    """The few fields of onnx.proto that are read; protobuf skips the rest.

    https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="thinwire_onnx_subset.proto", package="thinwire.onnx_subset")
    tensor = [("dims", 1, "int64*"), ("data_type", 2, "int32"), ("name", 8, "string"), ("data_location", 14, "int32")]
    messages = {
        "Tensor": tensor,
        "Graph": [("initializer", 5, "Tensor*")],
        "Opset": [("domain", 1, "string"), ("version", 2, "int64")],
        "Model": [("graph", 7, "Graph"), ("opset_import", 8, "Opset*")],
    }
    plain = {"int64": field.TYPE_INT64, "int32": field.TYPE_INT32, "string": field.TYPE_STRING}
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            base = kind.rstrip("*")
            label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if base in plain:
                message.field.add(name=field_name, number=number, type=plain[base], label=label)
            else:
                of = f".{file.package}.{base}"
                message.field.add(name=field_name, number=number, type=field.TYPE_MESSAGE, label=label, type_name=of)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))
