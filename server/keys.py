"""Keys: shown once, stored as digests, each with its project, its scopes and an end."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from server.schema import Scope
from server.tables import Database, keys

PREFIX = "fleetc"


@dataclass(frozen=True)
class Principal:
    """Who asks: the key's id, its project, what it may do, and when it ends (seconds since 1970; None: never)."""

    key: str
    project: str
    scopes: frozenset[Scope]
    expires: float | None

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True)
class KeyView:
    """A key without its secret; times are seconds since 1970."""

    id: str
    name: str
    project: str
    scopes: tuple[Scope, ...]
    created: float
    expires: float | None
    revoked: float | None


def digest_of(secret: str) -> str:
    """What is stored of a secret. It has 256 random bits, so that a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(
    database: Database, name: str, *, project: str, scopes: Iterable[Scope], valid_s: float | None = None
) -> str:
    """Makes a key. Returns its text, which is not stored."""
    identity, secret, now = secrets.token_hex(6), secrets.token_urlsafe(32), time.time()
    with database.writing() as connection:
        connection.execute(
            insert(keys).values(
                id=identity,
                digest=digest_of(secret),
                name=name,
                project=project,
                scopes=sorted(scopes),
                created=now,
                expires=now + valid_s if valid_s else None,
            )
        )
    return f"{PREFIX}_{identity}_{secret}"


def find_key(database: Database, text: str) -> Principal | None:
    """Who a key's text stands for; None where it is unknown, revoked or over."""
    prefix, _, rest = text.partition("_")
    identity, _, secret = rest.partition("_")
    if prefix != PREFIX or not identity.isalnum() or not identity.isascii() or len(text) > 200:
        return None
    with database.reading() as connection:
        row = connection.execute(select(keys).where(keys.c.id == identity)).first()
    if row is None or not hmac.compare_digest(row.digest, digest_of(secret)):
        return None
    if row.revoked or (row.expires and row.expires < time.time()):
        return None
    return Principal(row.id, row.project, frozenset(map(Scope, row.scopes)), row.expires)


def list_keys(database: Database) -> tuple[KeyView, ...]:
    """Every key, the oldest first."""
    with database.reading() as connection:
        rows = connection.execute(select(keys).order_by(keys.c.created)).all()
    return tuple(
        KeyView(row.id, row.name, row.project, tuple(map(Scope, row.scopes)), row.created, row.expires, row.revoked)
        for row in rows
    )


def revoke_key(database: Database, identity: str) -> bool:
    """Ends a key now. Returns whether there is such a key."""
    with database.writing() as connection:
        done = connection.execute(
            update(keys).where(keys.c.id == identity, keys.c.revoked.is_(None)).values(revoked=time.time())
        )
        return bool(done.rowcount) or connection.execute(select(keys).where(keys.c.id == identity)).first() is not None
