"""Puts together what watches a service: metrics, page, request log, traces, and the archive with its searcher."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud.engine.engine import Engine
    from cloud.search.searcher import Searcher
    from cloud.watch.options import WatchOptions


class Watch:
    """Made once for an engine, before its server starts; `Server` starts and stops it. Raises, when made, what
    `FrameStore` and `WebOptions.check` raise: before anything listens."""

    def __init__(self, engine: Engine, options: WatchOptions) -> None:
        self.searcher: Searcher | None = None
        self.interceptors: list = []
        self.web_port: int | None = None
        self._web = self.archive = self._traces = None
        if options.web:
            options.web.check()
        if options.traces:
            from cloud.watch.traces import Traces

            self._traces = Traces(options.traces)
            self.interceptors = self._traces.interceptors()
            engine.observers.add(self._traces)
        if options.store:
            from cloud.search.archive import Archive
            from cloud.search.searcher import Searcher

            self.archive = Archive(options.store, options.max_bytes, options.max_age_s)
            engine.observers.add(self.archive)
            self.searcher = Searcher(engine, self.archive)
        if options.request_log:
            from cloud.watch.logs import RequestLog

            engine.observers.add(RequestLog())
        if options.web:
            from cloud.watch.live import Live
            from cloud.watch.metrics import Metrics
            from cloud.watch.web import Web

            metrics, live = Metrics(engine, self.archive), Live()
            engine.observers.add(metrics, *([live] if options.web.page else []))
            self._web = Web(engine, options.web, metrics, live, self.searcher)

    async def start(self) -> None:
        """Raises `OSError` when the HTTP port is taken."""
        if self._web:
            self.web_port = await self._web.start()

    def stopping(self) -> None:
        """The service takes no more calls: /healthz says so."""
        if self._web:
            self._web.serving = False

    async def stop(self) -> None:
        """After the last answer: writes what waits, closes ports and files."""
        if self._web:
            await self._web.stop()
        if self.archive:
            await asyncio.to_thread(self.archive.close)
        if self._traces:
            await asyncio.to_thread(self._traces.close)
