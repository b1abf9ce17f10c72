"""One part's rows of the annotation file, in buckets of whole videos.

The file is read twice, so that 3.3 million rows need neither to fit into memory nor to become
Python objects at once. The first pass counts rows and finds the videos, the second deals rows into
buckets.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Rows cleaned and sorted at once; bounds memory to a few hundred MB whatever the part's size.
BUCKET_ROWS = 100_000
BATCH_ROWS = 32_768

REQUIRED = ("part", "video", "question_id", "question", "answer")
OPTIONAL = ("sample_id", "turn", "question_type")


class PartRows:
    """The rows of one part.

    Attributes:
        number: how many rows there are.
        names: the part's videos (`source/id`), sorted; "" stands for rows without one.
        of_video, of_kind: rows about each video, and of each kind of question ("" where none is
            stated).

    Raises:
        ValueError: the file lacks a column.
    """

    def __init__(self, path: Path, source: pq.ParquetFile, part: int) -> None:
        present = source.schema_arrow.names
        if missing := [name for name in REQUIRED if name not in present]:
            raise ValueError(
                f"{path}: columns {', '.join(missing)} are missing; it has {', '.join(present)}"
            )
        self._source, self._part = source, part
        self._row_groups = _row_groups(source, part)
        self.of_video, self.of_kind = Counter[str](), Counter[str]()
        columns = ["part", "video", *(["question_type"] if "question_type" in present else [])]
        for batch in self._batches(columns):
            _count(self.of_video, _videos(batch))
            if "question_type" in present:
                _count(self.of_kind, pc.fill_null(batch.column("question_type"), ""))
        self.number = self.of_video.total()
        self.names = sorted(self.of_video)

    def buckets(self, order: np.ndarray) -> Iterator[pa.Table]:
        """Tables of about `BUCKET_ROWS` rows: the column `code`, which is the video's place in
        `names`, then the columns of the file without `part` and `video`.

        Args:
            order: uint64 [names], by which the videos are ordered. Those of one bucket come before
                those of the next.
        """
        present = self._source.schema_arrow.names
        columns = [name for name in (*REQUIRED, *OPTIONAL) if name in present]
        texts = [(name, _type(name)) for name in columns if name not in ("part", "video")]
        schema = pa.schema([("code", pa.int64()), *texts])
        rows = self._coded_rows(columns, schema)
        number = -(-self.number // BUCKET_ROWS)
        if number <= 1:
            yield pa.Table.from_batches(list(rows), schema)
            return
        share = order.astype(np.float64) / 2.0**64  # 0 .. 1, as the hashes fill all 64 bits
        bucket_of = (share * number).astype(np.int64).clip(max=number - 1)
        with tempfile.TemporaryDirectory(prefix="hourllava-grouping-") as folder:
            paths = [Path(folder) / f"{bucket}.arrow" for bucket in range(number)]
            _deal(rows, bucket_of, paths, schema)
            for path in paths:
                with pa.memory_map(str(path)) as file:
                    yield pa.ipc.open_file(file).read_all()
                path.unlink()

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._source.iter_batches(
            BATCH_ROWS, row_groups=self._row_groups, columns=columns
        ):
            yield batch.filter(pc.equal(batch.column("part"), self._part))

    def _coded_rows(self, columns: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        code_of = {name: code for code, name in enumerate(self.names)}
        for batch in self._batches(columns):
            codes = _codes(_videos(batch), code_of)
            others = [batch.column(name).cast(schema.field(name).type) for name in schema.names[1:]]
            yield pa.RecordBatch.from_arrays([pa.array(codes), *others], schema=schema)


def _row_groups(source: pq.ParquetFile, part: int) -> list[int]:
    """Row groups that can hold rows of the part, by their statistics; parts are written one after
    another.
    """
    column = source.schema_arrow.names.index("part")
    groups = []
    for number in range(source.num_row_groups):
        found = source.metadata.row_group(number).column(column).statistics
        if found is None or not found.has_min_max or found.min <= part <= found.max:
            groups.append(number)
    return groups


def _count(counts: Counter[str], column: pa.Array) -> None:
    for entry in column.value_counts().to_pylist():
        counts[entry["values"]] += entry["counts"]


def _deal(
    rows: Iterator[pa.RecordBatch], bucket_of: np.ndarray, paths: list[Path], schema: pa.Schema
) -> None:
    """Write each row to the file of its video's bucket."""
    writers = [pa.ipc.new_file(str(path), schema) for path in paths]
    for batch in rows:
        buckets = bucket_of[batch.column("code").to_numpy()]
        for bucket in np.unique(buckets):
            writers[bucket].write_batch(batch.filter(pa.array(buckets == bucket)))
    for writer in writers:
        writer.close()


def _videos(batch: pa.RecordBatch) -> pa.Array:
    return pc.fill_null(batch.column("video"), "")


def _codes(column: pa.Array, code_of: Mapping[str, int]) -> np.ndarray:
    """Each row's video as its place among the part's videos."""
    encoded = column.dictionary_encode()
    places = np.array([code_of[name] for name in encoded.dictionary.to_pylist()], np.int64)
    return places[np.asarray(encoded.indices)] if len(column) else np.zeros(0, np.int64)


def _type(name: str) -> pa.DataType:
    return pa.int64() if name == "turn" else pa.large_string()
