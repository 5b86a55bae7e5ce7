"""CSV in formats.py: broken quotes swallow no row, and no line vanishes unsaid, in blocks of any size."""
import csv
import io
import re
from unittest import mock

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_sources import BLOCKS, Recorder

import classify
from classify import AS_TEXT, SPANS
from titles import formats


def parsed(text, width=2, delimiter=",", block=8 << 20):
    """({line: cells} of CSV without a header, a Recorder), read in blocks of so many bytes."""
    table = classify.Table("x.csv", delimiter, [*"abcde"[:width]], {str(i): i for i in range(width)})
    bad, found = Recorder(), {}
    with mock.patch.object(formats, "BLOCK", block):
        blocks = formats.line_blocks(io.BytesIO(text.encode()), "x.csv")
        for cells, numbers in formats.read_csv(blocks, table, bad):
            columns = [[cell.decode().strip() for cell in cells[str(i)].to_pylist()] for i in range(width)]
            found |= zip(numbers.tolist(), zip(*columns, strict=True), strict=True)
    return found, bad


# --- quotes -----------------------------------------------------------------------------------------------------------

QUOTES = {  # lines with | for the delimiter -> {line: its cells, or what is wrong}, {line: what is odd}
    "at the begin": ('"Gaming silla|A\nfunda|B\n', {1: ('"Gaming silla', "A"), 2: ("funda", "B")}, {1: AS_TEXT}),
    "two, and rows between": ('"Gaming|A\nx|B\n"Pro tv|C\ny|D\n', {
        1: ('"Gaming', "A"), 2: ("x", "B"), 3: ('"Pro tv', "C"), 4: ("y", "D")}, {1: AS_TEXT, 3: AS_TEXT}),
    "two that would close": ('"Gaming|A\nx|B\ntv 24"|C\n', {
        1: ('"Gaming', "A"), 2: ("x", "B"), 3: ('tv 24"', "C")}, {1: AS_TEXT}),
    "two that would close, and rows with quotes between": ('"Gaming|A\n"x|y"|B\n "z" w|"B"\ntv"|C\n', {
        1: ('"Gaming', "A"), 2: ("x|y", "B"), 3: ("z w", "B"), 4: ('tv"', "C")}, {1: AS_TEXT}),
    "in the last column": ('x|"A\ny|B\n', {1: ("x", '"A'), 2: ("y", "B")}, {1: AS_TEXT}),
    "in the last line": ('x|A\n"y|B', {1: ("x", "A"), 2: ('"y', "B")}, {2: AS_TEXT}),
    "in the last line, behind another": ('24" x|"A', {1: ('24" x', '"A')}, {1: AS_TEXT}),
    "behind a space": ('x| "A\ny|B\n', {1: ("x", '"A'), 2: ("y", "B")}, {1: AS_TEXT}),
    "and too few columns": ('x|A\n"y\nz|B\n', {1: ("x", "A"), 2: "1 columns instead of 2; is a quote unclosed?",
                                               3: ("z", "B")}, {}),
    "and too many columns": ('"x|y|A\nz|B\n', {1: "3 columns instead of 2; is a quote unclosed?", 2: ("z", "B")}, {}),
    "in each of many lines": ('"x|A\n' * 3, dict.fromkeys((1, 2, 3), ('"x', "A")), dict.fromkeys((1, 2, 3), AS_TEXT)),
    "inch marks": ('24" tv|A\ntv 24"|B\n"tv 24"""|C\nx|D 3"\n', {
        1: ('24" tv', "A"), 2: ('tv 24"', "B"), 3: ('tv 24"', "C"), 4: ("x", 'D 3"')}, {}),
    "that close within a field": ('"Pro" smart tv|A\n"Pro|Max" tv|B\n""x"" y|C\n', {
        1: ("Pro smart tv", "A"), 2: ("Pro|Max tv", "B"), 3: ('x"" y', "C")}, {}),
    "that close a delimiter in, which does not fit": ('"a|b" c "d|e"\n', {1: ('"a', 'b" c "d', 'e"')}, {}),
    "pairs behind spaces": ('x| "A"\n "y|z"|  "B"\n"c| ""d"" e"|C\nf| ""\ng| """h"""\n', {
        1: ("x", "A"), 2: ("y|z", "B"), 3: ('c| "d" e', "C"), 4: ("f", ""), 5: ("g", '"h"')}, {}),
    "doubled": ('"a ""b"""|A\n""|B\n""""|C\n', {1: ('a "b"', "A"), 2: ("", "B"), 3: ('"', "C")}, {}),
    "around lines": ('"mesa\n\nlarga"|A\nx|"B\n"\ny|C\n', {1: ("mesa\n\nlarga", "A"), 4: ("x", "B"), 6: ("y", "C")},
                     {1: SPANS, 4: SPANS}),
    "around lines of several fields": ('"a\nb"|"c"|"d\ne"\n"f\n""g"" |h"|i|j\n', {
        1: ("a\nb", "c", "d\ne"), 4: ('f\n"g" |h', "i", "j")}, {1: SPANS, 4: SPANS}),
    "around lines, which does not fit": ('"a\nb"|c\n', {
        1: "1 columns instead of 3; is a quote unclosed?", 2: "2 columns instead of 3; is a quote unclosed?"}, {}),
    "around the lines of one column": ('"a\nb"\n"c\nd\n', {
        1: ("a\nb",), 3: ('"c',), 4: ("d",)}, {1: SPANS, 3: AS_TEXT}),
}
WIDTHS = {"that close a delimiter in, which does not fit": 3, "around lines of several fields": 3,
          "around lines, which does not fit": 3, "around the lines of one column": 1}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("delimiter", [",", "\t"], ids=ascii)
@pytest.mark.parametrize("name", QUOTES)
def test_quotes(name, delimiter, block):
    content, expected, odd = QUOTES[name]
    found, bad = parsed(content.replace("|", delimiter), WIDTHS.get(name, 2), delimiter, block=block)
    assert {line: [cell.replace(delimiter, "|") for cell in cells] for line, cells in found.items()} == {
        line: list(cells) for line, cells in expected.items() if isinstance(cells, tuple)}
    assert bad.skipped == {line: what for line, what in expected.items() if isinstance(what, str)}
    assert bad.odd == odd


def test_a_row_of_many_lines_has_a_limit(monkeypatch):
    for length, spans in ((40, True), (60, False)):
        monkeypatch.setattr(classify, "ROW_BYTES", 100)
        for block in BLOCKS:
            found, bad = parsed('"' + "x\n" * length + 'x"|A\ny|B\n', delimiter="|", block=block)
            assert (found.pop(length + 2), bad.odd) == (("y", "B"), {1: SPANS} if spans else {})
            assert {*found, *bad.skipped} == ({1} if spans else {*range(1, length + 2)})


def check(lines, width, delimiter):
    """Whether all that arbitrary lines hold is in a row, in a row that is noted, or counted as bad; in blocks of any
    size alike."""
    outcomes = [parsed("\n".join(lines), width, delimiter, block) for block in (1, 20, 8 << 20)]
    found, bad = outcomes[0]
    for other, recorder in outcomes[1:]:
        assert (found, bad.skipped, bad.odd, bad.count) == (other, recorder.skipped, recorder.odd, recorder.count)
    assert bad.count == len(bad.skipped) and not found.keys() & bad.skipped.keys()

    def letters(text):
        return re.sub(f'["{delimiter}\\s]', "", text)

    starts = sorted([*found, *bad.skipped])
    for start, following in zip([0, *starts], [*starts, len(lines) + 1], strict=True):
        said = [line for line in lines[max(0, start - 1):following - 1] if line.strip()]
        if start in found:
            assert letters("".join(said)) == letters("".join(found[start]))
            assert len(said) <= 1 or bad.odd[start] == SPANS
        else:
            assert len(said) == (start in bad.skipped)


pieces = st.lists(st.sampled_from(['"', '""', ",", "\t", ";", " ", "a", "é b", '"c"', ',"', '",', '24"']), max_size=7)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(pieces.map("".join), min_size=1, max_size=8), st.integers(1, 3), st.sampled_from(",\t;"))
@example(['"a', "b,c", 'd"e"', 'f,"g"'], 2, ",")
@example(["a,b", "", "c,d"], 2, ",")
def test_no_line_vanishes_unsaid(lines, width, delimiter):
    check(lines, width, delimiter)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(pieces.map("".join), min_size=1, max_size=5), st.integers(1, 3), st.sampled_from(",\t;"))
@example(['a, "b"'], 2, ",")
@example(['24" tv,"a'], 2, ",")
@example(["a,b", "", "c,d"], 2, ",")
def test_the_quick_path_agrees_with_the_careful_one(lines, width, delimiter):
    block = "".join(f"{line}\n" for line in lines)
    table, bad = classify.Table("x", delimiter, [*"abcde"[:width]], {str(i): i for i in range(width)}), Recorder()
    quick = formats.parse_quickly(block.encode(), table)
    careful, _, used = classify.rows_in(lines, 1, table, bad, last=True)
    assert used == len(lines)
    if quick is not None:
        rows = zip(*([cell.decode() for cell in quick[str(i)].to_pylist()] for i in range(width)), strict=True)
        assert [*map(tuple, careful)] == [*rows]
        assert not bad.skipped and not bad.odd


def test_spaces_before_a_field_are_kept_whatever_quotes_other_fields_have():
    lines = ['"a",  1,x', '"b",  2,"y', 'z"', 'c,  3,w', 'd,  4, "v"', 'e,  5, "v', 'w"']
    table = classify.Table("x", ",", [*"abc"], {})
    rows, *_ = classify.rows_in(lines, 1, table, Recorder(), last=True)
    assert rows == [["a", "  1", "x"], ["b", "  2", "y\nz"], ["c", "  3", "w"], ["d", "4", "v"], ["e", "5", "v\nw"]]


@st.composite
def tables(draw):
    """(rows of cells, whether cells hold line ends)."""
    width, ends = draw(st.integers(1, 5)), draw(st.booleans())
    cell = st.text(st.sampled_from('ab"" ,;\té' + "\n" * (ends and width > 2)), max_size=6)
    return draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=6))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tables(), st.sampled_from(",\t;"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
       st.sampled_from(["\n", "\r\n"]))
def test_what_pythons_writer_writes_is_read_back(rows, delimiter, quoting, newline):
    width, expected, odd, line, lines = len(rows[0]), {}, {}, 1, []
    for row in rows:
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerow(row)
        expected[line] = tuple(cell.strip() for cell in row)
        inner = file.getvalue().split("\n")[:-1]
        if len(inner) > 1:
            odd[line] = SPANS
        # A line between that is a row by itself is taken for one.
        assume(all(len(next(csv.reader([between], delimiter=delimiter, skipinitialspace=True), [])) != width
                   for between in inner[1:-1]))
        lines, line = lines + inner, line + len(inner)
    for block in (1, 30, 8 << 20):
        found, bad = parsed("".join(each + newline for each in lines), width, delimiter, block)
        assert (found, bad.odd, bad.count) == (expected, odd, 0)


