"""marks.csv: the last mark of a cell holds, and what a crash leaves of a row costs that row only."""

import pytest

from hemomil.commands.marks import COLUMNS, Mark, append_mark, read_mark_table, read_marks
from hemomil.errors import CellsError

FIRST = Mark("s1/0001", "class", "sickle", 'clear, with a "tail"', "2026-11-23T10:00:00+01:00")
SECOND = Mark("s1/0002", "artefact", time="2026-11-23T10:00:05+01:00")
HEADER = ",".join(COLUMNS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "marks.csv"


def test_marks_come_back_as_they_were_set(path):
    append_mark(path, FIRST)
    append_mark(path, SECOND)
    assert read_marks(path) == {"s1/0001": FIRST, "s1/0002": SECOND}
    lines = path.read_text().splitlines()
    assert lines[0] == HEADER
    assert len(lines) == 3


def test_without_a_file_there_are_no_marks(path):
    assert read_marks(path) == {}


def test_the_last_mark_of_a_cell_holds_and_none_takes_it_back(path):
    for mark in (FIRST, SECOND, Mark("s1/0001", "unsure"), Mark("s1/0002", "none")):
        append_mark(path, mark)
    found = read_mark_table(path)
    assert found.marks == {"s1/0001": Mark("s1/0001", "unsure")}
    assert found.rows == {"s1/0001": 4}


def test_a_file_cut_at_any_byte_keeps_the_rows_before_and_the_next_one(tmp_path):
    whole = tmp_path / "whole.csv"
    append_mark(whole, FIRST)
    before = len(whole.read_bytes())
    append_mark(whole, SECOND)
    content, last = whole.read_bytes(), Mark("s1/0003", "class", "sphärozyt")
    for size in range(before, len(content)):
        cut = tmp_path / f"{size}.csv"
        cut.write_bytes(content[:size])
        held = read_marks(cut)
        assert held.pop("s1/0001") == FIRST
        assert set(held.values()) <= {Mark("s1/0002", "artefact", time=t) for t in _starts(SECOND.time)}
        append_mark(cut, last)
        assert read_marks(cut) == {"s1/0001": FIRST, **held, "s1/0003": last}


def _starts(text):
    return [text[:size] for size in range(len(text) + 1)]


@pytest.mark.parametrize("size", range(len(HEADER) + 1))
def test_a_header_that_was_cut_is_written_again(path, size):
    path.parent.mkdir()
    path.write_text(HEADER[:size])
    assert read_marks(path) == {}
    append_mark(path, SECOND)
    assert read_marks(path) == {"s1/0002": SECOND}


def test_a_cut_line_is_told(path):
    append_mark(path, FIRST)
    with path.open("ab") as file:
        file.write("s1/0002,class,sphä".encode()[:-1])  # in the middle of a letter
    found = read_mark_table(path)
    assert found.marks == {"s1/0001": FIRST}
    assert [notice.kind for notice in found.notices] == ["mark-cut"]
    assert "s1/0002,class,sph" in found.notices[0].text
    append_mark(path, SECOND)
    assert read_mark_table(path).notices == ()


def test_a_note_stays_on_one_line_and_a_comma_in_its_field(path):
    append_mark(path, Mark("s1/0001", "unsure", note="one, two\r\nthree\nfour"))
    assert read_marks(path)["s1/0001"].note == "one, two three four"
    assert len(path.read_text().splitlines()) == 2


def test_a_file_saved_by_a_spreadsheet_is_read(path):
    path.parent.mkdir()
    path.write_bytes("\ufeffcell_id;mark;class\r\ns1/0001;class;sickle\r\n;;\r\n".encode())
    assert read_marks(path) == {"s1/0001": Mark("s1/0001", "class", "sickle")}
    with pytest.raises(CellsError, match="has the columns"):
        append_mark(path, SECOND)


def test_all_rows_that_are_wrong_are_named(path):
    path.parent.mkdir()
    path.write_text(f"{HEADER}\ns1/1,clas,x,,\ns1/2,class,,,\ns1/3,unsure,,,\n,unsure,,,\n")
    with pytest.raises(CellsError) as caught:
        read_marks(path)
    text = str(caught.value)
    assert "row 2: mark 'clas' of cell s1/1 is unknown" in text
    assert "row 3: cell s1/2 is marked with a class that has no name" in text
    assert "row 5: a mark names no cell" in text
    assert "row 4" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cell,mark,class\nx,unsure,\n", "has no column cell_id"),
        (b'cell_id,mark,class\nx,unsure,"\ny,unsure,\n', "is not a CSV table"),
        (b"cell_id,mark,class\nx,class,sph\xe4\n", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(path, content, said):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CellsError, match=said):
        read_marks(path)


def test_other_columns_are_not_written_into(path):
    path.parent.mkdir()
    path.write_text("cell_id,mark,class\nx,unsure,\n")
    with pytest.raises(CellsError, match="has the columns cell_id,mark,class, not"):
        append_mark(path, FIRST)
    assert path.read_text() == "cell_id,mark,class\nx,unsure,\n"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("s1/1", "class"), "has no name"),
        (("", "unsure"), "names no cell"),
    ],
)
def test_a_mark_that_says_nothing_is_refused(values, said):
    with pytest.raises(CellsError, match=said):
        Mark(*values)
