"""The service's HTTP side: /metrics, /healthz and the page. Read-only, offline, loopback unless told otherwise.

GET  /                      the page (with `page`)
GET  /api/live              figures and latest answers, JSON
GET  /api/latest/N          picture of one of the latest answers, PNG or JPEG
GET  /api/search?text=...   frames found (with a store); also like=ID; device=, label=, after=, before= (seconds), k=
POST /api/search            the same for an image file or packet in the body
GET  /api/frames/ID         picture of a stored frame
GET  /metrics               Prometheus
GET  /healthz               200 "ok" while the service serves, 503 while it stops
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from PIL import Image

from thinwire.contract import is_loopback
from thinwire.errors import ThinwireError
from thinwire.imaging import open_picture

if TYPE_CHECKING:
    from cloud.engine.engine import Engine
    from cloud.search.searcher import Searcher
    from cloud.watch.live import Live
    from cloud.watch.metrics import Metrics
    from cloud.watch.options import WebOptions

PAGE = Path(__file__).resolve().parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
THUMBNAIL = 160  # pixels, the longer side
UPLOAD_BYTES = 16 << 20
PICTURE_WAIT_S = 10.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Web:
    """Start, then stop; not reusable. Adds its own observers to the engine. All methods run on one event loop."""

    def __init__(
        self, engine: Engine, options: WebOptions, metrics: Metrics, live: Live, searcher: Searcher | None = None
    ) -> None:
        options.check()
        self._engine, self._options = engine, options
        self._metrics, self._live, self._searcher = metrics, live, searcher
        self.serving = True  # set to False when the service begins to stop

    async def start(self) -> int:
        """Listens and returns the bound port. Raises `OSError` when the address is taken."""
        app = web.Application(middlewares=[self._guard], client_max_size=UPLOAD_BYTES)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_health)
        if self._options.page:
            for path in FILES:
                app.router.add_get(path, self._get_file)
            app.router.add_get("/api/live", self._get_live)
            app.router.add_get(r"/api/latest/{number:\d{1,15}}", self._get_latest)
            app.router.add_get("/api/search", self._search)
            app.router.add_post("/api/search", self._search)
            app.router.add_get(r"/api/frames/{id:\d{1,15}}", self._get_frame)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._options.host, self._options.port, shutdown_timeout=2)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise OSError(
                f"cannot listen on {self._options.host}:{self._options.port} (--http-port): {error}"
            ) from error
        return site._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    # ---------------------------------------------------------------- what every request passes

    @web.middleware
    async def _guard(self, request: web.Request, handler):
        # A page from elsewhere that a browser on this machine shows may make it ask us under another name (DNS
        # rebinding) or post to us; neither gets an answer.
        name = (request.host or "").rpartition(":")[0] or request.host
        own = is_loopback(name) or name.strip("[]") == self._options.host
        if is_loopback(self._options.host) and not own:
            return web.Response(status=421, text="this server answers to localhost only\n")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return web.Response(status=403, text="not for other sites\n")
        try:
            response = await handler(request)
        except ThinwireError as error:
            response = web.json_response({"reason": error.reason, "message": str(error)}, status=_status(error))
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.reason}\n")
        response.headers.update(HEADERS)
        return response

    # ---------------------------------------------------------------- handlers

    async def _get_metrics(self, request: web.Request) -> web.Response:
        text = await asyncio.to_thread(self._metrics.text)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _get_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self.serving else web.Response(status=503, text="stopping\n")

    async def _get_file(self, request: web.Request) -> web.Response:
        name, kind = FILES[request.path]
        return web.Response(body=(PAGE / name).read_bytes(), content_type=kind, charset="utf-8")

    async def _get_live(self, request: web.Request) -> web.Response:
        document = await asyncio.to_thread(self._live.snapshot)
        items, held = self._engine.load
        document["queue"] = {"items": items, "bytes": held, "limit": self._engine.limits.queue_items}
        document["clips"] = list(self._engine.models.names())
        document["search"] = self._searcher.summary() if self._searcher else None
        return web.json_response(document)

    async def _get_latest(self, request: web.Request) -> web.Response:
        packet, image_file = self._live.source(int(request.match_info["number"]))
        return await self._picture(packet, image_file)

    async def _get_frame(self, request: web.Request) -> web.Response:
        if self._searcher is None:
            raise web.HTTPNotFound
        packet = await asyncio.to_thread(self._searcher.packet, int(request.match_info["id"]))
        return await self._picture(packet, None)

    async def _search(self, request: web.Request) -> web.Response:
        if self._searcher is None:
            raise web.HTTPNotFound
        from cloud.search.web_query import question_of

        body = await request.read() if request.method == "POST" else b""
        found = await self._searcher.search(question_of(request.query, body))
        return web.json_response({"found": [each.as_json() for each in found]})

    async def _picture(self, packet: bytes | None, image_file: bytes | None) -> web.Response:
        """Decoded on request: pictures that are not viewed cost nothing."""
        if packet is not None:
            wait = asyncio.get_running_loop().time() + PICTURE_WAIT_S
            future = self._engine.submit_picture(packet, deadline=wait)  # asyncio's clock is time.monotonic
            pixels = await asyncio.wrap_future(future)
            return web.Response(body=await asyncio.to_thread(_png, Image.fromarray(pixels)), content_type="image/png")
        if image_file is not None:
            return web.Response(body=await asyncio.to_thread(_thumbnail, image_file), content_type="image/jpeg")
        raise web.HTTPNotFound


def _thumbnail(image_file: bytes) -> bytes:
    image = open_picture(image_file, view=(THUMBNAIL, THUMBNAIL)).upright()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def _png(image: Image.Image) -> bytes:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _status(error: ThinwireError) -> int:
    """HTTP's word for a gRPC status (google.rpc.Code's table of canonical errors)."""
    from cloud.front.status import code_of

    table = {
        "INVALID_ARGUMENT": 400,
        "FAILED_PRECONDITION": 400,
        "UNAUTHENTICATED": 401,
        "PERMISSION_DENIED": 403,
        "NOT_FOUND": 404,
        "RESOURCE_EXHAUSTED": 429,
        "UNAVAILABLE": 503,
        "DEADLINE_EXCEEDED": 504,
    }
    return table.get(code_of(error).name, 500)
