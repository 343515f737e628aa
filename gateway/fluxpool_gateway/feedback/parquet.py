"""Rows as a Parquet file, piece by piece. The only place of pyarrow, which a gateway need not have."""

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from fluxpool_gateway.feedback.layouts import COLUMNS, Kind, Layout, Row

_TYPES: Final[dict[Kind, Any]] = {
    Kind.TEXT: pa.string(),
    Kind.TEXTS: pa.list_(pa.string()),
    Kind.NUMBER: pa.float64(),
    Kind.WHOLE: pa.int64(),
    Kind.WHOLES: pa.list_(pa.int64()),
    Kind.FLAG: pa.bool_(),
    Kind.TIME: pa.timestamp("us", tz="UTC"),
    Kind.FILE: pa.binary(),
}


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
        self._schema = pa.schema([(name, _TYPES[kind]) for name, kind in COLUMNS[layout].items()])
        self._pieces = _Pieces()
        self._writer = pq.ParquetWriter(pa.PythonFile(self._pieces, mode="w"), self._schema, compression="zstd")

    def add(self, rows: Sequence[Row]) -> bytes:
        """The next bytes of the file, which has these rows then; they are a row group."""
        if rows:
            self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))
        return self._pieces.take()

    def end(self) -> bytes:
        """The last bytes of the file."""
        self._writer.close()
        return self._pieces.take()
