"""Reads the rows of tables: CSV, TSV and Parquet. What is malformed is refused, naming the line.

A TSV may be written with or without quoting, and says nowhere which. Quotes are quoting where the whole file can be read so,
and no text by itself where not; where both readings give whole rows and differ in their number, the file is refused.
"""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from workflow.data.feature_names import features_of_parquet, with_class_name
from workflow.errors import DataError

AUTO, QUOTED, NONE = "auto", "quoted", "none"
QUOTING = (AUTO, QUOTED, NONE)
TABLES = (".csv", ".tsv")
MOST = 1 << 30

Row = dict[str, Any]


def table_rows(path: Path, quoting: str = AUTO) -> Iterator[Row]:
    """The rows of a CSV or TSV file; all values are texts. Raises DataError."""
    if quoting == AUTO:
        quoting = _quoting_of(str(path), *_state(path)) if path.suffix == ".tsv" else QUOTED
    return _rows(path, is_quoted=quoting == QUOTED)


def quoting_note(path: Path, quoting: str) -> str | None:
    """What to tell where a file's quotes are read as texts though nobody said so."""
    if quoting != AUTO or path.suffix != ".tsv" or _quoting_of(str(path), *_state(path)) == QUOTED:
        return None
    return f"{path}: its quotes do not parse as quoting, so that they are read as texts (--quoting none)"


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=64)
def _quoting_of(name: str, *_state: int) -> str:
    """How a TSV is read: a pass over the file, whose outcome is kept while the file stays as it is."""
    path = Path(name)
    with _opened(path) as file:
        if not any('"' in line for line in file):
            return QUOTED
    try:
        for _ in _rows(path, is_quoted=True):
            pass
    except DataError:
        try:
            for _ in _rows(path, is_quoted=False):
                pass
        except DataError:
            return QUOTED  # whose error is told
        return NONE
    _refuse_merged(path)
    return QUOTED


def _refuse_merged(path: Path) -> None:
    """Raises DataError where rows of several lines would be as many whole rows without quoting."""
    own: list[str] = []  # lines of the row that is read

    def noted(file: TextIO) -> Iterator[str]:
        for line in file:
            own.append(line)
            yield line

    width = None
    with _opened(path) as file:
        reader = csv.reader(noted(file), delimiter="\t", strict=True)
        for cells in reader:
            width = len(cells) if width is None else width
            if len(own) > 1 and all(line.count("\t") + 1 == width for line in own):
                raise DataError(
                    f"{path}: lines {reader.line_num - len(own) + 1} to {reader.line_num} are one row if their quotes are quoting, and "
                    f"{len(own)} rows if they are not; pass --quoting none for texts that hold quotes, --quoting quoted for quoted texts "
                    "of several lines"
                )
            own.clear()


def _opened(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")


def _rows(path: Path, *, is_quoted: bool) -> Iterator[Row]:
    csv.field_size_limit(MOST)
    kind, line = path.suffix[1:], 1
    separator, name = ("\t", "tab") if path.suffix == ".tsv" else (",", "comma")
    try:
        with _opened(path) as file:
            reader = csv.reader(
                file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE, strict=True
            )
            header = next((cells for cells in reader if cells), [])
            check_columns(header, f"{path}: line {reader.line_num}")
            for cells in reader:
                line = reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    many = "too many" if len(cells) > len(header) else "too few"
                    raise DataError(
                        f"{path}: line {line}: {many} columns: {len(cells)}, and the header has {len(header)}; is a {name} or a "
                        "line break part of a text?"
                    )
                yield dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: after line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except csv.Error as error:
        advice = "; --quoting none reads quotes as texts" if is_quoted else ""
        raise DataError(f"{path}: after line {line}: cannot be read as {kind}: {error}{advice}") from None


def check_columns(names: Sequence[str], where: str) -> None:
    """Raises DataError for a name that several columns have: one would hide the others."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice and twice[0].strip():
        raise DataError(f'{where}: the column "{twice[0]}" stands twice; rename or remove one')
    if twice:
        raise DataError(f"{where}: {names.count(twice[0])} columns have no name; name or remove them")


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, null where a data frame marks a missing value with NaN. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        check_columns(file.schema_arrow.names, str(path))
        features = features_of_parquet(file.schema_arrow.metadata)
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                plain = {
                    key: None if isinstance(value, float) and value != value else value for key, value in row.items()
                }
                yield with_class_name(plain, features)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {' '.join(str(error).split())[:300]}") from None
