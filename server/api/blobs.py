"""Upload of files by their SHA-256, part by part."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from starlette.requests import ClientDisconnect

from server.api.site import SiteDep, Submitter
from server.blobs import Part
from server.problems import Problem

router = APIRouter(prefix="/v1/blobs", tags=["blobs"])

MAX_BLOB_BYTES = 64 << 30
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_EMPTY = "bytes */0"
Sha256 = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Received:
    """How many bytes of a file are there, and whether that is all of it."""

    received: int
    complete: bool


@router.head("/{digest}", responses={404: {"description": "The file is not there."}})
def look(digest: Sha256, site: SiteDep, who: Submitter) -> Response:
    """Whether a file is there."""
    path = site.blobs.path(who.project, digest)
    if path is None:
        return Response(status_code=404)
    site.blobs.touch(who.project, digest)
    return Response(headers={"Content-Length": str(path.stat().st_size)})


@router.get("/{digest}/parts")
def parts(digest: Sha256, site: SiteDep, who: Submitter) -> Received:
    """How much of a file is there: an upload goes on at that byte."""
    is_whole = site.blobs.path(who.project, digest) is not None
    return Received(site.blobs.received(who.project, digest), is_whole)


@router.put("/{digest}", max_body_size=MAX_BLOB_BYTES, response_model=Received)
async def put(digest: Sha256, request: Request, site: SiteDep, who: Submitter) -> Received:
    """Takes a file, or with `Content-Range` a part of one; bytes that arrive before a connection breaks are kept."""
    if site.blobs.path(who.project, digest) is not None:
        return Received(site.blobs.received(who.project, digest), True)
    part = _part(request)
    try:
        complete = await site.blobs.receive(who.project, digest, part, request.stream())
    except ClientDisconnect:  # what arrived is kept, and nobody hears the answer
        complete = False
    return Received(site.blobs.received(who.project, digest), complete)


def _part(request: Request) -> Part:
    written, length = request.headers.get("content-range"), request.headers.get("content-length", "")
    if written == _EMPTY:
        return Part(0, 0, 0)
    if written is not None:
        match = _RANGE.fullmatch(written)
        first, last, total = map(int, match.groups()) if match else (1, 0, 0)
        if not first <= last < total:
            raise Problem(400, "Content-Range is none", remedy="For example `bytes 0-1023/4096`.")
        return Part(first, last + 1, total)
    if not length.isdecimal() or len(length) > 15:
        raise Problem(411, "the size of the file is not given", remedy="Send Content-Length, or Content-Range.")
    return Part(0, int(length), int(length))
