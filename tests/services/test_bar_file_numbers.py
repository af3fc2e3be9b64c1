"""Blocks of plain numbers are read at once, and give what reading them row by row gives: bars, faults and places."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.bar import Bar
from domain.packed import PackedBars
from domain.timeframe import MINUTE_MS, Timeframe
from services import bar_file_columns, bar_file_text
from services.bar_file_layout import BarFileError
from services.bar_file_numbers import numbers_in
from services.bar_file_rows import BadRow, Converter
from services.bar_files import read_bars

T0 = 1_670_889_600_000
NEVER = 1 << 30


class Reading(NamedTuple):
    """What came of a file, and how many of its batches came packed."""

    bars: list[Bar]
    bad: list[BadRow]
    positions: list[int]
    packed: int


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def patch(block_bytes: int, plain_from: int) -> None:
        monkeypatch.setattr(bar_file_text, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(bar_file_text, "PLAIN_BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(bar_file_text, "PLAIN_FROM_BLOCK", plain_from)

    return patch


def reading(path: Path, timeframe: Timeframe = Timeframe.M1, *, batch_rows: int = 50, skip_rows: int = 0) -> Reading:
    batches = list(read_bars(path, timeframe, batch_rows=batch_rows, skip_rows=skip_rows))
    return Reading(
        [bar for batch in batches for bar in batch.bars],
        [row for batch in batches for row in batch.bad],
        [batch.position for batch in batches],
        sum(isinstance(batch.found, PackedBars) for batch in batches),
    )


def row(i: int, *, step_ms: int = MINUTE_MS) -> str:
    made = random.Random(i)
    low, first, last, high = sorted(made.uniform(1, 1e5) for _ in range(4))
    return f"{T0 + i * step_ms},{first!r},{high!r},{low!r},{last!r},{made.expovariate(1e-3)!r}"


def test_a_file_of_good_rows_is_read_at_once(tmp_path: Path, patched: Callable[[int, int], None]):
    path = tmp_path / "bars.csv"
    path.write_text("\n".join(["ts_ms,open,high,low,close,volume", *(row(i) for i in range(1_000))]))
    patched(4_000, NEVER)
    slow = reading(path)
    patched(4_000, 1)
    fast = reading(path)
    assert fast.packed > 10
    assert slow.packed == 0
    assert fast[:3] == slow[:3]


def test_files_with_the_newest_row_first_are_read_at_once(tmp_path: Path, patched: Callable[[int, int], None]):
    path = tmp_path / "bars.csv"
    path.write_text("\n".join(["open_time,open,high,low,close,volume", *(row(999 - i) for i in range(1_000))]))
    patched(4_000, 1)
    fast = reading(path, batch_rows=10_000)
    assert fast.packed == 1
    assert [bar.ts for bar in fast.bars] == [T0 + i * MINUTE_MS for i in range(1_000)]


@pytest.mark.parametrize(
    ("unit", "factor"), [("seconds", 0.001), ("milliseconds", 1), ("microseconds", 1_000), ("nanoseconds", 1_000_000)]
)
def test_times_of_every_unit_are_read_at_once(
    tmp_path: Path, patched: Callable[[int, int], None], unit: str, factor: float
):
    path = tmp_path / f"{unit}.csv"
    rows = [row(i).partition(",") for i in range(200)]
    path.write_text("\n".join(f"{int(int(ts) * factor)},{rest}" for ts, _, rest in rows))
    patched(2_000, 0)
    fast = reading(path)
    assert fast.packed == len(fast.positions)
    assert [bar.ts for bar in fast.bars] == [T0 + i * MINUTE_MS for i in range(200)]


ODD_CELLS = st.sampled_from(
    [
        *("", " ", "nan", "NaN", "inf", "-inf", "1e400", "-0.0", "+5", "1_0", "0x10", '"5"', "5,", "#", "x", "1e5"),
        *(".5", "5.", "-", "1 2", "٣", "\t7", "7 ", "5\r", "1\r2", "\0", "nan(5)", "1d", "1f", "0b1", "true", "NULL"),
        *("99999999999999999999", "1.5e3", "1e-400", "00017", "- 5", "--5", "5e", "e5", "1,5", "Infinity"),
    ]
)
ODD_LINES = st.sampled_from(["", "   ", "# a comment", "ts_ms,open,high,low,close,volume", "1,2,3", "\r", '"'])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("cell"), st.integers(0, 59), st.integers(0, 5), ODD_CELLS),
        st.tuples(st.just("line"), st.integers(0, 59), st.just(0), ODD_LINES),
        # Another place for a row, a row once more, and one that says otherwise.
        st.tuples(st.just("move"), st.integers(0, 59), st.integers(0, 59), st.just("")),
        st.tuples(st.just("copy"), st.integers(0, 59), st.integers(0, 59), st.just("")),
        st.tuples(st.just("alter"), st.integers(0, 59), st.integers(0, 59), st.just("")),
        st.tuples(st.just("shift"), st.integers(0, 59), st.integers(1, 70_000), st.just("")),
    ),
    max_size=4,
)


def changed(lines: list[str], changes: list[tuple[str, int, int, str]]) -> list[str]:
    out = list(lines)
    for kind, at, other, text in changes:
        cells = out[at].split(",")
        if kind == "cell" and len(cells) > other:
            cells[other] = text
            out[at] = ",".join(cells)
        elif kind == "line":
            out[at] = text
        elif kind == "move":
            out.insert(other, out.pop(at))
        elif kind == "copy":
            out.insert(other, out[at])
        elif kind == "alter":
            out.insert(other, row(10_000 + at).replace(str(T0 + (10_000 + at) * MINUTE_MS), cells[0]))
        elif kind == "shift" and cells[0].isdigit():
            out[at] = ",".join([str(int(cells[0]) + other), *cells[1:]])
    return out


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.integers(200, 1_500), st.integers(1, 30), st.sampled_from(["\n", "\r\n", "\r"]), st.integers(0, 70))
def test_whatever_is_wrong_with_a_file_reading_at_once_finds_what_reading_by_row_finds(
    tmp_path: Path,
    patched: Callable[[int, int], None],
    changes: list[tuple[str, int, int, str]],
    block_bytes: int,
    batch_rows: int,
    end: str,
    skip_rows: int,
):
    path = tmp_path / "bars.csv"
    lines = ["ts_ms,open,high,low,close,volume", *changed([row(i) for i in range(60)], changes)]
    path.write_bytes(end.join(lines).encode())
    found: list[object] = []
    for plain_from in (0, NEVER):
        patched(block_bytes, plain_from)
        try:
            found.append(reading(path, batch_rows=batch_rows, skip_rows=skip_rows)[:3])
        except BarFileError as error:
            found.append(error.detail)
    assert found[0] == found[1]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats().map(repr), st.integers().map(str), st.decimals().map(str)), min_size=1, max_size=30)
)
def test_each_number_is_the_one_that_python_reads(cells: list[str]):
    text = "\n".join(f"{i};{cell}" for i, cell in enumerate(cells)).encode()
    columns = numbers_in(text, ";", 2, (0, 1))
    if columns is not None:
        assert [repr(value) for value in columns[1].tolist()] == [repr(float(cell)) for cell in cells]


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.H1, Timeframe.D1, Timeframe.W1])
def test_columns_of_parquet_are_taken_as_they_are_and_give_what_their_rows_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeframe: Timeframe
):
    monkeypatch.setattr(bar_file_columns, "BLOCK_ROWS", 7)
    width = timeframe.width_ms
    assert width is not None
    first = timeframe.ceil(T0)
    times = [first + i * width for i in range(40)]
    times[25] += MINUTE_MS // 2
    prices = [float(i + 1) for i in range(40)]
    lows = [*prices[:11], 99.0, *prices[12:]]
    names = ("ts", "open", "high", "low", "close", "volume")
    for number, kind in enumerate((pa.int64(), pa.timestamp("ms"), pa.timestamp("us", "UTC"))):
        own = [ts if kind != pa.timestamp("us", "UTC") else ts * 1_000 for ts in times]
        column = pa.array(own, pa.int64()).cast(kind)
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(dict(zip(names, (column, prices, prices, lows, prices, prices), strict=True))), path)
        with monkeypatch.context() as only_rows:
            fast = reading(path, timeframe, batch_rows=7, skip_rows=3)
            only_rows.setattr(bar_file_columns, "_as_numbers", lambda *_: None)
            slow = reading(path, timeframe, batch_rows=7, skip_rows=3)
        assert fast[:3] == slow[:3]
        assert (slow.packed, fast.packed > 2) == (0, True)
        assert [bad.line for bad in fast.bad] == [12, 26]


def test_rows_after_columns_are_compared_with_them():
    """A repeated row is passed over, and one that says otherwise listed, also when the first came in a column."""
    converter = Converter((0, 1, 2, 3, 4, 5), bar_file_columns.EpochReader("milliseconds"), Timeframe.M1)
    lines = [row(i) for i in range(3)]
    columns = numbers_in("\n".join(lines).encode(), ",", 6, (0, 1, 2, 3, 4, 5))
    assert columns is not None
    converter.convert(bar_file_text.ColumnBlock(columns, 0, lambda: pytest.fail("it is read at once")))
    assert len(converter.take_batch()[0]) == 3
    other = [*lines[2].split(",")[:5], "123456.5"]
    converter.convert(bar_file_text.RowBlock([(4, lines[1].split(",")), (5, other), (6, row(3).split(","))], 0))
    bars, bad = converter.take_batch()
    assert [bar.ts for bar in bars] == [T0 + 3 * MINUTE_MS]
    assert [fault.line for fault in bad] == [5]
