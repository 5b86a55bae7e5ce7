"""From scores, tables and curves to report.html: one page that needs no other file, for a browser, a phone and paper.

It fetches nothing, and its Content-Security-Policy forbids it, as any script or style but the two below. Names, titles
and languages may be anything, so whatever is shown goes through `text`. Computing what is shown and drawing files
(report.py), and reading runs (runs.py) do not belong here.
"""
import base64
import hashlib
import html
import json
import math

import numpy as np

from titles import calibration, report, runs

# --- knobs ------------------------------------------------------------------------------------------------------------
NAME, TEXT = 80, 200    # characters that are shown of a category's name, and of any other text
CATEGORIES = 2000       # rows of the table of categories, and ...
SUSPECTS = 20           # ... of that of suspects; categories.csv and suspects.csv have all
SIZES = 3               # ranges of training rows, with about as many categories in each
SUPPORT = (1, 10, 100)  # rows from which on the dot of a category is larger
QUARTERS = [(i / 4, f"{i / 4:g}") for i in range(5)]  # ticks of an axis from 0 to 1

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1c1f; --soft: #565b63; --rule: #d3d7dc; --band: #f3f5f7;
  --one: #0b57a4; --two: #a83e00; --note: #fff0c9 }
@media (prefers-color-scheme: dark) { :root { --page: #15171b; --ink: #e8eaed; --soft: #adb3bc; --rule: #40464f;
  --band: #1f2329; --one: #84bcff; --two: #ffab73; --note: #4a3a10 } }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere } a { color: var(--one) } h1 { font-size: 1.5rem }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .5rem } h1 { margin: 0 } p, figcaption { max-width: 46rem }
nav a { display: inline-block; padding: .3rem .9rem .3rem 0 } .note, pre { padding: .7rem; background: var(--note) }
.side { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)) }
figure, .scroll { margin: 1rem 0 } figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left }
svg { display: block; width: 100%; max-width: 34rem } svg text { fill: var(--ink); font-size: 11px }
svg path { fill: none; stroke: var(--rule) } svg .one { stroke: var(--one) } svg .two { stroke: var(--two) }
svg .mark { stroke: var(--soft); stroke-dasharray: 2 3 } svg .dots { stroke-linecap: round; stroke-opacity: .6 }
.scroll { overflow: auto } details .scroll { max-height: 32rem }
table { border-collapse: collapse; font-size: .9rem } thead th, pre { background: var(--band) }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--rule); vertical-align: top; text-align: left }
thead th { position: sticky; top: 0; overflow-wrap: normal } tbody th, td { min-width: 6.5rem; font-weight: normal }
td ul { margin: 0; padding-left: 1rem; width: min(24rem, 38vw) }
th.n, td.n { text-align: right; min-width: 0; font-variant-numeric: tabular-nums } td.n { white-space: nowrap }
pre { white-space: pre-wrap } summary { cursor: pointer; padding: .3rem 0 } input { font: inherit; max-width: 90% }
@media (max-width: 40rem) { table { font-size: .75rem } th, td { padding: .2rem } tbody th, td { min-width: 5rem }
  thead th.n { writing-mode: vertical-rl; text-align: left } td.n { white-space: normal; overflow-wrap: normal } }
:focus-visible { outline: 2px solid var(--one) } @media print { nav, .filter { display: none } body { font-size: 10pt }
  .scroll, details .scroll { overflow: visible; max-height: none } thead th { position: static }
  tr, figure, pre { break-inside: avoid } }
"""
SCRIPT = """
const filter = document.querySelector("#filter"), rows = document.querySelectorAll("#all tbody tr");
filter.parentElement.hidden = false;
filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  document.querySelector("output").textContent = [...rows].filter(row => !row.hidden).length + " shown";
});
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


def figure(said, caption, names, ticks, marks):
    """A picture of marks within two axes with these names and ticks [(place from 0 to 1, text)]; `said` is for those
    who cannot see it."""
    lines = [line([(x, 0), (x, 1)]) + label(at(x, 0)[0], 226, tick, "middle") for x, tick in ticks[0]]
    lines += [line([(0, y), (1, y)]) + label(41, at(0, y)[1] + 4, tick, "end") for y, tick in ticks[1]]
    lines += [label(193, 242, names[0], "middle"), label(4, 11, names[1])]
    return (f'<figure><svg viewBox="0 0 360 246" role="img" aria-label="{text(said, 4000)}">{"".join(lines + marks)}'
            f"</svg><figcaption>{text(caption)}</figcaption></figure>\n")


def at(x, y):
    """Where a point of a picture is drawn, of coordinates from 0 to 1."""
    return round(46 + 294 * float(x), 1), round(210 - 190 * float(y), 1)


def label(right, down, words, anchor="start"):
    return f'<text x="{right:.1f}" y="{down:.1f}" text-anchor="{anchor}">{text(words)}</text>'


def line(points, style="rule", width=1):
    return f'<path class="{style}" stroke-width="{width}" d="M{"L".join("{} {}".format(*at(*p)) for p in points)}"/>'


def dots(points, style, width):
    # A line without a length and with round ends is a dot: thousands of them take little room.
    drawn = "".join("M{} {}h0".format(*at(*point)) for point in points)
    return f'<path class="{style} dots" stroke-width="{width}" d="{drawn}"/>' if drawn else ""


# --- figures ----------------------------------------------------------------------------------------------------------

def reliability(predictions):
    """The share of right predictions over their probability."""
    right = np.array(predictions["category"], object) == np.array(predictions["predicted"], object)
    points = [point for *point, _ in calibration.reliability(np.array(predictions["probability"]), right)]
    said = "; ".join(f"{sure:.2f}, {hits:.2f}" for sure, hits in points)
    return figure(f"Probability, and share that is right: {said}",
                  "Each dot is a bin of equally many rows. On the dotted line a probability is what it says.",
                  ("probability of the category", "share that is right"), (QUARTERS, QUARTERS),
                  [line([(0, 0), (1, 1)], "mark"), line(points, "one", 1.5), dots(points, "one", 6)])


def curves(history, kind):
    """Loss or balanced accuracy over the epochs, with the best one. A refit has no validation rows."""
    from matplotlib.ticker import MaxNLocator
    first, last = history[0]["epoch"], max(history[-1]["epoch"], history[0]["epoch"] + 1)
    found = {name: [(row["epoch"], row[f"{split}_{kind}"]) for row in history if f"{split}_{kind}" in row]
             for split, name in (("train", "training rows (sample)"), ("valid", "validation rows"))}
    highest = max([value for points in found.values() for _, value in points] if kind == "loss" else [1], default=1)
    heights = [height for height in MaxNLocator(5).tick_values(0, highest) if height >= 0]
    top = heights[-1] or 1
    epochs = [epoch for epoch in MaxNLocator(6, integer=True).tick_values(first, last) if first <= epoch <= last]

    def place(epoch, value):
        return (epoch - first) / (last - first), value / top

    # Colour and dots tell the curves apart, and the caption says how.
    best, what = runs.best_epoch(history)["epoch"], kind.replace("_", " ")
    marks, said = [line([place(best, 0), place(best, top)], "mark", 1.5)], [f"best epoch {best:.0f} (dotted)"]
    for (name, points), (style, size, how) in zip(
            found.items(), (("one", 6, "with dots"), ("two", 0, "without dots")), strict=True):
        if points:
            places = [place(*point) for point in points]
            marks += [line(places, style, 1.5), dots(places, style, size)]
            said.append(f"{name} {how}: " + ", ".join(f"{value:.3f}" for _, value in points))
    ticks = ([(place(epoch, 0)[0], f"{epoch:g}") for epoch in epochs], [(y / top, f"{y:g}") for y in heights])
    return figure(f"{what} after each epoch; {'; '.join(said)}", "; ".join(part.partition(":")[0] for part in said),
                  ("epoch", what), ticks, marks)


def recall(categories, order):
    """Recall of each category over its training rows, larger where more rows tell it; the worst have numbers."""
    values, rows, size = (categories[name] for name in ("recall", "support", "training_rows"))
    # A logarithmic axis has no 0, so categories without training rows stand a power of ten left of 1.
    x = np.log10(np.maximum(size, 0.1))
    low = math.floor(x[order].min())
    high = max(low + 1, math.ceil(x[order].max()))
    places = np.stack([(x - low) / (high - low), values], 1)
    ticks = [((e - low) / (high - low), "0" if e < 0 else f"{10 ** e:,}") for e in range(low, high + 1)]
    marks = [dots(places[order[(rows[order] >= least) & (rows[order] < most)]], "one", 3 + 2.5 * i)
             for i, (least, most) in enumerate(zip(SUPPORT, (*SUPPORT[1:], np.inf), strict=True))]
    worst = order[:report.WORST]
    for number, (i, up) in enumerate(zip(worst, report.label_heights(*places[worst].T), strict=True), 1):
        ends, (right, down) = report.share_interval(values[i] * rows[i], rows[i]), at(places[i, 0], up)
        marks += [line([(places[i, 0], end) for end in ends], "two", 1.5), label(right + 4, down - 3, number)]
    return figure(f"Recall of {len(order):,} categories over their training rows; the table below has the numbers",
                  f"Larger dots: {SUPPORT[1]}, and {SUPPORT[2]} rows or more. Numbers and 95 % intervals: the first "
                  "ones of the table.", ("training rows of the category", "recall"), (ticks, QUARTERS), marks)


# --- sections ---------------------------------------------------------------------------------------------------------

def headline(scores):
    """The scores of all rows and their intervals."""
    rows, interval = scores["rows"], {"balanced_accuracy": tuple(scores["balanced_accuracy_interval"])}
    for name in ("accuracy", "top5_accuracy"):
        interval[name] = report.share_interval(scores[name] * rows, rows)
    meanings = {"balanced_accuracy": "balanced accuracy: mean recall of the categories",
                "accuracy": "accuracy: share of rows that are right",
                "top5_accuracy": "top-5 accuracy: share of rows whose category is among the five likeliest",
                "macro_f1": "macro-F1: mean F1 of the categories", "loss": "loss: cross-entropy in nats",
                "calibrated_loss": "calibrated loss: the same, of the probabilities that are given",
                "brier": "Brier score: squared error of the probabilities, summed over the categories",
                "expected_calibration_error": "calibration error: how far probabilities are from shares that are right"}
    notes = {"unknown_category_rows": "have a category that the run does not know, and count as wrong",
             "unknown_title_rows": "have no word or n-gram that training has seen",
             "trained_rows": "have titles that trained the run, so their scores do not hold for new titles"}
    return table(f"Scores of {rows:,} rows", ("score", "value", "95 % interval"), [
        [meaning, scores[name], interval.get(name)] for name, meaning in meanings.items()]) + "".join(
        f"<p>{scores[name]:,} of {rows:,} rows {what}.</p>" for name, what in notes.items() if scores[name])


def origin(scores):
    """Which rows these are, and how many of them a run has trained on."""
    source = scores["data"]
    said = f"The {scores['split']} split of {source['folder']}, fingerprint {source['fingerprint']}" if (
        source["folder"]) else "A file"
    files = [[file["file"], file["rows"], file["checksum"]] for file in source["files"]]
    return (f"<p>{text(said, 4000)}: {scores['trained_rows']:,} of {scores['rows']:,} rows have titles that trained "
            "the run.</p>\n" + table("Files that the rows come from", ("file", "rows", "checksum"), files))


def promises(scores):
    """What validation rows promised beside what came true on these rows."""
    note = "" if scores["promising_prior"] == scores["prior"] else (
        "<p>With --precision predictions take categories to be as frequent as in training; these probabilities are of "
        "--prior training.</p>")
    return table("Precision promised, and kept", ("promise", "from probability", "coverage", "precision", "kept"), [
        [f"{float(promised):.0%}", row["threshold"], row["coverage"], row["precision"],
         "nothing promised" if row["threshold"] is None else "no rows" if row["precision"] is None
         else "yes" if row["precision"] >= float(promised) else "no"]
        for promised, row in scores["thresholds"].items()]) + note


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


def recalls(categories):
    """The figure, and a table of all categories with a field to look for names in it."""
    # The page stays small whatever the number of categories: the worst are listed, the figure has all.
    order = report.worst_first(categories)
    columns = [categories[name][order[:CATEGORIES]].tolist() for name in (
        "category", "recall", "precision", "f1", "support", "training_rows")]
    rows = [[f"{number}. {report.plain_name(name, NAME)}", value, report.share_interval(value * support, support),
             *others, support, size]
            for number, (name, value, *others, support, size) in enumerate(zip(*columns, strict=True), 1)]
    return recall(categories, order) + (
        f'<details open id="all"><summary>{len(rows):,} of {len(order):,} categories</summary><p class="filter" hidden>'
        '<label for="filter">Show names with</label> <input id="filter" type="search"> <output></output></p>'
        + table("Lowest recall first, by the upper end of its interval", (
            "category", "recall", "95 % interval", "precision", "F1", "rows", "training rows"), rows) + "</details>\n")


def mistakes(found, suspects):
    """The most frequent confusions, and labels that look wrong."""
    columns = ("title", "category", "category_probability", "predicted", "probability", "file", "line")
    return table("Pairs most confused", ("category", "taken for", "such as"), [
        [f"{report.plain_name(true, NAME)}, {rows:,} rows ({share:.0%})", report.plain_name(taken, NAME),
         examples.split(" | ")]
        for true, taken, rows, share, examples in zip(*found.values(), strict=True)]) + table(
        "Suspects: labels that the model finds least likely", ("title", "category", "predicted", "where"), [
            [title, f"{report.plain_name(name, NAME)} ({given:.4f})", f"{report.plain_name(other, NAME)} ({sure:.4f})",
             f"{report.plain_name(file, NAME)}:{line}"]
            for title, name, given, other, sure, file, line in zip(
                *(suspects[column][:SUSPECTS] for column in columns), strict=True)])


def training(name, config, history):
    """Curves and settings of a run."""
    drawn = "".join(curves(history, kind) for kind in ("loss", "balanced_accuracy")) if history else ""
    settings = [[key, json.dumps(value, ensure_ascii=False)] for key, value in runs.settings(config).items()]
    return (f"<h3>{text(name)}</h3>\n" + (f'<div class="side">{drawn}</div>' if drawn else "<p>No metrics.csv.</p>\n")
            + "<details><summary>Settings</summary>" + table(f"Settings of {name}", ("setting", "value"), settings)
            + "</details>\n")


def write(path, title, scores, tables, members, command):
    """Write the page. scores and tables are those of the report, title what they are of; members: [(name, commands that
    train it, settings, rows of metrics.csv)] of all runs that classify; command: the one that makes the report."""
    # All see the same data; of several folders there is a command a line.
    prepared = members[0][2].get("data", {"command": ""})["command"].splitlines()
    # As they are typed, spaces in names of files included.
    commands = "\n".join(html.escape(report.UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", one[:4000]))
                         for one in [*prepared, *(one for _, trained, _, _ in members for one in trained), command])
    parts = {
        "Scores": headline(scores),
        "Data": origin(scores),
        "Probabilities": promises(scores) + reliability(tables["predictions.csv"]),
        "Slices": slices(scores, tables["categories.csv"]),
        "Categories": recalls(tables["categories.csv"]),
        "Mistakes": mistakes(tables["confusions.csv"], tables["suspects.csv"]),
        "Training": "".join(training(name, settings, history) for name, _, settings, history in members),
        "Commands": "<p>Where no run has such a name yet, these make this report:</p>\n"
                    f"<pre><code>{commands}</code></pre>"}
    # Headings are words, so they serve as ids.
    links = "".join(f'<a href="#{name}">{name}</a> ' for name in parts)
    body = "".join(f'<section aria-labelledby="{name}"><h2 id="{name}">{name}</h2>\n{part}</section>\n'
                   for name, part in parts.items())
    note = ('<p class="note"><strong>SYNTHETIC data</strong>, made from rules: scores say nothing about real titles.'
            "</p>\n" if scores["synthetic"] else "")
    prior = "equally frequent" if scores["prior"] == "equal" else "as frequent as in training"
    # The policy names the page's own style and script by their digests, so no other can run.
    style, script = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (STYLE, SCRIPT))
    path.write_text(f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{style}'; \
script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>
<style>{STYLE}</style></head>
<body><header><h1>{text(title)}</h1>
<p>{text(report.checkpoints(scores), 4000)}; predictions take all categories to be {prior}.</p>
{note}<nav aria-label="Sections">{links}</nav></header>
<main>
{body}</main>
<script>{SCRIPT}</script></body></html>
""", encoding="utf-8", newline="\n")
