"""Images of a gateway whose clients reach the object store themselves, on a real S3 API."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from fluxpool_contract.messages.result import GenerationResult
from fluxpool_gateway.images.routes import SIGNED_SECONDS
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.task_state import TaskSeen
from fluxpool_transport.storage.object_store import open_object_store
from kit.gateways.keyed_gateway import IMAGE, Gateway, keyed_gateway, keyed_settings, succeeded
from kit.stores.s3 import S3Service, running_s3, signature_of

PATH = "/v1/generations/r-1"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Service]:
    with running_s3() as service:
        service.create_bucket("images")
        yield service


@pytest.fixture
async def gateway(tmp_path: Path, s3: S3Service) -> AsyncIterator[Gateway]:
    settings = keyed_settings(tmp_path).model_copy(
        update={
            "storage": s3.settings("images", prefix=tmp_path.name),
            "image_endpoint_url": s3.endpoint_url.replace("127.0.0.1", "localhost"),
        }
    )
    async with keyed_gateway(settings) as running:
        end = succeeded("r-1", "default")
        (image,) = GenerationResult.model_validate_json(end.body).images
        await open_object_store(settings.storage).put_if_absent(image.object, IMAGE, content_type="image/png")
        running.project(
            TaskSeen(request_id="r-1", tenant="default", body="{}", priority="standard", created_at_ms=1), end
        )
        yield running


async def test_an_image_is_a_redirect_to_the_address_that_clients_reach(gateway: Gateway) -> None:
    answer = await gateway.one.ask("GET", f"{PATH}/images/0", gateway.admin)
    assert (answer.status_code, answer.headers["cache-control"]) == (302, "no-store")
    location = httpx.URL(answer.headers["location"])
    assert (location.host, location.params["X-Amz-Expires"]) == ("localhost", str(SIGNED_SECONDS))
    async with httpx.AsyncClient() as client:
        fetched = await client.get(location)
    assert (fetched.status_code, fetched.content) == (200, IMAGE)


async def test_head_of_an_image_is_a_redirect_to_an_address_that_is_signed_for_head(gateway: Gateway) -> None:
    answer = await gateway.one.ask("HEAD", f"{PATH}/images/0", gateway.admin)
    assert (answer.status_code, answer.headers["cache-control"]) == (302, "no-store")
    settings = gateway.settings
    signed = httpx.URL(answer.headers["location"])
    public = settings.storage.model_copy(update={"endpoint_url": settings.image_endpoint_url})
    assert signed.params["X-Amz-Signature"] == signature_of(signed, public, "HEAD")
    async with httpx.AsyncClient() as client:
        asked = await client.head(signed)
    assert (asked.status_code, asked.headers["content-length"]) == (200, str(len(IMAGE)))


async def test_a_thumbnail_is_never_a_redirect(gateway: Gateway) -> None:
    answer = await gateway.one.ask("GET", f"{PATH}/images/0?thumb=256", gateway.admin)
    # `IMAGE` is no picture: it was read, and not redirected to.
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "image_unreadable")


async def test_nothing_is_signed_for_another_tenant_or_outside_its_folder(gateway: Gateway) -> None:
    other = await gateway.create(tenant="other")
    assert (await gateway.one.ask("GET", f"{PATH}/images/0", other)).status_code == 404
    assert (await gateway.one.ask("GET", f"{PATH}/images/1", gateway.admin)).status_code == 404
    gateway.project(succeeded("r-2", "other", object_key="default/2026/04/05/r-1/0.png"))
    assert (await gateway.one.ask("GET", "/v1/generations/r-2/images/0", other)).status_code == 404


def test_a_folder_cannot_be_the_store_of_signed_addresses(tmp_path: Path) -> None:
    known = keyed_settings(tmp_path).model_dump(exclude_unset=True) | {"image_endpoint_url": "https://s3.example.com"}
    with pytest.raises(ValidationError, match=r"image_endpoint_url: a folder has no signed URLs; remove it"):
        GatewaySettings.model_validate(known)
