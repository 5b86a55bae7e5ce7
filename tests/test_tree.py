"""Categories that are paths of a tree: how files say them, and what prepare.py makes of them."""
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_one_line_error, meta, save

import classify
import data
import prepare
from titles import files, formats, sources, tables, tree
from titles.cli import UserError

# Titles of a leaf each, at different depths; two rows know only a parent.
PATHS = ["Home > Kitchen > Knives", "Home > Kitchen > Pans", "Home > Garden", "Books > Books", "Toys > Cars > Knives"]


def read(path, **flags):
    """([(category, whether it is a path)] of a file that is read with these flags, the notes and bad rows of it)."""
    bad, found = formats.BadRows(1e9), []
    form = formats.format_from(SimpleNamespace(**{"encoding": "utf-8", "title_column": None} | flags))
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
    (" > ", "Home > A>B >", "Home > A>B"),
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
    assert read(path)[0] == [(formats.tidy(name), False)]  # without the flag it is a name


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
             "Home,A > B,C>\x1fD"]
    path = save(tmp_path / "x", "title,category,sub,type\n" + "".join(
        f"{'title' if 'type' in line else i},{line}\n" for i, line in enumerate(lines)))
    found = paths(path, category_column=["category", "Sub", "4"])
    assert found == ["Home > Kitchen > Knives", "Home > Kitchen", "Home", "Kitchen > Pans", "Home > Pans",
                     "Home > A › B > C> D"]
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
    lists = [["Home", "Kitchen > Bath"], ["Home", None, "Pans", ""], "Home > Kitchen", ["Size", 40, 2.0, True],
             [], [None, ""], ["a\x1fb", "c"], ["x" for _ in range(50)], ["x" for _ in range(51)], [["a"]], [{"a": 1}],
             [1.5]]
    path = save(tmp_path / "x", "".join(json.dumps({"title": "t", "category": one}) + "\n" for one in lists))
    found, bad = read(path)
    assert found == [("Home > Kitchen › Bath", True), ("Home > Pans", True), ("Home > Kitchen", False),
                     ("Size > 40 > 2 > true", True), ("a b > c", True), (" > ".join("x" * 50), True)]
    assert bad.count == 6 and {*bad.notes} == {sources.LEVEL_MISSING, sources.OWN_SIGN}
    for line, what in ((8, "more than 50 levels"), (9, "the level of the category is a list"), (10, "is an object"),
                       (11, "not a whole number")):
        only = save(tmp_path / "y", json.dumps({"title": "t", "category": lists[line]}) + "\n")
        assert what in read(only)[1].first
    # What is cut at a separator, or has several columns, leaves lists whole.
    assert paths(path, separator=">")[:3] == ["Home > Kitchen › Bath", "Home > Pans", "Home > Kitchen"]
    lines = [{"title": "t", "category": ["a", "b"], "type": "c"}, {"title": "t", "category": "a"}]
    save(path, "".join(json.dumps(line) + "\n" for line in lines))
    assert paths(path, category_column=["category", "type"]) == ["a > b > c", "a"]
    assert [*read(path, category_column=["category", "type"])[1].notes] == [classify.LACKING.format("type")]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.large_list(pa.large_string()),
                                  pa.list_(pa.int64())], ids=str)
def test_lists_of_parquet_are_paths(tmp_path, kind):
    lists = [["1", "2"], ["1", None], None, ["3"]]
    lists = [one and [level and (int(level) if "int" in str(kind) else level) for level in one] for one in lists]
    pq.write_table(pa.table({"title": [*"abcd"], "category": pa.array(lists, kind)}), tmp_path / "x")
    assert read(tmp_path / "x")[0] == [("1 > 2", True), ("1", True), ("3", True)]
    assert read(tmp_path / "x")[1].first == f"{tmp_path / 'x'}:3: no category"
    values = pa.array([["no"], ["a\x1fb", "c"], [], ["d", "", "e"]], pa.list_(pa.string()))[1:]
    pq.write_table(pa.table({"title": [*"abc"], "category": values}), tmp_path / "x")
    assert [category for category, _ in read(tmp_path / "x")[0]] == ["a b > c", "d > e"]
    assert formats.joined_levels(values).to_pylist() == [b"\x1fa b\x1fc", b"", b"\x1fd\x1f\x1fe"]


def test_files_to_classify_lack_no_level(tmp_path):
    form = formats.format_from(SimpleNamespace(encoding="utf-8", title_column=None, category_column=["a", "b"]))
    bad = formats.NoBadRows()
    path = save(tmp_path / "x", "title,id\nknife,7\n")
    with open(path, "rb") as file:
        _, blocks, _ = sources.read_titles(files.decompressed(file), "x", bad, form)
        assert [rows.titles for rows, _ in blocks] == [["knife"]]
    assert not bad.notes


# --- what is made of them ---------------------------------------------------------------------------------------------

def rows_of(paths, times=12):
    """[(title, levels)]: of each path so many titles with words of their own."""
    return [(f"{' '.join(levels).lower()} {chr(97 + i)}{j}", levels) for i, levels in enumerate(
        path.split(" > ") for path in paths) for j in range(times)]


PARENTS = [("some home thing", ["Home"]), ("other home thing", ["Home"]), ("kitchen thing", ["Home", "Kitchen"])]
ROWS = rows_of(PATHS) + PARENTS


def save_as(form, folder, rows):
    """Write rows in a form. Returns the flags that read them."""
    if form == "separator":
        save(folder / "x", one_column([]) + "".join(f"{title}, {' >  '.join(levels)} >\n" for title, levels in rows))
        return "--data", "x", "--separator", ">"
    if form == "columns":
        save(folder / "x", "title,top,sub,leaf\n" + "".join(
            ",".join([title, *levels, *[""] * (3 - len(levels))]) + "\n" for title, levels in rows))
        return "--data", "x", "--category-column", "top", "sub", "4"
    if form == "JSON lines":
        save(folder / "x", "".join(json.dumps({"title": title, "category": levels}) + "\n" for title, levels in rows))
    else:
        pq.write_table(pa.table({"title": [title for title, _ in rows], "category": [levels for _, levels in rows]}),
                       folder / "x")
    return "--data", "x"


def nodes(split, folder="data/prepared"):
    """{title: the path that its row has}."""
    prepared, arrays = data.load_prepared(folder, (split,), text=split)
    found = classify.Tree(prepared["labels"], prepared["levels"] > 1)
    rows = arrays[split]
    return {title: found.names[node] for title, node in zip(rows["text"], rows["labels"], strict=True)}


@pytest.mark.parametrize("form", ["separator", "columns", "JSON lines", "Parquet"])
def test_every_form_prepares_the_same_tree(prep, tmp_path, form):
    done = prep(*save_as(form, tmp_path, ROWS))
    assert "categories            5 in 3 levels (3, 4, 5 nodes)\n" in done.stdout
    assert "know only a parent    3 rows\n" in done.stdout and not done.stderr
    about = meta()
    assert files.read_lines("data/prepared/labels.txt") == sorted(PATHS)
    assert (about["levels"], about["categories"], about["parent_rows"], about["conflicting_rows"]) == (3, 5, 3, 0)
    assert about["options"]["separator"] == (">" if form == "separator" else None)
    assert {**nodes("train"), **nodes("valid"), **nodes("test")} == {title: " > ".join(path) for title, path in ROWS}
    assert {np.load(f"data/prepared/{split}_labels.npy").dtype for split in data.SPLITS} == {np.dtype(np.uint8)}


def test_the_dtype_holds_all_nodes(prep, tmp_path):
    names = [f"t{i} > l{i}" for i in range(200)]
    prep(*save_as("separator", tmp_path, rows_of(names, 2) + [("only top", ["t199"])]), "--valid", "0.3")
    assert np.load("data/prepared/train_labels.npy").dtype == np.uint16
    assert {**nodes("train"), **nodes("valid"), **nodes("test")}["only top"] == "t199"


def test_rows_that_know_only_a_parent_are_shared_among_its_leaves():
    found = classify.Tree(sorted(PATHS))
    number = found.number
    own = [number["Home > Garden"]] * 6 + [number["Home > Kitchen > Pans"]] * 2
    rows = tree.shared_rows(np.array(own, np.uint8), found)
    assert rows.tolist() == [0, 6, 0, 2, 0] and rows.dtype == int
    labels = [*own, *[number["Home"]] * 4, number["Home > Kitchen"], number["Toys > Cars"], *[number["Books"]] * 2]
    assert tree.shared_rows(np.array(labels), found).tolist() == [2, 9, 0, 4, 1]
    assert tree.shared_rows(np.array([number["Home"]] * 3), found).tolist() == [0, 1, 1, 1, 0]  # of Kitchen as well


def test_counts_of_categories_are_of_leaves(prep, tmp_path):
    rows = [(*row, "train") for row in rows_of(PATHS)] + [
        (f"mix {i}", levels, split) for i, (levels, split) in enumerate([
            (["Home"], "train"), (["Home"], "train"), (["Home"], "test"), (["Books", "Books"], "test"),
            (["Home", "Garden"], "valid"), (["New", "Leaf"], "test")])]
    save(tmp_path / "x", "".join(json.dumps(dict(zip(("title", "category", "split"), row, strict=True))) + "\n"
                                 for row in rows))
    done = prep("--data", "x")
    about = meta()
    labels = files.read_lines("data/prepared/labels.txt")
    assert about["training_rows"] == pytest.approx([12 + 2 / 3 if "Home" in name else 0 if "New" in name else 12
                                                    for name in labels])
    assert (about["categories"], about["parent_rows"]) == (6, 3)
    assert about["not_in_train_categories"] == 1 and about["not_split_categories"] == 4
    assert "1 categories have no training row" in done.stderr


@pytest.mark.parametrize(("others", "expected"), [
    ([["Home"]], 0), ([["Home"], ["Home", "Kitchen"]], 0), ([["Home", "Garden"]], 2), ([["Books"]], 2),
    ([["Home"], ["Books"]], 3), ([["Home", "Kitchen"], ["Home", "Garden"]], 3), ([["Home", "Kitchen", "Knives"]], 0)])
def test_a_title_may_come_with_a_leaf_and_what_is_above_it(prep, tmp_path, others, expected):
    prep(*save_as("JSON lines", tmp_path, [*rows_of(PATHS), *(("chef", path) for path in [
        ["Home", "Kitchen", "Knives"], *others])]))
    assert meta()["conflicting_rows"] == expected


def test_every_leaf_trains_and_a_small_file_holds_out_leaves():
    lacking = 0
    for seed in range(20):
        labels = np.array([0, 1, 2, 3, 3, 4, 4, 4])
        keys = data.text_keys(map(str, range(len(labels))))
        split = prepare.draw_splits(keys, labels, np.full(8, -1, np.int8), SimpleNamespace(
            valid=0.9, seed=seed, fold=None), 3)
        assert (split[:3] == 0).all()
        lacking += (split[3:] > 0).all()
    assert lacking  # nodes that are none may
    # Nodes 0 and 1 are leaves, and the one row that is held out is one of theirs.
    labels = np.array([0, 1] * 6 + [2] * 40)
    for seed in range(20):
        keys = data.text_keys(map(str, range(len(labels))))
        split = prepare.draw_splits(keys, labels, np.full(52, -1, np.int8), SimpleNamespace(
            valid=0.01, seed=seed, fold=None), 2)
        assert (labels[split == 1] < 2).any() and {*labels[(split == 0) & (labels < 2)]} == {0, 1}


def test_a_split_without_a_leaf_is_refused(prep, tmp_path):
    rows = rows_of(["Home > Garden", "Home > Kitchen", "Books > Novels"])
    for only, others in (("train", "test"), ("valid", "train")):
        lines = [{"title": title, "category": levels, "split": others} for title, levels in rows] + [
            {"title": f"thing {i}", "category": ["Home"], "split": split}
            for i, split in enumerate([only, "valid", "train", "test"])]
        save(tmp_path / "x", "".join(json.dumps(line) + "\n" for line in lines))
        assert_one_line_error(prep("--data", "x", check=False), f"no {only} row has all levels of its category")


def test_names_are_compared_with_others_of_their_parent(prep, tmp_path):
    names = ["Home > Garden", "Home > garden", "HOME > Garden > Roses", "Books > Garden"]
    done = prep(*save_as("JSON lines", tmp_path, rows_of(names)))
    assert sorted(line.partition(" in case")[0] for line in done.stderr.splitlines() if "differs" in line) == [
        "warning: category HOME: differs from Home", "warning: category Home > Garden: differs from Home > garden"]


def test_a_tree_is_other_data_than_names_that_are_the_same(prep, tmp_path):
    save(tmp_path / "x", one_column([f"A > {i % 3}" for i in range(60)]))
    prints = []
    for flags in ((), ("--separator", ">"), ("--separator", " > ")):
        prep("--data", "x", *flags)
        prints.append(meta()["fingerprint"])
    assert prints[0] != prints[1] == prints[2]

    # Nor are they used as one; and what older scripts prepared is no tree.
    prep("--data", "x", "--out", "flat")
    with pytest.raises(UserError, match="was prepared with another levels than"):
        data.load_prepared(["flat", "data/prepared"])
    older = files.read_json("flat/meta.json")
    del older["levels"]
    files.write_json("flat/meta.json", files.with_checksum(older))
    assert data.load_prepared("flat")[0]["levels"] == 1


def test_names_among_lists_are_paths_as_we_write_them(prep, tmp_path):
    lines = [{"title": title, "category": levels} for title, levels in rows_of(PATHS)]
    lines[:0] = [{"title": f"wine a{i}", "category": "Wine > Red"} for i in range(9)]
    lines += [{"title": f"beer {i}", "category": "Beer" if i % 2 else ["Beer"]} for i in range(20)]
    save(tmp_path / "x", "".join(json.dumps(line) + "\n" for line in lines))
    assert "ways" not in prep("--data", "x").stderr
    assert files.read_lines("data/prepared/labels.txt") == sorted(["Beer", *PATHS, "Wine > Red"])
    save(tmp_path / "y", one_column([f"A{i % 3} > B" for i in range(30)]))
    prep("--data", "y")  # and without a list they are names
    assert files.read_lines("data/prepared/labels.txt") == [f"A{i} > B" for i in range(3)] and meta()["levels"] == 1


# --- parts ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["separator", "columns", "JSON lines"])
def test_a_part_has_the_nodes_of_its_base(prep, tmp_path, form):
    prep(*save_as(form, tmp_path, ROWS), "--out", "base")
    more = [("pan steel", ["Home", "Kitchen", "Pans"]), ("thing more", ["Home", "Kitchen"]), ("odd", ["Toys", "Dolls"]),
            ("book more", ["Books", "Books"])]
    prep(*save_as(form, tmp_path, more)[:2], "--like", "base", "--max-bad-rows", 1, "--out", "part")
    assert nodes("train", "part") == {title: " > ".join(path) for title, path in more if title != "odd"}
    about = meta("part")
    assert about["levels"] == 3 and about["bad_rows"] == 1
    assert about["first_bad_row"].endswith("base has no category Toys > Dolls")
    both, _ = data.load_prepared(["base", "part"])
    assert sum(both["training_rows"]) == both["rows"]["train"]

    # Predicted categories are written as paths.
    save(tmp_path / "y", "title,predicted\npan new,Home > Kitchen > Pans\nmore,Toys > Cars > Knives\n")
    prep("--data", "y", "--category-column", "predicted", "--like", "base", "--out", "part")
    assert [*nodes("train", "part").values()] == ["Home > Kitchen > Pans", "Toys > Cars > Knives"]


# --- hints and errors -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("sign", "shown"), [(" > ", ">"), (">", ">"), (" / ", "/"), ("/", "/"), ("|", "|"),
                                             (" :: ", "::"), ("::", "::"), ("»", "»")])
def test_names_that_look_like_paths_are_told(prep, tmp_path, sign, shown):
    names = [f"Home{sign}Room {i}" for i in range(9)] + ["Lone", f"Home{sign}Kitchen{sign}Knives"]
    save(tmp_path / "x", one_column(names * 20))
    done = prep("--data", "x")
    assert done.stderr == (f"warning: category Home{sign}Kitchen{sign}Knives ...: 91% of the names look like paths; "
                           f'--separator "{shown}" reads them as a tree\n')
    prep("--data", "x", "--separator", shown)
    assert meta()["levels"] == 3


def test_a_sign_with_spaces_is_shown_with_them_where_names_have_it_without(prep, tmp_path):
    save(tmp_path / "x", one_column([f"{'TV/Video' if i % 3 else 'Sound'} / Kind {i % 11}" for i in range(220)]))
    assert '--separator " / " reads' in prep("--data", "x").stderr


@pytest.mark.parametrize("names", [
    [f"Home > {i}" for i in range(9)], [f"A{i} > B" for i in range(20)],
    [f"Home > {i}" for i in range(7)] + [f"x{i}" for i in range(3)]])
def test_other_names_look_like_no_paths(prep, tmp_path, names):
    save(tmp_path / "x", one_column(names * 20))
    assert "look like paths" not in prep("--data", "x").stderr


def test_labels_of_fasttext_are_no_paths(prep, tmp_path):
    save(tmp_path / "x", "".join(f"__label__Home/{i % 12} thing a{i} {i}\n" for i in range(240)))
    assert "look like paths" not in prep("--data", "x").stderr


def test_a_separator_that_no_row_has_is_said(prep, tmp_path):
    save(tmp_path / "x", one_column(["a", "b"] * 20))
    done = prep("--data", "x", "--separator", "::")
    assert done.stderr == ("warning: --separator '::': no category has it between two levels, so the tree has one "
                           "level\n")
    assert files.read_lines("data/prepared/labels.txt") == ["a", "b"] and "categories            2\n" in done.stdout


def test_flags_of_paths_that_are_wrong_end_in_a_line(prep, tmp_path):
    save(tmp_path / "x", "title,top,sub\n" + "".join(f"t{i},a,b{i % 3}\n" for i in range(40)))
    assert_one_line_error(prep("--data", "x", "--separator", "", check=False), "argument --separator: '': wanted")
    assert_one_line_error(prep("--data", "x", "--category-column", "sub", "sub", check=False),
                          "--category-column sub sub: the same column twice")
    assert_one_line_error(prep("--data", "x", "--category-column", "sub", "leaf", check=False),
                          "the header needs one column leaf", "--category-column")
    assert prep("--data", "x", "--category-column", "top", "sub", "--separator", "tab").returncode == 0
    assert meta()["options"]["separator"] == "\t" and meta()["options"]["category_column"] == ["top", "sub"]


def test_evaluate_cuts_a_file_as_the_data_was_prepared(prep, tmp_path):
    prep(*save_as("separator", tmp_path, ROWS))
    path = save(tmp_path / "y", one_column(["Home>Kitchen", "Home > Garden > "]))

    def found(config, **flags):
        tree = classify.Tree(["A > B > C", "D"], "data" in config)
        classifier = SimpleNamespace(config=config, title_columns=[], columns=[], tree=tree)
        args = SimpleNamespace(**{"data": tmp_path / "data/prepared", "category_column": None, "separator": None,
                                  "encoding": "utf-8", "title_column": None} | flags)
        with open(path, "rb") as file:
            form = tables.file_format(args, classifier, file)
        return [name for block in sources.read_labelled(path, formats.BadRows(0), form)
                for name in block["category"].to_pylist()]

    # With the options of its data; without that data as a run writes paths; and as flags say.
    of_data = {"fingerprint": meta()["fingerprint"], "data": {"levels": 3}}
    assert found(of_data) == ["Home > Kitchen", "Home > Garden"]
    assert found({"fingerprint": "other", "data": {"levels": 3}}) == ["Home>Kitchen", "Home > Garden"]
    assert found({"fingerprint": "other"}) == ["Home>Kitchen", "Home > Garden >"]
    assert found(of_data, separator="n") == ["Home>Kitche", "Home › Garde > ›"]
