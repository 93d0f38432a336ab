"""The RPCs of proto/thinwire/v1/search.proto over a `Searcher`."""

from __future__ import annotations

import asyncio

import grpc

from cloud.errors import PermissionDenied, SearchOff
from cloud.front.replies import deadline_of, or_abort, source_of
from cloud.search.frames import Filter, Found, SearchQuery
from cloud.search.searcher import Searcher
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import search_pb2, search_pb2_grpc

Context = grpc.aio.ServicerContext


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """`searcher` None: nothing is kept, every call is refused. `allowed` False: no client may ask here (see
    `Security.operators_may_search`)."""

    def __init__(self, searcher: Searcher | None, allowed: bool, max_image_file_bytes: int) -> None:
        self._searcher, self._allowed, self._max_image_file_bytes = searcher, allowed, max_image_file_bytes

    async def SearchFrames(self, request: search_pb2.SearchFramesRequest, context: Context):
        return await or_abort(context, self._search(request, context))

    async def DeleteFrames(self, request: search_pb2.DeleteFramesRequest, context: Context):
        return await or_abort(context, self._delete(request))

    async def GetStoreInfo(self, request: search_pb2.GetStoreInfoRequest, context: Context):
        return await or_abort(context, self._info())

    def _open(self) -> Searcher:
        if not self._allowed:
            raise PermissionDenied(
                "searching and deleting frames here needs an operator's token: start the server with "
                "--operator-token-file and send one of its tokens"
            )
        if self._searcher is None:
            raise SearchOff("this server keeps no frames: start it with --store FILE")
        return self._searcher

    async def _search(self, request, context: Context) -> search_pb2.SearchFramesResponse:
        searcher = self._open()
        query = request.WhichOneof("query")
        source = source_of(request.image, self._max_image_file_bytes) if query == "image" else {}
        question = SearchQuery(
            **source,
            text=request.text if query == "text" else None,
            like_id=request.like_id if query == "like_id" else None,
            filter=_filter(request.filter),
            top_k=request.top_k or 10,
            clip=request.clip,
            deadline=deadline_of(context),
        )
        found = await searcher.search(question)
        return search_pb2.SearchFramesResponse(frames=[_found(each, request.with_packets) for each in found])

    async def _delete(self, request: search_pb2.DeleteFramesRequest) -> search_pb2.DeleteFramesResponse:
        count = await self._open().delete(_filter(request.filter), everything=request.all)
        return search_pb2.DeleteFramesResponse(deleted=count)

    async def _info(self) -> search_pb2.GetStoreInfoResponse:
        archive = self._open().archive
        await asyncio.to_thread(archive.flush)
        oldest, newest = await asyncio.to_thread(archive.store.span_ms)
        return search_pb2.GetStoreInfoResponse(
            frames=archive.store.frames,
            bytes=archive.store.bytes,
            oldest_unix_ms=oldest,
            newest_unix_ms=newest,
            device_ids=archive.devices(),
            dropped=archive.dropped,
        )


def _filter(message: search_pb2.FrameFilter) -> Filter:
    return Filter(
        tuple(message.device_ids),
        tuple(message.labels),
        message.after_unix_ms,
        message.before_unix_ms,
        tuple(message.ids),
    )


def _found(each: Found, with_packet: bool) -> search_pb2.FoundFrame:
    frame = each.frame
    return search_pb2.FoundFrame(
        id=each.id,
        similarity=each.similarity,
        unix_ms=frame.at_ms,
        device_id=frame.device_id,
        predictions=[pb.Prediction(label=label, probability=chance) for label, chance in frame.predictions],
        model=pb.ModelInfo(clip=frame.clip_id.partition("#")[0], bundle=frame.bundle, layers=frame.layers),
        packet=(frame.packet or b"") if with_packet else b"",
        packet_bytes=len(frame.packet or b""),
    )
