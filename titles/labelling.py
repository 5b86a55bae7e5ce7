"""Titles to label next, as evaluate.py --next writes them: a table with a column to be filled in, or a page.

labelling.html is that page, as it is before it has rows: one file for a browser, which fetches nothing. Which rows are
worth a label (choose.py) and the pages of reports (page.py) do not belong here.
"""
import base64
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

import classify
from titles import cli, files, formats, page, report, sources, tables
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
CANDIDATES = 9  # that the page shows of a row: a digit chooses each
TEMPLATE = Path(__file__).with_name("labelling.html")
# What would end the block of data, or is not to be seen in it. None of it is beyond \uffff.
ESCAPED = re.compile(f"[<>&\u2028\u2029]|{report.UNSHOWN.pattern}")


# --- the page ---------------------------------------------------------------------------------------------------------

class Task(NamedTuple):
    """N rows that are to be labelled, in the order in which they are shown."""
    heading: str            # what they are, such as "200 of 12,345 titles of pool.csv"
    header: list            # [str] names of the columns of their table, which labelled.csv has as well
    fields: list            # [N] for each row its fields as text, in the order of the header
    title_columns: list     # positions in the header of the columns that make the title
    candidates: list        # [N] for each row its likeliest categories [(number in names, probability)], best first
    names: list             # [str] of all categories and, in a tree, of the nodes above them, as classify.Tree has them
    category_columns: list  # [str] the column of labelled.csv for the category, or its levels from the top; a column
                            # of the header, in any case, is filled in, and others come behind
    separator: str          # between the levels in one column for the category
    is_tree: bool
    constants: dict         # {name: value} of columns that labelled.csv has behind these, where the header lacks them


def hash_of(tag, content):
    """What the page's policy says of its own script or style, its only element with this tag and no attributes."""
    [inside] = re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


def as_json(task):
    """The Task, and what the page must know beside it, as JSON that may stand in an element of HTML."""
    candidates = [[(int(number), round(float(probability), 4)) for number, probability in row[:CANDIDATES]]
                  for row in task.candidates]
    value = task._replace(candidates=candidates)._asdict() | {
        "path": classify.PATH, "unshown": report.UNSHOWN.pattern}
    return ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}",
                       json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def write_page(path, task):
    """Write the page of a Task to a file. Labels that a browser keeps belong to the digest of what is written."""
    template, content = TEMPLATE.read_text(encoding="utf-8"), as_json(task)
    parts = {"heading": page.text(task.heading), "data": content,
             "digest": hashlib.sha256(content.encode()).hexdigest(),
             "policy": f"default-src 'none'; script-src {hash_of('script', template)}; "
                       f"style-src {hash_of('style', template)}; base-uri 'none'; form-action 'none'"}
    # In one go: what a part says is not looked at again.
    with files.atomic_write(path) as file:
        file.write(re.sub("{{([a-z]+)}}", lambda found: parts[found[1]], template))


# --- the table, or the page, of the rows that were chosen -------------------------------------------------------------

def category_columns(form, header):
    """The names of the columns of a formats.Format that hold a category, or its levels from the top, in a table with
    this header or, where they are not there, in another. Raises UserError where one of them makes the title."""
    # A number that was remembered, and stands beside usual names, is a place in another file.
    names = {key: [tuple(name for name in known if isinstance(name, str)) or known for known in form.names[key]]
             for key in form.names if formats.is_level(key)}
    at = formats.locate(header, names, names)
    if wrong := {*at.values()}.intersection(title_columns(form, header)):
        raise UserError(f"--category-column: {header[min(wrong)]} is a column of the title")
    return [header[at[key]] if key in at else usual_name(form, key) for key in names]


def usual_name(form, column):
    """What a column of a formats.Format is called in a new table."""
    return next((name for known in form.names[column] for name in known if isinstance(name, str)), column)


def level_sign(form):
    """What stands between the levels of a category in one column."""
    sign = form.separator or classify.PATH
    return f" {sign.strip()} " if sign.strip() else sign


def title_columns(form, header):
    """The positions of the columns of a header that make the title."""
    return [*formats.locate(header, filter(formats.is_title, form.names), form.names).values()]


def only_trained(table, header):
    """(a table of titles to label with what tells that they only train, further columns that it needs {name: value}):
    where it has a column `split`, what is empty there is filled in. Chosen titles are harder than others, so what
    validates and tests stays like all titles."""
    import pyarrow.compute as pc
    at = [i for i, name in enumerate(header) if name.lower() == "split"]
    if not at:
        return table, {"split": sources.ONLY_TRAINED}
    column = table.column(at[0])
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        is_empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "")
        filled = pc.if_else(is_empty, pa.scalar(sources.ONLY_TRAINED, column.type), column)
        table = table.set_column(at[0], table.field(at[0]), filled)
    return table, {}


def write_next(args, out, file, found, tree):
    """Write titles to label next to `out`, or to standard output: a page to label them on, or their table with a column
    for the category to be filled in, where it has none, and the likeliest ones. file: as from sources.read_titles, with
    its `form`; found: as from choose.Pool.chosen. Raises UserError where the category has no column of its own."""
    header = file.header or [usual_name(file.form, "title")]
    categories, (table, others) = category_columns(file.form, header), only_trained(found["kept"], header)
    nodes, chances = found["number"][:, :args.top], found["probability"][:, :args.top]
    if tables.suffix_of(out) in tables.PAGES:
        source = "standard input" if args.predict == "-" else cli.readable(Path(args.predict).name)
        write_page(out, Task(
            heading=f"{len(nodes):,} titles of {source}, the most useful first",
            header=header, fields=[[*row] for row in zip(*map(tables.as_text, table.columns), strict=True)],
            title_columns=title_columns(file.form, header),
            candidates=[[*zip(*row, strict=True)] for row in zip(nodes.tolist(), chances.tolist(), strict=True)],
            names=tree.names, category_columns=categories, separator=level_sign(file.form),
            is_tree=tree.levels > 1, constants=others))
        return

    # A candidate may be copied into the column of the category as it stands.
    names = [name.replace(classify.PATH, level_sign(file.form)) for name in tree.names] if tree.levels > 1 else (
        tree.names)
    lacking = {name: value for name, value in (dict.fromkeys(categories) | others).items() if name not in header}
    answer = [(name, pa.string()) for name in lacking]
    for k in range(1, nodes.shape[1] + 1):
        answer += [(classify.free_name(f"{name}_{k}", [*header, *lacking]), kind)
                   for name, kind in (("candidate", pa.string()), ("probability", pa.float64()))]
    with tables.writer(out, tables.written_dialect(args, file.dialect), header, answer) as write:
        write(table, [*([value] * len(nodes) for value in lacking.values()), *(
            column for of_rank, p in zip(nodes.T.tolist(), chances.T.tolist(), strict=True)
            for column in ([names[node] for node in of_rank], p))])
