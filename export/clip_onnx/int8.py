"""image_tower.onnx → image_tower.int8.onnx: static int8 (QDQ, u8 activations, s8 weights per channel), for CPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.photographs.options import PhotographOptions
from export.quantise import Views, quantise_graph

COUNT, JUDGED = 256, 128
QUANTISED = ("Conv", "Add", "Clip", "Relu", "Gemm", "MatMul")


def write_int8_tower(
    source: Path,
    target: Path,
    weights: Mapping[str, np.ndarray],
    photographs: PhotographOptions,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Quantises the tower in `source` (a graph without weights) on photographs; returns what it costs on others:
    {"pictures", "cosine_min", "cosine_mean"} against fp32 in ONNX Runtime.

    size: (height, width) of the tower's pictures.
    """
    from export.bundles import training_views

    opened = photographs.open(max(size) if photographs.images else None)
    views = training_views(opened, COUNT + JUDGED, size=size)
    opened.close()
    pictures = np.ascontiguousarray(views.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    with tempfile.TemporaryDirectory() as folder:
        whole, prepared = Path(folder) / "whole.onnx", Path(folder) / "prepared.onnx"
        onnx.save(with_weights(source, weights), whole)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        quantise_graph(prepared, target, Views(pictures[:COUNT], name="images"), QUANTISED, _ends(onnx.load(prepared)))
        wanted, got = (_vectors(path, pictures[COUNT:]) for path in (whole, target))
    cosines = np.einsum("nd,nd->n", wanted, got)
    return {
        "pictures": len(cosines),
        "cosine_min": round(float(cosines.min()), 5),
        "cosine_mean": round(float(cosines.mean()), 5),
    }


def with_weights(path: Path, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A graph without weights, with them."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.external_data:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights[tensor.name], dtype, order="C"), tensor.name))
    return model


def _ends(model: onnx.ModelProto) -> list[str]:
    """What stays in float: the first convolution, whose rounding every later layer sees, and what follows the last."""
    convolutions = [index for index, node in enumerate(model.graph.node) if node.op_type == "Conv"]
    if not convolutions:
        return []
    first, last = convolutions[0], convolutions[-1]
    return [node.name for index, node in enumerate(model.graph.node) if index <= first or index > last]


def _vectors(path: Path, pictures: np.ndarray) -> np.ndarray:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": pictures[i : i + 8]})[0] for i in range(0, len(pictures), 8)])
