"""Keys, certificates and kubeconfig files of a control plane on loopback.

Owns their folder, which is kept between runs. The API server decides about permissions.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ADMIN_USER = "admin"
_PRIVATE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLogin:
    """What a client needs to talk to the API server as one user; `token` or the certificate pair is set."""

    server: str
    ca_file: Path
    token: str | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None


class Credentials:
    """The secrets of one control plane, made in `folder` when they are not there yet."""

    def __init__(self, folder: Path) -> None:
        """Read or make the authority, the serving certificate, the service account key and the admin's token."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca_file = folder / "ca.crt"
        self.serving_certificate_file = folder / "apiserver.crt"
        self.serving_key_file = folder / "apiserver.key"
        self.service_account_key_file = folder / "service-account.key"
        self.token_file = folder / "tokens.csv"
        self._ca_key_file = folder / "ca.key"
        if not self.token_file.exists():
            self._make()
        self._authority = trustme.CA.from_pem(self.ca_file.read_bytes(), self._ca_key_file.read_bytes())
        self.admin_token = self.token_file.read_text().split(",", 1)[0]

    def _make(self) -> None:
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.cert_pem.write_to_path(self.ca_file)
        _write_private(self._ca_key_file, authority.private_key_pem.bytes())
        names = ("127.0.0.1", "localhost", "kubernetes.default.svc", "kubernetes.default")
        serving = authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA)
        self.serving_certificate_file.write_bytes(b"".join(blob.bytes() for blob in serving.cert_chain_pems))
        _write_private(self.serving_key_file, serving.private_key_pem.bytes())
        # Service account tokens are signed with RSA or ECDSA; RSA is what clusters mostly have.
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        _write_private(self.service_account_key_file, key.private_bytes(encoding, form, serialization.NoEncryption()))
        # Last, because its presence means that all files exist.
        line = f'{secrets.token_hex(16)},{ADMIN_USER},{ADMIN_USER},"system:masters"\n'
        _write_private(self.token_file, line.encode())

    def admin_login(self, server: str) -> ClientLogin:
        """Return the login of a member of `system:masters`."""
        return ClientLogin(server=server, ca_file=self.ca_file, token=self.admin_token)

    def issue_login(self, server: str, *, user: str, group: str | None = None) -> ClientLogin:
        """Return a login by client certificate: a user, and at most one group, that no file of the server names."""
        name = user.replace(":", "_").replace("/", "_")
        certificate_file, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        issued = self._authority.issue_cert(
            # Unused, but without a name trustme writes an empty critical extension, which Go refuses.
            "client.invalid",
            common_name=user,
            organization_name=group or "none",
            key_type=trustme.KeyType.ECDSA,
        )
        certificate_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        _write_private(key_file, issued.private_key_pem.bytes())
        return ClientLogin(server=server, ca_file=self.ca_file, certificate_file=certificate_file, key_file=key_file)

    def write_kubeconfig(self, name: str, login: ClientLogin) -> Path:
        """Write `<name>.kubeconfig` for a login and return its path."""
        user: dict[str, str] = {}
        if login.token is not None:
            user["token"] = login.token
        if login.certificate_file is not None and login.key_file is not None:
            user |= {"client-certificate": str(login.certificate_file), "client-key": str(login.key_file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": login.server, "certificate-authority": str(login.ca_file)}}
            ],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        path = self.folder / f"{name}.kubeconfig"
        # JSON is YAML.
        _write_private(path, json.dumps(config, indent=2).encode())
        return path


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=_PRIVATE)
    path.write_bytes(content)
