"""The tables of the server: the truth about jobs, whatever becomes of workers and of the engine.

SQLite in the data folder, or PostgreSQL by URL. One server at a time: it takes a lock when it opens the database.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from compiler.errors import ServerError, StorageError

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("project", String(32), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("project", String(32), nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("fleet", String(100), nullable=False),
    Column("request", Text, nullable=False),
    Column("request_digest", String(64), nullable=False),
    Column("idempotency_key", String(200)),
    Column("created", Float, nullable=False),
    Column("finished", Float),
    Column("priority", Integer, nullable=False, default=0),
    Column("deadline_running_s", Float),
    Column("deadline_queued_s", Float),
    Column("cancel_requested", Float),
    Column("pinned", Boolean, nullable=False, default=False),
    Column("emptied", Float),
    UniqueConstraint("project", "idempotency_key"),
)

devices = Table(
    "devices",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("place", Integer, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("waiting_for", JSON, nullable=False),
    Column("state", String(24), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("losses", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("worker", String(200), nullable=False, default=""),
    Column("stage", String(40), nullable=False, default=""),
    Column("done", Integer, nullable=False, default=0),
    Column("total", Integer, nullable=False, default=0),
    Column("seconds", Float),
    Column("exit_code", Integer),
    Column("error", JSON),
    Column("figures", JSON),
    Column("manifest", String(64), nullable=False, default=""),
    Column("size", Integer, nullable=False, default=0),
    Column("finished", Float),
    Column("original", String(16), nullable=False, default="", server_default=""),
    Column("not_on", String(200), nullable=False, default="", server_default=""),
    Index("devices_by_state", "state"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("job", String(16), nullable=False),
    Column("device", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("worker", String(200), nullable=False),
    Column("token_digest", String(64), nullable=False),
    Column("state", String(24), nullable=False),
    Column("started", Float, nullable=False),
    Column("heard", Float, nullable=False),
    Column("finished", Float),
    Column("artifact", String(64), nullable=False, default=""),
    UniqueConstraint("job", "device", "number"),
    Index("attempts_by_state", "state"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("device", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("text", Text, nullable=False),
    Index("events_by_job", "job", "id"),
)

_ADVISORY_LOCK = 0x666C6565
"""Number of the lock that a server holds in PostgreSQL; any number will do that nobody else takes ("flee")."""


@dataclass
class Database:
    """An open database, which this process alone writes.

    Args:
        engine: SQLAlchemy's.
        held: What keeps other servers away: closed with the database.
    """

    engine: Engine
    held: list[Any] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction. One at a time, so that the ids of events are seen in their order.

        Raises:
            StorageError: The disk is full, or the database is gone.
        """
        with self._lock, _named_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read by.

        Raises:
            StorageError: The database is gone.
        """
        with _named_errors(), self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Lets go of the database and of what keeps others away."""
        for handle in self.held:
            handle.close()
        self.engine.dispose()


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise StorageError(
            f"the database cannot be used: {error.orig}",
            where="table of jobs",
            remedy="Free space where the data folder is, or see that the database runs.",
        ) from error


def open_database(url: str, folder: Path) -> Database:
    """Opens the database and makes the tables that are missing.

    Args:
        url: SQLAlchemy's URL of a PostgreSQL database; empty for SQLite in the data folder.
        folder: The data folder, which must be there.

    Raises:
        ServerError: It cannot be reached, or another server uses it or the data folder.
    """
    try:
        with ExitStack() as undone:  # closes what was opened unless all of it could be
            lock = undone.enter_context(_lock_folder(folder))
            engine = create_engine(_driver(url), pool_size=20, max_overflow=40) if url else _sqlite(folder)
            undone.callback(engine.dispose)
            held = [lock, undone.enter_context(_lock_server(engine))] if url else [lock]
            metadata.create_all(engine)
            _add_columns(engine)
            undone.pop_all()
    except SQLAlchemyError as error:
        raise ServerError(
            f"the database cannot be opened: {getattr(error, 'orig', None) or error}",
            where=url.partition("@")[2] or str(folder),
            remedy="A URL is postgresql://USER:PASSWORD@HOST/DATABASE.",
        ) from error
    return Database(engine, held)


def _add_columns(engine: Engine) -> None:
    """Columns that an older server's tables do not have."""
    for table in metadata.sorted_tables:
        present = {column["name"] for column in inspect(engine).get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                definition = CreateColumn(column).compile(engine)
                with engine.begin() as connection:
                    connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


def _driver(url: str) -> str:
    """The same URL for the driver that the extra `server` installs."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _sqlite(folder: Path) -> Engine:
    engine = create_engine(f"sqlite:///{folder / 'jobs.sqlite'}", pool_size=20, max_overflow=40)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # after a power cut the last transactions may be missing, and nothing else: a job is then submitted again
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA busy_timeout=10000")

    return engine


_RELEASE_S = 5.0
"""How long PostgreSQL may take to see that an earlier server's connection is closed, and to let go of its lock."""


def _lock_folder(folder: Path) -> Any:
    """Holds the data folder; the text in the file tells another server who has it."""
    file = (folder / "server.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ServerError(
            f"a server uses this folder already: {holder}",
            where=str(folder),
            remedy="Stop it, or give this one a folder of its own with --data.",
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _lock_server(engine: Engine) -> Connection:
    connection, deadline = engine.connect(), time.monotonic() + _RELEASE_S
    while not _is_locked(connection):
        if time.monotonic() < deadline:
            time.sleep(0.1)
            continue
        connection.close()
        raise ServerError(
            "a server uses this database already",
            where=engine.url.render_as_string(hide_password=True),
            remedy="Stop it, or give this one a database of its own.",
        )
    connection.commit()
    return connection


def _is_locked(connection: Connection) -> bool:
    locked = connection.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": _ADVISORY_LOCK}).scalar()
    return bool(locked)
