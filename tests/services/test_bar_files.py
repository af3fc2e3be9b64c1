"""Files of bars: every layout reads as the same bars, bad rows cost only themselves, garbage is refused with words."""

import gzip
import io
import math
import os
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather

from domain.bar import Bar
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services.bar_files import BadRow, BarFileError, read_bars

T0 = 1_670_889_600_000
BARS = [Bar(T0 + i * MINUTE_MS, 10.0 + i, 12.5 + i, 9.25 + i, 11.0 + i, 100.5 * i) for i in range(5)]
HEADER = "ts_ms,open,high,low,close,volume"
RECORDINGS = Path(os.environ.get("CANDLERY_RECORDINGS", Path(__file__).parents[3] / "shared")) / "data"


def line(bar: Bar) -> str:
    return ",".join(repr(value) for value in (bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume))


def csv_text(bars: Sequence[Bar] = BARS, header: str = HEADER) -> str:
    return "\n".join([*([header] if header else []), *map(line, bars)]) + "\n"


def read(path: Path, timeframe: Timeframe = Timeframe.M1, **options: int) -> tuple[list[Bar], list[BadRow]]:
    batches = list(read_bars(path, timeframe, **options))
    return [bar for batch in batches for bar in batch.bars], [row for batch in batches for row in batch.bad]


def bars_of(path: Path, timeframe: Timeframe = Timeframe.M1, **options: int) -> list[Bar]:
    bars, bad = read(path, timeframe, **options)
    assert bad == []
    return bars


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "bars.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


Written = Callable[[str | bytes], Path]


def refusal(path: Path) -> str:
    with pytest.raises(BarFileError) as caught:
        list(read_bars(path, Timeframe.M1))
    assert str(path) in caught.value.detail
    return caught.value.detail


# --- Layouts of text


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        "",
        "Timestamp,Open,High,Low,Close,Volume",
        '"t","o","h","l","c","v"',
        "<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>",
    ],
)
def test_a_header_may_be_there_or_not_and_be_spelled_in_many_ways(written: Written, header: str):
    assert bars_of(written(csv_text(header=header))) == BARS


def test_columns_may_stand_in_any_order_among_others(written: Written):
    rows = [f"BTC,{b.volume},{b.close},x,{b.ts},{b.low},{b.high},{b.open}" for b in BARS]
    assert bars_of(written("\n".join(["symbol,volume,close,note,open_time,low,high,open", *rows]))) == BARS


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends_are_recognised(written: Written, delimiter: str, end: str):
    assert bars_of(written(csv_text().replace(",", delimiter).replace("\n", end))) == BARS


def test_a_byte_order_mark_blank_lines_comments_quotes_and_trailing_delimiters_are_passed_over(written: Written):
    rows = [line(bar) for bar in BARS]
    quoted = ",".join(f'"{cell}"' for cell in rows[1].split(","))
    text = ["# source: somewhere", HEADER, rows[0], "", "   ", quoted, "# half time", rows[2] + ",", HEADER, *rows[3:]]
    assert bars_of(written(b"\xef\xbb\xbf" + "\n".join(text).encode())) == BARS


def test_the_last_line_needs_no_end(written: Written):
    assert bars_of(written(csv_text().rstrip("\n"))) == BARS


BINANCE_NAMES = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)


def binance_row(bar: Bar, factor: int) -> str:
    prices = ",".join(f"{value:.8f}" for value in (bar.open, bar.high, bar.low, bar.close, bar.volume))
    return f"{bar.ts * factor},{prices},{(bar.ts + MINUTE_MS) * factor - 1},5.0,7,1.0,2.0,0"


@pytest.mark.parametrize("header", [[BINANCE_NAMES], []])
@pytest.mark.parametrize("factor", [1, 1_000])
def test_binances_archive_is_read_with_milliseconds_and_with_microseconds(
    written: Written, header: list[str], factor: int
):
    assert bars_of(written("\n".join([*header, *(binance_row(bar, factor) for bar in BARS)]))) == BARS


@pytest.mark.parametrize(
    "stamp",
    [
        lambda ts: str(ts // 1_000),
        lambda ts: f"{ts // 1_000}.0",
        str,
        lambda ts: f"{ts}.0",
        lambda ts: str(ts * 1_000),
        lambda ts: str(ts * 1_000_000),
        lambda ts: datetime.fromtimestamp(ts / 1000, UTC).isoformat(),
        lambda ts: datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        lambda ts: datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
        lambda ts: datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        lambda ts: (datetime.fromtimestamp(ts / 1000, UTC) + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00"),
    ],
)
def test_times_are_recognised_by_magnitude_or_as_iso_8601(written: Written, stamp: Callable[[int], str]):
    rows = [",".join([stamp(b.ts), *line(b).split(",")[1:]]) for b in BARS]
    assert bars_of(written("\n".join(["time,open,high,low,close,volume", *rows]))) == BARS


@pytest.mark.parametrize("stamp", ["2024-01-31", "20240131", "2024-01-31T00:00:00+00:00"])
def test_a_calendar_date_is_its_own_midnight(written: Written, stamp: str):
    path = written(f"date,open,high,low,close,volume\n{stamp},1,2,0.5,1.5,7\n")
    assert [bar.ts for bar in bars_of(path, Timeframe.D1)] == [1_706_659_200_000]


def test_daily_bars_from_before_and_around_1970_keep_their_milliseconds(written: Written):
    days = [Bar(day * DAY_MS, 1.0, 2.0, 0.5, 1.5, 7.0) for day in range(-3_000, 20_000)]
    assert bars_of(written(csv_text(days)), Timeframe.D1) == days


def test_a_number_of_another_unit_is_a_bad_row_and_not_a_bar_of_1970(written: Written):
    rows = [line(bar) for bar in BARS]
    rows[2] = rows[2].replace(str(BARS[2].ts), str(BARS[2].ts // 1000))
    rows[3] = rows[3].replace(str(BARS[3].ts), str(BARS[3].ts * 1000))
    bars, bad = read(written("\n".join([HEADER, *rows])))
    assert bars == [BARS[0], BARS[1], BARS[4]]
    assert bad == [
        BadRow(4, f"time {BARS[2].ts // 1000} looks like seconds, in a file of milliseconds"),
        BadRow(5, f"time {BARS[3].ts * 1000} looks like microseconds, in a file of milliseconds"),
    ]


def test_a_strange_first_time_does_not_decide_for_the_file(written: Written):
    bars, bad = read(written("\n".join([HEADER, "5,1,2,0.5,1,7", *map(line, BARS)])))
    assert bars == BARS
    assert [row.line for row in bad] == [2]


# --- Sessions


def test_a_stocks_daily_bar_stamped_new_york_midnight_becomes_its_session_date(written: Written):
    stamps = {883_717_200_000: "1998-01-02", 1_720_065_600_000: "2024-07-04", 1_706_659_200_000: "2024-01-31"}
    path = written("\n".join([HEADER, *(f"{ts},1,2,0.5,1.5,7" for ts in stamps)]))
    bars = bars_of(path, Timeframe.D1, session_dates=True)
    assert [datetime.fromtimestamp(bar.ts / 1000, UTC).isoformat() for bar in bars] == [
        f"{date}T00:00:00+00:00" for date in sorted(stamps.values())
    ]


def test_session_dates_leave_minutes_alone(written: Written):
    assert bars_of(written(csv_text()), session_dates=True) == BARS


def test_without_session_dates_a_bar_off_the_bucket_is_bad(written: Written):
    _, bad = read(written(f"{HEADER}\n883717200000,1,2,0.5,1.5,7\n"), Timeframe.D1)
    assert bad == [BadRow(2, "time 883717200000 is not the start of a 1d bucket")]


# --- Bad rows


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,1,2,0.5,1,7", "time 'x' is no number of milliseconds"),
        (",1,2,0.5,1,7", "time '' is no number"),
        ("1670889660000,1,2,0.5,abc,7", "close 'abc' is not a number"),
        ("1670889660000,1,,0.5,1,7", "high '' is not a number"),
        ("1670889660000,1,2,0.5,1", "5 columns where there should be 6"),
        ("1670889660000,1,2,0.5,1,7,8", "7 columns where there should be 6"),
        ('1670889660000,"1,2,0.5,1,7', "columns where there should be 6"),
        ("1670889660000,1,nan,0.5,1,7", "high is not a finite number"),
        ("1670889660000,1,inf,0.5,1,7", "high is not a finite number"),
        ("1670889660000,1,0.1,0.5,1,7", "high 0.1 is below low 0.5"),
        ("1670889660000,3,2,0.5,1,7", "open 3.0 is outside low..high"),
        ("1670889660000,1,2,0.5,1,-7", "volume -7.0 is negative"),
        ("1670889660001,1,2,0.5,1,7", "is not the start of a 1m bucket"),
        ("1670889660000.5,1,2,0.5,1,7", "is not a whole number of milliseconds"),
        ("99999999999999999999999,1,2,0.5,1,7", "looks like no epoch time"),
        ("nan,1,2,0.5,1,7", "time 'nan' is no number"),
        ("\x00\x01garbage", "1 columns where there should be 6"),
        ("9" * 100_000, "1 columns where there should be 6"),
    ],
)
def test_a_bad_row_is_listed_with_its_line_and_its_fault_and_costs_no_other(written: Written, row: str, words: str):
    # Further down than what tells text from binary by a look at the beginning.
    many = [Bar(T0 + i * MINUTE_MS, 1.0, 2.0, 0.5, 1.5, 7.0) for i in range(10_000)]
    lines = [HEADER, "# comment", *map(line, many[:9_000]), row, "", *map(line, many[9_000:])]
    bars, bad = read(written("\n".join(lines)))
    assert bars == many
    assert [found.line for found in bad] == [9_003]
    assert words in bad[0].detail
    assert len(bad[0].detail) < 200


def test_bytes_that_are_no_utf8_cost_one_row(written: Written):
    rows = [line(bar).encode() for bar in BARS]
    rows[2] = b"\xff\xfe,\xff"
    bars, bad = read(written(b"\n".join([HEADER.encode(), *rows])))
    assert (bars, [row.line for row in bad]) == ([*BARS[:2], *BARS[3:]], [4])


def test_a_cell_of_text_stands_for_no_time_in_months_either(written: Written):
    rows = ["1669852800000,1,2,0.5,1,7", "9999999999999999,1,2,0.5,1,7", "1672531200000,1,2,0.5,1,7"]
    bars, bad = read(written("\n".join([HEADER, *rows])), Timeframe.MN1)
    assert [bar.ts for bar in bars] == [1_669_852_800_000, 1_672_531_200_000]
    assert [row.line for row in bad] == [3]


def test_rows_may_be_out_of_order(written: Written):
    assert bars_of(written(csv_text(random.Random(1).sample(BARS, len(BARS))))) == BARS


def test_a_repeated_row_is_passed_over(written: Written):
    assert bars_of(written(csv_text([*BARS, *BARS]))) == BARS


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_of_two_rows_that_contradict_each_other_the_first_counts_and_the_second_is_listed(
    written: Written, batch_rows: int
):
    other = Bar(BARS[1].ts, 1.0, 2.0, 0.5, 1.0, 7.0)
    bars, bad = read(written(csv_text([BARS[0], BARS[1], other, *BARS[2:]])), batch_rows=batch_rows)
    assert bars == BARS
    assert bad == [BadRow(4, f"another row of time {other.ts} says otherwise; the first one is kept")]


# --- Batches and resuming


def many_bars(count: int) -> list[Bar]:
    return [Bar(T0 + i * MINUTE_MS, 1.0, 2.0, 0.5, 1.0 + (i % 7) / 10, float(i)) for i in range(count)]


def as_csv(path: Path, bars: list[Bar]) -> None:
    path.write_text(csv_text(bars))


def as_gzip(path: Path, bars: list[Bar]) -> None:
    path.write_bytes(gzip.compress(csv_text(bars).encode()))


def as_zip(path: Path, bars: list[Bar]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("BTCUSDT-1m.csv", csv_text(bars))
        archive.writestr("__MACOSX/._BTCUSDT-1m.csv", "x")


def table_of(bars: list[Bar]) -> pa.Table:
    columns = list(zip(*bars_as_tuples(bars), strict=True)) or [()] * 6
    types = [pa.int64(), *[pa.float64()] * 5]
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=HEADER.split(","))


def bars_as_tuples(bars: list[Bar]) -> list[tuple[float, ...]]:
    return [(b.ts, b.open, b.high, b.low, b.close, b.volume) for b in bars]


def as_parquet(path: Path, bars: list[Bar]) -> None:
    pq.write_table(table_of(bars), path, row_group_size=2_500)


def as_feather(path: Path, bars: list[Bar]) -> None:
    feather.write_feather(table_of(bars), path, chunksize=2_500)


KINDS = [as_csv, as_gzip, as_zip, as_parquet, as_feather]


@pytest.mark.parametrize("write", KINDS)
def test_a_file_of_any_kind_comes_in_batches_that_tell_how_far_they_are(
    tmp_path: Path, write: Callable[[Path, list[Bar]], None]
):
    path, bars = tmp_path / "file", many_bars(30_000)
    write(path, bars)
    batches = list(read_bars(path, Timeframe.M1, batch_rows=8_000))
    assert [bar for batch in batches for bar in batch.bars] == bars
    assert len(batches) > 2
    assert batches[-1].position == 30_000
    assert batches[-1].bytes_done == batches[-1].bytes_total == path.stat().st_size
    positions = [batch.position for batch in batches]
    assert positions == sorted(positions)
    assert {batch.total_rows for batch in batches} <= {None, 30_000}


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("at", [0, 1, 2_500, 9_999, 12_345, 30_000, 99_999])
def test_reading_resumes_at_any_row(tmp_path: Path, write: Callable[[Path, list[Bar]], None], at: int):
    path, bars = tmp_path / "file", many_bars(30_000)
    write(path, bars)
    assert bars_of(path, skip_rows=at) == bars[at:]


@pytest.mark.parametrize("write", KINDS)
def test_where_one_reading_stopped_the_next_goes_on(tmp_path: Path, write: Callable[[Path, list[Bar]], None]):
    path, bars = tmp_path / "file", many_bars(30_000)
    write(path, bars)
    first = next(iter(read_bars(path, Timeframe.M1, batch_rows=10_000)))
    rest = list(read_bars(path, Timeframe.M1, skip_rows=first.position, batch_rows=10_000))
    assert first.bars + [bar for batch in rest for bar in batch.bars] == bars
    assert rest[-1].position == 30_000


def test_resuming_counts_rows_and_lines_as_the_first_reading_did(written: Written):
    rows = [HEADER, line(BARS[0]), "", "# note", "bad", line(BARS[1]), "worse", line(BARS[2])]
    path = written("\n".join(rows))
    assert read(path, skip_rows=1) == ([BARS[1], BARS[2]], read(path)[1])
    assert read(path, skip_rows=2) == ([BARS[1], BARS[2]], [read(path)[1][1]])
    assert [row.line for row in read(path)[1]] == [5, 7]


def test_a_header_without_rows_gives_nothing(written: Written):
    assert list(read_bars(written(HEADER + "\n"), Timeframe.M1)) == []


# --- Parquet and Feather


def with_times(times: pa.Array) -> pa.Table:
    return table_of(BARS).set_column(0, "timestamp", times)


INSTANTS = [datetime.fromtimestamp(bar.ts / 1000, UTC) for bar in BARS]


@pytest.mark.parametrize(
    "times",
    [
        *(
            pa.array(INSTANTS, pa.timestamp(unit, zone))
            for unit in ("s", "ms", "us", "ns")
            for zone in (None, "UTC", "America/New_York")
        ),
        *(pa.array([b.ts * f // 1000 for b in BARS], pa.int64()) for f in (1, 1_000, 1_000_000, 1_000_000_000)),
        pa.array([b.ts / 1000 for b in BARS], pa.float64()),
        pa.array([b.ts for b in BARS], pa.uint64()),
        pa.array([b.ts // 1000 for b in BARS], pa.int32()),
        pa.array([moment.isoformat() for moment in INSTANTS]),
        pa.array([str(b.ts) for b in BARS]).dictionary_encode(),
    ],
    ids=lambda times: str(times.type),
)
def test_parquet_and_feather_times_of_any_type_are_read(tmp_path: Path, times: pa.Array):
    pq.write_table(with_times(times), tmp_path / "p")
    feather.write_feather(with_times(times), tmp_path / "f")
    assert bars_of(tmp_path / "p") == BARS
    assert bars_of(tmp_path / "f") == BARS


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates_of_parquet_are_midnights(tmp_path: Path, kind: pa.DataType):
    table = table_of(BARS[:1]).set_column(0, "date", pa.array([INSTANTS[0].date()], kind))
    pq.write_table(table, tmp_path / "p")
    assert [bar.ts for bar in bars_of(tmp_path / "p", Timeframe.D1)] == [T0]


def test_a_pandas_frame_with_its_times_as_index_is_read(tmp_path: Path):
    table = table_of(BARS).set_column(0, "__index_level_0__", pa.array(INSTANTS, pa.timestamp("ns")))
    pq.write_table(table.select([1, 2, 3, 4, 5, 0]), tmp_path / "p")
    assert bars_of(tmp_path / "p") == BARS


def test_small_numbers_decimals_and_numbers_as_text_are_prices_too(tmp_path: Path):
    table = table_of(BARS)
    for place, kind in enumerate([pa.float32(), pa.decimal128(20, 4), pa.string(), pa.float64(), pa.float32()], 1):
        table = table.set_column(place, table.column_names[place], table.column(place).cast(kind))
    pq.write_table(table, tmp_path / "p")
    assert bars_of(tmp_path / "p") == BARS


def test_missing_values_of_parquet_are_bad_rows_by_their_number(tmp_path: Path):
    times: list[int | None] = [bar.ts for bar in BARS]
    times[1] = None
    closes: list[float | None] = [bar.close for bar in BARS]
    closes[3] = None
    table = table_of(BARS).set_column(0, "ts", pa.array(times)).set_column(4, "close", pa.array(closes))
    pq.write_table(table, tmp_path / "p")
    bars, bad = read(tmp_path / "p")
    assert bars == [BARS[0], BARS[2], BARS[4]]
    assert bad == [BadRow(2, "time 'None' is no number of milliseconds"), BadRow(4, "close 'None' is not a number")]


def test_a_missing_date_is_a_bad_row(tmp_path: Path):
    table = table_of(BARS[:2]).set_column(0, "date", pa.array([None, INSTANTS[0].date()], pa.date32()))
    pq.write_table(table, tmp_path / "p")
    assert read(tmp_path / "p", Timeframe.D1)[1] == [BadRow(1, "time is missing")]


def test_nanoseconds_within_a_millisecond_are_a_bad_row(tmp_path: Path):
    pq.write_table(with_times(pa.array([b.ts * 1_000_000 + 1 for b in BARS], pa.timestamp("ns"))), tmp_path / "p")
    bars, bad = read(tmp_path / "p")
    assert bars == []
    assert "not a whole number of milliseconds" in bad[0].detail


def test_an_empty_table_gives_nothing(tmp_path: Path):
    as_parquet(tmp_path / "p", [])
    as_feather(tmp_path / "f", [])
    assert list(read_bars(tmp_path / "p", Timeframe.M1)) == list(read_bars(tmp_path / "f", Timeframe.M1)) == []


@pytest.mark.parametrize("column", [pa.array([True] * 5), pa.array([[1.0]] * 5), pa.nulls(5)])
def test_a_column_that_holds_no_numbers_is_refused(tmp_path: Path, column: pa.Array):
    pq.write_table(table_of(BARS).set_column(5, "volume", column), tmp_path / "p")
    assert "column 'volume', the volume, holds" in refusal(tmp_path / "p")


# --- Files that are no bars


def small_zip(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, csv_text())
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"# nothing\n# at all\n", "nothing but comments"),
        (bytes(range(256)) * 20, "the file is binary"),
        (struct.pack("<200d", *[math.pi] * 200) + b"\0", "the file is binary"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML or XML"),
        (b'\n  {"code": -1121, "msg": "Invalid symbol."}', "the file is JSON"),
        (b'[[1670889600000,"1","2"]]', "the file is JSON"),
        (csv_text().encode("utf-16"), "UTF-16"),
        (b"hello world, this is a letter\nbest wishes", "none of the known names"),
        (b"a,b,c,d,e,f\n1,2,3,4,5,6\n", "none of the known names"),
        (b"1670889600000,1,2,0.5,1,7,99\n", "the first row has 7 columns"),
        (b"1670889600000,1,2,0.5,1,7,5,1,1,1,1,0\n", "the first row has 12 columns"),
        (b"ts,open,high,low,close\n", "no column is the volume"),
        (b"open,high,low,close,volume\n", "no column is the time"),
        (b"date,time,open,high,low,close,volume\n", "several columns could be the time"),
        (b"ts,open,open,high,low,close,volume\n", "several columns could be the open"),
        (b"unix,open,high,low,close,Volume BTC,Volume USD\n", "several columns could be the volume"),
        (b"ts,open,high,low,close,volume\n01/02/2024 10:00,1,2,0.5,1,7\n", "times like '01/02/2024 10:00' are not"),
        (b"1,2,3,4,5,6" * 100_000, "the first line is longer than"),
        (gzip.compress(b""), "the file is empty"),
        (gzip.compress(b"<html>"), "HTML or XML"),
        (b"\x1f\x8b" + b"junk" * 20, "damaged or cut short"),
        (b"PK\x03\x04" + b"junk" * 20, "damaged or cut short"),
        (small_zip(), "holds 0 files (none)"),
        (small_zip("a.csv", "b.csv"), "holds 2 files (a.csv, b.csv)"),
        (b"PAR1" + b"junk" * 20, "the file is damaged or cut short"),
        (b"ARROW1\0\0" + b"junk" * 20, "the file is damaged or cut short"),
        (b"FEA1" + b"junk" * 20, "Feather version 1"),
    ],
)
def test_garbage_is_refused_with_words_on_what_it_is(written: Written, content: bytes, words: str):
    assert words in refusal(written(content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    assert "cannot be read" in refusal(tmp_path / "none.csv")
    assert "cannot be read" in refusal(tmp_path)


def test_an_encrypted_archive_is_refused(tmp_path: Path):
    content = bytearray(small_zip("a.csv"))
    content[content.find(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "z").write_bytes(content)
    assert "encrypted" in refusal(tmp_path / "z")


def cut_short(content: bytearray) -> None:
    del content[len(content) * 3 // 4 :]


def flip_a_bit(content: bytearray) -> None:
    content[len(content) * 3 // 4] ^= 1


@pytest.mark.parametrize("write", [as_gzip, as_zip])
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit])
def test_not_one_bar_is_believed_of_an_archive_whose_checksum_is_wrong(
    tmp_path: Path, write: Callable[[Path, list[Bar]], None], damage: Callable[[bytearray], None]
):
    path = tmp_path / "file"
    write(path, many_bars(60_000))
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    assert "damaged or cut short" in refusal(path)


def test_what_comes_before_damage_that_shows_late_is_kept(tmp_path: Path):
    path, bars = tmp_path / "file", many_bars(10_000)
    feather.write_feather(table_of(bars), path, chunksize=2_500, compression="zstd")
    content = bytearray(path.read_bytes())
    content[content.rfind(b"\x28\xb5\x2f\xfd")] ^= 1  # the last compressed buffer no longer looks like Zstandard
    path.write_bytes(content)
    kept: list[Bar] = []
    with pytest.raises(BarFileError, match="damaged or cut short"):
        kept.extend(bar for batch in read_bars(path, Timeframe.M1) for bar in batch.bars)
    assert 0 < len(kept) < 10_000
    assert kept == bars[: len(kept)]


@pytest.mark.parametrize("write", [as_parquet, as_feather])
def test_a_columnar_file_that_was_cut_short_is_refused(tmp_path: Path, write: Callable[[Path, list[Bar]], None]):
    path = tmp_path / "file"
    write(path, many_bars(5_000))
    path.write_bytes(path.read_bytes()[:-200])
    assert "damaged or cut short" in refusal(path)


def test_a_bomb_of_one_endless_line_is_no_burden(tmp_path: Path):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.csv", "w") as member:
        member.write(f"{HEADER}\n{line(BARS[0])}\n".encode())
        for _ in range(200):
            member.write(b"7" * (1 << 18))
        member.write(f"\n{line(BARS[1])}\n".encode())
    (tmp_path / "z").write_bytes(bomb.getvalue())
    assert read(tmp_path / "z") == (BARS[:2], [BadRow(3, "the line is too long")])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_no_content_whatever_raises_anything_else(tmp_path: Path, content: bytes, headed: bool):  # noqa: FBT001
    path = tmp_path / "any"
    path.write_bytes(HEADER.encode() + b"\n" + content if headed else content)
    try:
        bars = [bar for batch in read_bars(path, Timeframe.M1) for bar in batch.bars]
    except BarFileError:
        return
    assert all(bar.low <= bar.open <= bar.high for bar in bars)


# --- Any bars at all, there and back


def prices() -> st.SearchStrategy[float]:
    return st.floats(min_value=1e-9, max_value=1e9, allow_nan=False)


@st.composite
def any_bars(draw: st.DrawFn) -> list[Bar]:
    minutes = draw(st.lists(st.integers(20_000_000, 60_000_000), unique=True, max_size=40))
    bars = []
    for minute in minutes:
        low, first, second, high = sorted(draw(st.tuples(prices(), prices(), prices(), prices())))
        bars.append(Bar(minute * MINUTE_MS, first, high, low, second, draw(st.floats(0, 1e12))))
    return bars


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_bars(), st.integers(1, 20))
@pytest.mark.parametrize("write", KINDS)
def test_what_is_written_is_read_again(
    tmp_path: Path, write: Callable[[Path, list[Bar]], None], bars: list[Bar], batch_rows: int
):
    write(tmp_path / "file", bars)
    found = bars_of(tmp_path / "file", batch_rows=batch_rows)
    assert sorted(found, key=lambda bar: bar.ts) == sorted(bars, key=lambda bar: bar.ts)


# --- Recorded files


needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="there are no recordings here")


@needs_recordings
@pytest.mark.parametrize(
    ("name", "timeframe", "count"),
    [
        ("crypto_1m/binance_btcbusd_1m.csv", Timeframe.M1, 1_440),
        ("crypto_1m/binance_btcusd_perp_1m.csv", Timeframe.M1, 1_439),
        ("crypto_1h/binance_BTCUSDT_1h.csv", Timeframe.H1, None),
        ("crypto_1m/coinbase_btcusd_1m.csv", Timeframe.M1, None),
        ("crypto_1m/coinbase_ltcusd_1m.csv", Timeframe.M1, None),
        ("us_stock_1m/SPY_1m.csv", Timeframe.M1, None),
        ("us_stock_1m/BAC_1m.csv", Timeframe.M1, None),
    ],
)
def test_recorded_bars_are_read_without_a_bad_row(name: str, timeframe: Timeframe, count: int | None):
    path = RECORDINGS / name
    bars = bars_of(path, timeframe)
    rows = path.read_text().splitlines()[1:]
    assert len(bars) == (count or len(rows))
    assert [[bar.ts, bar.close] for bar in bars] == [[int(r.split(",")[0]), float(r.split(",")[4])] for r in rows]


@needs_recordings
@pytest.mark.parametrize("symbol", ["AAPL", "IBM", "QQQ", "SPY"])
def test_recorded_daily_stock_bars_get_their_session_dates(symbol: str):
    bars, bad = read(RECORDINGS / f"us_stock_daily/{symbol}_1d.csv", Timeframe.D1, session_dates=True)
    assert all(bar.ts % DAY_MS == 0 for bar in bars)
    assert {datetime.fromtimestamp(bar.ts / 1000, UTC).weekday() for bar in bars} <= {0, 1, 2, 3, 4}
    assert len(bars) > 3_900
    assert bad == []
