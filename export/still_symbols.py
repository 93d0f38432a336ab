"""`thinwire-export still-symbols`: the model by which the frames of a still are packed, learned from photographs.

The model counts how the AV1 symbols of small photographs are spread (native/symbol_model.c). Two passes over frames
of every rung, in an order that the seed fixes: the same frames give the same model on every machine. Photographs that
are held out tell what it saves. See `thinwire.frame_packing`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, features
from tqdm import tqdm

from export.photographs.collection import Photographs
from export.photographs.options import OURS, PhotographOptions
from export.teachers import cache_root
from thinwire.bundle import DECODER, Bundle, check_place, load_bundle, write_bundle
from thinwire.errors import BundleError, CoderMissing
from thinwire.frame_packing import packable, packer_type
from thinwire.still import FAMILY, Rung, StillCoder

VERSION = 1  # raise it when the same settings give other frames
CHUNK = 64  # photographs that are coded and kept together
UNSEEN = 256  # photographs that the model does not learn from


@dataclass(frozen=True)
class SymbolSettings:
    """count: photographs to learn from, each as a frame of every rung; seed: which, and in which order."""

    bundle: str = "still"
    count: int = 6000
    seed: int = 0
    photographs: PhotographOptions = field(default=OURS)


@dataclass(frozen=True)
class Saving:
    """Mean payload bytes of one rate over photographs that the model did not learn from."""

    rate: str
    photographs: int
    unpacked_bytes: float
    packed_bytes: float

    @property
    def saved(self) -> float:
        """Share of the bytes, 0 to 1."""
        return 1 - self.packed_bytes / self.unpacked_bytes


class Frames:
    """Photographs as frames of every rung, coded once and kept in the export cache: AV1 takes most of the time.

    In chunks, so that an interrupted command goes on with the next one.
    """

    def __init__(self, bundle: Bundle, photographs: Photographs) -> None:
        self.bundle, self.rungs, self.photographs = bundle, bundle.coder.rungs, photographs
        said = [VERSION, bundle.input_size, [rung.card() for rung in self.rungs], photographs.identity]
        said += [PIL.__version__, features.version("avif")]  # another encoder writes other frames
        digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        self._folder = cache_root() / "still-frames" / digest[:16]
        self._folder.mkdir(parents=True, exist_ok=True)

    def of(self, ids: np.ndarray, title: str) -> list[list[bytes]]:
        """Ids (N,) → the frames of each photograph, one a rung."""
        found: list[list[bytes]] = []
        with tqdm(total=len(ids) * len(self.rungs), desc=title, unit="frame") as bar:
            for start in range(0, len(ids), CHUNK):
                part = ids[start : start + CHUNK]
                self.photographs.ahead(ids[start : start + 4 * CHUNK])
                found += self._chunk(part, bar)
        return found

    def _chunk(self, ids: np.ndarray, bar: tqdm) -> Iterator[list[bytes]]:
        path = self._folder / f"{hashlib.sha256(ids.tobytes()).hexdigest()[:24]}.npz"
        if not path.exists():
            frames = []
            for square in self.photographs.take(ids):
                view = Image.fromarray(self.bundle.view(square))
                frames += [rung.frame(view) for rung in self.rungs]
                bar.update(len(self.rungs))
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, sizes=list(map(len, frames)), data=np.frombuffer(b"".join(frames), np.uint8))
            partial.rename(path)
        else:
            bar.update(len(ids) * len(self.rungs))
        with np.load(path) as kept:
            ends, data = np.cumsum(kept["sizes"]).tolist(), kept["data"].tobytes()
        frames = [data[start:end] for start, end in zip([0, *ends], ends)]
        return (frames[i : i + len(self.rungs)] for i in range(0, len(frames), len(self.rungs)))


def drawn(photographs: Photographs, count: int, seed: int) -> np.ndarray:
    """Random ids (count,), sources by their shares. A larger count begins with the same ones: kept frames serve it."""
    parts = []
    for number in range(-(-count // CHUNK)):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        parts.append(photographs.draw(CHUNK, generator).sort().values.numpy())
    return np.concatenate(parts)[:count]


def learn_symbols(rungs: Sequence[Rung], frames: Sequence[Sequence[bytes]], seed: int = 0) -> tuple[bytes, int]:
    """Frames of each photograph, one a rung → (what `symbols.bin` is to hold, how many frames were learned from).

    Twice, rungs and photographs in an order that the seed fixes. The first time nearly every context has a counter of
    its own. `state` keeps the most observed ones, as many as a bundle holds. The second time, over half of the frames,
    the weights learn to do with those. Frames that the model does not know, such as those of drawings, are passed
    over. Raises `CoderMissing`.
    """
    places = [(photo, number) for photo in range(len(frames)) for number in range(len(rungs))]
    order = np.random.default_rng(seed).permutation(len(places))
    state, learned = b"", 0
    for title, part in (("symbols", order), ("weights of the symbols kept", order[: -(-len(order) // 2)])):
        packer = _packer(state)
        for place in tqdm(part, desc=title, unit="frame"):
            photo, number = places[place]
            form = rungs[number].form
            known = packable(form) and packer.learn(
                frames[photo][number], form.width, form.height, form.cdef, form.restoration, number
            )
            learned += known and state == b""
        state = packer.state()
    return state, int(learned)


def savings(bundle: Bundle, symbol_model: bytes, frames: Sequence[Sequence[bytes]]) -> list[Saving]:
    """What the model saves on frames that it did not learn from, for each rate of the bundle."""
    coder, found = StillCoder(bundle.coder.rungs, bundle.coder.shape, symbol_model), []
    for rate, level in bundle.rates.items():
        sizes = [[len(coder.payload(each[level - 1], level, packed)) for each in frames] for packed in (False, True)]
        plain, packed = (round(float(np.mean(each)), 1) for each in sizes)
        found.append(Saving(rate, len(frames), plain, packed))
    return found


def pack_still(settings: SymbolSettings, out: Path) -> list[Saving]:
    """Writes bundle `out`: the bundle of `settings` with a model of symbols learned from photographs.

    Its pictures are those of the old one; its packets, and so its model id, are not. Figures measured on the old one
    are left out of its card. Raises `BundleError` for a bundle of another family, `CoderMissing`, `PhotographsError`.
    """
    bundle = load_bundle(settings.bundle)
    if bundle.card.wire["family"] != FAMILY:
        raise BundleError(f"bundle {bundle.name!r} is of family {bundle.card.wire['family']}: stills alone are packed")
    check_place(out)
    _packer()  # before the minutes of coding
    pictures = settings.photographs.open(max(bundle.input_size))
    pictures.finish_index()  # which ones are learned from is drawn from all of them
    training, unseen = pictures.split(UNSEEN)
    ids = drawn(training, settings.count, settings.seed)
    frames = Frames(bundle, training).of(ids, "frames to learn from")
    held_out = Frames(bundle, unseen).of(unseen.sample(UNSEEN), "frames held out")
    pictures.report()
    model, learned = learn_symbols(bundle.coder.rungs, frames, settings.seed)
    found = savings(bundle, model, held_out)
    images = settings.photographs.images
    words = ["thinwire-export still-symbols --bundle", bundle.path.name, *(["--images", *images] if images else [])]
    symbols = {
        "data": pictures.described(),
        "command": f"{' '.join(words)} --count {settings.count} --seed {settings.seed} --out {out.name}",
        "photographs": len(ids),
        "frames": learned,
        "pillow": PIL.__version__,
        "libavif": features.version("avif"),
        "date": datetime.date.today().isoformat(),
        "held_out": {
            each.rate: {
                "photographs": each.photographs,
                "payload_bytes_unpacked": each.unpacked_bytes,
                "payload_bytes_packed": each.packed_bytes,
            }
            for each in found
        },
    }
    decoder = bundle.decoder_path if DECODER in bundle.card.cloud["files"] else None
    write_bundle(
        out,
        name=bundle.name,
        wire=bundle.card.wire,
        symbol_model=model,
        decoder=decoder,
        edge={key: value for key, value in bundle.card.edge.items() if key != "files"},
        cloud={key: value for key, value in bundle.card.cloud.items() if key != "files"},
        about={
            **bundle.card.about,
            "training": {**bundle.card.about.get("training", {}), "symbols": symbols},
            "metrics": {},
        },
    )
    return found


def table(found: Sequence[Saving]) -> str:
    """For people: a line a rate."""
    lines = [f"{'rate':12}{'held-out photographs':>22}{'bytes unpacked':>16}{'bytes packed':>14}{'saved':>9}"]
    lines += [
        f"{each.rate:12}{each.photographs:22}{each.unpacked_bytes:16.1f}{each.packed_bytes:14.1f}{each.saved:9.1%}"
        for each in found
    ]
    return "\n".join(lines)


def _packer(state: bytes = b""):
    kind = packer_type()
    if kind is None:
        raise CoderMissing(
            "symbols are learned by thinwire's compiled coder, which is missing here or switched off: run `make setup` "
            "in a clone, or install thinwire's wheel for this system, and leave THINWIRE_CODER unset"
        )
    return kind(state)
