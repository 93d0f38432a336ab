"""open_clip's CLIP → the folder that `synthesis.clip_artefact` describes, compared with torch before it is there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from export.clip_onnx.int8 import write_int8_tower
from export.clip_onnx.tokenizer import write_tokenizer
from export.clip_onnx.towers import image_tower, reads_any_length, text_tower, write_image_tower, write_text_tower
from export.photographs.options import PhotographOptions
from synthesis.clip_artefact import CARD, FORMAT, IMAGE_TOWERS, TEXT_TOWER, WEIGHTS, entry_of, packed, read_artefact
from synthesis.clip_source import ClipSource, image_size, open_clip_source, shipped_clip_path
from synthesis.fingerprint import clip_fingerprint
from synthesis.onnx_file import OPSET
from synthesis.probes import PROBE_TEXTS, probe_images
from synthesis.weights_file import read_weights
from thinwire.errors import ClipUnavailable, ThinwireError
from thinwire.files import write_whole

PROBES = 2
LEAST_COSINE = {"fp32": 0.99999, "text": 0.99999, "fp16": 0.999, "int8": 0.98}
OPEN_CLIP_FILE = "open_clip_model.safetensors"


class ArtefactError(ThinwireError):
    """The CLIP cannot be written so that it gives its vectors without PyTorch; the message says why."""

    reason = "BAD_ARTEFACT"


def write_artefact(spec: str, out: Path, *, int8: PhotographOptions | None = None, say=print) -> Path:
    """Writes the artefact of the CLIP that `spec` names into the folder `out`, which may hold open_clip's own files of
    it: then both forms share their weights.

    int8: photographs to set the ranges of an int8 image tower on; None: no such tower. Raises `ClipUnavailable` for a
    CLIP that cannot be loaded, `TokenizerError`, or `ArtefactError` where a form does not give torch's vectors.
    """
    source = open_clip_source(spec)
    model = source.model.eval().requires_grad_(False)
    tokenizer = _tokenizer(source)
    _check_target(out, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        folder = Path(work)
        card, names = _write_parts(source, model, tokenizer, folder, out, int8, say)
        text = json.dumps(card, indent=1, ensure_ascii=False, default=list) + "\n"
        out.mkdir(exist_ok=True)
        for stale in (*IMAGE_TOWERS.values(), TEXT_TOWER, WEIGHTS):
            if stale not in names:
                (out / stale).unlink(missing_ok=True)
        (out / CARD).unlink(missing_ok=True)  # no card while its files change
        for name in names:
            shutil.move(folder / name, out / name)
        write_whole(out / CARD, text)
    read_artefact(out).weights()
    return out


def _write_parts(
    source: ClipSource,
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    out: Path,
    int8: PhotographOptions | None,
    say: Any,
) -> tuple[dict[str, Any], list[str]]:
    height, width = image_size(source.preprocess)
    tokenizer_card, tokenizer_file = write_tokenizer(tokenizer, folder)
    shared = _shares_weights(out, model)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    if not shared:
        _write_weights(weights, folder / WEIGHTS)
    say("exporting the text tower ...")
    write_text_tower(model, tokenizer_card["context_length"], folder / TEXT_TOWER)
    towers = {"fp32": torch.float32, "fp16": torch.float16}
    for name, dtype in towers.items():
        say(f"exporting the image tower in {name} ...")
        write_image_tower(model, source.preprocess, folder / IMAGE_TOWERS[name], dtype)
    images = probe_images(PROBES, height, width)
    with torch.inference_mode():
        tokens = tokenizer(list(PROBE_TEXTS))
        texts = text_tower(model)(tokens).numpy()
        vectors = image_tower(model, source.preprocess)(torch.from_numpy(images)).numpy()
    parity = {"pictures": PROBES, "texts": len(PROBE_TEXTS)}
    got = _run(folder / TEXT_TOWER, weights, tokens=_padded_away(tokens.numpy(), model))
    parity["text"] = _compared("text", texts, got)
    for name in towers:
        parity[name] = _compared(name, vectors, _run(folder / IMAGE_TOWERS[name], weights, images=images))
    if int8 is not None:
        say("setting the ranges of the int8 image tower ...")
        parity["int8"] = write_int8_tower(
            folder / IMAGE_TOWERS["fp32"], folder / IMAGE_TOWERS["int8"], weights, int8, (height, width)
        )
        if parity["int8"]["cosine_min"] < LEAST_COSINE["int8"]:
            raise ArtefactError(f"the int8 tower gives other vectors than fp32's ({parity['int8']}): leave --int8 out")
        towers = {**towers, "int8": None}
    names = [TEXT_TOWER, *(IMAGE_TOWERS[name] for name in towers), tokenizer_file]
    card = {
        "format": FORMAT,
        "clip": f"{source.name}#{clip_fingerprint(model, source.preprocess)}",
        "opset": OPSET,
        "embed_dim": vectors.shape[1],
        "logit_scale": float(model.logit_scale.exp()),
        "preprocess": source.preprocess,
        "any_length": reads_any_length(model),
        "tokenizer": tokenizer_card,
        "image_towers": {name: IMAGE_TOWERS[name] for name in towers},
        "text_tower": TEXT_TOWER,
        "weights": OPEN_CLIP_FILE if shared else WEIGHTS,
        "files": {name: entry_of((folder / name).read_bytes()) for name in names},
        "probes": {
            "tokens": packed(tokens.numpy(), "<i4"),
            "texts": packed(texts, "<f4"),
            "images": packed(vectors, "<f4"),
        },
        "parity": parity,
    }
    return card, [*names, *([] if shared else [WEIGHTS])]


def _tokenizer(source: ClipSource) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(source.tokenizer_of)
    except Exception as error:  # tokenizers of some models are fetched from the hub as well
        raise ClipUnavailable(f"the tokenizer of CLIP {source.name!r} cannot be loaded ({error})") from error


def _check_target(out: Path, source: ClipSource) -> None:
    if not out.exists():
        return
    ours = (out / CARD).is_file() or (out / "open_clip_config.json").is_file()
    if not out.is_dir() or (any(out.iterdir()) and not ours):
        raise ArtefactError(f"{out}: exists, and is neither an artefact nor an open_clip folder; name another folder")
    if (out / "open_clip_config.json").is_file() and source.tokenizer_of != f"local-dir:{out.resolve()}":
        raise ArtefactError(f"{out}: is the open_clip folder of another CLIP than {source.name}; name another folder")


def _shares_weights(out: Path, model: nn.Module) -> bool:
    """Whether `out` has open_clip's own file with all weights, unrounded."""
    if out.resolve() == shipped_clip_path().resolve() or (out / "open_clip_config.json").is_file():
        try:
            held = read_weights(out / OPEN_CLIP_FILE)
        except ValueError:
            return False
        wanted = model.state_dict()
        return held.keys() == wanted.keys() and all(np.array_equal(held[name], wanted[name].numpy()) for name in held)
    return False


def _write_weights(weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Every weight; as float16 those that it holds unrounded, as checkpoints in half precision have them."""
    from safetensors.numpy import save_file

    def stored(value: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            half = value.astype(np.float16) if value.dtype == np.float32 else value
        return half if np.array_equal(half, value) else value

    save_file({name: np.asarray(stored(value), order="C") for name, value in weights.items()}, path)


def _run(path: Path, weights: Mapping[str, np.ndarray], **inputs: np.ndarray) -> np.ndarray:
    return bound_session(path, weights).run(None, inputs)[0]


def bound_session(path: Path, weights: Mapping[str, np.ndarray]) -> ort.InferenceSession:
    """A session of a graph without weights."""
    import onnx

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    external = [each for each in onnx.load(path, load_external_data=False).graph.initializer if each.external_data]
    arrays = [np.asarray(weights[each.name], onnx.helper.tensor_dtype_to_np_dtype(each.data_type)) for each in external]
    if any(array.dtype == np.float16 for array in arrays):  # ONNX Runtime 1.25 crashes on some in its last level
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    settings.add_external_initializers([each.name for each in external], values)
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    session.thinwire_weights = arrays, values  # read in place: they must live as long
    return session


def _padded_away(tokens: np.ndarray, model: nn.Module) -> np.ndarray:
    return tokens[:, : int(tokens.argmax(1).max()) + 1] if reads_any_length(model) else tokens


def _compared(name: str, wanted: np.ndarray, got: np.ndarray) -> dict[str, float]:
    cosines = np.einsum("nd,nd->n", wanted.astype(np.float64), got.astype(np.float64))
    worst = float(cosines.min()) if np.isfinite(cosines).all() else -1.0
    if worst < LEAST_COSINE[name]:
        raise ArtefactError(
            f"the {name} tower gives other vectors in ONNX Runtime than in torch (worst cosine {worst:.6f}): serve "
            "this CLIP with --runtime torch"
        )
    return {"cosine_min": round(worst, 7)}
