"""Prefect's leases on concurrency limits, in its server's PostgreSQL: a server that starts again still knows them.

    PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=flows.leases prefect server start

By default they are in the server's memory. A run whose lease is gone is ended when it renews it, within four minutes: a
restart of seconds would end every run whose deployment is limited. On SQLite take Prefect's own
`prefect.server.concurrency.lease_storage.filesystem`, which needs a folder that stays; a container has none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from prefect.server.concurrency.lease_storage import ConcurrencyLeaseStorage as Storage
from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata
from prefect.server.utilities.leasing import ResourceLease
from prefect.settings.context import get_current_settings
from prefect.types._concurrency import ConcurrencyLeaseHolder
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

Lease = ResourceLease[ConcurrencyLimitLeaseMetadata]

LEASES = sa.Table(
    "ecg_prefect_leases",
    sa.MetaData(),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("expires", sa.DateTime(timezone=True), nullable=False, index=True),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Column("limits", JSONB, nullable=False),  # ids
    sa.Column("metadata", JSONB),
)
ALL = 1000  # more holders of one limit are not listed

_made: set[str] = set()  # addresses of databases that have the table


class ConcurrencyLeaseStorage(Storage):
    """What Prefect asks of a module of leases (`prefect.server.concurrency.lease_storage`).

    Raises:
        ValueError: the server's database is not PostgreSQL. SQLite lets one write at a time, and a lease is made in the
            middle of the server's own.
    """

    def __init__(self) -> None:
        address = get_current_settings().server.database.connection_url
        url = sa.make_url(address.get_secret_value() if address else "sqlite://")
        if url.get_backend_name() != "postgresql":
            raise ValueError(
                f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: flows.leases keeps leases in PostgreSQL, found "
                f"{url.get_backend_name()}; expected prefect.server.concurrency.lease_storage.filesystem"
            )
        self._url = url

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of its own: one out of the server's pool could wait for the request that waits for it."""
        engine = create_async_engine(self._url, poolclass=sa.NullPool)
        try:
            async with engine.begin() as connection:
                if str(self._url) not in _made:
                    # Of several servers that start at once, one makes it.
                    await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('ecg_prefect_leases'))"))
                    await connection.run_sync(LEASES.metadata.create_all)
                yield connection
            _made.add(str(self._url))
        finally:
            await engine.dispose()

    async def create_lease(
        self, resource_ids: list[UUID], ttl: timedelta, metadata: ConcurrencyLimitLeaseMetadata | None = None
    ) -> Lease:
        lease = ResourceLease(resource_ids=resource_ids, metadata=metadata, expiration=datetime.now(UTC) + ttl)
        row = {
            "id": lease.id,
            "expires": lease.expiration,
            "created": lease.created_at,
            "limits": [str(one) for one in resource_ids],
            "metadata": None if metadata is None else metadata.model_dump(mode="json"),
        }
        async with self._connection() as connection:
            await connection.execute(sa.insert(LEASES).values(row))
        return lease

    async def read_lease(self, lease_id: UUID) -> Lease | None:
        async with self._connection() as connection:
            found = (await connection.execute(sa.select(LEASES).where(LEASES.c.id == lease_id))).mappings().first()
        return None if found is None else _lease(dict(found))

    async def renew_lease(self, lease_id: UUID, ttl: timedelta) -> bool:
        renewed = sa.update(LEASES).where(LEASES.c.id == lease_id).values(expires=datetime.now(UTC) + ttl)
        async with self._connection() as connection:
            return (await connection.execute(renewed)).rowcount == 1

    async def revoke_lease(self, lease_id: UUID) -> None:
        async with self._connection() as connection:
            await connection.execute(sa.delete(LEASES).where(LEASES.c.id == lease_id))

    async def read_active_lease_ids(self, limit: int = 100, offset: int = 0) -> list[UUID]:
        chosen = (
            sa.select(LEASES.c.id).where(LEASES.c.expires > datetime.now(UTC)).order_by(LEASES.c.created, LEASES.c.id)
        )
        async with self._connection() as connection:
            return list((await connection.scalars(chosen.limit(limit).offset(offset))).all())

    async def read_expired_lease_ids(self, limit: int = 100) -> list[UUID]:
        chosen = sa.select(LEASES.c.id).where(LEASES.c.expires < datetime.now(UTC)).order_by(LEASES.c.expires)
        async with self._connection() as connection:
            return list((await connection.scalars(chosen.limit(limit))).all())

    async def list_holders_for_limit(self, limit_id: UUID) -> list[tuple[UUID, ConcurrencyLeaseHolder]]:
        chosen = sa.select(LEASES).where(
            LEASES.c.expires > datetime.now(UTC), LEASES.c.limits.contains([str(limit_id)])
        )
        async with self._connection() as connection:
            found = (await connection.execute(chosen.limit(ALL))).mappings().all()
        leases = [_lease(dict(row)) for row in found]
        return [(one.id, one.metadata.holder) for one in leases if one.metadata and one.metadata.holder]


def _lease(row: dict[str, Any]) -> Lease:
    kept = row["metadata"]
    return ResourceLease(
        id=row["id"],
        resource_ids=[UUID(one) for one in row["limits"]],
        metadata=None if kept is None else ConcurrencyLimitLeaseMetadata.model_validate(kept),
        expiration=row["expires"],
        created_at=row["created"],
    )
