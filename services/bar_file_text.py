"""Rows of delimited text: plain, gzipped, or the one text file of a zip archive; streamed, whatever the size."""

import csv
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from services.bar_file_layout import WANTED, BarFileError, Layout, is_header, layout_of_names, layout_of_width
from services.bar_file_numbers import numbers_in
from services.bar_file_rows import ColumnBlock, RowBlock, Rows, shown

BLOCK_BYTES = 1 << 18
# A line of bars has some hundred bytes. What exceeds this is no line of bars, and is not kept in memory.
LINE_BYTES = 1 << 16
SAMPLES = 1_000
#: From this block on it is worth to have blocks of plain numbers read at once, and so large.
PLAIN_FROM_BLOCK = 2
PLAIN_BLOCK_BYTES = 1 << 19
DELIMITERS = ",;\t|"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class _Source(NamedTuple):
    """An open byte stream; `file` and `total` tell how far it has been read."""

    stream: IO[bytes]
    file: IO[bytes]
    total: int


@contextmanager
def open_text(path: Path, head: bytes, skip_rows: int) -> Iterator[Rows]:
    """The rows after the first `skip_rows` of the text at `path`, which begins with `head`.

    Raises:
        BarFileError: it is no text, or no table of bars.
    """
    with _open(path, head) as source:
        yield _rows(source, skip_rows)


@contextmanager
def _open(path: Path, head: bytes) -> Iterator[_Source]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(file) as stream:
                _verify(stream)  # type: ignore[arg-type] # a GzipFile reads like any file
                yield _Source(stream, file, size)  # type: ignore[arg-type]
        elif head.startswith(b"PK"):
            with _archive(file) as archive, _member(archive) as stream:
                _verify(stream)
                yield _Source(stream, file, size)
        else:
            yield _Source(file, file, size)


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BarFileError(f"the zip archive is damaged or cut short ({error})") from error


def _member(archive: zipfile.ZipFile) -> IO[bytes]:
    files = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        names = ", ".join(info.filename for info in files[:5]) or "none"
        raise BarFileError(f"the zip archive holds {len(files)} files ({names[:200]}); it must hold one CSV file")
    if files[0].flag_bits & 1:
        raise BarFileError("the zip archive is encrypted; unpack it first")
    try:
        return archive.open(files[0])
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise BarFileError(f"the zip archive is damaged or unusual ({error}); unpack it first") from error


def _verify(stream: IO[bytes]) -> None:
    """Read a compressed stream to its end, where its checksum stands, and go back.

    One flipped bit makes other prices of the ones that follow, and they look good until the end.
    """
    while _read(stream):
        pass
    stream.seek(0)


def _read(stream: IO[bytes], size: int | None = None) -> bytes:
    try:
        return stream.read(size or BLOCK_BYTES)
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BarFileError(f"the file is damaged or cut short ({error})") from error


class _Lines:
    """Blocks of whole lines. A line that is too long becomes an empty one, and is remembered."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._rest = b""
        self._dropping = False
        self._end = b"\n"
        #: Bytes of the file that have been read.
        self.done = 0
        #: Numbers, within the last block, of lines that were too long.
        self.too_long: set[int] = set()
        self.first = self._read()
        _refuse_what_is_no_table(self.first)
        self.first = self.first.removeprefix(UTF8_BOM)
        if b"\n" not in self.first and b"\r" in self.first:
            self._end = b"\r"

    def _read(self, size: int | None = None) -> bytes:
        block = _read(self._source.stream, size)
        self.done = min(self._source.file.tell(), self._source.total)
        return block

    def __iter__(self) -> Iterator[bytes]:
        block, number = self.first, 1
        while block:
            if (lines := self._complete(block)) is not None:
                yield lines
            block = self._read(BLOCK_BYTES if number < PLAIN_FROM_BLOCK else PLAIN_BLOCK_BYTES)
            number += 1
        if self._rest or self._dropping:
            self.too_long = {0} if self._dropping else set()
            yield self._rest

    def count(self, lines: bytes) -> int:
        """How many lines these are."""
        return lines.count(self._end) + 1

    def cut(self, lines: bytes) -> list[str]:
        """Lines that were given, one by one."""
        return lines.decode("utf-8", "replace").split(self._end.decode())

    def _complete(self, block: bytes) -> bytes | None:
        """The lines that the block completes, the last one without its end; None where there are none."""
        whole, end, rest = block.rpartition(self._end)
        self.too_long = set()
        if not end:
            self._keep(self._rest + rest)
            return None
        lines = self._rest + whole
        if self._dropping:
            lines = b"".join(lines.partition(self._end)[1:])
            self.too_long.add(0)
        self._rest, self._dropping = b"", False
        self._keep(rest)
        return lines

    def _keep(self, rest: bytes) -> None:
        self._dropping = self._dropping or len(rest) > LINE_BYTES
        self._rest = b"" if self._dropping else rest


def _refuse_what_is_no_table(start: bytes) -> None:
    text = start.removeprefix(UTF8_BOM).lstrip()
    if not text:
        raise BarFileError(f"the file is empty; needed: {WANTED}")
    if start.startswith(UTF16_BOMS):
        raise BarFileError("the file is UTF-16 text; save it as UTF-8")
    if b"\0" in start:
        raise BarFileError("the file is binary, and neither Parquet, Feather, gzip nor zip")
    if re.match(rb"<(?:[!?]|html|head|body)", text, re.IGNORECASE):  # and not `<DATE>`, as some programs write
        raise BarFileError(f"the file is HTML or XML, perhaps an error page; needed: {WANTED}")
    if text.startswith((b"{", b"[")):
        raise BarFileError(f"the file is JSON; needed: {WANTED}")
    if len(start) > LINE_BYTES and not start.count(b"\n", 0, LINE_BYTES) and not start.count(b"\r", 0, LINE_BYTES):
        raise BarFileError(f"the first line is longer than {LINE_BYTES} bytes; needed: {WANTED}")


def _rows(source: _Source, skip_rows: int) -> Rows:
    lines = _Lines(source)
    blocks = iter(lines)
    block = next(blocks, b"")
    meaning = [line for line in lines.cut(block) if _is_row(line)][:SAMPLES]
    if not meaning:
        raise BarFileError(f"the file begins with nothing but comments; needed: {WANTED}")
    first = meaning[0]
    delimiter = max(DELIMITERS, key=first.count)
    header = split(first, delimiter)
    named = is_header(header)
    layout = layout_of_names(header) if named else layout_of_width(header)
    cells = (split(line, delimiter) for line in meaning[1 if named else 0 :])
    samples = [row[layout.columns[0]] for row in cells if len(row) > layout.columns[0]]
    table = _Table(lines, delimiter, layout, first if named else None)
    return Rows(layout.columns, samples, table.blocks(chain([block], blocks), skip_rows), None, source.total)


def _is_row(line: str) -> bool:
    return not line.isspace() and line != "" and not line.lstrip().startswith("#")


def split(line: str, delimiter: str) -> list[str]:
    """The cells of one line. A quote never reaches past the end of its line, so that a stray one costs one row."""
    return next(csv.reader([line], delimiter=delimiter), []) if '"' in line else line.split(delimiter)


class _Table:
    """Cuts lines into cells, and counts."""

    def __init__(self, lines: _Lines, delimiter: str, layout: Layout, header: str | None) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._columns = layout.columns
        self._width = layout.width
        self._header = header

    def blocks(self, blocks: Iterable[bytes], skip_rows: int) -> Iterator[RowBlock | ColumnBlock]:
        """The rows of the lines after the first `skip_rows`; a line's number is its place in the file, from 1."""
        number = 1
        for place, block in enumerate(blocks):
            read = partial(self._rows, block, number, self._lines.too_long, self._lines.done)
            columns = None
            if place >= PLAIN_FROM_BLOCK and not skip_rows:
                columns = numbers_in(block, self._delimiter, self._width, self._columns)
            if columns is not None:
                yield ColumnBlock(columns, self._lines.done, read)
            else:
                rows, done = read()
                yield RowBlock(rows[skip_rows:] if skip_rows else rows, done)
                skip_rows = max(0, skip_rows - len(rows))
            number += self._lines.count(block)

    def _rows(self, block: bytes, number: int, too_long: set[int], bytes_done: int) -> RowBlock:
        return RowBlock(self._cells(self._lines.cut(block), number, too_long), bytes_done)

    def _cells(self, block: list[str], number: int, too_long: set[int]) -> list[tuple[int, Sequence[str] | str]]:
        """The lines' numbers and cells; of a row that cannot be cut, what is wrong with it."""
        delimiter, width = self._delimiter, self._width
        rows: list[tuple[int, Sequence[str] | str]] = []
        for line_number, line in enumerate(block, number):
            cells: Sequence[str] | str = line.split(delimiter)
            if len(cells) != width or '"' in line or line[0] == "#" or line == self._header:
                odd = self._odd(line)
                if line_number - number in too_long:
                    odd = "the line is too long"
                if odd is None:
                    continue
                cells = odd
            rows.append((line_number, cells))
        return rows

    def _odd(self, line: str) -> Sequence[str] | str | None:
        """Cells of a line that is not plain; what is wrong; None for a blank line, a comment, a repeated header."""
        line = line.rstrip("\r")
        if not _is_row(line) or line == (self._header or "").rstrip("\r"):
            return None
        try:
            cells = split(line, self._delimiter)
        except csv.Error as error:
            return f"{shown(line)} cannot be cut into columns ({error})"
        # Some programs end each row with a delimiter.
        while len(cells) > self._width and not cells[-1].strip():
            cells.pop()
        if len(cells) != self._width:
            return f"{len(cells)} columns where there should be {self._width}: {shown(line)}"
        return cells
