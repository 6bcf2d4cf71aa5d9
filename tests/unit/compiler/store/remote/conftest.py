"""The three kinds of shared cache, for real: a folder, a server process, and S3 as moto speaks it."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from compiler.store import Stage, Store
from compiler.store.keys import PrivateKey, PublicKey, generate_key, write_key_pair
from compiler.store.remote import FolderBlobs, Kind, RemoteStore, open_blobs
from compiler.store.remote.blobs import write_bytes
from compiler.store.remote.objects import ObjectBlobs

STAGE = Stage("compile", (("model", "a" * 64), ("options", "{}")))
BUCKET = "cache"


@dataclass(frozen=True)
class Cache:
    """A shared cache, and the key of whoever signs its entries.

    Args:
        url: Its address.
        key: Signs its entries.
        behind: The bytes behind everybody's back.
        server_signs: Whether its server signs, and not who writes.
    """

    url: str
    key: PrivateKey
    behind: FolderBlobs | ObjectBlobs
    server_signs: bool = False

    def writer(self) -> RemoteStore:
        """Who offers what it finishes."""
        key = None if self.server_signs else self.key
        return RemoteStore(open_blobs(self.url), trusted=[self.key.public], pushes=True, key=key, builder="writer")

    def reader(self, *trusted: PublicKey) -> RemoteStore:
        """Who uses what these keys have signed; those of the cache's own key by default."""
        return RemoteStore(open_blobs(self.url), trusted=trusted or (self.key.public,))

    def replace(self, kind: Kind, digest: str, content: bytes) -> None:
        """Puts other bytes there."""
        write_bytes(self.behind, kind, digest, content, replace=True)

    def remove(self, kind: Kind, digest: str) -> None:
        """Evicts something."""
        if isinstance(self.behind, FolderBlobs):
            self.behind.path(kind, digest).unlink()
        else:
            self.behind._store.delete(f"{kind}/{digest}")


@pytest.fixture(scope="session")
def key() -> PrivateKey:
    pytest.importorskip("cryptography", reason="needs the extra trust")
    return generate_key()


@pytest.fixture(scope="session")
def served(key: PrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server that signs."""
    for package in ("uvicorn", "urllib3"):
        pytest.importorskip(package, reason=f"needs {package}")
    folder = tmp_path_factory.mktemp("served")
    write_key_pair(key, folder / "key.pem")
    command = [
        sys.executable,
        str(Path(__file__).with_name("serve.py")),
        str(folder / "blobs"),
        str(folder / "key.pem"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", folder / "blobs"
        process.stdin.close()  # type: ignore[union-attr]  # a pipe was asked for


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    """moto's S3, in the environment that obstore looks at."""
    for package in ("obstore", "moto", "flask", "boto3"):
        pytest.importorskip(package, reason=f"needs {package}")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT": f"http://{host}:{port}",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
        yield
    server.stop()


@pytest.fixture(params=["folder", "http", "s3"])
def cache(request: pytest.FixtureRequest, key: PrivateKey, tmp_path: Path) -> Cache:
    """An empty shared cache of each kind."""
    if request.param == "folder":
        (tmp_path / "share").mkdir()
        return Cache(f"file://{tmp_path}/share", key, FolderBlobs(tmp_path / "share"))
    if request.param == "http":
        url, folder = request.getfixturevalue("served")
        for path in list(folder.rglob("*")):
            if path.is_file():
                path.unlink()
        return Cache(url, key, FolderBlobs(folder), server_signs=True)
    request.getfixturevalue("s3")
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    return Cache(url, key, ObjectBlobs(url))


@pytest.fixture
def store_of(tmp_path: Path) -> Callable[[RemoteStore | None], Store]:
    """An empty store on a machine of its own."""
    return lambda remote: Store(tmp_path / uuid.uuid4().hex, remote=remote)
