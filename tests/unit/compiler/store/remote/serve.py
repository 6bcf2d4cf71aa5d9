"""A server of the cache protocol as a process: serves a folder, prints its port, ends with its standard input."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import uvicorn

from compiler.store.keys import read_private_key
from compiler.store.remote import FolderBlobs
from compiler.store.remote.handler import CacheApp


class Server(uvicorn.Server):
    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        sys.stdout.write(f"{self.servers[0].sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()


def main(folder: Path, key: Path) -> None:
    app = CacheApp(FolderBlobs(folder), read_private_key(key), builder_of=lambda scope: "the test's server")
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", timeout_keep_alive=60)).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
