"""The application: routes, refusals, and what every answer and every request has in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from pydantic import TypeAdapter

from server.api import artifacts, attempts, blobs, jobs, machines, plan
from server.api.cache import mount_cache
from server.api.site import Site
from server.page import routes
from server.problems import MEDIA_TYPE, ProblemView, add_problems, problem_response

MAX_JSON_BYTES = 16 << 20
"""Size of the largest body that is no file: a fleet of some ten thousand files."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with `no-referrer` browsers send forms of our own page with the origin `null`
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
}


REFUSAL: dict[str, Any] = {
    "description": "It is refused, or cannot be done now: a problem as in RFC 9457.",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemView"}}},
}


class _Api(FastAPI):
    """An application whose document says what a refusal looks like: FastAPI knows its own alone."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schema = TypeAdapter(ProblemView).json_schema()
        document["components"]["schemas"].setdefault(ProblemView.__name__, schema)
        return document


def make_app(site: Site | None, *, version: str) -> FastAPI:
    """The application of a site; without one, for its OpenAPI document."""
    app = _Api(
        title="fleetc build server",
        version=version,
        summary="Compiles one ONNX model for every device class of a fleet.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        max_body_size=MAX_JSON_BYTES,
        responses={"4XX": REFUSAL, "5XX": REFUSAL},
    )
    app.state.site = site
    for part in (jobs, plan, blobs, artifacts, attempts, machines, routes):
        app.include_router(part.router)
    if site is not None:
        mount_cache(app, site)
    add_problems(app)

    @app.middleware("http")
    async def guard(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        problem = _refuse_foreign(request, site.hosts if site else frozenset())
        response = problem or await handle(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return app


def _refuse_foreign(request: Request, hosts: frozenset[str]) -> Response | None:
    """A page of another site must not reach this server through a browser, by a name of its own or by a form."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if host not in hosts:
        return problem_response(421, f"the server is not called {host[:100]!r}", remedy="Start it with --host-name.")
    origin = request.headers.get("origin")
    if origin and request.method not in SAFE and (urlsplit(origin).hostname or "") not in hosts:
        return problem_response(403, "the request comes from a page of another site")
    return None
