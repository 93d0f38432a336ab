"""Questions in, frames out: the vector of a text or an image from the engine, its neighbours from the archive."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from cloud.errors import ClipUnavailable, InvalidRequest, UnknownFrame
from cloud.search.frames import MAX_FOUND, Filter, Found, SearchQuery
from thinwire.labels import MAX_LABEL_CHARS

if TYPE_CHECKING:
    from cloud.engine.engine import Engine
    from cloud.search.archive import Archive

REMEMBERED = 256  # text vectors
# A query is averaged over itself and the sentence that CLIPs know from their training (Radford et al. 2021, 3.1.4)
PROMPT = "a photo of a {}."


class Searcher:
    """One for a server; its methods run on the event loop."""

    def __init__(self, engine: Engine, archive: Archive) -> None:
        self._engine, self.archive = engine, archive
        self._texts: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    async def search(self, question: SearchQuery) -> list[Found]:
        """Nearest first. Raises `InvalidRequest`, `UnknownFrame`, and whatever the engine raises for its input."""
        given = [each is not None for each in (question.text, question.packet, question.image_file, question.like_id)]
        if sum(given) != 1:
            raise InvalidRequest("give exactly one query: a text, an image, or a kept frame")
        if not 1 <= question.top_k <= MAX_FOUND:
            raise InvalidRequest(f"top_k is 1 to {MAX_FOUND}, not {question.top_k}")
        await asyncio.to_thread(self.archive.flush)  # what was answered before this question is found by it
        count, clip_id = question.top_k, None
        if question.like_id is not None:
            like = await asyncio.to_thread(self.archive.frame, question.like_id)
            if like is None:
                raise UnknownFrame(f"frame {question.like_id} is not in the store, or no longer")
            vector, clip_id, count = like.vector, like.clip_id, count + 1
        elif question.text is not None:
            vector = await self._text_vector(question)
        else:
            future = self._engine.submit(
                packet=question.packet,
                image_file=question.image_file,
                clip=question.clip,
                deadline=question.deadline,
            )
            vector = (await asyncio.wrap_future(future)).embedding
        clip_id = clip_id or self._clip_id(question.clip)
        found = await asyncio.to_thread(self.archive.nearest, clip_id, vector, question.filter, count)
        return [each for each in found if each.id != question.like_id][: question.top_k]

    async def delete(self, wanted: Filter, *, everything: bool = False) -> int:
        """As `Archive.delete`."""
        return await asyncio.to_thread(lambda: self.archive.delete(wanted, everything=everything))

    def packet(self, frame_id: int) -> bytes | None:
        frame = self.archive.frame(frame_id)
        return frame.packet if frame else None

    def summary(self) -> dict[str, object]:
        """JSON-ready, for the page."""
        store = self.archive.store
        return {"frames": store.frames, "bytes": store.bytes, "devices": self.archive.devices()}

    def _clip_id(self, wanted: str) -> str:
        models = self._engine.models
        name = models.name_of(wanted)
        loaded = models.clip_of(name)
        if loaded is None:
            raise ClipUnavailable(f"CLIP {name!r} is not loaded: search again after it has answered a request")
        return loaded.heads.clip.id

    async def _text_vector(self, question: SearchQuery) -> np.ndarray:
        text = question.text.strip()
        if not text:
            raise InvalidRequest("the text to search for is empty")
        if len(text) > MAX_LABEL_CHARS:
            raise InvalidRequest(f"the text has {len(text)} characters, the limit is {MAX_LABEL_CHARS}")
        clip = self._engine.models.name_of(question.clip)
        loaded = self._engine.models.clip_of(clip)
        key = (loaded.heads.clip.id if loaded else "", text)
        if loaded is None or key not in self._texts:
            texts = [text, PROMPT.format(text)]
            future = self._engine.submit_texts(texts, clip=question.clip, deadline=question.deadline)
            mean = (await asyncio.wrap_future(future)).mean(axis=0)
            key = (self._clip_id(question.clip), text)
            self._texts[key] = (mean / np.linalg.norm(mean)).astype(np.float32)
            if len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]
