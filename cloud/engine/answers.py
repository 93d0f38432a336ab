"""The last stage: embeddings of a batch → each item's answer. One matrix product for all items that share a head."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from cloud.engine.fusion import pooled
from cloud.engine.items import Answer, Item, Opinion, Timing, top_margin, top_predictions
from cloud.engine.prepared import Embedded
from cloud.engine.text_heads import Head
from cloud.errors import InferenceFailed


def answers_of(batch: Sequence[Item], result: Embedded) -> Iterator[tuple[Item, Answer | Exception]]:
    """Every item of `batch` once, with its answer, or the error of this item alone."""
    finite = np.isfinite(result.embeddings).all(axis=1)
    groups: dict[int, list[int]] = {}
    for row, item in enumerate(batch):
        if not finite[row]:
            yield item, InferenceFailed("this input gives vectors that are not finite")
        else:
            groups.setdefault(id(item.head), []).append(row)
    for rows in groups.values():
        yield from _one_head([batch[row] for row in rows], result.embeddings[rows], result, len(batch))


def _one_head(
    items: list[Item], embeddings: np.ndarray, result: Embedded, batch_size: int
) -> Iterator[tuple[Item, Answer | Exception]]:
    start = time.monotonic()
    head = items[0].head
    tops, margins, opinions = [()] * len(items), [None] * len(items), [()] * len(items)
    if head:
        try:
            opinions = [_opinions(head, item, vector) for item, vector in zip(items, embeddings, strict=True)]
            embeddings, sharpness = _fused(items, embeddings)
            tops = top_predictions(head, embeddings, [item.top_k for item in items], sharpness)
            margins = [
                None if item.temperature is None else top_margin(head, embedding, item.temperature)
                for item, embedding in zip(items, embeddings, strict=True)
            ]
        except Exception as error:
            for item in items:
                yield item, error
            return
    now = time.monotonic()
    for item, embedding, predictions, margin, said in zip(items, embeddings, tops, margins, opinions, strict=True):
        timing = Timing(
            queue_ms=item.queue_s * 1000,
            decode_ms=item.decode_s * 1000,
            synthesis_ms=result.synthesis_ms,
            clip_ms=result.clip_ms,
            head_ms=(item.head_s + now - start) * 1000,
            total_ms=(now - item.accepted) * 1000,
            batch_size=batch_size,
        )
        yield (
            item,
            Answer(
                embedding,
                predictions,
                timing,
                item.prepared.bundle,
                item.prepared.n_layers,
                margin,
                head.notes if head else (),
                said,
            ),
        )


def _fused(items: Sequence[Item], embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Unit vectors (B, D) → those of the common opinions, where items bring an earlier one, and their lengths (B,)."""
    if not any(item.earlier for item in items):
        return embeddings, None
    embeddings, sharpness = embeddings.copy(), np.ones(len(items))
    for row, item in enumerate(items):
        if item.earlier is not None:
            vector = pooled(item.earlier, embeddings[row])
            sharpness[row] = max(float(np.linalg.norm(vector)), float(np.finfo(np.float32).tiny))
            embeddings[row] = vector / sharpness[row]
    return embeddings, sharpness


def _opinions(head: Head, item: Item, vector: np.ndarray) -> tuple[Opinion, ...]:
    """What the earlier packet and this one (its unit vector (D,)) say by themselves; () for an item without one."""
    if (earlier := item.earlier) is None:
        return ()
    pair, said = earlier.pair, []
    for bundle, layers, weight, each, temperature in (
        (earlier.bundle, earlier.layers, pair.shares[0], earlier.vector, pair.table.temperature),
        (item.prepared.bundle or "", item.prepared.n_layers, pair.shares[1], vector, pair.temperature),
    ):
        ((best,),) = top_predictions(head, each[None], [1], np.array([1 / temperature]))
        said.append(Opinion(bundle, layers, weight, best.label, best.probability))
    return tuple(said)
