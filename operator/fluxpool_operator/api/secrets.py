"""References to keys of Secrets in the pool's namespace. Values of secrets never appear in a pool."""

from fluxpool_operator.api.schema import ApiModel, ObjectName, SecretEntry


class _SecretRef(ApiModel):
    name: ObjectName
    """Name of the Secret."""


class CaSecretRef(_SecretRef):
    """Reference to a Secret with CA certificates."""

    key: SecretEntry = "ca.crt"
    """Key of the CA certificates in PEM format."""


class TokenSecretRef(_SecretRef):
    """Reference to a Secret with a token."""

    key: SecretEntry = "token"
    """Key of the token."""


class TenantSecretRef(_SecretRef):
    """Reference to a Secret with the keys that prove tenants."""

    key: SecretEntry = "keys"
    """Key of the keys, one a line; the first signs."""


class CredentialsSecretRef(_SecretRef):
    """Reference to a Secret with a user name and a password."""

    username_key: SecretEntry = "username"
    """Key of the user name."""
    password_key: SecretEntry = "password"  # noqa: S105 - the key's name
    """Key of the password."""


class ClientSecretRef(_SecretRef):
    """Reference to a Secret with OAuth client credentials."""

    client_id_key: SecretEntry = "client-id"
    """Key of the client ID."""
    client_secret_key: SecretEntry = "client-secret"  # noqa: S105 - the key's name
    """Key of the client secret."""


class SigningSecretRef(_SecretRef):
    """Reference to a Secret with a certificate and its private key, such as one of type kubernetes.io/tls."""

    certificate_key: SecretEntry = "tls.crt"
    """Key of the certificate chain in PEM format."""
    private_key_key: SecretEntry = "tls.key"
    """Key of the private key in PEM format."""


class CertificateSecretRef(SigningSecretRef):
    """Reference to a Secret with a client certificate, such as one of type kubernetes.io/tls."""

    password_key: SecretEntry | None = None
    """Key of the private key's password. Absent for an unencrypted key."""


class AccessKeySecretRef(_SecretRef):
    """Reference to a Secret with the access key of an object store."""

    access_key_id_key: SecretEntry = "access-key-id"
    """Key of the access key ID."""
    secret_access_key_key: SecretEntry = "secret-access-key"  # noqa: S105 - the key's name
    """Key of the secret access key."""
