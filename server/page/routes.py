"""The routes of the page."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool

from compiler.driver.events import DeviceFinished, Note, TrialJudged, TrialStarted, event_of
from server.api.jobs import PING_S, cancel_and_wait, wait_for
from server.api.machines import waiting, workers_of
from server.api.site import COOKIE, Reader, Site, SiteDep, principal_of, require_job, scope_project
from server.delivery import assemble, difference
from server.keys import Principal, find_key
from server.problems import Problem
from server.schema import DeviceState, DeviceView, JobView, Scope
from server.views import last_events, list_jobs, previous_job, view_job

HERE = Path(__file__).parent
LOG_LINES = 300
"""Lines of the log on a job's page."""

CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
REPORT_CSP = "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A report holds what strangers wrote: it runs nothing and is no part of this site."""

STATIC = {"page.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8"}
router = APIRouter(include_in_schema=False)
_TEMPLATES = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)


def visitor_of(request: Request, site: SiteDep) -> Principal | None:
    """Who looks at the page; None where nobody is signed in."""
    try:
        who = principal_of(request, site)
    except Problem:
        return None
    return who if who.may(Scope.READ) else None


Visitor = Annotated[Principal | None, Depends(visitor_of)]


@router.get("/")
def index(site: SiteDep, who: Visitor) -> Response:
    """Jobs, queue and workers."""
    if who is None:
        return RedirectResponse("/login", status_code=303)
    found = list_jobs(site.database, scope_project(who), limit=50)
    return _page(
        "index.html", who, stream="/changes", jobs=found, queue=waiting(site, who, 50), workers=workers_of(site)
    )


@router.get("/jobs/{job}")
def show(job: str, site: SiteDep, who: Visitor) -> Response:
    """One job."""
    if who is None:
        return RedirectResponse("/login", status_code=303)
    view = _view(site, who, job)
    if view is None:
        return _page("problem.html", who, status=404, what="There is no such job")
    lines, cut = _log(site, job)
    return _page(
        "job.html",
        who,
        stream=None if view.finished else "/changes",
        job=view,
        has_report=site.artifacts(view.project, job).is_dir(),
        previous=previous_job(site.database, view),
        log="\n".join(lines) or "Nothing yet.",
        cut=cut,
    )


@router.post("/jobs/{job}/cancel")
async def cancel(job: str, site: SiteDep, who: Visitor) -> Response:
    """The button of a job's page."""
    if who is None or not who.may(Scope.SUBMIT):
        return RedirectResponse("/login", status_code=303)
    await cancel_and_wait(site, await run_in_threadpool(require_job, site, who, job), wait_s=10)
    return RedirectResponse(f"/jobs/{job}", status_code=303)


@router.get("/jobs/{job}/report")
def report(job: str, site: SiteDep, who: Reader) -> Response:
    """The report of a finished build, which may run nothing."""
    folder = _assembled(site, view_job(site.database, require_job(site, who, job)))
    content = (folder / "report.html").read_bytes()
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": REPORT_CSP})


@router.get("/jobs/{job}/diff")
def diff(job: str, site: SiteDep, who: Reader) -> Response:
    """What changed since the previous build of the fleet."""
    view = view_job(site.database, require_job(site, who, job))
    previous = previous_job(site.database, view)
    if previous is None:
        return _page("problem.html", who, status=404, what="There is no previous build")
    before = _assembled(site, view_job(site.database, previous))
    text = difference(before, _assembled(site, view))
    return _page("diff.html", who, job=view, previous=previous, text=text.strip() or "Nothing changed.")


@router.get("/changes", response_class=EventSourceResponse)
async def changes(site: SiteDep, who: Reader) -> AsyncIterator[ServerSentEvent]:
    """Says that something has changed, and not what: the page fetches what its reader may see."""
    with site.bell.listening() as changed:
        while not site.bell.is_closing:
            if await wait_for(changed, PING_S):
                changed.clear()
                yield ServerSentEvent(event="changed", raw_data="{}")
            else:
                yield ServerSentEvent(comment="still here")


@router.get("/login")
def login_form() -> Response:
    """Asks for the key."""
    return _page("login.html", None, wrong=False)


@router.post("/login", max_body_size=4096)
async def login(request: Request, site: SiteDep) -> Response:
    """Signs in by a key, which stays in a cookie that scripts cannot read."""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    key = fields.get("key", [""])[0].strip()
    if await run_in_threadpool(find_key, site.database, key) is None:
        return _page("login.html", None, status=403, wrong=True)
    answer = RedirectResponse("/", status_code=303)
    is_secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=is_secure, max_age=30 * 86_400)
    return answer


@router.post("/logout")
def logout() -> Response:
    """Forgets the key."""
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Style and script."""
    if name not in STATIC:
        raise Problem(404, "there is no such file")
    headers = {"Cache-Control": "max-age=3600"}
    return Response((HERE / "static" / name).read_bytes(), media_type=STATIC[name], headers=headers)


def _page(template: str, who: Principal | None, *, status: int = 200, **values: Any) -> HTMLResponse:
    given = {"who": who, "stream": None, **_WORDS, **values}
    text = _TEMPLATES.get_template(template).render(given)
    headers = {"Content-Security-Policy": CSP, "Cache-Control": "no-store"}
    return HTMLResponse(text, status_code=status, headers=headers)


def _view(site: Site, who: Principal, job: str) -> JobView | None:
    try:
        return view_job(site.database, require_job(site, who, job), slots=site.slots())
    except Problem:
        return None


def _assembled(site: Site, view: JobView) -> Path:
    if view.finished is None:
        raise Problem(404, "the job is not finished")
    folder = assemble(view, site.artifacts(view.project, view.id), site.folder / "reports")
    if folder is None:
        raise Problem(404, "no device of this job left a result")
    return folder


def _log(site: Site, job: str) -> tuple[list[str], bool]:
    rows, cut = last_events(site.database, job, limit=LOG_LINES)
    return [line for row in rows if (line := log_line(json.loads(row)))], cut


def log_line(payload: Mapping[str, Any]) -> str:
    """An event of a job as a line for a reader; empty where there is nothing to read."""
    device, kind = payload["device"], payload["event"]
    if kind == "device-state":
        why = payload.get("why") or ", ".join(payload.get("waiting_for", ())) or payload.get("worker", "")
        return f"{device}: {_words(payload['state'])}{f' ({why})' if why else ''}"
    if kind in ("job-queued", "job-finished"):
        return f"job {_words(payload.get('state', 'queued'))}"
    known = {name: value for name, value in payload.items() if name != "attempt"}
    match event_of(json.dumps(known)):
        case TrialStarted(number=number, precision=precision, target=target):
            return f"{device}: trial {number}: {f'{target} {precision}'.strip()}"
        case TrialJudged(number=number, precision=precision, target=target, status=status, why=why):
            return f"{device}: trial {number}: {f'{target} {precision}'.strip()} {status}{f': {why}' if why else ''}"
        case Note(text=text):
            return f"{device}: {text}"
        case DeviceFinished(error=error) if error:
            return f"{device} failed: {error}"
    return ""


def _words(state: str) -> str:
    return str(state).replace("_", " ").replace("-", " ")


def _detail(one: DeviceView) -> str:
    if one.waiting_for:
        return f"no worker has {', '.join(one.waiting_for)}"
    if one.position is not None:
        soon = f", begins in about {_span(one.estimate_s)}" if one.estimate_s else ""
        return f"number {one.position} in the queue{soon}"
    if one.error:
        return f"{one.error['error']}: {str(one.error['what']).splitlines()[0]}"
    if one.state is DeviceState.RUNNING:
        return one.stage or "begins"
    if one.figures and one.seconds is not None:
        return f"{one.figures.get('precision', '')}, built in {_span(one.seconds)}"
    return "–"


def _counts(job: JobView) -> str:
    states = [_words(one.state) for one in job.devices]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


_WORDS = {"words": _words, "detail": _detail, "counts": _counts, "span": _span, "iso": _iso, "when": _when}
