"""BLIP image-text matching on decoded pictures: does a cross-encoder break at the same rate as CLIP?

BLIP (Li, Li, Xiong, Hoi 2022) through transformers' BlipForImageTextRetrieval, where weights are given (--blip FOLDER,
or a hub name such as Salesforce/blip-itm-base-coco). Zero-shot as BLIP ranks retrieval candidates: the `CANDIDATES`
labels nearest by its contrastive features (ITC), then the label whose image-text matching head (ITM) is surest. One
template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.data.sets import Dataset
from benchmarks.data.views import Views
from benchmarks.results.progress import progress_bar
from benchmarks.results.store import data_key, numbers
from benchmarks.study.coders import coder_key, measured_or_found, study_coders
from benchmarks.study.tricks import PEER_POINTS
from thinwire.errors import ThinwireError
from thinwire.labels import fill_templates
from thinwire.prompts import SINGLE

if TYPE_CHECKING:
    from benchmarks.study.coders import Coder
    from benchmarks.study.study import Study

NAME = "blip"
CANDIDATES = 8
IMAGES = {"quick": 40, "full": 500}


class BlipUnavailable(ThinwireError):
    """There is no such BLIP, or transformers is not installed; the message names the fix."""

    reason: ClassVar[str] = "BLIP_UNAVAILABLE"


class Blip:
    """Image-text matching of uint8 pictures against labels. `id` holds a hash of the weights."""

    def __init__(self, source: str) -> None:
        """`source`: a folder with weights and processor, or a hub name. Raises `BlipUnavailable`."""
        try:
            from transformers import BlipForImageTextRetrieval, BlipProcessor

            model, told = BlipForImageTextRetrieval.from_pretrained(source, output_loading_info=True)
            self._processor = BlipProcessor.from_pretrained(source)
        except ImportError as error:
            raise BlipUnavailable(f"--blip needs transformers ({error}): pip install 'thinwire[blip]'") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise BlipUnavailable(
                f"--blip {source}: cannot be loaded ({error}): give a folder that "
                "BlipForImageTextRetrieval.save_pretrained and BlipProcessor.save_pretrained wrote"
            ) from error
        if told["missing_keys"]:  # transformers would go on with random weights
            raise BlipUnavailable(f"--blip {source}: lacks weights, such as {min(told['missing_keys'])}")
        from synthesis.fingerprint import clip_fingerprint

        self._model = model.eval().requires_grad_(False)
        fingerprint = clip_fingerprint(model, self._processor.image_processor.to_dict())
        self.id = f"{source.rstrip('/').rpartition('/')[2]}#{fingerprint}"

    def match(self, pictures: Sequence[np.ndarray], labels: Sequence[str]) -> tuple[list[int], list[dict[int, float]]]:
        """uint8 (H, W, 3) pictures → (best label of each, matching probability of each candidate label)."""
        import torch
        from torch.nn import functional as F

        model = self._model
        texts = [fill_templates(label, SINGLE)[0] for label in labels]
        tokens = self._processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            pixels = self._processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
            patches = model.vision_model(pixel_values=pixels).last_hidden_state  # (B, P, C)
            images = F.normalize(model.vision_proj(patches[:, 0]), dim=-1)
            words = model.text_encoder(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], return_dict=True
            ).last_hidden_state
            nearest = images @ F.normalize(model.text_proj(words[:, 0]), dim=-1).T  # (B, L)
            best, sure = [], []
            for place, row in enumerate(nearest):
                candidates = row.topk(min(CANDIDATES, len(labels))).indices
                seen = patches[place : place + 1].expand(len(candidates), -1, -1)
                joined = model.text_encoder(
                    input_ids=tokens["input_ids"][candidates],
                    attention_mask=tokens["attention_mask"][candidates],
                    encoder_hidden_states=seen,
                    encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
                    return_dict=True,
                ).last_hidden_state
                chances = model.itm_head(joined[:, 0]).softmax(-1)[:, 1].tolist()
                told = dict(zip(candidates.tolist(), chances))
                sure.append(told)
                best.append(max(told, key=told.__getitem__))
        return best, sure


def run_blip(study: Study) -> tuple[int, int]:
    """Experiment `blip`: (points there are, points measured); nothing unless weights are given."""
    if study.blip is None:
        return 0, 0
    blip = Blip(study.blip)
    points = measured = 0
    for data in study.datasets(study.limit or IMAGES.get(study.preset.name)):
        told = _run_set(study, data, blip)
        points, measured = points + told[0], measured + told[1]
    return points, measured


def _run_set(study: Study, data: Dataset, blip: Blip) -> tuple[int, int]:
    judge = study.judge(study.clips[0])
    coders = [coder for coder in study_coders(study, study.clips[0], PEER_POINTS) if coder.gives_pixels]
    keys = [
        {
            **data_key(data),
            "seed": study.seed,
            "blip": blip.id,
            "candidates": CANDIDATES,
            "view": list(judge.view_size),
            "testbed": study.context["testbed"],
            **coder_key(coder.point),
        }
        for coder in coders
    ]
    sizes: dict[tuple[int, int], Views] = {}

    def measure(place: int) -> dict[str, Any]:
        return {
            "data": {"name": data.name, "sha256": data.sha256, "labels": list(data.labels)},
            "blip": blip.id,
            "n": len(data.items),
            "targets": [item.target for item in data.items],
            **_measure(coders[place], blip, data, sizes, progress.images),
        }

    with progress_bar(f"blip, {data.name}") as progress:
        return measured_or_found(study.store(NAME), keys, len(data.items), measure, progress)


def _measure(coder: Coder, blip: Blip, data: Dataset, sizes: dict, tick) -> dict[str, Any]:
    count, batch = len(data.items), coder.judge.batch
    answers: list[int | None] = [None] * count
    margins: list[float | None] = [None] * count
    sent: list[int | None] = [None] * count
    views = sizes.setdefault(coder.judge.view_size, Views(data, *coder.judge.view_size))
    for start in range(0, count, batch):
        indices = []
        for index in range(start, min(start + batch, count)):
            try:
                views[index]
                indices.append(index)
            except ThinwireError:
                continue
        if indices:
            of = [lambda size, index=index: sizes.setdefault(size, Views(data, *size))[index] for index in indices]
            bytes_sent, _, pictures = coder.through(of)
            best, sure = blip.match(pictures, data.labels)
            for index, size, label, chances in zip(indices, bytes_sent, best, sure):
                target = data.items[index].target
                others = [chance for each, chance in chances.items() if each != target]
                answers[index], sent[index] = label, size
                margins[index] = chances.get(target, 0.0) - max(others, default=0.0)
        tick(min(batch, count - start))
    return {"bytes": sent, "answers": answers, "margin": numbers(margins, 6), "failed": answers.count(None)}
