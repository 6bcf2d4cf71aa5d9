"""The HTTP front: the Open Inference Protocol with Triton's extensions, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from importlib.metadata import version
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compiler.artifact.adapter import parse, to_json
from compiler.target import CompilerError
from rollout import live
from serving.answers import Answer, BuildFailed, Overloaded
from serving.deployment import Deployment
from serving.described import describe_configuration, describe_tensors
from serving.metrics import Metrics
from serving.model import ServedModel, find_model
from serving.protocol import (
    EXTENSIONS,
    HEADER_LENGTH,
    REQUEST_KEY,
    BadRequest,
    Inference,
    read_body,
    read_inference,
    write_answer,
)

log = logging.getLogger("fleetc.serve")

BODY_S = 30.0
"""Seconds in which a body must have come: whoever sends slower holds memory for nothing."""

SMALL_BODY_BYTES = 65536
"""Largest body of a request that is no inference."""

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Server:
    """Answers for the models.

    Args:
        models: Name → model.
        metrics: What `/metrics` shows.
        token: What those send who may begin and end experiments; empty: nobody may.
    """

    def __init__(self, models: Mapping[str, ServedModel], metrics: Metrics, token: str = "") -> None:
        self._models, self._metrics, self._token = models, metrics, token

    def app(self) -> Starlette:
        """The application."""
        in_model = "/v2/models/{model}"
        at_version = in_model + "/versions/{version}"
        routes = [Route(path + "/infer", _guarded(self.infer), methods=["POST"]) for path in (in_model, at_version)]
        for path in (in_model, at_version):
            routes += [
                Route(path, _guarded(self.metadata)),
                Route(path + "/ready", _guarded(self.model_ready)),
                Route(path + "/config", _guarded(self.config)),
                Route(path + "/stats", _guarded(self.stats)),
            ]
        at_experiment = in_model + "/experiment"
        routes += [
            Route(at_experiment, _guarded(self.experiment)),
            Route(at_experiment + "/page", _guarded(self.experiment_page)),
            Route(at_experiment, _guarded(self.begin), methods=["POST"]),
            Route(at_experiment + "/stop", _guarded(self.stop), methods=["POST"]),
            Route(at_experiment + "/ship", _guarded(self.ship), methods=["POST"]),
        ]
        return Starlette(
            routes=[
                Route("/v2/models/stats", _guarded(self.all_stats)),
                *routes,
                Route("/v2", _guarded(self.server)),
                Route("/v2/health/live", _guarded(self.live)),
                Route("/v2/health/ready", _guarded(self.ready)),
                Route("/v2/repository/index", _guarded(self.index), methods=["POST"]),
                Route("/v2/repository/models/{model}/load", _guarded(self.load), methods=["POST"]),
                Route("/v2/repository/models/{model}/unload", _guarded(self.unload), methods=["POST"]),
                Route("/metrics", _guarded(self.metrics)),
            ],
            exception_handlers={HTTPException: _not_found},
        )

    async def infer(self, request: Request) -> Response:
        """One inference."""
        model, deployment = self._deployment(request)
        signature = deployment.signature
        encoding = request.headers.get("content-encoding", "")
        with deployment.reading():
            body = await _body(request, signature.most_bytes)
            inference = read_inference(
                read_body(body, encoding=encoding, limit=signature.most_bytes),
                request.headers.get(HEADER_LENGTH),
                signature,
            )
        answer = await model.infer(inference, deployment, _key(request))
        parts, headers = write_answer(_head(model, deployment, inference, answer), answer.outputs, inference.outputs)
        return Response(b"".join(parts), headers={**headers, **_trace(request)})

    async def metadata(self, request: Request) -> Response:
        """What a model takes and gives."""
        model, deployment = self._deployment(request)
        return JSONResponse(describe_tensors(model.name, deployment.version, deployment.signature))

    async def config(self, request: Request) -> Response:
        """A model's configuration, as Triton writes it."""
        model, deployment = self._deployment(request)
        return JSONResponse(describe_configuration(model.name, deployment.signature))

    async def stats(self, request: Request) -> Response:
        """A model's statistics."""
        model, _ = self._deployment(request)
        return JSONResponse({"model_stats": [model.stats()]})

    async def all_stats(self, request: Request) -> Response:
        """The statistics of all models."""
        return JSONResponse({"model_stats": [model.stats() for model in self._models.values() if model.is_ready]})

    async def model_ready(self, request: Request) -> Response:
        """Whether a model can answer."""
        model, deployment = self._deployment(request)
        return _ready(deployment.is_ready, model.state_reason)

    async def server(self, request: Request) -> Response:
        """Which server this is."""
        return JSONResponse({"name": "fleetc", "version": version("fleetc"), "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """Whether the server answers at all."""
        return _ready(True, "")

    async def ready(self, request: Request) -> Response:
        """Whether every model can answer."""
        waiting = [name for name, model in self._models.items() if not model.is_ready]
        return _ready(not waiting, f"not ready: {', '.join(waiting)}")

    async def index(self, request: Request) -> Response:
        """The models there are."""
        is_asked = (await _parameters(request)).get("ready", False)
        rows = [model.index_row() for model in self._models.values() if model.is_ready or not is_asked]
        return JSONResponse(rows)

    async def load(self, request: Request) -> Response:
        """Loads what a model's folder holds now; or, with `parameters: {previous: true}`, the version before."""
        model = self._model(request)
        told = (await _parameters(request)).get("parameters", {})
        if isinstance(told, dict) and told.get("previous") is True:
            await model.go_back()
        elif told:
            raise BadRequest("parameters: only `previous: true` is known; a model is loaded from its own folder")
        else:
            await model.load()
        return JSONResponse({})

    async def experiment(self, request: Request) -> Response:
        """Where a model's experiment stands now."""
        return JSONResponse(await self._report(request))

    async def experiment_page(self, request: Request) -> Response:
        """The same as a page."""
        from rollout.page import experiment_page

        report = await asyncio.to_thread(self._model(request).experiment.report)
        return Response(experiment_page(report), media_type="text/html; charset=utf-8")

    async def begin(self, request: Request) -> Response:
        """Compares a candidate with the build in use."""
        model = self._model(request)
        self._refuse_stranger(request)
        try:
            asked = parse(live.Request, await _parameters(request))
        except ValueError as error:
            raise BadRequest(str(error)) from error
        await model.begin(asked)
        return JSONResponse(await self._report(request))

    async def stop(self, request: Request) -> Response:
        """Ends an experiment."""
        self._refuse_stranger(request)
        await self._model(request).end_experiment(live.Standing.STOPPED, "somebody stopped it")
        return JSONResponse(await self._report(request))

    async def ship(self, request: Request) -> Response:
        """Lets the candidate answer everybody."""
        self._refuse_stranger(request)
        await self._model(request).ship()
        return JSONResponse(await self._report(request))

    async def _report(self, request: Request) -> Any:
        # in a thread of its own: bounds take milliseconds, in which others are answered
        return to_json(await asyncio.to_thread(self._model(request).experiment.report))

    def _refuse_stranger(self, request: Request) -> None:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not self._token or not hmac.compare_digest(sent, self._token.encode()):
            raise BadRequest("only the user who runs the server may begin and end experiments: use `fleetc ab`", 401)

    async def unload(self, request: Request) -> Response:
        """Unloads a model when all that was let in is answered."""
        await self._model(request).unload()
        return JSONResponse({})

    async def metrics(self, request: Request) -> Response:
        """What Prometheus reads."""
        for model in self._models.values():
            model.tell_state()
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model(self, request: Request) -> ServedModel:
        return find_model(self._models, request.path_params["model"])

    def _deployment(self, request: Request) -> tuple[ServedModel, Deployment]:
        model = self._model(request)
        return model, model.deployment(request.path_params.get("version", ""))


def _head(model: ServedModel, deployment: Deployment, inference: Inference, answer: Answer) -> dict[str, Any]:
    head = {"model_name": model.name, "model_version": deployment.version, "parameters": answer.facts}
    return {**head, "id": inference.identity} if inference.identity else head


def _key(request: Request) -> str:
    """By what an experiment divides: a key that the client sends again when it tries again; else the client."""
    return request.headers.get(REQUEST_KEY) or (request.client.host if request.client else "")


def _guarded(handler: Handler) -> Handler:
    """Every failure is an answer in the protocol's form."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(request, error.status, error.what)
        except Overloaded as error:
            return _overloaded(request, error)
        except BuildFailed as error:
            return _error(request, 503, str(error), {"Retry-After": "1"})
        except ClientDisconnect:
            return _error(request, 400, "the client went away")
        except CompilerError as error:
            return _error(request, 400, str(error))

    return answer


def _overloaded(request: Request, error: Overloaded) -> Response:
    """503 with the wait that was predicted, so that a client can tell a full queue from a missing build."""
    headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if math.isfinite(error.wait_s):
        headers["Fleetc-Predicted-Wait-Ms"] = f"{error.wait_s * 1e3:.1f}"
    return _error(request, 503, error.what, headers)


def _error(request: Request, status: int, what: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": what}, status, {**(headers or {}), **_trace(request)})


def _ready(is_ready: bool, reason: str) -> Response:
    """An empty body where it is ready, as the protocol has it."""
    return Response(status_code=200) if is_ready else JSONResponse({"error": reason or "not ready"}, 400)


def _trace(request: Request) -> dict[str, str]:
    """The caller's trace goes on in the answer (W3C Trace Context)."""
    parent = request.headers.get("traceparent")
    return {"traceparent": parent} if parent else {}


async def _not_found(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    what = error.detail if isinstance(error, HTTPException) else "not found"
    return _error(request, status, f"{what}: {request.method} {request.url.path[:200]}")


async def _body(request: Request, most_bytes: int) -> bytes:
    """The body, no more of it than makes sense, and none that comes too slowly."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most_bytes:
        raise BadRequest(f"the body has {length[:20]} bytes, the model takes {most_bytes} at most", 413)
    chunks, size = list[bytes](), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > most_bytes:
                    raise BadRequest(f"the body has more than {most_bytes} bytes", 413)
    except TimeoutError as error:
        raise BadRequest(f"the body did not come within {BODY_S:g} s", 408) from error
    return b"".join(chunks)


async def _parameters(request: Request) -> dict[str, Any]:
    """The JSON object of a request that may have none."""
    body = await _body(request, SMALL_BODY_BYTES)
    if not body:
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BadRequest("expected an object")
    return value
