"""The route of images: their bytes, a redirect to them, or a thumbnail."""

import re
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response

from fluxpool_contract.messages import DEFAULT_TENANT, MAX_IMAGES, ImageDescription
from fluxpool_gateway.http.problem import RETRY_AFTER_SECONDS, ProblemCode, ProblemError, problems, unavailable
from fluxpool_gateway.http.request_context import ASKED_BY_HEAD, PATH
from fluxpool_gateway.http.routes import NO_STORE, READ_PROBLEMS, RequestIdInPath, Services, WithServices, matches
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.images.thumbnail import THUMBNAIL_TYPE, ThumbnailSize, UnreadableImageError
from fluxpool_gateway.tasks.lookup import RecentTask
from fluxpool_gateway.tasks.view import read_result
from fluxpool_transport.storage import ObjectStore, SignedMethod, StorageUnavailableError

# The bytes under an address never change; prompts are personal, so no shared cache keeps their images.
IMAGE_CACHE_CONTROL: Final = "private, max-age=31536000, immutable"
SIGNED_SECONDS: Final = 15 * 60
"""Long enough for a slow client that follows a redirect, short for a URL that is passed on."""
_IMAGE_INDEXES: Final = frozenset(map(str, range(MAX_IMAGES)))
_MEDIA_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/webp"})
"""Other content types are not passed on: any producer may write a result record."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OBJECT_KEY: Final = re.compile(r"[A-Za-z0-9._~/-]{1,1024}")
"""Keys as workers make them (`object_prefix`)."""

router = APIRouter()


@router.get(
    PATH + "/{request_id}/images/{index}",
    response_class=Response,
    summary="One image",
    responses={
        302: {
            "description": "The image is there, for 15 minutes.",
            "headers": {"Location": {"description": "A signed URL.", "schema": {"type": "string"}}},
        },
        200: {"content": {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}},
        304: {"description": "The image is the one that `If-None-Match` names."},
        **problems(
            {
                409: "The task is not finished (`not_finished`), ended without images (`no_images`), or the image "
                "has no thumbnail (`image_unreadable`).",
                422: "There are no thumbnails of this size; `errors` names the sizes.",
                **READ_PROBLEMS,
            }
        ),
    },
    **requires(KeyScope.READ),
)
async def get_image(
    request_id: RequestIdInPath,
    index: Annotated[str, Path(description="Number of the image.", json_schema_extra={"pattern": "^[0-7]$"})],
    request: Request,
    services: WithServices,
    caller: WithCaller,
    *,
    thumb: Annotated[
        ThumbnailSize | None,
        Query(description="A WebP file instead whose longer side has at most so many pixels, never a redirect."),
    ] = None,
) -> Response:
    """The file exactly as the worker stored it, or a redirect to it where the gateway has an `image_endpoint_url`."""
    image = await _described(services, caller, request_id=request_id, index=index)
    if not _may_read(image.object, caller, request_id):
        raise _not_stored(request_id, index)
    if thumb is None and services.signer is not None:
        # What is signed for one method is refused for another.
        method: SignedMethod = "HEAD" if request.scope.get(ASKED_BY_HEAD) else "GET"
        return await _redirect(services.signer, image.object, method=method)
    headers = {"cache-control": IMAGE_CACHE_CONTROL, "x-content-type-options": "nosniff"}
    if _SHA256.fullmatch(image.sha256):
        etag = headers["etag"] = f'"{image.sha256}"' if thumb is None else f'"{image.sha256}-{thumb}"'
        if matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)

    async def read() -> bytes:
        payload = await stored_image(services.objects, image.object, caller, request_id=request_id)
        if payload is None:
            raise _not_stored(request_id, index)
        return payload

    if thumb is not None:
        try:
            small = await services.thumbnails.make(read, thumb)
        except UnreadableImageError as error:
            detail = f"image {index} of task {request_id} {error}; fetch it without thumb"
            raise ProblemError(ProblemCode.IMAGE_UNREADABLE, detail) from error
        return Response(small, media_type=THUMBNAIL_TYPE, headers=headers)
    payload = await read()
    media_type = image.content_type if image.content_type in _MEDIA_TYPES else "application/octet-stream"
    return Response(payload, media_type=media_type, headers=headers)


async def _described(services: Services, caller: Caller, *, request_id: str, index: str) -> ImageDescription:
    """The image as the result of its task has it; raises `ProblemError` where there is none."""
    if index not in _IMAGE_INDEXES:
        raise ProblemError(ProblemCode.NOT_FOUND, f"images are numbered from 0 to {MAX_IMAGES - 1}")
    found = await services.lookup.find(request_id, caller)
    if isinstance(found, RecentTask) or found.result is None:
        raise ProblemError(
            ProblemCode.NOT_FINISHED,
            f"task {request_id} is not finished; retry later",
            headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
        )
    result = read_result(found)
    if result is None:
        raise ProblemError(ProblemCode.NOT_FOUND, f"the result of task {request_id} cannot be read")
    if not result.images:
        raise ProblemError(ProblemCode.NO_IMAGES, f"task {request_id} {found.status} and has no images")
    image = next((image for image in result.images if str(image.index) == index), None)
    if image is None:
        detail = f"task {request_id} has no image {index}, only 0 to {len(result.images) - 1}"
        raise ProblemError(ProblemCode.NOT_FOUND, detail)
    return image


async def stored_image(objects: ObjectStore, key: str, caller: Caller, *, request_id: str) -> bytes | None:
    """The object of a task; None when it does not exist, or the caller may not read it; raises `ProblemError` (503)."""
    if not _may_read(key, caller, request_id):
        return None
    try:
        return await objects.get(key)
    except StorageUnavailableError as error:
        raise _unreadable() from error


def _may_read(key: str, caller: Caller, request_id: str) -> bool:
    """Whether a worker makes such keys, and in a folder of the caller's tenant: results are any producer's."""
    parts = key.split("/")
    if not _OBJECT_KEY.fullmatch(key) or not {"", ".", ".."}.isdisjoint(parts):
        return False
    # Objects lie in a folder of their tenant (`object_prefix`): a false result must not lead into another's.
    if caller.sees_only in {None, parts[0]}:
        return True
    # Workers without the keys that prove tenants store all images in this folder; a task's id is its folder's name.
    return parts[0] == DEFAULT_TENANT and parts[-2:-1] != [] and parts[-2].partition("~")[0] == request_id


async def _redirect(signer: ObjectStore, key: str, *, method: SignedMethod) -> Response:
    try:
        url = await signer.signed_url(key, valid_seconds=SIGNED_SECONDS, method=method)
    except StorageUnavailableError as error:
        raise _unreadable() from error
    return Response(status_code=HTTPStatus.FOUND, headers={**NO_STORE, "location": url})


def _not_stored(request_id: str, index: str) -> ProblemError:
    return ProblemError(ProblemCode.NOT_FOUND, f"image {index} of task {request_id} is not stored, or no longer")


def _unreadable() -> ProblemError:
    return unavailable(ProblemCode.STORAGE_FAILED, "the image cannot be read at the moment; retry")
