"""What a TUF repository says that this device is to run, and the builds in it; every attack is named.

TUF's client (python-tuf) checks signatures, versions, expiry, lengths and digests. Here its refusals get names, and the
clock is looked at: TUF believes it.
"""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater

from .fetch import FolderFetcher, WebFetcher
from .files import read_json
from .refusal import Refused, Unavailable

MOST_VALID_S = 60 * 86400
"""Metadata that is valid for longer than this was signed in the clock's future: a timestamp is valid for days."""

ASSIGNMENT = "assignment.json"


class Source:
    """One repository.

    Args:
        url: Where `metadata/` and `targets/` are: http(s):// or file://.
        folder: The device's folder.
        root: The first root metadata, which came with the device: all trust begins with it.
        device_class: Whose builds are asked for.
    """

    def __init__(self, url: str, folder: Path, *, root: bytes, device_class: str) -> None:
        self._class = device_class
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        (folder / "downloads").mkdir(parents=True, exist_ok=True)
        self._folder, self._root = folder, root
        self._url = url.rstrip("/")
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Fetches the newest metadata.

        Raises:
            Unavailable: There is none that can be trusted.
        """
        with _naming():
            fetcher = FolderFetcher() if self._url.startswith("file://") else WebFetcher()
            self._updater = Updater(
                metadata_dir=str(self._folder / "metadata"),
                metadata_base_url=f"{self._url}/metadata/",
                target_dir=str(self._folder / "downloads"),
                target_base_url=f"{self._url}/targets/",
                fetcher=fetcher,
                bootstrap=self._root,
            )
            self._updater.refresh()
        self._refuse_late_clock()

    def assignment(self) -> dict[str, Any]:
        """Which build each device of the class is to run.

        Raises:
            Unavailable: None is signed for the class.
        """
        info = self._info(ASSIGNMENT)
        with _naming():
            path = self._loaded.find_cached_target(info) or self._loaded.download_target(info)
        value: dict[str, Any] = json.loads(Path(path).read_bytes())
        return value

    def fetch(self, digest: str) -> Path:
        """The archive of a build.

        Raises:
            Unavailable: It is not signed for the class, or not what was signed.
            Refused: It is another class's, or there is no room for it.
        """
        info = self._info(f"{digest}.tar")
        custom = info.unrecognized_fields.get("custom", {})
        if custom.get("device_class") != self._class:
            raise Refused(f"the build is for devices of class {custom.get('device_class')!r}, this is {self._class!r}")
        if custom.get("manifest_sha256") != digest:
            raise Refused("the build's signed description is of another manifest")
        free = os.statvfs(self._folder)
        if free.f_bavail * free.f_frsize < 2 * info.length:  # the archive and what is in it
            raise Refused(f"the disk is full: {2 * info.length} bytes are needed")
        with _naming():
            return Path(self._loaded.find_cached_target(info) or self._loaded.download_target(info))

    @property
    def _loaded(self) -> Updater:
        if self._updater is None:
            self.refresh()
        updater: Updater = self._updater  # type: ignore[assignment]  # refresh sets it or raises
        return updater

    def _info(self, name: str) -> TargetFile:
        with _naming():
            info = self._loaded.get_targetinfo(f"{self._class}/{name}")
        if info is None:
            raise Unavailable(
                f"{name} is not signed for devices of class {self._class!r}: no key of that class vouches"
            )
        return info

    def _refuse_late_clock(self) -> None:
        expires = read_json(self._folder / "metadata" / "timestamp.json").get("signed", {}).get("expires", "")
        ends = datetime.strptime(expires, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)  # noqa: UP017  Python 3.9
        if ends.timestamp() - time.time() > MOST_VALID_S:
            raise Unavailable(
                f"this device's clock says {_now()}, and the repository was signed much later: set the clock"
            )


class _naming:
    """Turns TUF's refusals into sentences."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (RepositoryError, DownloadError)):
            raise Unavailable(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, ExpiredMetadataError):
        return f"frozen: the newest metadata has expired ({error}); this device's clock says {_now()}"
    if isinstance(error, BadVersionNumberError):
        return f"replayed: the repository offers older metadata than this device has seen ({error})"
    if isinstance(error, LengthOrHashMismatchError):
        return f"tampered: a file is not what was signed ({error})"
    if isinstance(error, UnsignedMetadataError):
        return f"wrong key: metadata is not signed by whom this device trusts ({error})"
    if isinstance(error, DownloadLengthMismatchError):
        return f"endless: a file is longer than it may be ({error})"
    if isinstance(error, SlowRetrievalError):
        return f"slow: the repository sends so little that it would never end ({error})"
    if isinstance(error, DownloadError):
        return f"the repository cannot be read: {error}"
    return f"no metadata that can be trusted: {error}"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
