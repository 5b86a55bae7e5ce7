"""Have titles changed? The tests and the mix against plain references and made data, the accuracy to expect, the
command with its text, JSON and page, and predictions for the mix that titles have."""
import json
import os
import random
import re

import numpy as np
import pytest
from conftest import assert_one_line_error, run_here, run_script, tiny_rows, write_csv
from mlflow import MlflowClient
from scipy import stats

import classify
from titles import change

# --- made data --------------------------------------------------------------------------------------------------------


def made(rows, mix, seed, sharp=2.5):
    """(probabilities [rows, C], labels [rows]) of a made classifier that is calibrated under equal categories: logits
    are normal, and that of the label is larger."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(len(mix), rows, p=mix)
    z = draw.normal(0, sharp ** 0.5, (rows, len(mix)))
    z[np.arange(rows), labels] += sharp
    p = np.exp(z - z.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).astype(np.float32), labels


MIX = np.full(8, 1 / 8)
OTHER = np.array([0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])


def test_ratios_solve_the_equations_of_plain_numpy():
    (old, labels), (new, _) = made(800, MIX, 0), made(3000, OTHER, 1)
    found = change.log_ratios(old, labels, new.mean(0), len(new), 0.7)
    # Normal equations of the same least squares, with the penalty.
    counted = np.array([[old[labels == c, k].sum() for c in range(8)] for k in range(8)]) / len(old)
    weight = 1 / np.sqrt((old.mean(0) + 0.1 / 8) * (1 / len(old) + 1 / len(new)))
    lines, errors = counted * weight[:, None], weight * (new.mean(0) - old.mean(0))
    solved = np.linalg.solve(lines.T @ lines + np.eye(8) / 0.7 ** 2, lines.T @ errors)
    np.testing.assert_allclose(found, np.log(np.clip(1 + solved, 0.05, 20)), atol=2e-3)
    # Near to the mix that made them, and nearer than that of the labelled rows.
    here = MIX * np.exp(found)
    assert np.abs(here / here.sum() - OTHER).sum() < 0.15 < np.abs(MIX - OTHER).sum()


def test_ratios_and_em_agree_where_probabilities_are_calibrated():
    (old, labels), (new, _) = made(5000, MIX, 2), made(5000, OTHER, 3)
    mix = MIX
    for _ in range(300):  # Saerens et al. 2002
        posterior = new * (mix / MIX)
        mix = (posterior / posterior.sum(1, keepdims=True)).mean(0)
    here = MIX * np.exp(change.log_ratios(old, labels, new.mean(0), len(new), 2.0))
    np.testing.assert_allclose(here / here.sum(), mix, atol=0.03)


def test_few_made_files_of_the_same_mix_are_called_changed_and_others_are():
    alarms = misses = 0
    for seed in range(100):
        old, same, other = (made(*of)[0] for of in (
            (400, OTHER, seed), (1000, OTHER, 900 + seed), (600, MIX, 500 + seed)))
        alarms += change.is_changed("mix", *change.categories_test(old.argmax(1), same.argmax(1)))
        alarms += change.is_changed("sure", *change.probability_test(old.max(1), same.max(1)))
        misses += not change.is_changed("mix", *change.categories_test(old.argmax(1), other.argmax(1)))
    assert alarms <= 3 and misses <= 5


def test_rows_that_come_again_are_worth_less():
    first, worth = change.repeated(["a b", "c", "a b", "A  b", "d"])
    assert first.tolist() == [0, 1, 4] and worth == pytest.approx(25 / (9 + 1 + 1))
    with np.errstate(all="raise"):
        assert change.repeated([])[1] == 0
    old, new = np.repeat(np.arange(4), [80, 40, 20, 10]), np.repeat(np.arange(4), [50, 40, 30, 20])
    once, again = change.categories_test(old, new), change.categories_test(old, np.repeat(new, 12), len(new))
    assert again == pytest.approx(once) and change.categories_test(old, np.repeat(new, 12))[0] < once[0] / 10


def test_tests_of_little_or_nothing():
    assert change.categories_test(np.zeros(60, int), np.zeros(70, int)) == (1.0, 0.0)
    # Categories that are expected less than five times are one.
    old, new = np.repeat(np.arange(100), 3), np.repeat(np.arange(100), 2)
    assert change.categories_test(old, new) == (1.0, 0.0)
    assert change.kind_test(["a b", "c"], ["d", "e"])[:2] == (1.0, 0.0)
    p, effect = change.share_test(np.arange(100) < 10, np.arange(200) < 90)
    assert p == pytest.approx(stats.fisher_exact([[10, 90], [90, 110]])[1]) and effect == pytest.approx(0.35)


def test_a_classifier_tells_what_is_worded_otherwise_and_by_which_words():
    draw = random.Random(0)
    titles = [f"{draw.choice('abcdefgh')}x {draw.choice('ijklmnop')}x" for _ in range(600)]
    p, effect, *_ = change.kind_test(titles[:300], titles[300:])
    assert p > 0.001 and abs(effect) < 0.1
    p, effect, new, old = change.kind_test(
        [f"{one} usado" for one in titles[:300]], [f"{one} nuevo" for one in titles[300:]])
    assert p < 1e-6 and effect > 0.45 and new[0] == "nuevo" and old[0] == "usado"


def test_the_sample_is_of_all_rows_in_order_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(change, "SAMPLE", 50)

    def blocks():
        return (classify.Rows([str(i) for i in range(start, start + 30)], np.arange(start, start + 30)[:, None])
                for start in range(0, 600, 30))

    rows, number = change.sampled(blocks())
    drawn = [int(title) for title in rows.titles]
    assert number == 600 and len(drawn) == 50 and drawn == sorted(drawn) == rows.values[:, 0].tolist()
    assert drawn[0] < 100 and drawn[-1] > 500 and change.sampled(blocks())[0].titles == rows.titles
    assert change.sampled([next(blocks())])[0].titles == [str(i) for i in range(30)]


def test_an_interval_has_the_share_that_comes_true():
    inside = 0
    for seed in range(200):
        (old, labels), (new, truth) = made(400, MIX, seed), made(600, MIX, 5000 + seed)
        accuracy = new.max(1).mean()
        low, high = change.interval(accuracy, len(new), (old.argmax(1) == labels) - old.max(1))
        inside += low <= (new.argmax(1) == truth).mean() <= high
    assert 185 <= inside <= 200
    # A change of mix widens it, and it stays a share.
    usual, moved = (change.interval(0.9, 100, np.zeros(9), moved=by) for by in (0, 0.1))
    assert moved[0] < usual[0] and moved[1] == 1.0


# --- a run ------------------------------------------------------------------------------------------------------------

HEADS = {"FUNDAS": "funda", "CELULARES": "celular", "MESAS": "mesa", "SILLAS": "silla"}


def shop(rows, seed, weights=(8, 4, 2, 1)):
    """Rows of four categories, of which every third title tells nothing but by how frequent they are."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        category = draw.choices([*HEADS], weights)[0]
        head = HEADS[category] if draw.random() < 0.66 else "oferta"
        words = [head, draw.choice(["negro", "azul", "nuevo"]), f"x{draw.randrange(40)}", f"y{draw.randrange(60)}"]
        found.append((" ".join(words), "reliable", "spanish", category))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run `shop`, of all whose titles a third are told by the mix alone, and files of titles."""
    folder = tmp_path_factory.mktemp("shop")
    write_csv(folder / "shop.csv", shop(3000, 0))
    run_script("prepare", "--data", "shop.csv", cwd=folder)
    run_script("train", "--name", "shop", "--epochs", 6, "--dim", 16, cwd=folder)
    write_csv(folder / "same.csv", shop(1500, 1))
    write_csv(folder / "mix.csv", shop(1500, 2, (1, 2, 4, 8)))
    write_csv(folder / "words.csv", [(f"{title} zzq{i % 7} liquidación", *others) for i, (title, *others) in
                                     enumerate(shop(600, 3))])
    (folder / "few.txt").write_text("".join(f"{title}\n" for title, *_ in shop(40, 4)), encoding="utf-8")
    (folder / "trained.txt").write_text("funda\n", encoding="utf-8")
    return folder


def compared(folder, file, *flags):
    done = run_here("evaluate", "--ckpt", "shop", "--compare", file, "--json", *flags, cwd=folder)
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def accuracy(folder, file, prior):
    done = run_here("evaluate", "--ckpt", "shop", "--test", file, "--prior", prior, "--json", cwd=folder)
    return json.loads(done.stdout), done.stderr


def test_titles_of_the_same_kind_are_like_the_trainings(folder):
    found = compared(folder, "same.csv")
    assert found["changed"] == [] and found["verdict"].startswith("these titles are like the training's")
    assert set(found) <= {*change.KEYS, "run", "checkpoint", "prior", "synthetic", "file"}
    assert found["titles"] == found["sampled"] == 1500 and found["mix"]["categories"] == []
    truth, _ = accuracy(folder, "same.csv", "equal")
    low, high = found["expected_accuracy_interval"]
    assert low < truth["accuracy"] < high and low < found["expected_accuracy"] < high
    assert truth["expected_accuracy"] == pytest.approx(found["expected_accuracy"], abs=0.02)
    assert truth["changed"] == []
    for row in found["promises"].values():
        assert (row["answered"] is None) == (row["validation"] is None)


def test_another_mix_is_estimated_and_named(folder):
    found = compared(folder, "mix.csv")
    assert "mix" in found["changed"] and "the mix of categories" in found["verdict"]
    here = {name: share for name, _, share in found["mix"]["categories"]}
    assert here["SILLAS"] > 0.35 > 0.25 > here["FUNDAS"] and sum(here.values()) == pytest.approx(1)
    truth, _ = accuracy(folder, "mix.csv", "equal")
    low, high = found["expected_accuracy_interval"]
    assert low < truth["accuracy"] < high and "mix" in truth["changed"]


def test_other_words_are_named(folder, tmp_path):
    found = compared(folder, "words.csv")
    assert {"words", "kind"} <= {*found["changed"]} and found["kind"]["auc"] > 0.9
    assert "liquidacion" in found["kind"]["new"] and "fewer may be right" in found["verdict"]
    assert found["words"]["most_frequent"][0] == ["liquidacion", 600]
    assert found["words"]["titles_with_unseen"] == 1
    # Without the prepared data all but the words of validation titles is there.
    alone = json.loads(run_here("evaluate", "--ckpt", folder / "runs/shop", "--compare", folder / "words.csv", "--json",
                                cwd=tmp_path).stdout)
    assert "kind" not in alone and "p" not in alone["words"] and alone["left_out"]
    assert alone["expected_accuracy"] == found["expected_accuracy"] and alone["promises"] == found["promises"]


def test_text_and_page(folder):
    done = run_script("evaluate", "--ckpt", "shop", "--compare", "mix.csv", cwd=folder)
    first, *lines = done.stdout.splitlines()
    assert first.startswith("These titles are not like the training's, for these have changed: the mix")
    assert any(line.startswith("accuracy to expect, under the estimated mix: 0.") for line in lines)
    page = (folder / "runs/shop/compare-mix.csv-best/compare.html").read_text(encoding="utf-8")
    assert "SILLAS" in page and "default-src 'none'" in page and "--compare mix.csv" in page
    assert json.loads((folder / "runs/shop/compare-mix.csv-best/compare.json").read_text())["titles"] == 1500
    # Another file of that name gets a folder of its own.
    (folder / "other").mkdir(exist_ok=True)
    write_csv(folder / "other/mix.csv", [('<b>"x"</b> ' + title, *others) for title, *others in shop(200, 5)])
    run_here("evaluate", "--ckpt", "shop", "--compare", "other/mix.csv", cwd=folder)
    assert len([*folder.glob("runs/shop/compare-mix.csv-*best")]) == 2
    assert "<b>" not in "".join(path.read_text() for path in folder.glob("runs/shop/compare-*/compare.html"))


def test_mlflow_gets_what_is_found(folder):
    found = compared(folder, "same.csv")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run_id = (folder / "runs/shop/mlflow.txt").read_text().strip()
    logged = client.get_run(run_id).data.metrics
    assert logged["compare-same.csv_expected_accuracy"] == found["expected_accuracy"]
    assert logged["compare-same.csv_unseen_words"] == found["words"]["unseen_words"]
    assert logged["compare-same.csv_answered_90"] == found["promises"]["0.90"]["answered"]
    assert "compare-same.csv-best" in {file.path for file in client.list_artifacts(run_id)}


def test_few_titles_and_titles_that_trained(folder):
    done = run_here("evaluate", "--ckpt", "shop", "--compare", "few.txt", cwd=folder)
    assert re.match(r"\d\d different titles are too few to tell", done.stdout) and "accuracy to expect" in done.stdout
    known = [title for title, *_ in shop(3000, 0)]
    (folder / "both.txt").write_text("\n".join([*known, *(title for title, *_ in shop(300, 6))]), encoding="utf-8")
    found = compared(folder, "both.txt")
    assert 1900 < found["trained_titles"] < 2700 and found["titles"] == 3300
    done = run_here("evaluate", "--ckpt", "shop", "--compare", "both.txt", cwd=folder)
    assert f"{found['trained_titles']:,} of these have trained the run and are left out" in done.stdout


def test_titles_that_come_again_tell_nothing_new(folder):
    few = [title for title, *_ in shop(120, 7)]
    (folder / "again.txt").write_text("".join(f"{title}\n" for title in few * 12), encoding="utf-8")
    found = compared(folder, "again.txt")
    assert found["changed"] == [] and found["different_titles"] <= 120 < found["titles"] == 1440
    low, high = found["expected_accuracy_interval"]
    assert high - low > 0.1  # which is that of 120 titles, and not of 1,440
    done = run_here("evaluate", "--ckpt", "shop", "--predict", "again.txt", "--prior", "estimated", cwd=folder)
    assert "has not changed" in done.stderr


@pytest.mark.parametrize("titles", [["oferta"], ["oferta", "mesa y1"], ["", ""], ["oferta", "mesa", "silla y2"] * 100])
def test_one_title_or_a_few_make_no_noise(folder, titles):
    (folder / "little.txt").write_text("".join(f"{title}\n" for title in titles), encoding="utf-8")
    done = run_here("evaluate", "--ckpt", "shop", "--compare", "little.txt", cwd=folder)
    assert "too few" in done.stdout.splitlines()[0] and "nan" not in done.stdout and not done.stderr
    assert "NaN" not in json.dumps(compared(folder, "little.txt"))


def test_what_can_be_read_once_has_no_estimate(folder):
    os.mkfifo(folder / "pipe")
    done = run_here("evaluate", "--ckpt", "shop", "--predict", "pipe", "--prior", "estimated", cwd=folder, check=False)
    assert_one_line_error(done, "pipe can be read only once")


def test_bad_files_and_flags(folder):
    (folder / "empty.txt").write_text("")
    for flags, *words in (
            (["--compare", "absent.csv"], "absent.csv"), (["--compare", "empty.txt"], "empty.txt", "no titles"),
            (["--compare", "same.csv", "--predict", "same.csv"], "give one"),
            (["--compare", "same.csv", "--prior", "estimated"], "goes with"),
            (["--predict", "-", "--prior", "estimated"], "read twice"),
            (["--compare", "same.csv", "--top", "2"], "--top")):
        assert_one_line_error(run_here("evaluate", "--ckpt", "shop", *flags, cwd=folder, check=False), *words)


@pytest.mark.slow
def test_the_estimated_mix_gains_where_it_has_changed_and_is_refused_where_not(folder):
    known, _ = accuracy(folder, "mix.csv", "training")
    gained, said = accuracy(folder, "mix.csv", "estimated")
    assert "the mix of categories has changed" in said and gained["prior"] == "estimated"
    assert gained["accuracy"] > known["accuracy"] + 0.05
    assert abs(gained["accuracy"] - gained["expected_accuracy"]) < 0.05
    same, (refused, said) = accuracy(folder, "same.csv", "training")[0], accuracy(folder, "same.csv", "estimated")
    assert "has not changed" in said and "predicts for the training's" in said
    assert (refused["accuracy"], refused["loss"], refused["prior"]) == (same["accuracy"], same["loss"], "training")


def test_predictions_for_the_estimated_mix_are_those_of_the_report(folder):
    done = run_here("evaluate", "--ckpt", "shop", "--predict", "mix.csv", "--prior", "estimated", cwd=folder)
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    truth = [category for *_, category in shop(1500, 2, (1, 2, 4, 8))]
    report, _ = accuracy(folder, "mix.csv", "estimated")
    assert np.mean([a == b for a, b in zip(found, truth, strict=True)]) == pytest.approx(report["accuracy"])
    plain = run_here("evaluate", "--ckpt", "shop", "--predict", "same.csv", "--prior", "training", cwd=folder)
    same = run_here("evaluate", "--ckpt", "shop", "--predict", "same.csv", "--prior", "estimated", cwd=folder)
    assert same.stdout == plain.stdout and same.stderr.startswith("--prior estimated: ")


def test_from_python(folder, monkeypatch):
    from titles import predict
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="wanted equal or training"):
        predict.load("shop", prior="estimated")  # for which titles are needed
    classifier = predict.load("shop")
    titles = [title for title, *_ in shop(1500, 1)]
    found, told = classifier.compare([*titles, None]), compared(folder, "same.csv")
    for key in ("expected_accuracy", "promises", "mix", "sure", "titles"):
        assert found[key] == told[key], key
    with_words = classifier.compare(titles, [title for title, *_ in shop(900, 8)])
    assert with_words["kind"]["auc"] < 0.6 and "kind" not in found
    with pytest.raises(ValueError, match="no titles"):
        classifier.compare([])


def test_predictions_end_with_the_accuracy_to_expect(folder):
    done = run_here("evaluate", "--ckpt", "shop", "--predict", "same.csv", "--prior", "training", cwd=folder)
    said, truth = re.search(r"categories: ([\d.]+)% \(([\d.]+)% to ([\d.]+)%\)", done.stderr), accuracy(
        folder, "same.csv", "training")[0]
    share, low, high = (float(number) / 100 for number in said.groups())
    assert share == pytest.approx(truth["expected_accuracy"], abs=6e-4) and low < truth["accuracy"] < high
    done = run_here("evaluate", "--ckpt", "shop", "--predict", "same.csv", "--precision", 0.8, cwd=folder)
    answered = re.search(r"a promise would answer ([\d.]+)% \(90% right\)", done.stderr)
    assert float(answered[1]) / 100 == pytest.approx(truth["thresholds"]["0.90"]["coverage"], abs=6e-4)
    few = run_here("evaluate", "--ckpt", "shop", "--predict", "few.txt", cwd=folder)
    assert few.stderr == ""
    # The exported model, with NumPy alone, says the same.
    run_here("export", "--ckpt", "shop", "--out", "exported", cwd=folder)
    plain = run_here("evaluate", "--ckpt", "shop", "--predict", "same.csv", cwd=folder)
    mean = np.mean([float(line.split("\t")[1]) for line in plain.stdout.splitlines()])
    done = run_script("classify", "exported/model.npz", "same.csv", cwd=folder)
    assert done.stderr == (f"1,500 titles: of their likeliest categories {mean:.1%} should be right, if they are like "
                           "the validation rows\n")
    refused = run_script("classify", "exported/model.npz", "same.csv", "--threshold", 0.99, cwd=folder)
    assert refused.stderr == done.stderr
    assert run_script("classify", "exported/model.npz", "few.txt", cwd=folder).stderr == ""


@pytest.mark.slow
def test_a_tree_is_compared_by_its_rules(tmp_path):
    rows = [(title, "reliable", "spanish", ("Móvil > " if name in ("FUNDAS", "CELULARES") else "Casa > ") + name)
            for title, _, _, name in tiny_rows(1500)]
    write_csv(tmp_path / "tree.csv", rows)
    run_here("prepare", "--data", "tree.csv", "--separator", ">", cwd=tmp_path)
    run_here("train", "--name", "tree", "--epochs", 4, "--dim", 16, cwd=tmp_path)
    draw = random.Random(1)
    new = [row for row in tiny_rows(4000, seed=7) if row[3] == "SILLAS" or draw.random() < 0.2]
    (tmp_path / "new.txt").write_text("\n".join(row[0] for row in new), encoding="utf-8")
    done = run_here("evaluate", "--ckpt", "tree", "--compare", "new.txt", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    top = {name: (before, here) for name, before, here in found["mix"]["top_level"]}
    assert "mix" in found["changed"] and set(top) == {"Casa", "Móvil"} and top["Casa"][1] > top["Casa"][0] + 0.02
    from titles import predict
    classifier = predict.load("tree", folder=tmp_path / "runs")
    answers = classifier.predict([row[0] for row in new], precision=0.9)
    share = np.mean([answer[0][0] is not None for answer in answers])
    if found["promises"]["0.90"]["answered"] is not None:
        assert found["promises"]["0.90"]["answered"] == pytest.approx(share, abs=0.02)
    done = run_here("evaluate", "--ckpt", "tree", "--predict", "new.txt", "--prior", "estimated", "--level", 1,
                    cwd=tmp_path)
    tops = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert "likeliest nodes: " in done.stderr and tops.count("Casa") / len(tops) > top["Casa"][0] + 0.02
