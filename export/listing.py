"""`thinwire-export list`: families and bundles with size, work for one image, ladder and measured figures."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from rich.table import Table

from export.families import FAMILIES
from thinwire.bundle import Bundle, load_bundle, shipped_bundles


def encoder_work(path: Path) -> tuple[int, int]:
    """(parameters, multiply-accumulates for one image) of an ONNX encoder: its convolutions and matrix products.

    One blank image is run, so that the shapes are those which occur and not what could be inferred.
    """
    model = onnx.load(str(path))
    parameters = sum(prod(weight.dims) for weight in model.graph.initializer)
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    wanted = dict.fromkeys(n for node in products for n in (*node.input[:2], node.output[0]) if n not in shapes)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused tensors have no shape to see
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    net = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    view = np.zeros((1, *net.get_inputs()[0].shape[1:]), np.uint8)
    shapes |= {name: value.shape for name, value in zip(wanted, net.run(list(wanted), {"image": view}))}
    macs = 0
    for node in products:
        left, right, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
        across = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        macs += prod(out) * (prod(right[1:]) if node.op_type == "Conv" else left[0 if across else -1])
    return parameters, macs


def family_work(name: str, size: int = 224) -> tuple[int, int]:
    """(parameters, multiply-accumulates for one image) of a family's untrained analysis net."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    net = FAMILIES[name].analysis().eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size, size))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2


def ladder(bundle: Bundle) -> str:
    """Rates from low to high, with the mean bytes that were measured first, where any were."""
    measured = next(iter(bundle.card.about.get("metrics", {}).values()), {})
    return ", ".join(
        f"{rate} {measured[rate]['bytes_mean']:.0f} B" if rate in measured else rate for rate in bundle.rates
    )


def figures(bundle: Bundle) -> str:
    """The card's metrics, a line a data set."""
    lines = []
    for data, rows in bundle.card.about.get("metrics", {}).items():
        points = [f"{rows[r]['top1_relative']:.2f} at {rows[r]['bytes_mean']:.0f} B" for r in bundle.rates if r in rows]
        lines.append(f"{data}: relative top-1 {', '.join(points)}")
    return "\n".join(lines) or "not yet"


def encoder_columns(bundle: Bundle) -> list[str]:
    """Parameters, multiply-accumulates and file size of the encoder network."""
    parameters, macs = encoder_work(bundle.encoder_path())
    size = bundle.encoder_path().stat().st_size
    return [f"{parameters / 1e6:.2f} M", f"{macs / 1e6:.0f} M", f"{size / 1e6:.1f} MB"]


def table(paths: list[Path]) -> Table:
    """Shipped bundles, those in `paths`, then families that have no bundle among them."""
    out = Table("bundle", "family", "model id", "ladder", "parameters", "MACs", "encoder", "measured")
    seen = set()
    for bundle in map(load_bundle, [*shipped_bundles().values(), *paths]):
        seen.add(bundle.card.wire["family"])
        work = encoder_columns(bundle) if bundle.has_encoder else ["0 M", "0 M", "Pillow's AV1"]
        out.add_row(
            bundle.name,
            bundle.card.wire["family"],
            bundle.model_id.hex(),
            ladder(bundle),
            *work,
            figures(bundle),
        )
    for name, family in FAMILIES.items():
        if name not in seen:
            parameters, macs = family_work(name)
            rates = ", ".join(rate for rate, _ in family.rates)
            out.add_row("none", name, "", rates, f"{parameters / 1e6:.2f} M", f"{macs / 1e6:.0f} M", "", "")
    if "embedding" not in seen:
        from export.families.embedding import LADDER

        out.add_row("none", "embedding", "", ", ".join(LADDER), "the tower's", "the tower's", "", "")
    return out
