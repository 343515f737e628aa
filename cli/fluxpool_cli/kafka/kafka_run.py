"""Work with Kafka under a command: whatever goes wrong ends the command with its exit code and the remedy."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiokafka.errors import AuthenticationFailedError, BrokerResponseError, KafkaError

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.kafka_target import KafkaTarget
from fluxpool_transport.dlq import ResolutionInterruptedError
from fluxpool_transport.kafka import KafkaCredentialsError, KafkaUnavailableError, TopicScanError

T = TypeVar("T")


def run_on(target: KafkaTarget, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; raises `CommandError`."""
    try:
        return asyncio.run(work)
    except (BrokerResponseError, AuthenticationFailedError) as error:
        raise CommandError(
            ExitCode.UNREACHABLE, f"Kafka at {target.servers} refuses it ({error}); check the Kafka user and its rights"
        ) from None
    except (KafkaError, KafkaUnavailableError) as error:
        raise CommandError(
            ExitCode.UNREACHABLE, f"Kafka at {target.servers} does not answer ({error}); check --bootstrap-servers"
        ) from None
    except ResolutionInterruptedError as error:
        raise CommandError(ExitCode.UNREACHABLE, str(error)) from None
    except (TopicScanError, KafkaCredentialsError) as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
