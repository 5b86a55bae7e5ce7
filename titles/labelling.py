"""From rows to a page on which a person labels their titles: one file for a browser, which fetches nothing.

labelling.html is that page, as it is before it has rows; here they are filled in. Which rows are worth a label, and
classifying them (evaluate.py, predict.py), and the pages of reports (page.py) do not belong here.
"""
import base64
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import classify
from titles import files, page, report

# --- knobs ------------------------------------------------------------------------------------------------------------
CANDIDATES = 9  # that the page shows of a row: a digit chooses each
TEMPLATE = Path(__file__).with_name("labelling.html")
# What would end the block of data, or is not to be seen in it. None of it is beyond \uffff.
ESCAPED = re.compile(f"[<>&\u2028\u2029]|{report.UNSHOWN.pattern}")


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


def write(path, task):
    """Write the page of a Task to a file. Labels that a browser keeps belong to the digest of what is written."""
    template, content = TEMPLATE.read_text(encoding="utf-8"), as_json(task)
    parts = {"heading": page.text(task.heading), "data": content,
             "digest": hashlib.sha256(content.encode()).hexdigest(),
             "policy": f"default-src 'none'; script-src {hash_of('script', template)}; "
                       f"style-src {hash_of('style', template)}; base-uri 'none'; form-action 'none'"}
    # In one go: what a part says is not looked at again.
    with files.atomic_write(path) as file:
        file.write(re.sub("{{([a-z]+)}}", lambda found: parts[found[1]], template))
