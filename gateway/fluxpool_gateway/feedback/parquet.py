"""Rows as a Parquet file, piece by piece. The only place of pyarrow, which a gateway need not have.

It is imported when it is needed: it is larger than all else of a gateway together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fluxpool_gateway.feedback.layouts import COLUMNS, Kind, Layout, Row


class _Pieces:
    """A file whose bytes are taken while it is written."""

    closed = False

    def __init__(self) -> None:
        self._written = bytearray()
        self._taken = 0

    def write(self, piece: bytes) -> int:
        self._written += piece
        return len(piece)

    def tell(self) -> int:
        return self._taken + len(self._written)

    def flush(self) -> None:
        """There is nothing to flush to."""

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        piece = bytes(self._written)
        self._taken += len(piece)
        self._written.clear()
        return piece


class ParquetFile:
    """A file with the columns of a layout. Blocks, for milliseconds."""

    def __init__(self, layout: Layout) -> None:
        """Raises `ImportError` where there is no pyarrow."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        types = _types(pa)
        self._table = pa.Table
        self._schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS[layout].items()])
        self._pieces = _Pieces()
        file = pa.PythonFile(self._pieces, mode="w")
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def add(self, rows: Sequence[Row]) -> bytes:
        """The next bytes of the file, which has these rows then; they are a row group."""
        if rows:
            self._writer.write_table(self._table.from_pylist(list(rows), schema=self._schema))
        return self._pieces.take()

    def end(self) -> bytes:
        """The last bytes of the file."""
        self._writer.close()
        return self._pieces.take()


def _types(pa: Any) -> Mapping[Kind, Any]:
    return {
        Kind.TEXT: pa.string(),
        Kind.TEXTS: pa.list_(pa.string()),
        Kind.NUMBER: pa.float64(),
        Kind.WHOLE: pa.int64(),
        Kind.WHOLES: pa.list_(pa.int64()),
        Kind.FLAG: pa.bool_(),
        Kind.TIME: pa.timestamp("us", tz="UTC"),
        Kind.FILE: pa.binary(),
    }
