"""Rules for texts of settings, shared by the environment and by the definition of pools. Pure.

Messages never repeat the value of a credential.
"""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr

_PORT: Final = r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
BROKER_ADDRESS_PATTERN: Final = rf"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):({_PORT})"
"""`host:port`, as Kafka clients take it; read alike by Python and RE2, as are the patterns below."""
HTTP_URL_PATTERN: Final = r"https?://[^\s/]+(/\S*)?"
S3_URL_PATTERN: Final = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s?#]*)?"
MAX_URL_CHARACTERS: Final = 2048
MAX_CREDENTIAL_CHARACTERS: Final = 16_384
"""Above any token; an environment variable could be much longer."""

_PROTOCOL: Final = re.compile(r"([A-Za-z][A-Za-z0-9_+-]*)://(.*)", re.DOTALL)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNDECODED: Final = re.compile(r"[\ud800-\udfff\ufffd]")


def find_odd_character(text: str) -> str | None:
    """What is wrong with a text of one line, with the remedy; None when nothing is."""
    if _UNDECODED.search(text):
        return "is not UTF-8 text; store it again as UTF-8"
    if text.rstrip("\r\n") != text and not _CONTROL.search(text.rstrip("\r\n")):
        return (
            "ends in a line end, as a Secret or file made with `echo` does; store it again without one "
            "(`printf %s`, `echo -n` or `kubectl create secret --from-literal`)"
        )
    if _CONTROL.search(text):
        return "has a line end or another control character; store it again without"
    return None


def check_line(text: str) -> str:
    """The text itself; raises `ValueError` when it has a line end or another control character, or is no UTF-8."""
    odd = find_odd_character(text)
    if odd is not None:
        raise ValueError(odd)
    return text


def check_name(text: str) -> str:
    """The text itself; raises `ValueError` when it is blank or not one line."""
    if not text.strip():
        raise ValueError("is blank; give a value, or remove the setting")
    return check_line(text)


def check_credential(text: str) -> str:
    """The text itself; raises `ValueError`, without the text, when it cannot be a credential."""
    if len(text) > MAX_CREDENTIAL_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CREDENTIAL_CHARACTERS:,} characters; is it the credential?")
    return check_name(text)


def check_broker_address(value: str) -> str:
    """The `host:port` itself; raises `ValueError` with the form that is right."""
    if re.fullmatch(BROKER_ADDRESS_PATTERN, value):
        return value
    protocol = _PROTOCOL.fullmatch(value)
    if protocol is not None:
        raise ValueError(
            f"{value!r} must have the form host:port, without a protocol: write {protocol[2].strip('/')}, "
            f"and give the protocol as security_protocol ({protocol[1].upper()})"
        )
    raise ValueError(f"{value!r} must have the form host:port, such as kafka:9092")


def check_http_url(url: str) -> str:
    """The address itself; raises `ValueError` when it is no http or https address of one line."""
    if not re.fullmatch(HTTP_URL_PATTERN, url):
        raise ValueError(f"{url!r} must begin with http:// or https:// and name a host, without blanks")
    return url


def _check_secret(secret: SecretStr) -> SecretStr:
    check_credential(secret.get_secret_value())
    return secret


BrokerAddress = Annotated[str, Field(max_length=260), AfterValidator(check_broker_address)]
HttpUrl = Annotated[str, Field(max_length=MAX_URL_CHARACTERS), AfterValidator(check_http_url)]
LineText = Annotated[str, AfterValidator(check_name)]
"""Text of one line that is not blank."""
Credential = Annotated[str, AfterValidator(check_credential)]
"""The part of a credential that is no secret: a user name, a client id, the id of an access key."""
SecretCredential = Annotated[SecretStr, AfterValidator(_check_secret)]
"""A password, secret or key; never shown."""
