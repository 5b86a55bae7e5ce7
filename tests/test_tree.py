"""Categories that are paths of a tree: how files say them, and what prepare.py makes of them."""
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import save

import classify
from titles import files, sources
from titles.cli import UserError

# Titles of a leaf each, at different depths; two rows know only a parent.
PATHS = ["Home > Kitchen > Knives", "Home > Kitchen > Pans", "Home > Garden", "Books > Books", "Toys > Cars > Knives"]


def read(path, **flags):
    """([(category, whether it is a path)] of a file that is read with these flags, the notes and bad rows of it)."""
    bad, found = sources.BadRows(1e9), []
    form = sources.format_from(SimpleNamespace(**{"encoding": "utf-8", "title_column": None} | flags))
    for block in sources.read_labelled(path, bad, form):
        is_path = block["path"].to_pylist() if "path" in block else [False] * len(block["title"])
        for category, spelling, path_too in zip(block["category"].to_pylist(), block["spelling"].to_pylist(), is_path,
                                                strict=True):
            assert spelling == category or not path_too
            found.append((category, path_too))
    return found, bad


def paths(path, **flags):
    """The categories of a file, all of them paths."""
    found, _ = read(path, **flags)
    assert all(is_path for _, is_path in found)
    return [category for category, _ in found]


# --- how files say them -----------------------------------------------------------------------------------------------

def one_column(names, header="title,category"):
    return header + "\n" + "".join(f"t{i},{name}\n" for i, name in enumerate(names))


@pytest.mark.parametrize(("separator", "name", "expected"), [
    (">", "Home > Kitchen > Knives", "Home > Kitchen > Knives"),
    (">", " Home>Kitchen  >  Bread   Knives ", "Home > Kitchen > Bread Knives"),
    (" > ", "Home > A>B > ", "Home > A>B"),
    (" / ", "TV/Video / Cables", "TV/Video > Cables"),
    ("::", "a::b:c", "a > b:c"),
    ("»", "a»b", "a > b"),
    ("a", "xay", "x > y"),
    ("\t", "a\tb", "a > b"),
    ("|", "Books|Books", "Books > Books"),
    (">", "Home > Kitchen >", "Home > Kitchen"),
    ("/", "a > b/c", "a › b > c"),
    ("/", "a >/> b/>", "a › > › b > ›"),
    ("/", "a>b/c", "a>b > c"),
    ("/", "a\x1fb/c", "a b > c"),
])
def test_a_column_is_cut_at_the_separator(tmp_path, separator, name, expected):
    path = save(tmp_path / "x", one_column([name]))
    assert paths(path, separator=separator) == [expected]
    assert read(path)[0] == [(sources.tidy(name), False)]  # without the flag it is a name


def test_empty_levels_are_left_out_and_said_once(tmp_path):
    path = save(tmp_path / "x", one_column(["a>>b", ">a", "> > a>b>", "a>b", ">", " "]))
    assert paths(path, separator=">") == ["a > b", "a", "a > b", "a > b"]
    _, bad = read(path, separator=">")
    assert bad.notes == {sources.LEVEL_MISSING: (3, f"{path}:2")}
    assert bad.count == 2 and bad.first == f"{path}:6: no category"


def test_a_sign_of_a_level_of_its_own_is_said_once(tmp_path):
    path = save(tmp_path / "x", one_column(["a/b", "a > b/c", "x/c > d", "a > b/c"]))
    found, bad = read(path, separator="/")
    assert [category for category, _ in found] == ["a > b", "a › b > c", "x > c › d", "a › b > c"]
    assert bad.notes == {sources.OWN_SIGN: (3, f"{path}:3")}


def test_several_columns_are_the_levels_from_the_top(tmp_path):
    lines = ["Home,Kitchen,Knives", "Home,Kitchen,", "Home,,", ",Kitchen,Pans", "Home,,Pans", ",,", "category,sub,type",
             "Home,A > B,C>D"]
    path = save(tmp_path / "x", "title,category,sub,type\n" + "".join(
        f"{'title' if 'type' in line else i},{line}\n" for i, line in enumerate(lines)))
    found = paths(path, category_column=["category", "Sub", "4"])
    assert found == ["Home > Kitchen > Knives", "Home > Kitchen", "Home", "Kitchen > Pans", "Home > Pans",
                     "Home > A › B > C>D"]
    _, bad = read(path, category_column=["category", "sub", "type"])
    assert bad.count == 2 and bad.first == f"{path}:7: no category" and bad.notes[sources.LEVEL_MISSING][0] == 2
    assert paths(path, category_column=["sub", "type"], separator=">")[-1] == "A > B > C > D"
    assert read(path, category_column=["sub"])[0][0] == ("Kitchen", False)
    with pytest.raises(UserError, match=r"the header needs one column kind, and says .*--category-column"):
        read(path, category_column=["category", "kind"])
    for twice in (["sub", "Sub"], ["type", "4"]):
        with pytest.raises(UserError, match="the same column"):
            read(path, category_column=twice)


def test_lists_are_paths_as_they_are(tmp_path):
    lists = [["Home", "Kitchen > Bath"], ["Home", None, "Pans", ""], "Home > Kitchen", ["Size", 40, 1.5, 2.0, True],
             [], [None, ""], ["a\x1fb", "c"], ["x" for _ in range(50)], ["x" for _ in range(51)], [["a"]], [{"a": 1}]]
    path = save(tmp_path / "x", "".join(json.dumps({"title": "t", "category": one}) + "\n" for one in lists))
    found, bad = read(path)
    assert found == [("Home > Kitchen › Bath", True), ("Home > Pans", True), ("Home > Kitchen", False),
                     ("Size > 40 > 1.5 > 2 > true", True), ("a b > c", True), (" > ".join("x" * 50), True)]
    assert bad.count == 5 and {*bad.notes} == {sources.LEVEL_MISSING, sources.OWN_SIGN}
    for line, what in ((8, "more than 50 levels"), (9, "a level of the category is a list"), (10, "is an object")):
        only = save(tmp_path / "y", json.dumps({"title": "t", "category": lists[line]}) + "\n")
        assert what in read(only)[1].first
    # What is cut at a separator, or has several columns, leaves lists whole.
    assert paths(path, separator=">")[:3] == ["Home > Kitchen › Bath", "Home > Pans", "Home > Kitchen"]
    lines = [{"title": "t", "category": ["a", "b"], "type": "c"}, {"title": "t", "category": "a"}]
    save(path, "".join(json.dumps(line) + "\n" for line in lines))
    assert paths(path, category_column=["category", "type"]) == ["a > b > c", "a"]
    assert [*read(path, category_column=["category", "type"])[1].notes] == [classify.LACKING.format("type")]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.int64())])
def test_lists_of_parquet_are_paths(tmp_path, kind):
    lists = [["1", "2"], ["1", None], None, ["3"]]
    lists = [one and [level and (int(level) if "int" in str(kind) else level) for level in one] for one in lists]
    pq.write_table(pa.table({"title": [*"abcd"], "category": pa.array(lists, kind)}), tmp_path / "x")
    assert read(tmp_path / "x")[0] == [("1 > 2", True), ("1", True), ("3", True)]
    assert read(tmp_path / "x")[1].first == f"{tmp_path / 'x'}:3: no category"


def test_files_to_classify_lack_no_level(tmp_path):
    form = sources.format_from(SimpleNamespace(encoding="utf-8", title_column=None, category_column=["a", "b"]))
    bad = sources.NoBadRows()
    path = save(tmp_path / "x", "title,id\nknife,7\n")
    with open(path, "rb") as file:
        _, blocks, _ = sources.read_titles(files.decompressed(file), "x", bad, form)
        assert [rows.titles for rows, _ in blocks] == [["knife"]]
    assert not bad.notes
