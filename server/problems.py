"""What the API answers when it refuses: RFC 9457 problems, with class, exit code and remedy of our errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from compiler.errors import CompilerError, InternalError, MissingError, ServerError, StorageError

MEDIA_TYPE = "application/problem+json"
MAX_SHOWN = 20
"""Most problems of one request that are listed."""


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
        headers = dict(error.headers) if error.headers else None
        return problem_response(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        rows = [{"at": ".".join(map(str, one["loc"]))[:200], "what": one["msg"][:300]} for one in error.errors()]
        facts: dict[str, Any] = {"error": "UsageError", "exit_code": 2, "problems": rows[:MAX_SHOWN]}
        detail = "; ".join(f"{row['at']}: {row['what']}" for row in rows[:3])
        return problem_response(422, detail or "the request is not valid", **facts)
