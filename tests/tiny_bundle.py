"""A small, valid bundle for tests of edge and cloud, made in a second and without torch.

Its encoder is a fixed linear transform of 16x16 patches (means of luma and colour differences, a few luma differences),
so its symbols mean something; its tables are counted on synthetic pictures. Its optional decoder has RANDOM weights: it
runs, and shows nothing. Never ship one.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from thinwire.bundle import Bundle, write_bundle
from thinwire.tables import count_tables

PATCH = 16
LAYERS = ((0, 1), (1, 3), (3, 6))
RATES = (("low", 1), ("mid", 2), ("high", 3))
LOW, HIGH = -15, 15
CHANNELS = LAYERS[-1][1]
SYNTHESIS = {"arch": "pixels", "channels": CHANNELS, "layers": len(LAYERS), "widths": [8, 8, 8], "blocks": [1, 1, 1]}


def make_tiny_bundle(
    folder: str | os.PathLike[str],
    size: int = 64,
    with_decoder: bool = False,
    context: str = "checkerboard",
    name: str = "tiny",
) -> Bundle:
    """Writes the bundle to `folder`, for views of size x size pixels (a multiple of 16), and loads it."""
    symbols = analyse(synthetic_views(64, size))
    return write_bundle(
        folder,
        name=name,
        wire={
            "family": "tiny",
            "input": {"height": size, "width": size, "resize": "shortest-crop", "filter": "bicubic"},
            "latent": {"channels": CHANNELS, "height": size // PATCH, "width": size // PATCH},
            "layers": [{"channels": list(span)} for span in LAYERS],
            "rates": [{"name": rate, "layers": layers} for rate, layers in RATES],
            "context": context,
        },
        tables=count_tables(symbols, LAYERS, context, LOW, HIGH, max_tables=8),
        encoder=encoder_onnx(size),
        decoder=random_decoder() if with_decoder else None,
        edge={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        cloud={"output": "pixels", "synthesis": SYNTHESIS, "clip": None},
        about={"training": {"note": "test only: fixed analysis, random decoder"}, "metrics": {}},
    )


def filters() -> np.ndarray:
    """The transform: float32 (6, 3, 16, 16) over RGB patches scaled to -1..1; one step is one symbol."""
    luma = np.array([0.299, 0.587, 0.114])[:, None, None] * np.ones((PATCH, PATCH)) / PATCH**2
    blue = np.array([-0.25, -0.25, 0.5])[:, None, None] * np.ones((PATCH, PATCH)) / PATCH**2
    red = np.array([0.5, -0.25, -0.25])[:, None, None] * np.ones((PATCH, PATCH)) / PATCH**2
    side = np.where(np.arange(PATCH) < PATCH // 2, -1.0, 1.0)
    stack = [
        12 * luma,
        12 * blue,
        12 * red,
        12 * luma * side,
        12 * luma * side[:, None],
        12 * luma * side * side[:, None],
    ]
    return np.stack(stack).astype(np.float32)


def analyse(views: np.ndarray) -> np.ndarray:
    """What the encoder computes, in numpy: uint8 (N, H, W, 3) → int32 (N, 6, H/16, W/16) (up to ties in rounding)."""
    scaled = views.astype(np.float32) / 127.5 - 1
    count, height, width, _ = views.shape
    patches = scaled.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    latents = np.einsum("nipjqc,kcpq->nkij", patches, filters(), optimize=True)
    return np.clip(np.rint(latents), LOW, HIGH).astype(np.int32)


def synthetic_views(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured pictures with some edges: uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    angle, wave = rng.uniform(0, 2 * np.pi, (2, count, 1, 1, 3))
    ramp = np.cos(angle) * x[..., None] + np.sin(angle) * y[..., None]
    pictures = 127 + 90 * np.sin(3 * ramp + wave) + 30 * (ramp > rng.uniform(-1, 1, (count, 1, 1, 1)))
    return np.clip(pictures + rng.normal(0, 4, pictures.shape), 0, 255).astype(np.uint8)


def encoder_onnx(size: int) -> bytes:
    """The encoder as an ONNX file: "image" uint8 (B, size, size, 3) → "symbols" int32 (B, 6, size/16, size/16)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    cells = size // PATCH
    constants = {
        "half": np.array(127.5, np.float32),
        "one": np.array(1, np.float32),
        "filters": filters(),
        "low": np.array(LOW, np.float32),
        "high": np.array(HIGH, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "half"], ["divided"]),
        helper.make_node("Sub", ["divided", "one"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["planes", "filters"], ["latents"], strides=[PATCH, PATCH], kernel_shape=[PATCH, PATCH]
        ),
        helper.make_node("Round", ["latents"], ["whole"]),
        helper.make_node("Clip", ["whole", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["symbols"], to=TensorProto.INT32),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", size, size, 3])],
        [helper.make_tensor_value_info("symbols", TensorProto.INT32, ["B", CHANNELS, cells, cells])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


def random_decoder() -> bytes:
    """Random (but always the same) weights of the net that `SYNTHESIS` describes, as a safetensors file."""
    import torch
    from safetensors.torch import save

    import synthesis

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = synthesis.build(SYNTHESIS)
    return save({name: value.contiguous() for name, value in net.state_dict().items()})


def photo(folder: Path, name: str = "photo.jpg", size: tuple[int, int] = (96, 80), seed: int = 1) -> Path:
    """A synthetic picture of `size` (width, height) as an image file; the format follows the name."""
    from PIL import Image

    side = max(size)
    path = Path(folder) / name
    Image.fromarray(synthetic_views(1, side, seed)[0]).crop((0, 0, *size)).save(path)
    return path


def make_tiny_still(
    folder: str | os.PathLike[str], size: int = 64, name: str = "tiny-still", packed: bool = False
) -> Bundle:
    """Writes a bundle of the family `still` for views of size x size pixels, and loads it: two rungs, no network.

    packed: with a model of symbols, learned from a few synthetic pictures; needs the compiled coder.
    """
    from thinwire.bare_av1 import form_of
    from thinwire.still import Rung

    leads = ("", "1c478785dc9a69a6162a")
    rungs = [
        Rung(form_of(side, side, speed=8), quality, 8, "iq", bytes.fromhex(lead))
        for side, quality, lead in zip((size // 2, size), (20, 30), leads)
    ]
    return write_bundle(
        folder,
        name=name,
        wire={
            "family": "still",
            "input": {"height": size, "width": size, "resize": "shortest-crop", "filter": "bicubic"},
            "stills": [rung.card() for rung in rungs],
            "rates": [{"name": "low", "still": 1}, {"name": "high", "still": 2}],
        },
        symbol_model=learned_symbols(rungs, synthetic_views(8, size, seed=3)) if packed else None,
        cloud={
            "output": "pixels",
            "synthesis": {"arch": "still", "grain": [4.0, 0.0], "size": [size, size]},
            "clip": None,
        },
        about={"training": {"note": "test only"}, "metrics": {}},
    )


def learned_symbols(rungs: list, views: np.ndarray) -> bytes:
    """A model of the symbols of `views`, uint8 (N, H, W, 3), as frames of each of `rungs`."""
    from PIL import Image

    from thinwire.entropy import compiled_module

    packer = compiled_module().StillPacker(b"")
    for view in map(Image.fromarray, views):
        for number, rung in enumerate(rungs):
            form = rung.form
            assert packer.learn(rung.frame(view), form.width, form.height, form.cdef, form.restoration, number)
    return packer.state()
