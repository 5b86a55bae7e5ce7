"""Ideas that readers have tried in the scripts, as edits of a copy: each takes a line or three, and all say the same.
"""
import csv
import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_line_error, copy_scripts, run_script, write_csv
from test_edits import apply, train_and_evaluate

# An exponent of the weights, as a setting of its own: a line in the table of settings, a field, a use.
POWER = """
--- train.py
@@
         Setting("weight_decay", cli.not_negative(float), 0.0, "L2 penalty on all but the word vectors"),
+        Setting("power", cli.positive(float), 0.5, "exponent of the bag's weights", needs=("field",)),
--- model.py
@@
     scale: float                                                        # length of the weight vector of a title
+    power: float
@@
-        x = self.scale * bag(vectors, weights)
+        x = self.scale * bag(vectors, weights ** self.power)
"""

# A price beside the title: a column and how it is read, and what the module makes of it.
PRICE = """
--- data.py
@@
-COLUMNS = {}
+COLUMNS = {"price": lambda texts: np.array([float(text or 0) for text in texts], np.float32)}
--- model.py
@@
-        x = self.scale * bag(vectors, weights)
+        x = self.scale * bag(vectors, weights)
+        x = jnp.concatenate([x, jnp.log1p(batch.columns["price"])[:, None] - 5], -1)
"""

# The best epoch by another score.
BEST = """
--- titles/runs.py
@@
-BEST, BETTER = "valid_balanced_accuracy", max
+BEST, BETTER = "valid_loss", min
"""


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the scripts, with the prepared data and the runs of `trained`."""
    copy_scripts(tmp_path)
    for name in ("data", "runs", "tiny.csv"):
        (shutil.copytree if (trained / name).is_dir() else shutil.copy)(trained / name, tmp_path / name)
    return tmp_path


def run(copy, script, *args, **options):
    return run_script(script, *args, cwd=copy, root=copy, **options)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_pooling_with_a_setting_of_its_own(copy, model):
    apply(POWER, copy)
    config, _ = train_and_evaluate(copy, "--model", model, "--power", 0.25)
    assert config["power"] == 0.25 and "power" in config["settings"]
    assert_one_line_error(run(copy, "export", "--ckpt", "edited", "--out", "out", check=False), model, "classify.py")
    assert not (copy / "out").exists()


@pytest.mark.slow
def test_a_price_beside_the_title(tmp_path):
    """Two categories that nothing but the price tells apart."""
    copy_scripts(tmp_path)
    apply(PRICE, tmp_path)
    assert PRICE.count("@@") <= 3
    draw = np.random.default_rng(0)
    rows = [(f"{draw.choice(['mesa', 'silla'])} x{i}", str(price), "CHEAP" if price < 100 else "DEAR")
            for i, price in enumerate(draw.choice([10.5, 20, 4000, 9000.25], 400))]
    write_csv(tmp_path / "tiny.csv", rows, "title,price,category")
    run(tmp_path, "prepare", "--data", "tiny.csv")
    assert np.load(tmp_path / "data/prepared/train_price.npy").dtype == np.float32
    run(tmp_path, "prepare", "--data", "tiny.csv")  # a folder with an array more may be replaced
    run(tmp_path, "train", "--name", "priced", "--epochs", 20, "--dim", 8, "--lr", 0.05)
    assert json.loads((tmp_path / "runs/priced/config.json").read_text())["columns"] == ["price"]
    scores = json.loads(run(tmp_path, "evaluate", "--ckpt", "priced", "--json").stdout)
    assert scores["balanced_accuracy"] > 0.95

    # New rows: a table has the column, a list of titles has not.
    write_csv(tmp_path / "new.csv", [("mesa", "12"), ("mesa", "7000"), ("silla", "15")], "title,price")
    kept = run(tmp_path, "evaluate", "--ckpt", "priced", "--predict", "new.csv", "--keep").stdout
    assert [row["category"] for row in csv.DictReader(kept.splitlines())] == ["CHEAP", "DEAR", "CHEAP"]
    plain = run(tmp_path, "evaluate", "--ckpt", "priced", "--predict", "new.csv").stdout.splitlines()
    assert [line.partition("\t")[0] for line in plain] == ["CHEAP", "DEAR", "CHEAP"]
    done = run(tmp_path, "evaluate", "--ckpt", "priced", "--predict", "-", stdin="mesa\n", check=False)
    assert_one_line_error(done, "price")
    done = run(tmp_path, "export", "--ckpt", "priced", "--out", "out", check=False)
    assert_one_line_error(done, "price")

    # Without the edit neither the run nor a table without the column passes.
    write_csv(tmp_path / "plain.csv", [row[::2] for row in rows], "title,category")
    assert_one_line_error(run(tmp_path, "prepare", "--data", "plain.csv", check=False), "plain.csv", "price")
    done = run_script("evaluate", "--ckpt", "priced", "--predict", "new.csv", cwd=tmp_path, check=False)
    assert_one_line_error(done, "priced", "price", "source")


@pytest.mark.slow
def test_the_best_epoch_by_another_score(copy):
    """train.py, its checkpoints, --ckpt best, --list and MLflow's table say the same."""
    apply(BEST, copy)
    printed = run(copy, "train", "--name", "edited", "--epochs", 6, "--dim", 16, "--lr", 0.5, "--table-lr", 3).stdout
    with open(copy / "runs/edited/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses, accuracies = ([float(row[name]) for row in rows] for name in ("valid_loss", "valid_balanced_accuracy"))
    best = int(np.argmin(losses))
    assert best != len(rows) - 1 - int(np.argmax(accuracies[::-1]))  # else this test would see nothing
    assert f"best epoch {best + 1}: validation loss {losses[best]:.4f}" in printed
    for ckpt in ("edited", "best"):  # the runs of before were told by another score, and are passed over
        scores = json.loads(run(copy, "evaluate", "--ckpt", ckpt, "--json").stdout)
        assert (scores["run"], scores["step"]) == ("edited", int(rows[best]["step"]))
    listed = run(copy, "evaluate", "--list").stdout
    assert f"{losses[best]:.4f}" in next(line for line in listed.splitlines() if line.startswith("edited"))
    assert_one_line_error(run(copy, "evaluate", "--ckpt", "bag", "--json", check=False), "bag/latest", "runs.BEST")
    run(copy, "evaluate", "--ckpt", "bag/latest", "--json")
