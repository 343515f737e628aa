"""Webhooks as the servers and the dispatcher use them: whole transactions, from an event loop.

Every method raises `WebhooksUnavailableError`.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from fluxpool_gateway.webhooks import deliveries, delivery_log, endpoints
from fluxpool_gateway.webhooks.database import THREADS, WebhookDatabase
from fluxpool_gateway.webhooks.deliveries import Claim, Settlement
from fluxpool_gateway.webhooks.delivery_log import Delivery, DeliveryPage, QueueNumbers
from fluxpool_gateway.webhooks.dispatch.sending import AttemptError
from fluxpool_gateway.webhooks.endpoints import Endpoint
from fluxpool_gateway.webhooks.requested.endpoints import rotate_requested, use_requested
from fluxpool_gateway.webhooks.secret_box import SecretBox
from fluxpool_gateway.webhooks.signing import Secret, new_secret

T = TypeVar("T")

EndpointChange = Callable[[Endpoint], Endpoint]


class WebhookStore:
    """The webhooks of every tenant; close it at the end."""

    def __init__(self, database: Path | str, *, durable: bool = True, box: SecretBox | None = None) -> None:
        """Opens nothing yet; `database.prepare_webhooks` made it. For `durable` see `WebhookDatabase`."""
        self.box = box or SecretBox()
        """Encrypts and decrypts the secrets, which endpoints have in the form in which they are stored."""
        self._database = WebhookDatabase(database, durable=durable)
        self._executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="webhooks")

    async def add(self, endpoint: Endpoint) -> None:
        """Add an endpoint; raises `TooManyEndpointsError`."""
        await self.write(lambda connection: endpoints.add_endpoint(connection, endpoint))

    async def use_requested(self, tenant: str, url: str, *, now_ms: int) -> None:
        """Have an endpoint for the webhooks of requests; raises `TooManyEndpointsError`."""
        first = self.box.seal(new_secret())
        await self.write(partial(use_requested, tenant=tenant, url=url, new_secret=first, now_ms=now_ms))

    async def rotate_requested(self, tenant: str, secret: str, *, now_ms: int, overlap_ms: int) -> Sequence[Secret]:
        """Replace the secret of the webhooks of the tenant's requests; returns those that are valid then."""
        stored = self.box.seal(secret)
        rotate = partial(rotate_requested, tenant=tenant, secret=stored, now_ms=now_ms, overlap_ms=overlap_ms)
        return await self.write(rotate)

    async def endpoints(self, tenant: str) -> Sequence[Endpoint]:
        """Those of a tenant, the oldest first."""
        return await self.read(lambda connection: endpoints.list_endpoints(connection, tenant))

    async def find(self, tenant: str, endpoint_id: str) -> Endpoint | None:
        """The tenant's endpoint with this id."""
        return await self.read(lambda connection: endpoints.find_endpoint(connection, tenant, endpoint_id))

    async def change(self, tenant: str, endpoint_id: str, change: EndpointChange, *, now_ms: int) -> Endpoint | None:
        """Replace the tenant's endpoint by what `change` makes of it; None where there is none.

        What waits for one that is disabled is given up; where the address changed it is attempted now.
        """

        def work(connection: Connection) -> Endpoint | None:
            found = endpoints.find_endpoint(connection, tenant, endpoint_id, lock=True)
            if found is None:
                return None
            changed = change(found)
            if changed.enabled and not found.enabled:
                changed = replace(changed, disabled_because=None, told_from_ms=now_ms)
            endpoints.save_endpoint(connection, changed)
            if not changed.enabled:
                deliveries.give_up_pending(connection, endpoint_id, AttemptError.DISABLED, now_ms=now_ms)
            elif changed.url != found.url:
                deliveries.hasten(connection, endpoint_id, now_ms=now_ms)
            return changed

        return await self.write(work)

    async def delete(self, tenant: str, endpoint_id: str) -> bool:
        """Delete an endpoint with its deliveries; whether there was one."""
        return await self.write(lambda connection: endpoints.delete_endpoint(connection, tenant, endpoint_id))

    async def test(self, tenant: str, endpoint_id: str, *, now_ms: int) -> tuple[Endpoint | None, Delivery | None]:
        """Queue a test; the endpoint, and the delivery unless it is disabled."""

        def work(connection: Connection) -> tuple[Endpoint | None, Delivery | None]:
            found = endpoints.find_endpoint(connection, tenant, endpoint_id, lock=True)
            if found is None or not found.enabled:
                return found, None
            delivery_id = deliveries.enqueue_test(connection, found, now_ms=now_ms)
            return found, delivery_log.find_delivery(connection, tenant, delivery_id)

        return await self.write(work)

    async def redeliver(self, tenant: str, delivery_id: str, *, now_ms: int) -> tuple[Endpoint | None, Delivery | None]:
        """Queue a delivery again; its endpoint, and the delivery unless that is disabled."""

        def work(connection: Connection) -> tuple[Endpoint | None, Delivery | None]:
            delivery = delivery_log.find_delivery(connection, tenant, delivery_id)
            if delivery is None:
                return None, None
            found = endpoints.find_endpoint(connection, tenant, delivery.endpoint_id, lock=True)
            if found is None or not found.enabled:
                return found, None
            deliveries.redeliver(connection, delivery_id, found, now_ms=now_ms)
            return found, delivery_log.find_delivery(connection, tenant, delivery_id)

        return await self.write(work)

    async def delivery(self, tenant: str, delivery_id: str) -> Delivery | None:
        """The tenant's delivery with this id, with its attempts and its message."""
        return await self.read(lambda connection: delivery_log.find_delivery(connection, tenant, delivery_id))

    async def deliveries(self, endpoint_id: str, *, before: int | None, limit: int) -> DeliveryPage:
        """Deliveries to an endpoint, the newest first."""
        list_page = partial(delivery_log.list_deliveries, endpoint_id=endpoint_id, before=before, limit=limit)
        return await self.read(list_page)

    async def numbers(self) -> QueueNumbers:
        """What the metrics tell."""
        return await self.read(delivery_log.read_numbers)

    async def claim(self, *, suspects: bool, limit: int, now_ms: int) -> Sequence[Claim]:
        """Lease endpoints with a delivery that is due."""
        return await self.write(partial(deliveries.claim, suspects=suspects, limit=limit, now_ms=now_ms))

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Claim | None]:
        """Save what came of attempts, in one transaction. Blocks, for `store.batches`."""
        return self._database.write(partial(deliveries.settle, settlements=settlements))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of a transaction that reads."""
        return await self._in_thread(partial(self._database.read, work))

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of a transaction."""
        return await self._in_thread(partial(self._database.write, work))

    def close(self) -> None:
        """End the threads and the connections."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._database.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
