"""Addresses and credentials of a Kafka cluster, for any client library."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.text_rules import BrokerAddress, Credential, HttpUrl, SecretCredential


class SecurityProtocol(StrEnum):
    """Kafka's `security.protocol`."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def uses_sasl(self) -> bool:
        """Whether a SASL exchange takes place."""
        return self.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.endswith("SSL")


class SaslMechanism(StrEnum):
    """Kafka's `sasl.mechanism`."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"
    OAUTHBEARER = "OAUTHBEARER"


class KafkaConnection(BaseModel):
    """Addresses and credentials of one cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    bootstrap_servers: Annotated[tuple[BrokerAddress, ...], Field(min_length=1, max_length=32)]
    """`host:port` of some brokers; the others are found through them."""
    security_protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    """Kafka's `security.protocol`: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
    sasl_mechanism: SaslMechanism | None = None
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER."""
    sasl_username: Credential | None = None
    """User of PLAIN and SCRAM."""
    sasl_password: SecretCredential | None = None
    """Password of PLAIN and SCRAM."""
    oauth_token_endpoint: HttpUrl | None = None
    """Token endpoint for OAUTHBEARER: client-credentials grant (RFC 6749 section 4.4)."""
    oauth_client_id: Credential | None = None
    """OAuth client ID."""
    oauth_client_secret: SecretCredential | None = None
    """OAuth client secret."""
    oauth_scope: Credential | None = None
    """OAuth scope requested from the token endpoint."""
    oauth_encode_credentials: bool = True
    """Form-encode client id and secret for the endpoint, as RFC 6749 section 2.3.1 demands; false for servers that take
    them as they are."""
    oauth_ca_file: Path | None = None
    """PEM file of authorities trusted for the token endpoint, besides the system's; `tls_ca_file` when absent."""
    oauth_token_file: Path | None = None
    """File with a valid token, such as a projected service account token; read again for each token."""
    tls_ca_file: Path | None = None
    """PEM file of the authorities to trust; the system's when absent."""
    tls_certificate_file: Path | None = None
    """PEM certificate chain of this client, for mutual TLS."""
    tls_key_file: Path | None = None
    """PEM private key of the client's certificate."""
    tls_key_password: SecretCredential | None = None
    """Password of that key, when it is encrypted."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.security_protocol.uses_sasl:
            self._check_sasl()
        elif self.sasl_mechanism is not None:
            raise ValueError(
                f"sasl_mechanism: {self.sasl_mechanism} needs security_protocol SASL_PLAINTEXT or SASL_SSL, "
                f"not {self.security_protocol}"
            )
        if not self.security_protocol.uses_tls and (self.tls_ca_file or self.tls_certificate_file):
            raise ValueError("tls_ca_file: TLS files need security_protocol SSL or SASL_SSL")
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_key_file: a client certificate needs both tls_certificate_file and tls_key_file")
        return self

    def _check_sasl(self) -> None:
        match self.sasl_mechanism:
            case None:
                raise ValueError(f"sasl_mechanism: is required with {self.security_protocol}")
            case SaslMechanism.OAUTHBEARER:
                endpoint = (self.oauth_token_endpoint, self.oauth_client_id, self.oauth_client_secret)
                if (self.oauth_token_file is None) == (None in endpoint):
                    raise ValueError(
                        "oauth_token_endpoint: OAUTHBEARER needs either oauth_token_file, or all of "
                        "oauth_token_endpoint, oauth_client_id and oauth_client_secret"
                    )
            case mechanism:
                if self.sasl_username is None or self.sasl_password is None:
                    raise ValueError(f"sasl_username: {mechanism} needs sasl_username and sasl_password")
