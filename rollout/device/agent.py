"""What a device does at each look: follow the assignment, install beside, watch, and keep or go back.

`state.json` is the intention and `current` follows it. It is written before the link is switched, so that whoever kills
the agent in between leaves a device on one of two verified builds, and the next start goes on where it was meant to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import point, read_json, remove, sync_tree, write_json
from .health import check_health
from .metrics import read_counts, since
from .refusal import Refused, Unavailable
from .source import Source
from .verify import unpack, verify

PENDING, DOWNLOADING, INSTALLING, WATCHING = "pending", "downloading", "installing", "watching"
SUCCESS, FAILURE, ALREADY = "success", "failure", "already-installed"
"""States of a device in a rollout: Mender's words, and `watching`, which Mender has none for."""

CLOCK_SLACK_S = 86400
"""A clock may be set back by so much without a word: summer time, a first answer of NTP."""

SEEN_EVERY_S = 3600
"""How often the time of a look is written down: flash wears out by writing."""


@dataclass(frozen=True)
class Settings:
    """How a device is set up.

    Args:
        folder: Where builds and state are kept.
        device: Its name in the fleet.
        device_class: Whose builds it runs.
        key: PEM file of whoever signs builds; None where the repository's signatures are enough.
        watch_s: Seconds that a new build is watched before it is kept.
        command: In place of the program that a build's health run names.
        metrics: Where its requests are counted: URL or file; None where nobody counts.
    """

    folder: Path
    device: str
    device_class: str
    key: bytes | None = None
    watch_s: float = 60.0
    command: str | None = None
    metrics: str | None = None


class Agent:
    """One device.

    Args:
        settings: How it is set up.
        source: Where builds come from.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        self._settings, self._source = settings, source
        self._versions, self._link = settings.folder / "versions", settings.folder / "current"
        self._versions.mkdir(parents=True, exist_ok=True)
        self._state_file = settings.folder / "state.json"
        self._state = read_json(self._state_file)
        self._report = {"state": PENDING, "why": "", "problem": ""}
        self._clear_up()
        self._follow_intention()

    @property
    def build(self) -> str | None:
        """Digest of the build that is used; None before the first."""
        return self._link.readlink().name if self._link.is_symlink() else None

    def look(self) -> dict[str, Any]:
        """One look at the repository and at the build; what the device reports."""
        self._report["problem"] = ""
        try:
            self._refuse_lost_clock()
            self._watch()
            self._source.refresh()
            assignment = self._source.assignment()
            self._obey(assignment)
            if time.time() - self._state.get("seen", 0) > SEEN_EVERY_S:
                self._save(seen=time.time())
        except Unavailable as unavailable:
            self._report["problem"] = unavailable.what
        except Refused as refused:
            self._say(FAILURE, refused.what)
        except OSError as error:
            self._clear_up()
            self._say(FAILURE, f"nothing was changed: {error.strerror or error}")
        return self.report()

    def report(self) -> dict[str, Any]:
        """What the device says of itself."""
        settings = self._settings
        report = {
            "schema": 1,
            "device": settings.device,
            "device_class": settings.device_class,
            "build": self.build,
            "previous": self._state.get("previous"),
            "rollout": self._state.get("rollout", ""),
            "time": time.time(),
            **self._report,
        }
        if settings.metrics is not None:
            report.update(self._counts())
        return report

    def _obey(self, assignment: dict[str, Any]) -> None:
        wanted = assignment.get("devices", {}).get(self._settings.device, assignment.get("default"))
        rollout = str(assignment.get("rollout", ""))
        if wanted is None:
            self._say(PENDING, "no build is assigned to this device")
            return
        self._save(rollout=rollout)
        refusal = self._state.get("refused", {}).get(wanted)
        if refusal is not None and refusal["rollout"] == rollout:
            self._say(FAILURE, refusal["why"])
            return
        if wanted == self.build:
            if self._state.get("phase") == WATCHING:
                self._say(WATCHING)
            else:
                self._say(SUCCESS if self._report["state"] in (SUCCESS, INSTALLING, WATCHING) else ALREADY)
            return
        self._install(wanted, rollout)

    def _install(self, wanted: str, rollout: str) -> None:
        """Puts a verified build beside the one in use, and switches to it."""
        place = self._versions / wanted
        if not place.is_dir():
            self._say(DOWNLOADING)
            self._unpack(self._source.fetch(wanted), place, rollout)
        else:  # the build before, or one that a kill left here: it is looked at again
            self._examine(place, wanted, rollout)
        self._say(INSTALLING)
        before = self.build
        phase = WATCHING if before is not None and self._settings.watch_s > 0 else "idle"
        counted = self._totals()
        self._save(build=wanted, previous=before, phase=phase, since=time.time(), rollout=rollout, counted=counted)
        self._switch(wanted)
        self._say(WATCHING if phase == WATCHING else SUCCESS)

    def _examine(self, place: Path, build: str, rollout: str) -> None:
        """Verifies and runs a build; one that is refused is not tried again in the same rollout."""
        try:
            verify(place, build, self._settings.key)
            check_health(place, self._settings.command)
        except Refused as refused:
            self._remember_refusal(build, rollout, refused.what)
            raise

    def _unpack(self, archive: Path, place: Path, rollout: str) -> None:
        """Gives a build its name once it is whole, verified and healthy."""
        draft = self._versions / f".draft.{place.name}"
        try:
            unpack(archive, draft)
            self._examine(draft, place.name, rollout)
            sync_tree(draft)
            draft.replace(place)
        finally:
            archive.unlink()
            remove(draft)

    def _watch(self) -> None:
        """Keeps a build that was healthy long enough; goes back from one that is not."""
        if self._state.get("phase") != WATCHING:
            return
        build, previous = self._state["build"], self._state["previous"]
        try:
            check_health(self._versions / build, self._settings.command)
        except Refused as refused:
            self._remember_refusal(build, self._state.get("rollout", ""), refused.what)
            self._save(build=previous, previous=None, phase="idle", counted={})
            self._switch(previous)
            raise Refused(f"went back to {previous[:16]}: {refused.what}") from refused
        waited_s = time.time() - self._state["since"]
        # a clock that was set back would watch for ever
        if waited_s >= self._settings.watch_s or waited_s < 0:
            self._save(phase="idle")
            self._say(SUCCESS)

    def _switch(self, build: str) -> None:
        point(self._link, f"versions/{build}")
        for path in self._versions.iterdir():
            if path.name not in (build, self._state.get("previous")):
                remove(path)

    def _follow_intention(self) -> None:
        """A kill between the intention and the link: the build was verified before it was intended."""
        build = self._state.get("build")
        if build is not None and build != self.build:
            self._switch(build)

    def _clear_up(self) -> None:
        """What was not finished is begun again; nothing of it has a name that is used."""
        for path in self._versions.glob(".*"):
            remove(path)

    def _refuse_lost_clock(self) -> None:
        behind_s = self._state.get("seen", 0) - time.time()
        if behind_s > CLOCK_SLACK_S:
            raise Unavailable(f"this device's clock went back by {behind_s / 86400:.0f} days: set the clock")

    def _remember_refusal(self, build: str, rollout: str, why: str) -> None:
        self._save(refused={**self._state.get("refused", {}), build: {"rollout": rollout, "why": why}})

    def _save(self, **changes: Any) -> None:
        state = {**self._state, **changes}
        if state != self._state:
            write_json(self._state_file, state)
            self._state = state

    def _say(self, state: str, why: str = "") -> None:
        self._report = {"state": state, "why": why, "problem": ""}

    def _counts(self) -> dict[str, Any]:
        try:
            counts = read_counts(str(self._settings.metrics))
        except (OSError, ValueError) as error:
            return {"metrics_error": str(error)}
        return since(counts, self._state.get("counted") or {})

    def _totals(self) -> dict[str, Any]:
        if self._settings.metrics is None:
            return {}
        counts = self._counts_now()
        return {key: counts.get(key, 0) for key in ("requests", "late", "errors")}

    def _counts_now(self) -> dict[str, Any]:
        try:
            return read_counts(str(self._settings.metrics))
        except (OSError, ValueError):
            return {}  # nobody serves yet: it begins at zero
