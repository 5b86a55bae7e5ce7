"""From scores, tables and curves to report.html: one page that needs no other file, for a browser, a phone and paper.

It has its figures in it, and its Content-Security-Policy forbids all else: scripts, other styles, fetching anything.
Names, titles and languages may be anything, so whatever is shown goes through `text`. Computing what is shown and
drawing figures (report.py), and reading runs (runs.py) do not belong here.
"""
import base64
import hashlib
import html
import json

import numpy as np

from titles import calibration, report, runs

# --- knobs ------------------------------------------------------------------------------------------------------------
NAME, TEXT = 80, 200    # characters that are shown of a category's name, and of any other text
CATEGORIES = 2000       # rows of the table of categories, and ...
SUSPECTS = 20           # ... of that of suspects; categories.csv and suspects.csv have all
SIZES = 3               # ranges of training rows, with about as many categories in each

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1c1f; --soft: #565b63; --rule: #d3d7dc; --band: #f3f5f7;
  --link: #0b57a4; --note: #fff0c9 }
@media (prefers-color-scheme: dark) { :root { --page: #15171b; --ink: #e8eaed; --soft: #adb3bc; --rule: #40464f;
  --band: #1f2329; --link: #84bcff; --note: #4a3a10 } img { filter: invert(.91) hue-rotate(180deg) } }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere } a { color: var(--link) } h1 { font-size: 1.5rem }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .5rem } h1 { margin: 0 } p, figcaption { max-width: 46rem }
nav a { display: inline-block; padding: .3rem .9rem .3rem 0 } .note, pre { padding: .7rem; background: var(--note) }
figure, .scroll { margin: 1rem 0 } figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left }
.scroll { overflow: auto } img { display: block; max-width: max(100%, 36rem) } details .scroll { max-height: 32rem }
table { border-collapse: collapse; font-size: .9rem } thead th, pre { background: var(--band) }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--rule); vertical-align: top; text-align: left }
thead th { position: sticky; top: 0; overflow-wrap: normal } tbody th, td { min-width: 6.5rem; font-weight: normal }
td ul { margin: 0; padding-left: 1rem; width: min(24rem, 38vw) }
th.n, td.n { text-align: right; min-width: 0; font-variant-numeric: tabular-nums } td.n { white-space: nowrap }
pre { white-space: pre-wrap } summary { cursor: pointer; padding: .3rem 0 }
:focus-visible { outline: 2px solid var(--link) }
@media (max-width: 40rem) { table { font-size: .75rem } th, td { padding: .2rem } tbody th, td { min-width: 5rem }
  thead th.n { writing-mode: vertical-rl; text-align: left } td.n { white-space: normal; overflow-wrap: normal } }
@media print { nav { display: none } body { font-size: 10pt } thead th { position: static }
  .scroll, details .scroll { overflow: visible; max-height: none } tr, figure, pre { break-inside: avoid } }
"""


# --- parts of a page --------------------------------------------------------------------------------------------------

def text(value, limit=TEXT):
    """Any value as text that is no markup, in elements and in attributes."""
    return html.escape(report.plain(str(value), limit))


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


def figure(path, caption, said):
    """A PNG file as a part of the page, nothing where there is none; `said` is for those who cannot see it."""
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure class="scroll" tabindex="0"><img alt="{text(said, 4000)}" src="data:image/png;base64,{content}">'
            f"<figcaption>{text(caption)}</figcaption></figure>\n")


# --- sections ---------------------------------------------------------------------------------------------------------

def headline(scores):
    """The scores of all rows and their intervals."""
    rows, interval = scores["rows"], {"balanced_accuracy": tuple(scores["balanced_accuracy_interval"])}
    for name in ("accuracy", "top5_accuracy"):
        interval[name] = report.wilson_interval(scores[name], rows)
    return table(f"Scores of {rows:,} rows", ("score", "value", "95 % interval"), [
        [meaning, scores[name], interval.get(name)] for name, meaning in report.SCORES.items()]) + "".join(
        f"<p>{text(note)}.</p>" for note in report.notes(scores))


def origin(scores):
    """Which rows these are, and how many of them a run has trained on."""
    source = scores["data"]
    said = f"The {scores['split']} split of {source['folder']}, fingerprint {source['fingerprint']}" if (
        source["folder"]) else "A file"
    files = [[file["file"], file["rows"], file["checksum"]] for file in source["files"]]
    return (f"<p>{text(said, 4000)}: {scores['trained_rows']:,} of {scores['rows']:,} rows have titles that trained "
            "the run.</p>\n" + table("Files that the rows come from", ("file", "rows", "checksum"), files))


def probabilities(scores, predictions, path):
    """What validation rows promised beside what came true on these rows, and the figure of the reliability."""
    right = np.array(predictions["category"], object) == np.array(predictions["predicted"], object)
    bins = "; ".join(f"{confidence:.2f}, {accuracy:.2f}" for confidence, accuracy, _ in calibration.reliability(
        np.array(predictions["probability"]), right))
    note = "" if scores["promising_prior"] == scores["prior"] else (
        "<p>With --precision predictions take categories to be as frequent as in training; these probabilities are of "
        "--prior training.</p>")
    return table("Precision promised, and kept", ("promise", "from probability", "coverage", "precision", "kept"), [
        [f"{float(promised):.0%}", row["threshold"], row["coverage"], row["precision"],
         "nothing promised" if row["threshold"] is None else "no rows" if row["precision"] is None
         else "yes" if row["precision"] >= float(promised) else "no"]
        for promised, row in scores["thresholds"].items()]) + note + figure(
            path, "Each dot is a bin of equally many rows. On the diagonal a probability is what it says.",
            f"Probability, and share that is right: {bins}")


def slices(scores, categories):
    """Scores of the slices that report.json has, and by training rows in ranges, see SIZES."""
    header = ("rows", "balanced accuracy", "95 % interval", "accuracy", "macro-F1")
    named = [[name, row["rows"], row["balanced_accuracy"], tuple(row["balanced_accuracy_interval"]), row["accuracy"],
              row["macro_f1"]] for name, row in {"all": scores, **scores["slices"]}.items()]
    # Categories are divided by the training rows of those that have rows here.
    size, rows, ranges = categories["training_rows"], categories["support"], []
    part = np.searchsorted(np.quantile(size[rows > 0], np.arange(1, SIZES) / SIZES), size)
    for mine in ((part == i) & (rows > 0) for i in range(SIZES)):
        # Where many categories have equally many training rows, a range may be empty.
        if mine.any():
            right = np.rint(categories["recall"][mine] * rows[mine])
            ranges.append([f"{size[mine].min():,} to {size[mine].max():,}", int(mine.sum()), int(rows[mine].sum()),
                           float(categories["recall"][mine].mean()), tuple(report.recall_interval(right, rows[mine])),
                           float(right.sum() / rows[mine].sum()), float(categories["f1"][mine].mean())])
    by_size = table("By size of the category", ("training rows", "categories", *header), ranges)
    return by_size if not scores["slices"] else table(
        "By language, label quality and whether titles are new", ("slice", *header), named) + by_size


def recalls(categories, path):
    """The figure, and a table of all categories."""
    # The page stays small whatever the number of categories: the worst are listed, the figure has all.
    order = report.worst_first(categories)
    columns = [categories[name][order[:CATEGORIES]].tolist() for name in (
        "category", "recall", "precision", "f1", "support", "training_rows")]
    rows = [[f"{number}. {report.plain_name(name, NAME)}", value, report.wilson_interval(value, support),
             *others, support, size]
            for number, (name, value, *others, support, size) in enumerate(zip(*columns, strict=True), 1)]
    header = ("category", "recall", "95 % interval", "precision", "F1", "rows", "training rows")
    return (figure(path, "Larger dots: more rows. Numbers and 95 % intervals: the first ones of the table.",
                   f"Recall of {len(order):,} categories over their training rows; the table below has the numbers")
            + f"<details open><summary>{len(rows):,} of {len(order):,} categories</summary>"
            + table("Lowest recall first, by the upper end of its interval", header, rows) + "</details>\n")


def mistakes(found, suspects):
    """The most frequent confusions, and labels that look wrong."""
    columns = ("title", "category", "category_probability", "predicted", "probability", "file", "line")
    return table("Pairs most confused", ("category", "taken for", "such as"), [
        [f"{report.plain_name(true, NAME)}, {rows:,} rows ({rate:.0%})", report.plain_name(taken, NAME),
         examples.split(" | ")]
        for true, taken, rows, rate, examples in zip(*found.values(), strict=True)]) + table(
        "Suspects: labels that the model finds least likely", ("title", "category", "predicted", "where"), [
            [title, f"{report.plain_name(name, NAME)} ({given:.4f})", f"{report.plain_name(other, NAME)} ({sure:.4f})",
             f"{report.plain_name(file, NAME)}:{line}"]
            for title, name, given, other, sure, file, line in zip(
                *(suspects[column][:SUSPECTS] for column in columns), strict=True)])


def training(folder, name, config, history):
    """Curves and settings of a run."""
    curves = ""
    if history:
        best = f"best epoch {runs.best_epoch(history)['epoch']:.0f} (dashed)"
        said = [f"{column.replace('_', ' ')}: {', '.join(f'{row[column]:.3f}' for row in history if column in row)}"
                for column in ("train_loss", "valid_loss", "train_balanced_accuracy", "valid_balanced_accuracy")
                if any(column in row for row in history)]
        curves = figure(folder / "loss.png", f"Loss and balanced accuracy after each epoch; {best}",
                        f"After each epoch; {best}; {'; '.join(said)}")
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
        "Probabilities": probabilities(scores, tables["predictions.csv"], folder / "reliability.png"),
        "Slices": slices(scores, tables["categories.csv"]),
        "Categories": recalls(tables["categories.csv"], folder / "recall.png"),
        "Mistakes": mistakes(tables["confusions.csv"], tables["suspects.csv"]),
        "Training": "".join(training(run, name, config, history)
                            for run, (name, _, config, history) in members.items()),
        "Commands": "<p>Where no run has such a name yet, these make this report:</p>\n"
                    f"<pre><code>{commands}</code></pre>"}
    # Headings are words, so they serve as ids.
    links = "".join(f'<a href="#{name}">{name}</a> ' for name in parts)
    body = "".join(f'<section aria-labelledby="{name}"><h2 id="{name}">{name}</h2>\n{part}</section>\n'
                   for name, part in parts.items())
    note = ('<p class="note"><strong>SYNTHETIC data</strong>, made from rules: scores say nothing about real titles.'
            "</p>\n" if scores["synthetic"] else "")
    prior = "equally frequent" if scores["prior"] == "equal" else "as frequent as in training"
    # The policy names the page's own style by its digest, so no other holds.
    style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    (folder / "report.html").write_text(f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{style}'; img-src data:; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(made.title)}</title>
<style>{STYLE}</style></head>
<body><header><h1>{text(made.title)}</h1>
<p>{text(report.checkpoints(scores), 4000)}; predictions take all categories to be {prior}.</p>
{note}<nav aria-label="Sections">{links}</nav></header>
<main>
{body}</main></body></html>
""", encoding="utf-8", newline="\n")
