"""What the API answers when it refuses: RFC 9457 problems, with class, exit code and remedy of our errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from compiler.errors import CompilerError, InternalError, MissingError, ServerError, StorageError

MEDIA_TYPE = "application/problem+json"
MAX_SHOWN = 20
"""Most problems of one request that are listed."""


@dataclass(frozen=True)
class ProblemView:
    """A refusal as RFC 9457 writes it, with the class and the exit code of our errors.

    Args:
        type: Page about the class of the error; `about:blank` where the status says all.
        status: The HTTP status.
        detail: What is wrong.
        remedy: What the client can do.
        title: The class of the error, where it is one of the compiler's.
        error: The same.
        exit_code: That of a command which ends by it.
        problems: What is wrong with each field of the request.
    """

    type: str
    status: int
    detail: str
    remedy: str = ""
    title: str = ""
    error: str = ""
    exit_code: int = 0
    problems: tuple[dict[str, str], ...] = ()


class Problem(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        detail: What is wrong, in one sentence.
        remedy: What the client can do.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, detail: str, *, remedy: str = "", headers: dict[str, str] | None = None) -> None:
        self.status, self.detail, self.remedy, self.headers = status, detail, remedy, headers
        super().__init__(detail)


def problem_response(
    status: int, detail: str, *, remedy: str = "", headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    """One problem as an answer; what more there is to say becomes members of its own."""
    error = {"error": ServerError.__name__, "exit_code": ServerError.exit_code} if status != 422 else {}
    body = {"type": "about:blank", "status": status, "detail": detail, "remedy": remedy, **error, **more}
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def error_response(error: CompilerError) -> JSONResponse:
    """One of our errors as a problem."""
    facts = error.to_dict()
    status = 507 if isinstance(error, StorageError) else 500 if isinstance(error, InternalError) else 422
    if isinstance(error, MissingError) and status == 422:
        status = 503
    body = {"type": error.page, "title": facts["error"], "status": status, "detail": str(error), **facts}
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE)


def add_problems(app: FastAPI) -> None:
    """Makes every refusal of an application a problem."""

    @app.exception_handler(Problem)
    def refused(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error.status, error.detail, remedy=error.remedy, headers=error.headers)

    @app.exception_handler(CompilerError)
    def failed(request: Request, error: CompilerError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    def refused_by_framework(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else {}
        if error.status_code == 405:  # of the first route alone that has this path
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return problem_response(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        rows = [{"at": ".".join(map(str, one["loc"]))[:200], "what": one["msg"][:300]} for one in error.errors()]
        facts: dict[str, Any] = {"error": "UsageError", "exit_code": 2, "problems": rows[:MAX_SHOWN]}
        detail = "; ".join(f"{row['at']}: {row['what']}" for row in rows[:3])
        return problem_response(422, detail or "the request is not valid", **facts)


def _methods(request: Request) -> set[str]:
    """What may be asked of the path of a request."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    return {name for route in routes if route.matches(request.scope)[0] != Match.NONE for name in route.methods or ()}
