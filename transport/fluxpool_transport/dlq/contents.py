"""The record of a dead letter as text: key, headers and value, also those that are no text. Pure."""

from dataclasses import dataclass

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.messages import DEAD_LETTER_PREFIX, DeadLetter
from fluxpool_transport.dlq.reading import DeadLetterEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordContents:
    r"""What the record of a dead letter has; bytes that are not UTF-8 are escaped in key and headers (`\\xff`)."""

    dead_letter: DeadLetter | None
    """With its stack."""
    key: str | None
    headers: tuple[tuple[str, str], ...]
    """Those of the original."""
    value: str | None
    """None when it is no text."""
    value_hex: str | None
    """Hexadecimal digits of a value that is no text."""


def contents_of(entry: DeadLetterEntry, record: ConsumerRecord) -> RecordContents:
    """What the record of an entry has."""
    text, hexadecimal = value_text(record.value or b"")
    return RecordContents(
        dead_letter=None if entry.dead_letter is None else DeadLetter.from_headers(record.headers),
        key=None if record.key is None else record.key.decode(errors="backslashreplace"),
        headers=tuple(
            (name, (raw or b"").decode(errors="backslashreplace"))
            for name, raw in record.headers
            if not name.startswith(DEAD_LETTER_PREFIX)
        ),
        value=text,
        value_hex=hexadecimal,
    )


def value_text(value: bytes) -> tuple[str | None, str | None]:
    """The value as text, or as hex digits when it is no text."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None, value.hex()
    printable = all(character.isprintable() or character in "\n\r\t" for character in text)
    return (text, None) if printable else (None, value.hex())
