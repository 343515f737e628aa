"""`spec.storage`: where images are stored and the URLs of the stored images."""

from typing import Annotated, ClassVar

from pydantic import Field

from fluxpool_contract.text_rules import S3_URL_PATTERN
from fluxpool_operator.api.schema import ApiModel, HttpUrl, Matching, ObjectName, Rule
from fluxpool_operator.api.secrets import AccessKeySecretRef, CaSecretRef


class StorageClaim(ApiModel):
    """PersistentVolumeClaim that images are written to."""

    claim_name: ObjectName
    """Name of a PersistentVolumeClaim in the pool's namespace with access mode ReadWriteMany."""


class StorageSpec(ApiModel):
    """Storage of the generated images."""

    url: Annotated[
        str,
        Field(max_length=1024),
        Matching(
            rf"{S3_URL_PATTERN}|file:///[A-Za-z0-9_-][A-Za-z0-9._/-]*",
            "url: must be s3://bucket/prefix/ or file:///folder/",
        ),
    ]
    """S3 bucket and prefix, or directory at which persistentVolumeClaim is mounted: s3://bucket/prefix/ or
    file:///folder/."""
    public_base_url: HttpUrl | None = None
    """Public base URL of the stored objects."""
    gateway_url: HttpUrl | None = None
    """URL of the gateway. When set, results link to the images there."""
    endpoint_url: HttpUrl | None = None
    """Endpoint URL of an S3-compatible service other than AWS."""
    region: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """AWS region of the bucket."""
    credentials_secret_ref: AccessKeySecretRef | None = None
    """Secret with the access key of the bucket. Defaults to the web identity of the service account."""
    ca_secret_ref: CaSecretRef | None = None
    """Secret with the CA certificates trusted for endpointUrl, in addition to the system's."""
    persistent_volume_claim: StorageClaim | None = None
    """PersistentVolumeClaim mounted at a file:/// url."""

    rules: ClassVar = (
        Rule(
            "self.url.startsWith('file:///') == has(self.persistentVolumeClaim)",
            "persistentVolumeClaim: is required with a file:/// url, and only then",
            ".persistentVolumeClaim",
        ),
        Rule(
            "self.url.startsWith('s3://')"
            " || !(has(self.endpointUrl) || has(self.region) || has(self.credentialsSecretRef)"
            " || has(self.caSecretRef))",
            "url: endpointUrl, region, credentialsSecretRef and caSecretRef need an s3:// url",
            ".url",
        ),
    )
