"""Run in an environment with goosebit: its server gets an image, and a device that polls it as hawkBit's devices do.

goosebit_device.py IMAGE BOARD prints one line of JSON: the status for a file that is no image, the digest of what the
device got, and its state at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import httpx
from goosebit import app  # type: ignore[import-not-found]  # it is in that environment alone
from goosebit.db.config import TORTOISE_CONF  # type: ignore[import-not-found]
from goosebit.db.models import Device  # type: ignore[import-not-found]
from goosebit.users import create_user  # type: ignore[import-not-found]
from tortoise import Tortoise  # type: ignore[import-not-found]

DEVICE = "/DEFAULT/controller/v1/d1"


async def main(image: Path, board: str) -> dict[str, Any]:
    """Uploads, assigns, polls, fetches and reports."""
    await Tortoise.init(config=TORTOISE_CONF)
    await Tortoise.generate_schemas()
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://goosebit") as web,
    ):
        await create_user("admin", "secret", ["*"])
        login = await web.post("/login", data={"username": "admin", "password": "secret"})
        web.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
        refused = await web.put("/api/v1/software", files={"file": ("build.tar", b"artifact/" + bytes(600))})
        taken = await web.put("/api/v1/software", files={"file": (image.name, image.read_bytes())})
        taken.raise_for_status()
        rollout = {"name": "v2", "feed": "default", "software_id": taken.json()["id"]}
        (await web.put("/api/v1/rollouts", json=rollout)).raise_for_status()
        del web.headers["Authorization"]
        await web.get(DEVICE)  # the first poll registers it
        facts = {"hw_boardname": board, "hw_revision": "1", "sw_version": "0.0.0"}
        (await web.put(f"{DEVICE}/configData", json={"data": facts})).raise_for_status()
        place = (await web.get(DEVICE)).json()["_links"]["deploymentBase"]["href"]
        (chunk,) = (await web.get(place)).json()["deployment"]["chunks"]
        fetched = await web.get(chunk["artifacts"][0]["_links"]["download"]["href"])
        status = {"execution": "closed", "result": {"finished": "success"}}
        (await web.post(f"{place}/feedback", json={"status": status})).raise_for_status()
        state = (await Device.get(id="d1")).last_state
        return {"refused": refused.status_code, "sha1": hashlib.sha1(fetched.content).hexdigest(), "state": state.name}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))) + "\n")
