"""Decoders in ONNX Runtime: symbols → pictures or vectors, for bundles and for what was tuned for one CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cloud.engine.text_heads import default_cache_dir
from cloud.errors import InferenceFailed
from cloud.networks.onnx.session import Graph, Place, open_graph
from synthesis.grain import grain_pattern
from synthesis.graph_files import find_graph, graph_name
from synthesis.weights_file import read_weights
from thinwire.errors import BadCard, BundleError, DecoderError, ThinwireError

if TYPE_CHECKING:
    import onnxruntime as ort

    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle

KIND = "decoder"
FIX = "use --device cpu"


class Decoder(Protocol):
    """(symbols (B, C, h, w), n_layers int64 (B,)) → RGB (B, 3, H, W) in [0, 1], or unit vectors (B, D), float32."""

    gives_vectors: bool
    nbytes: int

    def __call__(self, symbols: np.ndarray, n_layers: np.ndarray) -> np.ndarray: ...
    def there(self, symbols: np.ndarray, n_layers: np.ndarray) -> ort.OrtValue:
        """As calling it; the result stays in the device's memory."""
        ...


class GraphDecoder:
    """A decoder's graph with its weights."""

    def __init__(self, graph: Graph, place: Place, gives_vectors: bool) -> None:
        self._graph, self._place, self.gives_vectors = graph, place, gives_vectors
        self.nbytes = graph.nbytes

    def __call__(self, symbols: np.ndarray, n_layers: np.ndarray) -> np.ndarray:
        return self._graph.run(symbols=symbols.astype(np.float32), n_layers=n_layers)

    def there(self, symbols: np.ndarray, n_layers: np.ndarray) -> ort.OrtValue:
        return self._graph.run_there(self._place, symbols=symbols.astype(np.float32), n_layers=n_layers)


class StillDecoder:
    """A still without weights: the picture as it was decoded, with the grain of its rung."""

    gives_vectors, nbytes = False, 0

    def __init__(self, grain: Sequence[float], size: Sequence[int], place: Place) -> None:
        self._grain = np.array(grain, np.float32) / 255
        self._pattern = grain_pattern(*size)
        self._place = place

    def __call__(self, symbols: np.ndarray, n_layers: np.ndarray) -> np.ndarray:
        pixels = symbols.astype(np.float32) / np.float32(255)
        grain = self._grain[n_layers - 1]
        if grain.any():
            pixels = (pixels + grain[:, None, None, None] * self._pattern).clip(0, 1)
        return pixels

    def there(self, symbols: np.ndarray, n_layers: np.ndarray) -> ort.OrtValue:
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(self(symbols, n_layers), *self._place.memory)


def load_decoder(bundle: Bundle, place: Place) -> Decoder:
    """The bundle's decoder. Raises `BundleError` for weights or a card that do not fit, or where its graph is missing:
    the message says how to make it."""
    spec = bundle.card.cloud["synthesis"]
    try:
        if spec.get("arch") == "still":
            return StillDecoder(spec["grain"], spec["size"], place)
        path = _graph(spec, bundle, bundle.path, f"bundle {bundle.name!r}", BundleError)
        weights = read_weights(bundle.decoder_path)
        graph = open_graph(path, place, weights, FIX, ["symbols", "n_layers"])
    except (KeyError, TypeError, ValueError, InferenceFailed) as error:
        raise BadCard(f"bundle {bundle.name!r}: its decoder cannot be used: {error}") from error
    return GraphDecoder(graph, place, bundle.card.cloud["output"] == "embedding")


def load_variant_decoder(
    variant: DecoderVariant,
    bundle: Bundle,
    place: Place,
    clip_weights: Callable[[], Mapping[str, np.ndarray]],
) -> Decoder:
    """A decoder that was tuned for one CLIP. clip_weights: that CLIP's, which a neck runs the rest of the tower with.

    Raises `DecoderError`.
    """
    try:
        path = _variant_graph(variant, bundle)
        weights = read_weights(variant.path / "decoder.safetensors")
        if variant.into == "tower":
            weights = {f"neck.{name}": value for name, value in weights.items()}
            weights |= {f"rest.{name}": value for name, value in clip_weights().items() if name.startswith("visual.")}
        graph = open_graph(path, place, weights, FIX, ["symbols", "n_layers"])
    except (ValueError, InferenceFailed) as error:
        raise DecoderError(f"decoder {variant.path} cannot be used: {error}") from error
    return GraphDecoder(graph, place, variant.gives_vectors)


def why_not(bundle: Bundle) -> str | None:
    """Why the bundle's decoder cannot run here; None where it can."""
    spec = bundle.card.cloud["synthesis"]
    if spec.get("arch") == "still":
        return None
    return _missing(spec, bundle, bundle.path, f"bundle {bundle.name!r}")


def why_not_variant(variant: DecoderVariant, bundle: Bundle) -> str | None:
    """As `why_not`, of a tuned decoder."""
    return _missing(variant.graph_spec, bundle, variant.path, f"decoder {variant.path}")


def _variant_graph(variant: DecoderVariant, bundle: Bundle) -> Path:
    return _graph(variant.graph_spec, bundle, variant.path, f"decoder {variant.path}", DecoderError)


def _graph(spec: Mapping[str, Any], bundle: Bundle, folder: Path, what: str, error: type[ThinwireError]) -> Path:
    found = _found(spec, bundle, folder)
    if found is None:
        raise error(_missing(spec, bundle, folder, what))
    return found


def _missing(spec: Mapping[str, Any], bundle: Bundle, folder: Path, what: str) -> str | None:
    if _found(spec, bundle, folder) is not None:
        return None
    more = "" if folder == bundle.path else f" --bundle {bundle.path}"
    return (
        f"{what} has no ONNX graph: write it into its folder with `thinwire-export graph {folder}{more}`, where "
        "PyTorch is installed, or use --runtime torch"
    )


def _found(spec: Mapping[str, Any], bundle: Bundle, folder: Path) -> Path | None:
    name = graph_name(KIND, spec, bundle.latent_shape)
    return find_graph(name, [folder, bundle.path, default_cache_dir().parent / "graphs"])
