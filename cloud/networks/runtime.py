"""What serves the networks: PyTorch (`cloud.networks.torch_runtime`), or ONNX Runtime (`cloud.networks.onnx`)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cloud.engine.prepared import Prepared, Runner
from cloud.errors import ClipMismatch, InferenceFailed
from synthesis.clip_artefact import SHIPPED
from thinwire.bundle import MODELS

if TYPE_CHECKING:
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle


class ServedClip(Protocol):
    """What the service asks of a loaded CLIP, whatever runs it. `cloud.networks.clip.Clip` says what its parts mean."""

    name: str
    id: str
    device: str
    device_name: str
    image_height: int
    image_width: int
    embed_dim: int
    logit_scale: float


class Net(Protocol):
    """A bundle's decoder on the device. gives_vectors: it decodes to CLIP's vectors, not to pixels."""

    gives_vectors: bool
    nbytes: int


class Runtime(Protocol):
    """Loads the networks of a server, and runs them. Methods return what they load with its size in bytes."""

    name: str  # as `--runtime` has it
    runner: Runner

    def load_clip(self, spec: str) -> tuple[ServedClip, int]:
        """Raises `ClipUnavailable` or `DeviceUnavailable`."""
        ...

    def load_adapted(self, spec: str, clip: ServedClip, adapter: Adapter) -> tuple[ServedClip, int]:
        """`clip`, loaded from `spec`, with the adapter in its image tower. Weights come from its files again: those in
        use may be of other kinds (half precision, folded). Raises `AdapterError` too."""
        ...

    def load_net(self, bundle: Bundle, clip: ServedClip, variant: DecoderVariant | None, spec: str) -> tuple[Net, int]:
        """The bundle's decoder, or `variant` in its place, after a canary run. spec: how `clip` was loaded.

        Raises `ClipMismatch`, `BundleError`, `DecoderError` or `InferenceFailed`.
        """
        ...

    def id_of(self, spec: str) -> str | None:
        """`NAME#fingerprint` of a CLIP that is not loaded; None where only loading tells."""
        ...

    def prepare_thread(self) -> None:
        """Called first on each thread that runs networks."""
        ...


def is_clip(clip: ServedClip, wanted: str) -> bool:
    """Whether `wanted`, of a card, means this CLIP: by its `#fingerprint` where it has one, else by name.

    Names are what people call folders: the same weights may lie elsewhere, other weights under the same name. A folder
    of an ONNX form has one name, and the CLIP in it another, which its id begins with: either is right.
    """
    _, hash_sign, fingerprint = wanted.rpartition("#")
    own_name, _, own_fingerprint = clip.id.rpartition("#")
    return fingerprint == own_fingerprint if hash_sign else wanted in (clip.name, own_name)


def check_clip(bundle: Bundle, clip: ServedClip) -> None:
    """Raises `ClipMismatch` when `bundle` decodes into the embedding space of another CLIP.

    A bundle that decodes to pixels works with any CLIP: the one named on its card is the one it was trained with.
    """
    wanted = bundle.card.cloud.get("clip")
    if bundle.card.cloud["output"] == "embedding" and wanted and not is_clip(clip, wanted):
        hash_sign = "#" in wanted
        name = wanted.rpartition("#")[0] or wanted
        fix = f"serve it with --clip {name}"
        if hash_sign and name == clip.name:
            fix = f"the name is the same, the weights are not: make the bundle again from this {name}"
        raise ClipMismatch(
            f"bundle {bundle.name!r} decodes into the embedding space of CLIP {wanted!r}, this server runs "
            f"{clip.id if hash_sign else clip.name!r}: {fix}"
        )


def run_canary(runner: Runner, bundle: Bundle, clip: ServedClip, net: Net) -> None:
    """One blank packet through `net` and `clip`, so that a broken bundle fails when it is loaded, and by name.

    Raises `InferenceFailed` where it dies, `ClipMismatch` where it gives no vectors of this CLIP.
    """
    item = Prepared(np.zeros(bundle.latent_shape, np.int32), bundle.name, max(bundle.rates.values()))
    try:
        got = runner.run([replace(item, model_id=bundle.model_id, net=net, clip=clip)]).embeddings
    except Exception as error:
        raise InferenceFailed(f"bundle {bundle.name!r} failed its canary run: {error}") from error
    if got.shape != (1, clip.embed_dim) or not np.isfinite(got).all():
        raise ClipMismatch(
            f"bundle {bundle.name!r} gives vectors of {got.shape[1]} values (finite: {np.isfinite(got).all()}), "
            f"CLIP {clip.name!r} has {clip.embed_dim}: serve it with the CLIP it was trained for"
        )


def clip_signature(spec: str) -> Hashable:
    """A value that changes when the files behind `spec` change. Hub models (by tag) are taken as fixed."""
    path = MODELS / SHIPPED if spec == SHIPPED else Path(spec if Path(spec).is_dir() else spec.partition(":")[2])
    if path.is_dir():
        return tuple(sorted(_file_state(file) for file in path.iterdir() if file.is_file()))
    return _file_state(path) if path.is_file() else ()


def _file_state(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path), state.st_mtime_ns, state.st_size
