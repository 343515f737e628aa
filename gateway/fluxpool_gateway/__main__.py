"""`python -m fluxpool_gateway`: one gateway, told what to do by `FLUXPOOL_*` variables, until SIGTERM."""

import os
import sys

from fluxpool_contract.settings import SettingsError
from fluxpool_gateway.process.child import EXIT_CONFIGURATION
from fluxpool_gateway.process.supervisor import serve
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_transport.kafka import KafkaCredentialsError, librdkafka_options
from fluxpool_transport.process import configure_logging
from fluxpool_transport.storage import StorageUnavailableError, open_object_store


def main() -> int:
    """Run the gateway; returns its exit status, 2 when the settings are wrong."""
    try:
        settings = GatewaySettings.from_environment(os.environ)
        # Said here once and plainly, rather than by every child.
        librdkafka_options(settings.kafka, client_id="settings-check")
        open_object_store(settings.storage)
    except (SettingsError, KafkaCredentialsError, StorageUnavailableError) as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    configure_logging(service="gateway")
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
