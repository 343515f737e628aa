"""References to entries of Secrets in the pool's namespace. Values of secrets never appear in a pool."""

from fluxpool_operator.api.schema import ApiModel, ObjectName, SecretEntry


class CaSecretRef(ApiModel):
    """A Secret with the certificates of the authorities to trust."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretEntry = "ca.crt"
    """Entry with the certificates, PEM."""


class TokenSecretRef(ApiModel):
    """A Secret with a token."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretEntry = "token"
    """Entry with the token."""


class CredentialsSecretRef(ApiModel):
    """A Secret with a user name and a password."""

    name: ObjectName
    """Name of the Secret."""
    username_key: SecretEntry = "username"
    """Entry with the user's name."""
    password_key: SecretEntry = "password"  # noqa: S105 - the entry's name
    """Entry with the password."""


class ClientSecretRef(ApiModel):
    """A Secret with the credentials of an OAuth client."""

    name: ObjectName
    """Name of the Secret."""
    client_id_key: SecretEntry = "client-id"
    """Entry with the client's id."""
    client_secret_key: SecretEntry = "client-secret"  # noqa: S105 - the entry's name
    """Entry with the client's secret."""


class CertificateSecretRef(ApiModel):
    """A Secret with a client certificate, such as one of type kubernetes.io/tls."""

    name: ObjectName
    """Name of the Secret."""
    certificate_key: SecretEntry = "tls.crt"
    """Entry with the certificate chain, PEM."""
    private_key_key: SecretEntry = "tls.key"
    """Entry with the private key, PEM."""
    password_key: SecretEntry | None = None
    """Entry with the password of the private key, if it has one."""


class AccessKeySecretRef(ApiModel):
    """A Secret with the access key of an object store."""

    name: ObjectName
    """Name of the Secret."""
    access_key_id_key: SecretEntry = "access-key-id"
    """Entry with the access key's id."""
    secret_access_key_key: SecretEntry = "secret-access-key"  # noqa: S105 - the entry's name
    """Entry with the secret access key."""
