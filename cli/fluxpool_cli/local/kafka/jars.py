"""Finds the Apache Kafka jars: a folder named by the user, else the cache, which is filled when it is empty.

Owns the rule that maps `hack/kafka/pom.xml` to a cache folder (the same rule as in `hack/kafka/fetch`). Knows nothing
of brokers.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT_VARIABLE = "FLUXPOOL_KAFKA_LIBS"
_CHECKOUT = Path(__file__).resolve().parents[4]
_REMEDY = (
    f"set {ENVIRONMENT_VARIABLE} to the libs folder of an unpacked Apache Kafka 4.x, "
    "or use a running Kafka with --bootstrap-servers"
)


class KafkaJarsError(Exception):
    """There are no jars and they cannot be fetched; the message says what to do."""


def provide_kafka_libs(
    *, environment: Mapping[str, str] = os.environ, checkout: Path = _CHECKOUT, fetch_seconds: float = 600
) -> Path:
    """Return the folder with the Kafka jars, fetching them first when they are missing (blocks, 6 s and more).

    `FLUXPOOL_KAFKA_LIBS` wins; else the cache folder belonging to the checkout's `hack/kafka/pom.xml`. Raises
    `KafkaJarsError` when the named folder holds no Kafka, outside a checkout, or when the fetch fails.
    """
    named = environment.get(ENVIRONMENT_VARIABLE)
    if named:
        return _checked(Path(named))
    pom = checkout / "hack" / "kafka" / "pom.xml"
    if not pom.is_file():
        raise KafkaJarsError(
            f"this is not a checkout of Fluxpool, so the Apache Kafka jars cannot be fetched: {_REMEDY}"
        )
    libs = cached_libs(pom, environment=environment)
    if not libs.is_dir():
        _fetch(pom.with_name("fetch"), environment=environment, fetch_seconds=fetch_seconds)
    return libs


def cached_libs(pom: Path, *, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that `hack/kafka/fetch` fills for this `pom.xml`, whether it exists yet or not."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fluxpool" / f"kafka-{hashlib.sha256(pom.read_bytes()).hexdigest()[:16]}" / "libs"


def _checked(folder: Path) -> Path:
    if not any(folder.glob("kafka_2.13-*.jar")):
        raise KafkaJarsError(
            f"{ENVIRONMENT_VARIABLE}={str(folder)!r} holds no kafka_2.13-*.jar: "
            "name the libs folder of an unpacked Apache Kafka 4.x, or unset the variable"
        )
    return folder.resolve()


def _fetch(script: Path, *, environment: Mapping[str, str], fetch_seconds: float) -> None:
    try:
        # It writes its progress and its error to our standard error.
        finished = subprocess.run(  # noqa: S603 - our own script beside the pom.xml just found
            [sys.executable, str(script)], env=dict(environment), timeout=fetch_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise KafkaJarsError(
            f"fetching the Apache Kafka jars took more than {fetch_seconds:.0f} s: {_REMEDY}"
        ) from None
    if finished.returncode:
        raise KafkaJarsError(
            f"the Apache Kafka jars could not be fetched (the reason is above): install what is missing, or {_REMEDY}"
        )
