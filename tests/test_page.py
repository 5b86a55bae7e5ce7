"""report.html: sound, small and self-contained whatever names and titles are, and it says what report.json says."""
import base64
import json
import re
import shlex
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import WORD_MODELS, config_of, run_here

import classify
from titles import measures, page, report, runs, settings

HOSTILE = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "\" onload=\"alert(1)", "' onclick='x",
           "a & b &lt; c &#60;", "nul \0 and \x1b[31m", "lone \ud800 and \ufffe", "turned \u202e round", "two\nlines\r",
           "]]> --> <!-- </title></style>", "{0} %s $x^2$ $\\frac", "手机/电话 👍🏽 नमस्ते", " ", "x" * 1_000_000]


class Parsed(HTMLParser):
    """What a page holds; raises AssertionError where its elements are not nested as they should."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.tables, self.text = [], [], {}, ""
        self.feed(content)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), attributes
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "caption":
            self.caption = data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


PROMISES = {  # one is kept, one is not, one that no row reaches, and none at all
    "0.90": {"threshold": 0.5, "coverage": 0.8, "precision": 0.91},
    "0.95": {"threshold": 0.7, "coverage": 0.5, "precision": 0.94},
    "0.97": {"threshold": 0.99, "coverage": 0.0, "precision": None},
    "0.99": {"threshold": None, "coverage": 0.0, "precision": None}}


def labelled(names, labels, titles, tree=None, **others):
    """Labelled rows that are made up, of categories that are no tree where none is given."""
    count = len(labels)
    return report.Labelled(**{
        "inputs": classify.Rows(list(titles), np.zeros((count, 0), int)), "labels": np.array(labels),
        "names": list(names), "tree": tree or classify.Tree(list(names), False), "trained": np.zeros(count, bool),
        "file": ["x"] * count, "line": np.arange(2, count + 2), "split": "test", "source": {}} | others)


def made_up(names, titles, rows=200, languages=("es", "pt")):
    """Rows, what a model might say of them, and the tables of a report on them."""
    draw = np.random.default_rng(0)
    labels = np.concatenate([np.arange(len(names)), draw.integers(0, len(names), rows)])
    count = len(labels)
    texts = [titles[i % len(titles)] for i in range(count)]
    made = labelled(names, labels, texts, file=["a <b>.csv"] * count, line=np.arange(1, count + 1),
                    language=draw.integers(0, len(languages), count), languages=list(languages),
                    reliable=draw.random(count) < 0.5)
    result = {"prediction": np.where(draw.random(count) < 0.6, labels, draw.integers(0, len(names), count)),
              "rank": draw.integers(0, 9, count)} | {
        name: draw.random(count) for name in ("probability", "given_probability", "loss", "calibrated_loss", "brier")}
    return made, result, report.make_tables(made, draw.integers(1, 5000, len(names)), result)


def write(folder, names=("A", "B"), titles=("x",), history=(), drawn=False, **others):
    """Write a page of rows that are made up into a folder, and return its content. drawn: with its figures; others: of
    `made_up`, and title and synthetic."""
    title, synthetic = others.pop("title", "run, test split"), others.pop("synthetic", False)
    rows, result, tables = made_up(names, titles, **others)
    source = {"files": [{"file": titles[0], "rows": 3, "checksum": "ab"}], "folder": titles[0], "fingerprint": "cd"}
    scores = {"checkpoint": "best", "step": 7, "split": "test", "data": source, "prior": "equal",
              "promising_prior": "training", "synthetic": synthetic, "unknown_category_rows": 3,
              "unknown_title_rows": 0, "trained_rows": 0, "parent_rows": 0, "calibration_rows": 9,
              "expected_accuracy": 0.81, "expected_accuracy_interval": [0.79, 0.83], "changed": ["mix"], "slices": {
                  name: report.summarize(rows.labels[mask], {key: value[mask] for key, value in result.items()})
                  for name, mask in report.slices(rows).items()},
              "thresholds": PROMISES,
              **report.summarize(rows.labels, result)}
    figures = report.make_figures(rows, tables["categories.csv"], result, title) if drawn else {}
    figures.pop("confusions.png", None)  # the page has it as a table
    made = report.Report(title, scores, tables, figures)
    folder.mkdir(exist_ok=True)
    report.write(folder, report.Report(title, {}, {}, figures))
    if drawn and history:
        runs.loss_figure(history, title).savefig(folder / "loss.png", dpi=120)
    page.write(folder, made, {folder: (title, [names[0]], {"model": names[0], "seed": 0}, history)}, names[0])
    return (folder / "report.html").read_text(encoding="utf-8")


def assert_sound(content):
    """Well formed, with names for those who do not see it, and without anything from elsewhere. Returns it parsed."""
    parsed = Parsed(content)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids) and parsed.attributes("html")[0]["lang"] == "en"
    assert all(attributes["scope"] in ("row", "col") for attributes in parsed.attributes("th"))
    assert all(attributes["alt"] for attributes in parsed.attributes("img"))
    assert all(len(parsed.attributes(tag)) == 1 for tag in ("h1", "title", "main", "style"))

    # Links lead to places of the page, images are in it, and no attribute would run or fetch anything.
    assert {attributes["href"][1:] for attributes in parsed.attributes("a")} <= set(ids)
    for tag, attributes in parsed.elements:
        assert not attributes.keys() & {"srcset", "style", "action"} and tag != "script", (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")] and ("href" in attributes) == (tag == "a")
        assert ("src" in attributes) == (tag == "img")
    for image in parsed.attributes("img"):
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)[:4] == b"\x89PNG"
    assert parsed.attributes("meta")[1]["content"] == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'")
    assert not re.search(r"url\(|@import|https?://", page.STYLE) and content.count("<style>") == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", content)
    return parsed


def test_hostile_names_are_text(tmp_path):
    for i, name in enumerate(HOSTILE):
        names = HOSTILE[i:] + HOSTILE[:i]  # the first is also a command and a setting
        content = write(tmp_path / f"{i}", names, HOSTILE, languages=HOSTILE[:3], title=f"{name[:99]} of {i}")
        parsed = assert_sound(content)
        assert len(content.encode()) < 1e6 and "<script" not in content
    cells = [cell for rows in parsed.tables.values() for row in rows for cell in row]
    for said in (HOSTILE[0], "a & b &lt; c &#60;", "nul \N{REPLACEMENT CHARACTER} and"):
        assert any(said in cell for cell in cells) and max(map(len, cells)) < 700


@pytest.mark.slow
def test_a_long_list_stays_below_a_megabyte(tmp_path):
    names = [f"{'Ñandú & <categoría> ' * 5}{i:05}"[-80:] for i in range(1588)]
    titles = [f"título {i} " + "muy largo " * 100 for i in range(50)]
    history = [{"epoch": i, "train_loss": 1 / i, "valid_loss": 2 / i, "train_balanced_accuracy": 1,
                "valid_balanced_accuracy": i / 200} for i in range(1, 200)]
    first, second = (write(tmp_path / "long", names, titles, rows=20_000, history=history, drawn=True)
                     for _ in range(2))
    parsed = assert_sound(first)
    assert len(parsed.tables["Lowest recall first, by the upper end of its interval"]) == 1589
    assert len(first.encode()) < 1e6 and first == second

    # Each figure is the file that lies beside the page.
    assert [image["src"].partition(",")[2] for image in parsed.attributes("img")] == [
        base64.b64encode((tmp_path / "long" / file).read_bytes()).decode()
        for file in ("reliability.png", "recall.png", "loss.png")]


def test_of_more_categories_the_worst_are_listed(tmp_path):
    content = write(tmp_path / "many", [f"category {i}" for i in range(5000)], rows=20_000)
    assert "2,000 of 5,000 categories" in content and len(content.encode()) < 1e6
    rows = Parsed(content).tables["Lowest recall first, by the upper end of its interval"][1:]
    ends = [float(row[2].split(" to ")[1]) for row in rows]
    assert ends == sorted(ends) and len(rows) == 2000


def test_a_long_name_keeps_its_leaf(tmp_path):
    names = [f"{'Hogar y cocina > ' * 9}{leaf}" for leaf in ("Cuchillos", "Ollas")]
    parsed = Parsed(write(tmp_path / "long", names))
    shown = [row[0] for row in parsed.tables["Lowest recall first, by the upper end of its interval"][1:]]
    assert {name.rpartition(" > ")[2] for name in shown} == {"Cuchillos", "Ollas"}
    assert all("Hogar y cocina > " in name and "…" in name and len(name) == 3 + page.NAME for name in shown)
    assert report.plain("abcdefgh", 5) == "abcd…" and report.plain_name("abcdefgh", 5) == "ab…gh"
    assert report.plain_name("x" * 10**6 + " end", 9) == "xxxx… end" and report.plain_name("short", 5) == "short"


@pytest.mark.slow
def test_several_runs_are_headed_by_what_they_are(trained):
    run_here("evaluate", "--ckpt", "bag", "filters", cwd=trained)
    parsed = assert_sound((trained / "runs/bag/test-best+filters-best/report.html").read_text(encoding="utf-8"))
    assert re.search(r"average of bag/best \(step [\d,]+, weight \d\.\d\d\) and filters/best \(step ", parsed.text)


def test_what_is_missing_is_said(tmp_path):
    """No metrics.csv, one category, no mistake, no confusion, one epoch, a refit without validation scores."""
    parsed = assert_sound(write(tmp_path / "none", ["only"], rows=1))
    for said in ("No curves: ", "3 of 2 rows have a category that the run does not know"):
        assert said in parsed.text and "SYNTHETIC" not in parsed.text
    for history in ([{"epoch": 1.0, "train_loss": 0.0}], [{"epoch": 3.0, "train_loss": 2.5}, {"epoch": 4.0}]):
        parsed = assert_sound(write(tmp_path / "short", history=history, synthetic=True, drawn=len(history) == 1))
        assert len(parsed.attributes("img")) == 3 and "SYNTHETIC" in parsed.text


def test_the_page_says_what_the_report_says(trained):
    run_here("evaluate", "--ckpt", "filters", cwd=trained)
    folder = trained / "runs/filters"
    parsed = assert_sound((folder / "test-best/report.html").read_text(encoding="utf-8"))
    scores = json.loads((folder / "test-best/report.json").read_text())
    shown = {row[0].partition(":")[0]: row[1:] for row in parsed.tables[f"Scores of {scores['rows']:,} rows"]}
    for name, key in (("balanced accuracy", "balanced_accuracy"), ("accuracy", "accuracy"), ("macro-F1", "macro_f1"),
                      ("top-5 accuracy", "top5_accuracy"), ("loss", "loss"), ("calibrated loss", "calibrated_loss"),
                      ("Brier score", "brier"), ("calibration error", "expected_calibration_error")):
        assert shown[name][0] == f"{scores[key]:.4f}"
    for name, interval in (("balanced accuracy", scores["balanced_accuracy_interval"]),
                           ("accuracy", measures.wilson_interval(scores["accuracy"], scores["rows"]))):
        assert shown[name][1] == "{:.4f} to {:.4f}".format(*interval)

    # The promises and the slices.
    promised = [[f"{float(precision):.0%}", *("-" if row[name] is None else f"{row[name]:.4f}" for name in (
        "threshold", "coverage", "precision"))] for precision, row in scores["thresholds"].items()]
    assert parsed.tables["Precision promised, and found here"][1:] == promised
    named = {row[0]: row[1:3] for row in parsed.tables["By language, label quality and whether titles are new"][1:]}
    assert len(named) == 4 and named == {name: [f"{row['rows']:,}", f"{row['balanced_accuracy']:.4f}"]
                                         for name, row in {"all": scores, **scores["slices"]}.items()}

    # The figure of the training is the run's own, and the best epoch is told.
    best = max(runs.read_metrics(folder), key=lambda row: (row["valid_balanced_accuracy"], row["epoch"]))["epoch"]
    images = parsed.attributes("img")
    assert len(images) == 3 and images[2]["src"].endswith(base64.b64encode((folder / "loss.png").read_bytes()).decode())
    assert f"best epoch {best:.0f} (dashed)" in images[2]["alt"]
    assert parsed.text.count(f"best epoch {best:.0f} (dashed)") == 1
    assert "python prepare.py --data tiny.csv\npython train.py --name filters" in parsed.text
    assert "\npython evaluate.py --ckpt filters/best" in parsed.text

    # Which rows these are.
    meta = json.loads((trained / "data/prepared/meta.json").read_text())
    [source] = scores["data"]["files"]
    assert parsed.tables["Files that the rows come from"][1:] == [
        ["tiny.csv", f"{scores['rows']:,}", meta["source"][0]["checksum"]]] and source["rows"] == scores["rows"]
    assert f"split of data/prepared, fingerprint {meta['fingerprint']}: 0 of {scores['rows']} rows" in parsed.text
    assert "python train.py --name filters " in parsed.text and " --model cnn " in parsed.text


def test_promises_confusions_and_suspects_are_listed(tmp_path):
    names, titles = [*"ABCD"], ["uno", "dos", "tres"]
    shown, tables = Parsed(write(tmp_path, names, titles)).tables, made_up(names, titles)[2]
    assert shown["Precision promised, and found here"][1:] == [
        ["90%", "0.5000", "0.8000", "0.9100"], ["95%", "0.7000", "0.5000", "0.9400"],
        ["97%", "0.9900", "0.0000", "-"], ["99%", "-", "0.0000", "-"]]
    found, suspects = tables["confusions.csv"], tables["suspects.csv"]
    assert shown["Pairs most confused"][1] == [
        f"{found['category'][0]}, {found['rows'][0]} rows ({found['share_of_category'][0]:.0%})",
        found["predicted"][0], found["examples"][0].replace(" | ", "")]
    rows = shown["Suspects: labels that the model finds least likely"][1:]
    assert len(rows) == page.SUSPECTS < len(suspects["title"])
    assert rows[:3] == [[suspects["title"][i], f"{suspects['category'][i]} ({suspects['category_probability'][i]:.4f})",
                         f"{suspects['predicted'][i]} ({suspects['probability'][i]:.4f})",
                         f"a <b>.csv:{suspects['line'][i]}"] for i in range(3)]


def test_a_damaged_metrics_csv_costs_the_curves_alone(trained, tmp_path):
    shutil.copytree(trained / "runs/bag", tmp_path / "bag")
    for content in ("epoch,train_loss\n1,much\n", "a,b\n1,2\n", "epoch,train_loss\n1,nan\n2,inf\nnan,1\n", "\0"):
        (tmp_path / "bag/metrics.csv").write_text(content)
        run_here("evaluate", "--ckpt", tmp_path / "bag", cwd=trained)
        assert_sound((tmp_path / "bag/test-best/report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", WORD_MODELS)
def test_the_training_command_gives_the_same_settings(model):
    for flags in ((), ("--maxn", 0, "--word-ngrams", 1, "--seed", 3), ("--hidden", 7, 5, "--patience", 2),
                  ("--freeze-embeddings", "--balance", "none", "--weight-decay", 0.1, "--dropout", 0)):
        config = config_of("--model", model, *flags)
        assert config_of(*shlex.split(settings.command("a b", config))[2:]) == config
    assert settings.command("", {"refit": "a b"}) == "python train.py --refit 'a b'"
    assert settings.command("", {"model": "mlp"}) is None  # of older scripts, which kept no names of settings
