"""The OpenAPI document of the routes, without a gateway that runs: for `fluxpool schema` and the reference."""

from typing import Any, Final

from fluxpool_gateway.http.app import build_application
from fluxpool_gateway.settings import GatewaySettings

_UNUSED: Final = {
    "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
    "FLUXPOOL_STORAGE_URL": "file:///nonexistent/",
    "FLUXPOOL_DATABASE_FILE": "/nonexistent/gateway.db",
}
"""Settings without a default; the routes are the same with any, and nothing is opened before the application starts."""


def openapi_document() -> dict[str, Any]:
    """As `/openapi.json` of a gateway of this release."""
    return build_application(GatewaySettings.from_environment(_UNUSED), on_failure=lambda: None).openapi()
