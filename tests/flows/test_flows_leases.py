"""Prefect's leases in PostgreSQL: what the server makes in one life it renews, lists and ends in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
from prefect.server.concurrency.lease_storage import (
    ConcurrencyLeaseHolder,
    ConcurrencyLimitLeaseMetadata,
    get_concurrency_lease_storage,
)
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE
from prefect.settings.context import temporary_settings
from servers import make_database, postgresql

MINUTE, OVER = timedelta(minutes=1), timedelta(seconds=-1)


def served_from(address: str) -> temporary_settings:
    """Prefect's server as it is told to keep its leases here."""
    return temporary_settings(
        {PREFECT_API_DATABASE_CONNECTION_URL: address, PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: "flows.leases"}
    )


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgresql() as address:
        yield make_database(address, "prefect").replace("postgresql://", "postgresql+asyncpg://")


@pytest.mark.slow  # starts PostgreSQL
def test_a_server_that_starts_again_knows_its_leases(database: str) -> None:
    limit, other = uuid4(), uuid4()
    holder = ConcurrencyLeaseHolder(type="flow_run", id=uuid4())
    held = ConcurrencyLimitLeaseMetadata(slots=1, holder=holder)

    async def first_life() -> tuple:
        storage = get_concurrency_lease_storage()
        made = await asyncio.gather(*(storage.create_lease([limit, other], MINUTE, held) for _ in range(8)))
        over = await storage.create_lease([limit], OVER, held)
        bare = await storage.create_lease([other], MINUTE)
        return [one.id for one in made], over.id, bare.id

    async def second_life(made: list, over: object, bare: object) -> None:
        storage = get_concurrency_lease_storage()
        kept = await storage.read_lease(made[0])
        assert (kept.resource_ids, kept.metadata, kept.id) == ([limit, other], held, made[0])
        assert (await storage.read_lease(bare)).metadata is None
        assert set(await storage.read_active_lease_ids()) == {*made, bare}
        assert len(await storage.read_active_lease_ids(limit=5, offset=7)) == 2
        assert await storage.read_expired_lease_ids() == [over]
        assert sorted(await storage.list_holders_for_limit(limit)) == sorted((one, holder) for one in made)
        assert len(await storage.list_holders_for_limit(other)) == len(made)  # one has no holder
        assert await storage.renew_lease(over, MINUTE) is True  # as Prefect's own: late, but nobody took it away
        assert await storage.read_expired_lease_ids() == []
        await storage.revoke_lease(over)
        assert await storage.renew_lease(over, MINUTE) is False
        assert await storage.read_lease(over) is None
        await storage.revoke_lease(over)  # again without harm

    with served_from(database):
        lives = asyncio.run(first_life())
        asyncio.run(second_life(*lives))


def test_sqlite_is_refused() -> None:
    with (
        served_from("sqlite+aiosqlite:////tmp/x.db"),
        pytest.raises(ValueError, match=r"found sqlite; expected prefect\.server.*filesystem"),
    ):
        get_concurrency_lease_storage()
