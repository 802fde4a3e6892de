"""The HTTP API and the page as a FastAPI application."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import fastapi
import fastapi_offline
import python_multipart  # noqa: F401  # FastAPI looks for it, and complains in words that no user understands
from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as AnyHTTPException

import mmembed
from mmembed import files
from mmembed.errors import MmembedError, RecordError, UsageError
from mmembed.search import Searcher
from mmembed.serve import guard
from mmembed.serve.answers import Answer, Info, Matches, Problem
from mmembed.serve.backend import Backend
from mmembed.serve.guard import Guard
from mmembed.serve.lane import Lane
from mmembed.serve.media import RangeError
from mmembed.serve.metrics import Measured, Metrics
from mmembed.serve.questions import WITHOUT, ExplainForm, Form, Options
from mmembed.serve.settings import MAX_NAME, Settings
from mmembed.serve.together import Together

STATIC = Path(__file__).parent / "static"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")  # Swagger UI's own

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_KEEP = {"Cache-Control": "private, max-age=3600"}
_log = logging.getLogger(__name__)


def create_app(searcher: Searcher, settings: Settings) -> FastAPI:
    """The application; its models are loaded when it starts."""
    backend, metrics = Backend(searcher, settings.max_upload), Metrics()
    lanes = {
        "query": Lane(settings.threads, settings.waiting, "query"),
        # An explanation encodes a medium hundreds of times, a page has dozens of thumbnails: no query waits for them.
        "explain": Lane(1, max(1, settings.waiting // 16), "explain"),
        "media": Lane(settings.threads, settings.waiting, "media"),
    }

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        metrics.set_rows(backend.rows)
        await lanes["query"].run(backend.warm)
        app.state.info = await lanes["query"].run(backend.info)
        yield
        for lane in lanes.values():
            lane.close()

    app = FastAPI(
        title="mmembed",
        version=mmembed.__version__,
        description="Search a data set by text, picture, sound or record.",
        docs_url=None,  # FastAPI's own pages load their programs from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={400: {"model": Problem}, 401: {"model": Problem}, 422: {"model": Problem}},
    )
    app.state.backend, app.state.metrics, app.state.lanes = backend, metrics, lanes
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Measured, metrics=metrics)  # the outer one: it sees refusals too
    _add_errors(app, searcher)
    _add_search(app, backend, metrics, lanes, settings)
    _add_media(app, backend, lanes["media"])
    _add_pages(app, metrics)
    return app


def _add_search(
    app: FastAPI, backend: Backend, metrics: Metrics, lanes: Mapping[str, Lane], settings: Settings
) -> None:
    """Questions about the data set."""

    @app.get("/api/info", summary="What is served", tags=["search"])
    async def info() -> Info:
        """What is served."""
        return app.state.info  # type: ignore[no-any-return]

    searches = Together(backend.search, lanes["query"], settings.threads, settings.waiting)
    app.state.searches = searches

    async def answer(options: Options) -> Response:
        for name in options.asked.names:
            metrics.queries.labels("text" if name == WITHOUT else name).inc()
        found = await searches.ask(options)
        return Response(found.model_dump_json(), media_type="application/json")  # FastAPI would check it once more

    @app.get("/api/search", summary="Search by text or record", tags=["search"], response_model=Answer)
    async def search(options: Annotated[Options, Query()]) -> Response:
        """What resembles a text or a record."""
        return await answer(options)

    @app.post("/api/search", summary="Search by anything", tags=["search"], response_model=Answer)
    async def search_by_form(options: Annotated[Form, fastapi.Form()]) -> Response:
        """What resembles texts, pictures, sounds and records together, each by its weight."""
        return await answer(options)

    @app.post("/api/explain", summary="Why a match", tags=["search"])
    async def explain(options: Annotated[ExplainForm, fastapi.Form()]) -> Matches:
        """Which words, cells of a picture or stretches of a sound make a match, for each part of a query."""
        return await lanes["explain"].run(partial(backend.explain, options.asked, options.record, options.to))


def _add_media(app: FastAPI, backend: Backend, lane: Lane) -> None:
    """Media of records, by the ids of the data set and by nothing else."""

    @app.get("/media/{modality}/{id:path}", summary="A medium", tags=["media"], response_class=Response)
    async def media(
        modality: str,
        id: str,
        name: Annotated[
            str, Query(max_length=MAX_NAME, description="which one, where a record has several: `media` of a hit")
        ] = "",
        range: Annotated[str, Header()] = "",
    ) -> Response:
        """A text as it is; what a picture shows as WebP, what a sound sounds like as WAV, or a range of their bytes."""
        if modality == "text":
            return PlainTextResponse(await lane.run(lambda: _found(backend.text, id, name)), headers=_KEEP)
        try:
            served = await lane.run(lambda: _found(backend.served, modality, id, name, range))
        except RangeError as error:
            raise HTTPException(416, f"it has {error} bytes", {"Content-Range": f"bytes */{error}"}) from error
        whole = served.end - served.start == served.size
        headers = {**_KEEP, "Accept-Ranges": "bytes", "Content-Length": str(served.end - served.start)}
        if not whole:
            headers["Content-Range"] = f"bytes {served.start}-{served.end - 1}/{served.size}"
        return StreamingResponse(served.blocks, 200 if whole else 206, headers, served.type)

    @app.get("/thumbnail/{modality}/{id:path}", summary="A small picture", tags=["media"], response_class=Response)
    async def thumbnail(
        modality: Literal["image", "audio"],
        id: str,
        name: Annotated[str, Query(max_length=MAX_NAME, description="as of /media")] = "",
        span: Annotated[str, Query(max_length=100, description="left,top,right,bottom: the rest is veiled")] = "",
    ) -> Response:
        """A small picture of a picture, or of how loud a sound is over time."""
        box = _box(span)
        data = await lane.run(lambda: _found(backend.thumbnail, modality, id, name, box))
        return Response(data, headers=_KEEP, media_type="image/webp")


def _add_pages(app: FastAPI, metrics: Metrics) -> None:
    """What a browser or a machine that watches reads."""

    @app.get("/healthz", summary="Alive", tags=["server"])
    async def healthz() -> dict[str, str]:
        """Whether questions are answered."""
        return {"status": "ok"}

    @app.get("/metrics", summary="Counters", tags=["server"], response_class=Response)
    async def read_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def file(address: str, path: Path, policy: str = PAGE_POLICY) -> None:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}

        @app.get(address, include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(path, media_type=_TYPES[path.suffix], headers=headers)

    file("/", STATIC / "index.html")
    for name in ("page.js", "page.css", "recorder.js", "icon.svg", "docs.js"):
        file(f"/static/{name}", STATIC / name)
    file("/docs", STATIC / "docs.html", DOCS_POLICY)
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        file(f"/static/{name}", SWAGGER / name)


def _add_errors(app: FastAPI, searcher: Searcher) -> None:
    """Every error is one message in JSON."""

    private = _private_places(searcher)

    def answer(code: int, message: object, headers: Mapping[str, str] | None = None) -> JSONResponse:
        text = str(message)
        for place, name in private.items():
            text = text.replace(place, name)
        return JSONResponse({"detail": text}, code, headers)

    @app.exception_handler(UsageError)
    async def usage(request: Request, error: UsageError) -> Response:
        return answer(400, error)

    @app.exception_handler(MmembedError)
    async def failed(request: Request, error: MmembedError) -> Response:
        _log.error("%s", error)
        return answer(500, error)

    @app.exception_handler(AnyHTTPException)
    async def http(request: Request, error: AnyHTTPException) -> Response:
        return answer(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(422, _first(error.errors()))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        # This one alone answers from outside of all middleware, see Starlette's ServerErrorMiddleware.
        return answer(500, "an error inside mmembed: the terminal in which it runs says more", guard.HEADERS)


def _private_places(searcher: Searcher) -> dict[str, str]:
    """Where the data set, its input and the input's folder lie, with what messages call them instead; longest first.

    Messages are for who runs the command; whoever asks from elsewhere need not know where the data lie.
    """
    root, input = searcher.dataset.root, searcher.dataset.input
    if files.is_pattern(input):
        folder = "/".join(takewhile(lambda part: not files.is_pattern(part), input.split("/")))
    else:
        folder = files.parent(input)
    places = {str(root): root.resolve().name, **{place: place.rsplit("/", 1)[-1] for place in (input, folder)}}
    if not files.is_url(input):
        places |= {str(Path(place).resolve()): name for place, name in places.items() if place}
    # A name alone gives nothing away, and may be a word of the message.
    told = [place for place in places if os.sep in place and place.rstrip("/") and not place.endswith(":/")]
    return {place: places[place] for place in sorted(told, key=len, reverse=True)}


def _first(errors: Sequence[Any]) -> str:
    """The first fault of a request, in a line."""
    place = ".".join(str(part) for part in errors[0]["loc"][1:]) or "the request"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place}: {errors[0]['msg']}{more}"


def _found(make: Any, *arguments: Any) -> Any:
    """What is made of a medium; that there is none, or that it can't be read, is 404."""
    try:
        return make(*arguments)
    except (UsageError, RecordError) as error:
        raise HTTPException(404, str(error)) from error


def _box(span: str) -> tuple[float, ...]:
    try:
        box = tuple(map(float, span.split(","))) if span else ()
    except ValueError:
        box = (0.0,)
    if len(box) not in (0, 4) or not all(abs(value) < 1e6 for value in box):
        raise HTTPException(422, f"span: {span!r} is not left,top,right,bottom in pixels")
    return box
