"""The texts: links lead somewhere, the READMEs say the figures that EXPERIMENTS.md says, and the Spanish one says no
others; the picture of the scores is drawn from them."""
import re

import pytest
import scores
from conftest import ROOT

TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_to_a_file_and_a_heading(path):
    for file, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        target = path.parent / file if file else path
        assert target.is_file(), (file, heading)
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        # As GitHub makes anchors of headings.
        assert not heading or heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


def tables(text):
    """[[cells of a row]] of the tables of a Markdown text, without spreads, footnotes and what is bold."""
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[re.sub(r" ± [\d.]+| ¹|\*\*", "", cell).strip() for cell in row.split("|")] for row in rows]


@pytest.mark.parametrize("name", ["README.md", "README.es.md"])
def test_scores_of_the_readme_are_those_of_the_experiments(name):
    sets, *known = tables(read("EXPERIMENTS.md"))
    told = [cells for cells in tables(read(name)) if len(cells) == len(sets)]
    assert told.pop(0)[1:] == sets[1:] and len(told) > 5
    assert {*map(tuple, (cells[1:] for cells in told))} <= {*map(tuple, (cells[1:] for cells in known))}


def test_the_spanish_readme_has_no_figures_of_its_own():
    def figures(name):
        text = re.sub(r"(?<=\d)[,\u00a0](?=\d{3}\b)", "", read(name))
        return {*re.findall(r"\d+(?:\.\d+)*", text)}

    assert figures("README.es.md") == figures("README.md")


def test_the_scores_are_drawn(tmp_path):
    table = scores.balanced_scores(read("EXPERIMENTS.md"))
    assert {model for models in scores.DRAWN.values() for model in models} <= {*table}
    assert table["`encoder`"]["pricerunner"] < table["`cnn`"]["pricerunner"] < 100  # the second figure of a cell
    assert "pricerunner" not in table["`mlp`, refit"]                               # what was not measured
    scores.draw_scores(table, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
