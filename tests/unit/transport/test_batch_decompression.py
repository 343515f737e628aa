"""Decompression of record batches by every codec, never beyond the size limit."""

import contextlib
import gzip

import pytest
from aiokafka import codec as aiokafka_codecs
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_transport.kafka import batch_decompression
from fluxpool_transport.kafka.batch_decompression import (
    MAX_BATCH_BYTES,
    BatchDecompressionError,
    Decompress,
    gunzip,
    unlz4,
    unsnap,
    unzstd,
)

TEXT = b"a red kite over a field " * 5000


def raw_snappy(payload: bytes) -> bytes:
    return bytes(aiokafka_codecs.snappy_encode(payload, xerial_compatible=False))


CODECS = [
    pytest.param(aiokafka_codecs.gzip_encode, gunzip, id="gzip"),
    pytest.param(aiokafka_codecs.snappy_encode, unsnap, id="xerial"),
    pytest.param(raw_snappy, unsnap, id="snappy"),
    pytest.param(aiokafka_codecs.lz4_encode, unlz4, id="lz4"),
    pytest.param(aiokafka_codecs.zstd_encode, unzstd, id="zstd"),
]


@pytest.mark.parametrize(("compress", "decompress"), CODECS)
@pytest.mark.parametrize("text", [b"", b"x", TEXT], ids=["empty", "byte", "text"])
def test_every_codec_restores_the_original(compress: Decompress, decompress: Decompress, text: bytes) -> None:
    assert decompress(compress(text)) == text
    assert decompress(memoryview(compress(text))) == text


@pytest.mark.parametrize(("compress", "decompress"), CODECS)
def test_a_batch_of_exactly_the_bound_is_read_and_one_byte_more_is_refused(
    compress: Decompress, decompress: Decompress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_decompression, "MAX_BATCH_BYTES", 200_000)

    assert len(decompress(compress(b"0" * 200_000))) == 200_000
    with pytest.raises(BatchDecompressionError, match="larger than 200000 bytes"):
        decompress(compress(b"0" * 200_001))


@pytest.mark.parametrize(("compress", "decompress"), CODECS)
def test_a_bomb_is_refused(compress: Decompress, decompress: Decompress) -> None:
    with pytest.raises(BatchDecompressionError, match=f"larger than {MAX_BATCH_BYTES} bytes"):
        decompress(compress(b"0" * (MAX_BATCH_BYTES + 1)))


@pytest.mark.parametrize(("compress", "decompress"), CODECS)
def test_a_truncated_batch_is_refused(compress: Decompress, decompress: Decompress) -> None:
    compressed = compress(TEXT)
    with pytest.raises(BatchDecompressionError):
        decompress(compressed[: len(compressed) // 2])


def test_gzip_of_several_members_is_read_and_bounded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    two = gzip.compress(b"a" * 600) + gzip.compress(b"b" * 600)
    assert gunzip(two + b"\0padding") == b"a" * 600 + b"b" * 600
    monkeypatch.setattr(batch_decompression, "MAX_BATCH_BYTES", 1000)
    with pytest.raises(BatchDecompressionError, match="larger than 1000"):
        gunzip(two)


def test_a_false_snappy_length_is_not_trusted() -> None:
    with pytest.raises(BatchDecompressionError, match="snappy"):
        unsnap(b"\xff\xff\xff\xff\x0f" + b"x" * 20)


@given(st.sampled_from([gunzip, unsnap, unlz4, unzstd]), st.binary(max_size=200))
def test_any_bytes_are_decompressed_or_refused(decompress: Decompress, payload: bytes) -> None:
    with contextlib.suppress(BatchDecompressionError):
        assert isinstance(decompress(payload), bytes)
