"""What `--clip SPEC` means, for those who serve a CLIP and those who train for one. Never random weights.

Here because the workshop and the cloud must load the very same model, and those two never import each other.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.bundle import MODELS
from thinwire.checkpoint_help import explained, is_torchscript, torchscript_fix
from thinwire.errors import ClipUnavailable

if TYPE_CHECKING:
    from torch import nn

SHIPPED = "clip-lite"
FORMS = f"`{SHIPPED}`, `NAME:TAG` (like ViT-B-32:laion2b_s34b_b79k), `NAME:/path/to/checkpoint`, or an open_clip folder"
OFFLINE_FIX = (
    f"use the shipped `--clip {SHIPPED}`, or copy the checkpoint here and pass `--clip NAME:/path/to/checkpoint` "
    "or a folder with open_clip_config.json and open_clip_model.safetensors"
)


@dataclass(frozen=True, eq=False)
class ClipSource:
    """A CLIP's model on the CPU in float32, weights loaded, as `spec` named it.

    name: what it is called (a folder by its last name); tokenizer_of: what `open_clip.get_tokenizer` takes;
    preprocess: open_clip's PreprocessCfg as a dictionary.
    """

    name: str
    model: nn.Module
    tokenizer_of: str
    preprocess: dict[str, Any]


def shipped_clip_path() -> Path:
    """Where the CLIP that ships with thinwire lies: `thinwire/models/clip-lite`."""
    return MODELS / SHIPPED


def open_clip_source(spec: str = SHIPPED) -> ClipSource:
    """Loads the CLIP that `spec` names.

    - `clip-lite`: the shipped model, offline;
    - `NAME:TAG`, e.g. `ViT-B-32:laion2b_s34b_b79k`: open_clip's hub (downloaded once, then from its cache);
    - `NAME:/path/to/checkpoint`: an open_clip architecture with a local checkpoint file;
    - `/path/to/folder`: holds `open_clip_config.json` and the weights.

    Raises `ClipUnavailable`, whose message names the fix, when anything is missing, damaged or out of reach.
    """
    if not spec.strip():
        raise ClipUnavailable("an empty name is no CLIP (a variable that is not set?): leave --clip away for clip-lite")
    if spec == SHIPPED:
        folder = shipped_clip_path()
        if not (folder / "open_clip_config.json").is_file():
            raise ClipUnavailable(
                f"the shipped CLIP is missing at {folder}: reinstall thinwire, or run `thinwire-export clip-lite`"
            )
        return _source(SHIPPED, f"local-dir:{folder}", spec)
    if Path(spec).is_dir():
        folder = Path(spec).resolve()
        if (folder / "clip.json").is_file() and not (folder / "open_clip_config.json").is_file():
            raise ClipUnavailable(f"{folder} holds the ONNX form of a CLIP alone: serve it with --runtime onnx")
        if not (folder / "open_clip_config.json").is_file():
            raise ClipUnavailable(f"{folder} holds no open_clip_config.json, so its architecture is unknown: add one")
        return _source(folder.name, f"local-dir:{folder}", spec)
    if Path(spec).is_file():
        raise ClipUnavailable(
            f"{spec} is a checkpoint without an architecture: pass `--clip NAME:{spec}` with NAME one of "
            "open_clip.list_models(), or its folder with an open_clip_config.json beside it"
        )
    name, colon, tag = spec.partition(":")
    if not colon or not tag or "/" in name or name.startswith("."):
        raise ClipUnavailable(f"--clip {spec!r}: no such file or folder; expected {FORMS}")
    _check_hub_spec(name, tag)
    return _source(spec, name, spec, tag)


def _check_hub_spec(name: str, tag: str) -> None:
    import open_clip

    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), 3, 0.4)
        raise ClipUnavailable(f"open_clip knows no model {name!r}; did you mean {', '.join(near) or 'ViT-B-32'}?")
    if Path(tag).is_file():
        return
    if "/" in tag:
        raise ClipUnavailable(f"checkpoint file {tag} (for {name}) does not exist")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not open_clip.pretrained.is_pretrained_cfg(name, tag):
        raise ClipUnavailable(f"{name} has no weights tagged {tag!r}; its tags: {', '.join(tags) or 'none'}")


def _source(name: str, architecture: str, spec: str, pretrained: str | None = None) -> ClipSource:
    import open_clip

    try:
        # require_pretrained: without it open_clip only warns and goes on with random weights.
        model = open_clip.create_model(
            architecture, pretrained, device="cpu", precision="fp32", require_pretrained=True, pretrained_text=False
        )
    except Exception as error:  # open_clip, torch, safetensors, urllib and huggingface_hub each raise their own kinds
        for file in _weight_files(architecture, pretrained):
            if (why := explained(file)) or (is_torchscript(file) and (why := torchscript_fix(file))):
                raise ClipUnavailable(f"CLIP {spec!r} cannot be loaded from {file}: {why}") from error
        cause = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}").splitlines()[0]
        if "weights_only" in str(error):  # torch's advice there would run the file's code
            cause = "it holds more than tensors; save the model's state_dict() alone, best as .safetensors"
        if pretrained is None or Path(pretrained).is_file():
            raise ClipUnavailable(
                f"CLIP {spec!r} cannot be loaded, its files are missing or damaged: {cause}"
            ) from error
        raise ClipUnavailable(f"CLIP {spec!r} cannot be fetched from the hub ({cause}): {OFFLINE_FIX}") from error
    return ClipSource(name, model, architecture, open_clip.get_model_preprocess_cfg(model))


def _weight_files(architecture: str, pretrained: str | None) -> list[Path]:
    """The local files that may hold the weights."""
    if pretrained is not None:
        return [Path(pretrained)] if Path(pretrained).is_file() else []
    folder = Path(architecture.removeprefix("local-dir:"))
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin", "model.safetensors")
    return [folder / name for name in names if (folder / name).is_file()]


def image_size(preprocess: dict[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels that a CLIP's preprocessing ends with."""
    size = preprocess["size"]
    return (size, size) if isinstance(size, int) else (size[0], size[-1])
