"""Rows by number: whatever the order they are asked in, each is what a reader of the whole file finds there."""

import csv
import io
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.services.data import BadRow, DataError, columns, json_list
from midflight.services.data.columns import open_arrow, open_parquet
from midflight.services.data.csv_table import open_csv
from midflight.services.data.json_list import open_json
from midflight.services.data.raw import RawRow, Rows
from midflight.services.data.text import open_jsonl

Json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('a"\\[]{},: \n\té'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("k}", max_size=2), inner, max_size=3),
    max_leaves=8,
)
Objects = st.lists(st.dictionaries(st.text("ab]", max_size=3), Json, max_size=4), max_size=6)


def shuffled(rows: Rows[RawRow | BadRow]) -> list[RawRow | BadRow]:
    """All rows, asked for from the last to the first."""
    return [rows[number] for number in reversed(range(len(rows)))][::-1]


@given(Objects, st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["", "\ufeff", " \n"]))
@settings(max_examples=60, deadline=None)
def test_json_lists_are_walked_along_their_brackets(rows: Any, indent: int | None, ascii_: bool, head: str) -> None:
    """Whatever brackets, quotes and backslashes are in strings, and wherever the pieces read end."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file, pytest.MonkeyPatch.context() as patch:
        file.write((head + json.dumps(rows, indent=indent, ensure_ascii=ascii_) + "\n").encode())
        file.flush()
        for piece in (7, 64, 1 << 20):
            patch.setattr(json_list, "_PIECE", piece)
            found = shuffled(open_json(file.name))
            assert found == [RawRow(f"{file.name}:{n}", row) for n, row in enumerate(rows, 1)]


def test_a_bad_element_costs_itself(tmp_path: Path) -> None:
    """The elements around it are read; only a list that does not end, or goes on after its end, is refused whole."""
    file = tmp_path / "rows.json"
    file.write_bytes(b'[{"a": 1}, {"a": }, 3, {"b" 4} {}, {"a": "\xff"}, {"a": [NaN]}, {"a": 2},]')
    first, *bad, eighth, end = (row for row in shuffled(open_json(str(file))))
    assert (first, eighth) == (RawRow(f"{file}:1", {"a": 1}), RawRow(f"{file}:7", {"a": 2}))
    assert [row.reason for row in (*bad, end) if isinstance(row, BadRow)] == [
        "not JSON at line 1, column 7 of the row: Expecting value",
        "a row must be an object with named fields, not int",
        "not JSON at line 1, column 6 of the row: Expecting ':' delimiter",
        "not UTF-8 at byte 9 of the row",
        "not JSON: NaN is not a JSON number",
        "not JSON at line 1, column 1 of the row: Expecting value",
    ]
    for text, said in (('[{"a": "x]', "1:11: not JSON: the list does not end"), ("[1][2]", "something follows")):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            open_json(str(file))


@given(st.lists(st.lists(st.text('a",\n\ré ', max_size=5), min_size=2, max_size=2), max_size=8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_csv_records_are_found_where_they_begin(cells: list[list[str]], quoted: bool) -> None:
    """Cells with line ends, quotes and letters of two bytes, quoted where need be or everywhere."""
    text = io.StringIO(newline="")
    table = csv.writer(text, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    table.writerows([["x", "y"], *cells])
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(text.getvalue().encode("utf-8-sig"))
        file.flush()
        found = shuffled(open_csv(file.name))
    assert [row.fields for row in found if isinstance(row, RawRow)] == [{"x": x, "y": y} for x, y in cells]
    assert len(found) == len(cells)


def test_a_bad_record_costs_itself(tmp_path: Path) -> None:
    """Found again in any order, with the same reason."""
    file = tmp_path / "rows.csv"
    file.write_text('x,y\n1,2\n"a"b,c\n\n"d\ne",f\n')
    one, bad, three = shuffled(open_csv(str(file)))
    assert bad == BadRow(f"{file}:3", """not CSV: ',' expected after '"'""")
    assert (one, three) == (RawRow(f"{file}:2", {"x": "1", "y": "2"}), RawRow(f"{file}:5", {"x": "d\ne", "y": "f"}))


def test_lines_are_found_in_any_order(tmp_path: Path) -> None:
    """Blank lines are passed over, numbers stay those of the lines, the last may have no end."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 1}\r\n\n  \n{"n": "é"}\n{"n": 3}')
    assert shuffled(open_jsonl(str(file))) == [RawRow(f"{file}:{n}", {"n": v}) for n, v in ((1, 1), (4, "é"), (5, 3))]


@pytest.mark.parametrize("kind", ["file", "stream", "compressed", "parquet"])
def test_columns_in_any_order(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many batches, also when the pages are handed back between two rows; what is not UTF-8 costs its row."""
    monkeypatch.setattr(columns, "HAND_BACK", 7)
    monkeypatch.setattr(columns, "PIECE_ROWS", 16)
    texts = [f"row {n}".encode() for n in range(100)]
    texts[41] = b"\xff"
    binary = pyarrow.array(texts, pyarrow.binary())
    words = pyarrow.Array.from_buffers(pyarrow.string(), 100, binary.buffers())
    table, file = pyarrow.table({"n": list(range(100)), "words": words}), tmp_path / f"rows.{kind}"
    if kind == "parquet":
        parquet.write_table(table, file, row_group_size=30)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
        with new(str(file), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=9)
    rows = (open_parquet if kind == "parquet" else open_arrow)(str(file))
    found = shuffled(rows)
    bad = found.pop(41)
    assert isinstance(bad, BadRow)
    assert bad.origin == f"{file}:42"
    assert found == [RawRow(f"{file}:{n + 1}", {"n": n, "words": f"row {n}"}) for n in range(100) if n != 41]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_million_rows_take_little_memory(kind: str) -> None:
    """Below 100 MB with every page counted; a second reader goes on at the same row (asserted by the benchmark)."""
    script = Path(__file__).parents[2] / "benchmarks" / "data.py"
    run = [sys.executable, str(script), "--drawn=5000", "--formats", kind]
    done = subprocess.run(run, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["formats"][kind]
    assert result["peak_mb"] < 100


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_damaged_batch_costs_rows_not_the_process(tmp_path: Path, kind: str) -> None:
    """Offsets that point outside of the file: the rows they belong to are refused, the others read. In a process of
    its own, for what is not checked ends it by a signal."""
    count = 2000
    table, file = pyarrow.table({"words": [f"row {n}" for n in range(count)]}), tmp_path / "rows.arrow"
    new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with new(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=count // 2)
    content = bytearray(file.read_bytes())
    offset = content.index(struct.pack("<4i", 0, 5, 10, 15))
    content[offset + 400 : offset + 500] = struct.pack("<25i", *range(1 << 30, (1 << 30) + 25))
    file.write_bytes(content)
    script = (
        "import sys; from midflight.services.data.columns import open_arrow; rows = open_arrow(sys.argv[1]);"
        "print(*(getattr(rows[n], 'reason', 'whole') for n in range(len(rows))), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    damaged = [n for n, said in enumerate(found) if said != "whole"]
    assert len(found) == count
    assert damaged == list(range(99, 125))
    assert all(found[n].startswith("the file is damaged here: ") for n in damaged)


def test_a_whole_batch_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often and in whatever order its rows are read."""
    file, table = tmp_path / "rows.arrow", pyarrow.table({"n": list(range(40))})
    with pyarrow.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    rows, checked = open_arrow(str(file)), []
    read = rows._batch

    class Counted:
        def __init__(self, place: int) -> None:
            self.place, self.slice = place, read(place).slice

        def validate(self, *, full: bool) -> None:
            checked.append((self.place, full))

    monkeypatch.setattr(rows, "_batch", Counted)
    assert len(shuffled(rows) + shuffled(rows)) == 80
    assert checked == [(3, True), (2, True), (1, True), (0, True)]


@pytest.mark.parametrize("kind", ["file", "stream", "parquet"])
def test_a_column_name_that_appears_twice_is_refused(tmp_path: Path, kind: str) -> None:
    """As in CSV: one of the two columns would be lost without a word."""
    table, file = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, ["prompt", "answer", "prompt"]), tmp_path / kind
    if kind == "parquet":
        parquet.write_table(table, file)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(str(file), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=f"{file}: a column name appears twice: 'prompt'"):
        (open_parquet if kind == "parquet" else open_arrow)(str(file))


def test_a_key_that_appears_twice_costs_its_row(tmp_path: Path) -> None:
    """In lines, in a list, and in an object within a row."""
    lines, whole = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    texts = ['{"a": 1, "b": 2, "a": 3}', '{"a": {"x": 1, "x": 1}}', '{"a": {"b": 1}, "b": 2}']
    lines.write_text("\n".join(texts))
    whole.write_text(f"[{', '.join(texts)}]")
    for file, rows in ((lines, open_jsonl(str(lines))), (whole, open_json(str(whole)))):
        assert shuffled(rows) == [
            BadRow(f"{file}:1", "not JSON: the key 'a' appears twice in one object"),
            BadRow(f"{file}:2", "not JSON: the key 'x' appears twice in one object"),
            RawRow(f"{file}:3", {"a": {"b": 1}, "b": 2}),
        ]
