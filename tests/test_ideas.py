"""Ideas that readers have tried in the scripts, as edits of a copy: each takes a line or three, and all say the same.
"""
import csv
import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_line_error, copy_scripts, run_script
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
-        x = self.scale * bag(*with_values(vectors, weights, values))
+        x = self.scale * bag(*with_values(vectors, weights ** self.power, values))
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
