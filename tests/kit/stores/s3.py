"""A real S3 API on a loopback port: moto's server, with buckets that are kept across restarts."""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import botocore.auth
import httpx
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from fluxpool_contract.settings.worker import StorageSettings

HOST: Final = "127.0.0.1"
_KEY: Final = "testing"
_ANSWER_SECONDS: Final = 60.0
"""It runs in threads of the tests' process; httpx would give up after five seconds."""
_PLAIN: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For requests without TLS: httpx would load the authorities of public certificates for each, 35 ms of a core."""


class S3Service:
    """One S3 service; `stop` and `start` make an outage on the same port that loses nothing."""

    def __init__(self) -> None:
        self._port = 0
        self._server: ThreadedMotoServer | None = None

    @property
    def endpoint_url(self) -> str:
        """Address of the service."""
        return f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Serve; the port is chosen the first time and kept."""
        self._server = ThreadedMotoServer(ip_address=HOST, port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def create_bucket(self, name: str) -> None:
        """Create an empty bucket."""
        httpx.put(f"{self.endpoint_url}/{name}", verify=_PLAIN, timeout=_ANSWER_SECONDS).raise_for_status()

    def read(self, bucket: str, key: str) -> httpx.Response:
        """Get an object without the product's code, headers included."""
        # moto asks for a signature of private objects but does not check it.
        unchecked = {"Authorization": f"AWS {_KEY}:unchecked"}
        return httpx.get(
            f"{self.endpoint_url}/{bucket}/{key}", headers=unchecked, verify=_PLAIN, timeout=_ANSWER_SECONDS
        )

    def keys(self, bucket: str, *, prefix: str = "") -> list[str]:
        """Keys of all objects that begin so, in order."""
        found: list[str] = []
        query = {"list-type": "2", "prefix": prefix}
        while True:
            listed = httpx.get(
                f"{self.endpoint_url}/{bucket}", params=query, verify=_PLAIN, timeout=_ANSWER_SECONDS
            ).raise_for_status()
            found += re.findall(r"<Key>([^<]*)</Key>", listed.text)
            token = re.search(r"<NextContinuationToken>([^<]*)<", listed.text)
            if token is None:
                return found
            query["continuation-token"] = token[1]

    def settings(self, bucket: str, *, prefix: str = "") -> StorageSettings:
        """Storage settings of a bucket."""
        return StorageSettings(
            url=f"s3://{bucket}/{prefix}",
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            access_key_id=_KEY,
            secret_access_key=SecretStr(_KEY),
        )


@contextmanager
def running_s3() -> Iterator[S3Service]:
    """Run one S3 service for a fixture of any scope."""
    service = S3Service()
    service.start()
    try:
        yield service
    finally:
        service.stop()


def signature_of(url: httpx.URL, settings: StorageSettings, method: str = "GET") -> str:
    """The signature that AWS's own library makes for a method at the time of the URL's."""
    assert settings.secret_access_key is not None
    assert settings.access_key_id is not None
    unsigned = url.copy_with(query=None)
    request = AWSRequest(method=method, url=str(unsigned))
    credentials = Credentials(settings.access_key_id, settings.secret_access_key.get_secret_value())
    region = url.params["X-Amz-Credential"].split("/")[2]
    at = datetime.strptime(url.params["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(botocore.auth, "get_current_datetime", lambda: at)
        S3SigV4QueryAuth(credentials, "s3", region, expires=int(url.params["X-Amz-Expires"])).add_auth(request)
    return httpx.URL(request.url).params["X-Amz-Signature"]
