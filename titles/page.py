"""From scores, tables and curves to report.html, and from what has changed to compare.html: pages that need no other
file, for a browser, a phone and paper.

A page has its figures in it, and its Content-Security-Policy forbids all else: scripts, fetching anything. Names,
titles and languages may be anything, so whatever is shown goes through `text`, or is escaped as it is. Computing what
is shown and drawing figures (report.py), and reading runs (runs.py) do not belong here.
"""
import base64
import html
import json

import numpy as np

import classify
from titles import change, measures, report, runs

# --- knobs ------------------------------------------------------------------------------------------------------------
NAME, TEXT = 80, 200    # characters that are shown of a category's name, and of any other text
CATEGORIES = 2000       # rows of the table of categories, and ...
SUSPECTS = 20           # ... of that of suspects; categories.csv and suspects.csv have all
TESTS = {"mix": "mix: predicted categories", "sure": "sure: probabilities", "words": "words: titles with a new one",
         "kind": "kind: a classifier of words (AUC less 0.5)"}
NODES, UNFOLDED = 2000, 20  # the worst nodes of a tree, which are shown, and above which it is unfolded

STYLE = """
:root { color-scheme: light dark } h2 { margin-top: 2rem } nav a { padding-right: .9rem }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
.note, pre { padding: .7rem; border: 1px solid } pre { white-space: pre-wrap } img { max-width: max(100%, 36rem) }
.scroll { overflow: auto; margin: 1rem 0 } details .scroll { max-height: 32rem } td ul { margin: 0; padding-left: 1rem }
table { border-collapse: collapse; font-size: .9rem } caption { text-align: left } tbody th { font-weight: normal }
th, td { padding: .25rem .5rem; border-bottom: 1px solid gray; vertical-align: top; text-align: left; min-width: 6rem }
thead th { position: sticky; top: 0; background: Canvas } th.n, td.n { text-align: right; min-width: 0 }
th.n, td.n { overflow-wrap: normal }
.tree, .tree ul { padding-left: 1rem } .tree summary { cursor: pointer } .tree li { list-style-position: inside }
.tree li:has(> details) { list-style: none }
@media print { nav { display: none } .scroll, details .scroll { overflow: visible; max-height: none } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


# --- parts of a page --------------------------------------------------------------------------------------------------

def text(value, limit=TEXT):
    """Any value as text that is no markup, in elements and in attributes."""
    return html.escape(report.plain(str(value), limit))


def name_of(category):
    """The name of a category: cut in its middle, for the end of a path tells most."""
    return report.plain_name(category, NAME)


def cell(value):
    """A cell of a table: numbers and (low, high) stand to the right, a list is a list, all else is text."""
    if isinstance(value, list):
        return f"<td><ul>{''.join(f'<li>{text(item)}</li>' for item in value)}</ul></td>"
    if isinstance(value, str):
        return f"<td>{text(value)}</td>"
    # What is missing, also a NaN, is a dash.
    numbers = value if isinstance(value, tuple) else (value,)
    said = ["-" if x is None or x != x else f"{x:,}" if isinstance(x, int) else f"{x:.4f}" for x in numbers]
    return f'<td class="n">{" to ".join(said)}</td>'


def table(caption, header, rows):
    """A table that scrolls by itself. rows: the values for each column of the header; the first one heads its row."""
    head = "".join(f'<th scope="col" class="{"t" if isinstance(value, (str, list)) else "n"}">{text(title)}</th>'
                   for title, value in zip(header, (rows or [header])[0], strict=True))
    body = "\n".join(f'<tr><th scope="row">{text(first) or "-"}</th>{"".join(map(cell, others))}</tr>'
                     for first, *others in rows)
    return (f'<section class="scroll" tabindex="0" aria-label="{text(caption)}"><table>\n<caption>{text(caption)}'
            f"</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></section>\n")


def figure(path, caption):
    """A PNG file as a part of the page, nothing where there is none."""
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure class="scroll" tabindex="0"><img alt="{text(caption)}" src="data:image/png;base64,{content}">'
            f"<figcaption>{text(caption)}</figcaption></figure>\n")


# --- sections ---------------------------------------------------------------------------------------------------------

def headline(scores):
    """The scores of all rows and their intervals."""
    rows, interval = scores["rows"], {"balanced_accuracy": tuple(scores["balanced_accuracy_interval"])}
    for name in ("accuracy", "top5_accuracy"):
        interval[name] = measures.wilson_interval(scores[name], rows)
    return table(f"Scores of {rows:,} rows", ("score", "value", "95 % interval"), [
        *([meaning, scores[name], interval.get(name)] for name, meaning in report.SCORES.items()),
        *([["accuracy that the probabilities promised", scores["expected_accuracy"],
            tuple(scores["expected_accuracy_interval"])]] if scores["calibration_rows"] else [])]) + "".join(
             f"<p>{text(note)}.</p>" for note in [*report.notes(scores), *(
                 [report.changed_said(scores)] if scores["changed"] else [])])


def origin(scores):
    """Which rows these are, and how many of them a run has trained on."""
    source = scores["data"]
    said = f"The {scores['split']} split of {source['folder']}, fingerprint {source['fingerprint']}" if (
        source["folder"]) else "A file"
    files = [[file["file"], file["rows"], file["checksum"]] for file in source["files"]]
    return (f"<p>{text(said, 4000)}: {scores['trained_rows']:,} of {scores['rows']:,} rows have titles that trained "
            "the run.</p>\n" + table("Files that the rows come from", ("file", "rows", "checksum"), files))


def levels(scores):
    """The scores of each level of a tree, and how far mistakes are from the true category."""
    said = report.mistaken(scores)
    return table("Scores by level, from the top", ("level", "nodes", "rows", "accuracy", "balanced accuracy"), [
        [f"level {level}", row["nodes"], row["rows"], row["accuracy"], row["balanced_accuracy"]]
        for level, row in enumerate(scores["levels"], 1)]) + (
            f"<p>{text(said[0].upper() + said[1:])}.</p>\n" if said else "")


def tree(nodes):
    """The worst nodes and all above them, in each other, unfolded down to the very worst. nodes: tree.node_table."""
    # Each node follows the one above it, so the last ones of all levels are above the next.
    above, path = [], []
    for i, level in enumerate(nodes["level"]):
        path = [*path[:level - 1], i]
        above.append(path)
    order = measures.worst_first({"support": np.array(nodes["rows"], int), "recall": np.array(nodes["recall"], float)})
    worst, unfolded = {*order[:UNFOLDED]}, {i for node in order[:UNFOLDED] for i in above[node]}
    shown = sorted({i for node in order[:NODES] for i in above[node]})

    # A list ends where a node of a level above follows.
    lines, following = [], [*(nodes["level"][i] for i in shown[1:]), 1]
    for i, behind in zip(shown, following, strict=False):
        level, is_open = nodes["level"][i], " open" if i in unfolded else ""
        said = node_text(*(nodes[name][i] for name in ("node", "recall", "rows", "precision")), i in worst)
        lines.append(f"<li><details{is_open}><summary>{said}</summary>\n<ul>\n" if behind > level else
                     f"<li>{said}</li>\n" + "</ul></details></li>\n" * (level - behind))
    return (f"<p>{len(shown):,} of {len(order):,} nodes that have rows; nodes.csv has all. The recall is the share of "
            f"rows that are predicted somewhere below the node. The {len(worst)} nodes that are worst by the upper end "
            f"of its 95 % interval are bold, and the tree is unfolded down to them.</p>\n"
            f'<ul class="tree">\n{"".join(lines)}</ul>\n')


def node_text(name, recall, rows, precision, is_bad):
    """A node of the tree in a line: its own name, which is the last one of its path, and its scores."""
    own = text(name_of(name.rpartition(classify.PATH)[2])) or "-"
    return (f"{f'<strong>{own}</strong>' if is_bad else own}: recall {recall:.2f} of {rows:,} row{'s' * (rows > 1)}"
            + (f", precision {precision:.2f}" if precision is not None else ""))


def answers(promised, path):
    """What the nodes of a tree answer where a precision is promised, {promise: row of `thresholds`}, and the figure."""
    return table("Precision promised of the deepest nodes that are sure enough, and found here", (
        "promise", "from probability, by level", "rows answered", "by a category", "precision"), [
            [promise, ["-" if least is None else f"{least:.4f}" for least in row["threshold"] or [None]],
             row["answered"], row["leaf"], row["precision"]] for promise, row in promised.items()]) + figure(
                 path, "How many rows are answered at which precision: by categories alone, and by the deepest node "
                 "that is sure enough. Points are what validation rows promised.")


def probabilities(scores, folder):
    """What validation rows promised beside what came true on these rows, and the figures of a report's folder."""
    note = "" if scores["promising_prior"] == scores["prior"] else (
        "<p>With --precision predictions take categories to be as frequent as in training; these probabilities are of "
        "--prior training.</p>")
    promised = {f"{float(promise):.0%}": row for promise, row in scores["thresholds"].items()}
    nodes = answers(promised, folder / "answered.png") if "levels" in scores else ""
    alone = {promise: row.get("leaf_only", row) for promise, row in promised.items()}
    return nodes + table(f"Precision promised{' of categories alone' if nodes else ''}, and found here", (
        "promise", "from probability", "coverage", "precision"), [
            [promise, row["threshold"], row["coverage"], row["precision"]] for promise, row in alone.items()]
    ) + note + figure(folder / "reliability.png", "Each dot is a bin of equally many rows. On the diagonal a "
                      "probability is what it says.")


def slices(scores):
    """Scores of the slices that report.json has."""
    header = ("slice", "rows", "balanced accuracy", "95 % interval", "accuracy", "macro-F1")
    return table("By language, label quality and whether titles are new", header, [
        [name, row["rows"], row["balanced_accuracy"], tuple(row["balanced_accuracy_interval"]), row["accuracy"],
         row["macro_f1"]] for name, row in {"all": scores, **scores["slices"]}.items()])


def columns(worth, values):
    """What columns are worth, and their values with the most mistakes."""
    rows = [[*row] for row in zip(*([*values[name][:SUSPECTS]] for name in ("value", "column", "rows", "wrong")),
                                  strict=True)]
    return table("What the columns are worth", ("rows are read", "accuracy", "balanced accuracy"), [
        [name, row["accuracy"], row["balanced_accuracy"]] for name, row in worth.items()]) + table(
            "Values with the most mistakes", ("value", "column", "rows", "wrong"), rows)


def against(scores, categories):
    """Which of two is better: of all rows and of slices, and by category those that differ most."""
    found = scores["against"]
    header = ("slice", "rows", "balanced accuracy", "95 % interval", "accuracy", "95 % interval", "McNemar's p")
    rows = [[name, row["rows"], row["balanced_accuracy"], tuple(row["balanced_accuracy_interval"]), row["accuracy"],
             tuple(row["accuracy_interval"]), row["p"]] for name, row in {"all": found, **found["slices"]}.items()]
    listed = [[name_of(name), *others] for name, *others in zip(*categories.values(), strict=True)]
    ends = listed if len(listed) <= 2 * SUSPECTS else [*listed[:SUSPECTS], *listed[-SUSPECTS:]]
    return (f"<p>{text(report.better(scores), 4000)}.</p>\n" + table(
        f"By how much it is better than {found['other']}", header, rows) + table(
            "Categories that gain most, and at the end those that lose most; against.csv has all",
            ("category", "rows", "recall", "recall of the other", "McNemar's p"), ends))


def recalls(categories, path):
    """The figure, and a table of all categories."""
    # The page stays small whatever the number of categories: the worst are listed, the figure has all.
    order = measures.worst_first(categories)
    columns = [categories[name][order[:CATEGORIES]].tolist() for name in (
        "category", "recall", "precision", "f1", "support", "training_rows")]
    rows = [[f"{number}. {name_of(name)}", value, measures.wilson_interval(value, support), *others, support, size]
            for number, (name, value, *others, support, size) in enumerate(zip(*columns, strict=True), 1)]
    header = ("category", "recall", "95 % interval", "precision", "F1", "rows", "training rows")
    return (figure(path, "Larger dots: more rows. Numbers and 95 % intervals: the first ones of the table.")
            + f"<details open><summary>{len(rows):,} of {len(order):,} categories</summary>"
            + table("Lowest recall first, by the upper end of its interval", header, rows) + "</details>\n")


def mistakes(found, suspects):
    """The most frequent confusions, and labels that look wrong."""
    confused = [[f"{name_of(true)}, {rows:,} rows ({rate:.0%})", name_of(taken), examples.split(" | ")]
                for true, taken, rows, rate, examples in zip(*(found[name] for name in report.CONFUSED), strict=True)]
    columns = ("title", "category", "category_probability", "predicted", "probability", "file", "line")
    doubted = [[title, f"{name_of(name)} ({given:.4f})", f"{name_of(other)} ({sure:.4f})", f"{name_of(file)}:{line}"]
               for title, name, given, other, sure, file, line in zip(
                   *(suspects[column][:SUSPECTS] for column in columns), strict=True)]
    return table("Pairs most confused", ("category", "taken for", "such as"), confused) + table(
        "Suspects: labels that the model finds least likely", ("title", "category", "predicted", "where"), doubted)


def training(folder, name, config, history):
    """Curves and settings of a run."""
    best = runs.best_epoch(history)
    said = f"; best epoch {best['epoch']:.0f} (dashed)" if runs.BEST in best else ""
    curves = figure(folder / "loss.png", f"Loss and balanced accuracy after each epoch{said}") if history else ""
    settings = [[key, json.dumps(value, ensure_ascii=False)] for key, value in runs.settings(config).items()]
    return (f"<h3>{text(name)}</h3>\n" + (curves or "<p>No curves: metrics.csv or loss.png is missing.</p>\n")
            + "<details><summary>Settings</summary>" + table(f"Settings of {name}", ("setting", "value"), settings)
            + "</details>\n")


def write(folder, made, members, command):
    """Write report.html beside the figures of a report. made: a report.Report; members: {folder of a run that
    classifies: runs.training_of it}; command: the one that makes the report."""
    # All see the same data; of several folders there is a command a line.
    scores, tables, trained = made.scores, made.tables, [*members.values()]
    prepared = trained[0][2].get("data", {"command": ""})["command"].splitlines()
    # As they are typed, spaces in names of files included.
    commands = "\n".join(html.escape(report.UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", one[:4000]))
                         for one in [*prepared, *(one for _, again, _, _ in trained for one in again), command])
    parts = {
        "Scores": headline(scores),
        "Data": origin(scores),
        **({"Levels": levels(scores), "Tree": tree(tables["nodes.csv"])} if "levels" in scores else {}),
        "Probabilities": probabilities(scores, folder),
        "Slices": slices(scores),
        **({"Against": against(scores, tables["against.csv"])} if "against" in scores else {}),
        **({"Columns": columns(scores["columns"], tables["values.csv"])} if "columns" in scores else {}),
        "Categories": recalls(tables["categories.csv"], folder / "recall.png"),
        "Mistakes": mistakes(tables["confusions.csv"], tables["suspects.csv"]),
        "Training": "".join(training(run, name, config, history)
                            for run, (name, _, config, history) in members.items()),
        "Commands": "<p>Where no run has such a name yet, these make this report:</p>\n"
                    f"<pre><code>{commands}</code></pre>"}
    (folder / "report.html").write_text(whole(
        made.title, f"{report.checkpoints(scores)}; predictions take all categories to be {report.frequent(scores)}.",
        scores["synthetic"], parts), encoding="utf-8", newline="\n")


def whole(title, lead, synthetic, parts):
    """A page: its title; a sentence; whether rules made the data; {heading: HTML}."""
    # Headings are words, so they serve as ids.
    links = "".join(f'<a href="#{name}">{name}</a> ' for name in parts)
    body = "".join(f'<section aria-labelledby="{name}"><h2 id="{name}">{name}</h2>\n{part}</section>\n'
                   for name, part in parts.items())
    note = ('<p class="note"><strong>SYNTHETIC data</strong>, made from rules: scores say nothing about real titles.'
            "</p>\n" if synthetic else "")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>
<style>{STYLE}</style></head>
<body><header><h1>{text(title)}</h1>
<p>{text(lead, 4000)}</p>
{note}<nav aria-label="Sections">{links}</nav></header>
<main>
{body}</main></body></html>
"""


# --- a comparison -----------------------------------------------------------------------------------------------------

def write_change(folder, found, command):
    """Write compare.html into a folder. found: the result of change.compare; command: the one that makes it."""
    was, bounds = found["validation"], tuple(found["expected_accuracy_interval"])
    mix, words, verdict = found["mix"], found["words"], found["verdict"]
    old = words.get("validation", {"unseen_words": None, "titles_with_unseen": None})
    header = ("", "share in training", "share estimated here")
    under = " under the mix estimated" if mix["is_estimated"] else ""
    parts = {
        "Accuracy": table(f"Accuracy to expect{under}, beside {was['rows']:,} validation rows", (
            "", "here", "95 % interval", "validation rows"), [
                ["accuracy", found["expected_accuracy"], bounds, was["accuracy"]],
                ["mean probability", found["mean_probability"], None, was["mean_probability"]]])
        + table("Shares that are answered where a precision is promised", ("promise", "here", "validation rows"), [
            [f"{float(promise):.0%}", row["answered"], row["validation"]]
            for promise, row in found["promises"].items()]),
        "Tests": table(f"Differences from the validation rows; an effect counts from p < {change.P:.4f} on", (
            "of", "p", "effect", "least effect that counts", "changed"), [
                [meaning, found[name]["p"], found[name]["effect"], change.LEAST[name],
                 "yes" if name in found["changed"] else "no"]
                for name, meaning in TESTS.items() if "p" in found.get(name, ())]),
        "Mix": "".join(table(f"Largest changes of {what}", header, [[name_of(name), *of] for name, *of in mix[key]])
                       for key, what in (("top_level", "the top level"), ("categories", "categories")) if mix.get(key))
        or "<p>No change of the mix of categories is certain, so none is estimated.</p>\n",
        "Words": table("Words that are not in the vocabulary", ("", "here", "validation titles"), [
            ["share of the words", words["unseen_words"], old["unseen_words"]],
            ["titles with such a word", words["titles_with_unseen"], old["titles_with_unseen"]]])
        + table("The most frequent of them", ("word", "times"), words["most_frequent"])
        + (table(f"Words by which a classifier tells them from validation titles, with an AUC of "
                 f"{found['kind']['auc']:.3f}", ("of", "words"), [
                     ["these", found["kind"]["new"]], ["validation titles", found["kind"]["old"]]])
           if "kind" in found else f"<p>Not compared with validation titles: {text(found['left_out'])}.</p>\n"),
        "Data": f"<p>{text(found['file'], 4000)}: {found['titles']:,} titles, {found['sampled']:,} of them looked at. "
                f"{found['trained_titles']:,} of these have trained the run and are left out; "
                f"{found['unknown_titles']:,} have no word or n-gram that training has seen.</p>\n"
                f"<pre><code>{text(command, 4000)}</code></pre>"}
    (folder / "compare.html").write_text(whole(
        f"{found['run']}, {found['checkpoint']}: have titles changed?", f"{verdict[0].upper()}{verdict[1:]}.",
        found["synthetic"], parts), encoding="utf-8", newline="\n")
