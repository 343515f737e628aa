"""`spec.storage`: where images go and under which address people find them."""

from typing import Annotated, ClassVar

from pydantic import Field

from fluxpool_contract.text_rules import S3_URL_PATTERN
from fluxpool_operator.api.schema import ApiModel, HttpUrl, Matching, ObjectName, Rule
from fluxpool_operator.api.secrets import AccessKeySecretRef, CaSecretRef


class StorageClaim(ApiModel):
    """A claim of the pool's namespace that images are written to."""

    claim_name: ObjectName
    """Name of the claim; its volume must allow many writers."""


class StorageSpec(ApiModel):
    """Where images go and under which address people find them."""

    url: Annotated[
        str,
        Field(max_length=1024),
        Matching(
            rf"{S3_URL_PATTERN}|file:///[A-Za-z0-9_-][A-Za-z0-9._/-]*",
            "url: must be s3://bucket/prefix/ or file:///folder/",
        ),
    ]
    """The bucket and prefix, or the folder at which persistentVolumeClaim is mounted."""
    public_base_url: HttpUrl | None = None
    """Address under which the objects themselves are public."""
    gateway_url: HttpUrl | None = None
    """Address of the gateway; when set, images are found there."""
    endpoint_url: HttpUrl | None = None
    """Of an S3-compatible service other than AWS."""
    region: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Region of the bucket."""
    credentials_secret_ref: AccessKeySecretRef | None = None
    """Access key of the bucket; the service account's web identity when absent."""
    ca_secret_ref: CaSecretRef | None = None
    """The authorities to trust for endpointUrl, beside the system's."""
    persistent_volume_claim: StorageClaim | None = None
    """Volume of a file:/// address."""

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
