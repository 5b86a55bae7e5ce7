"""The scripts are made to be edited: the edits of docs/edits.md, and others, on a copy of the scripts. An edited
program trains, predicts what it was trained to, and no earlier run changes its meaning in silence."""
import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, assert_one_line_error, copy_scripts, environment, run_script

FOCAL_LOSS = """
--- train.py
@@
-    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
+    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
+    return (1 - jnp.exp(-cross_entropy)) ** 2 * cross_entropy
"""
ATTENTION_POOLING = """
--- model.py
@@
-        x = self.scale * bag(*with_values(vectors, weights, values))
+        score = jnp.where(weights > 0, nn.Dense(1)(vectors)[..., 0], -1e9)
+        x = self.scale * bag(*with_values(vectors, weights * jax.nn.softmax(score), values))
"""
POOLINGS = ["""
--- model.py
@@
-        x = self.scale * bag(*with_values(vectors, weights, values))
+        x = self.scale * bag(*with_values(vectors, jnp.minimum(weights, 2), values))
""", """
--- classify.py
@@
-    return head(p["Head_0"], s["scale"] * bag(*with_values(inputs.vectors, inputs.weights, inputs.values)))
+    weights = np.minimum(inputs.weights, 2)
+    return head(p["Head_0"], s["scale"] * bag(*with_values(inputs.vectors, weights, inputs.values)))
"""]
COMMENT = """
--- model.py
@@
-NGRAM_SAMPLES = 4  # of a word's character n-grams, in a training step; prediction uses all
+NGRAM_SAMPLES = 4
"""
OTHER_CODE = """
--- model.py
@@
-NGRAM_SAMPLES = 4
+NGRAM_SAMPLES = 5
"""
OTHER_FIELD = """
--- model.py
@@
     dropout: float                                                      # of hidden layers
+    power: float
"""


def shown_edits():
    """The diffs that docs/edits.md shows: a model, an optimizer, a tokenizer."""
    return re.findall(r"```diff\n(.*?)```", (ROOT / "docs/edits.md").read_text(encoding="utf-8"), re.DOTALL)


def apply(edit, folder):
    """Apply a diff of the form above to the scripts in a folder; every hunk must fit in one place."""
    for file, hunks in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", edit, re.DOTALL | re.MULTILINE):
        text = (folder / file).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            old, new = ("".join(line[1:] + "\n" for line in hunk.splitlines() if line[:1] in kinds)
                        for kinds in ((" ", "-"), (" ", "+")))
            assert text.count(old) == 1, f"{file}: {old}"
            text = text.replace(old, new)
        (folder / file).write_text(text, encoding="utf-8")


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the scripts, with the prepared data and the runs of `trained`."""
    copy_scripts(tmp_path)
    for name in ("data", "runs", "tiny.csv"):
        (shutil.copytree if (trained / name).is_dir() else shutil.copy)(trained / name, tmp_path / name)
    return tmp_path


def run(copy, script, *args, check=True):
    return run_script(script, *args, cwd=copy, check=check, root=copy)


def train_and_evaluate(copy, *flags):
    """Train and evaluate; what prediction computes must be what training computed. Returns (config, output)."""
    output = run(copy, "train", "--name", "edited", "--epochs", 12, "--dim", 16, *flags).stdout
    # One process reports and predicts: nearly all the time of two goes into imports.
    twice = ("import runpy, sys; sys.argv[1:] = ['--ckpt', 'edited', '--split', 'valid', '--json'];"
             "runpy.run_path('evaluate.py', run_name='__main__'); sys.argv[3:] = ['--predict', '-'];"
             "runpy.run_path('evaluate.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", twice], cwd=copy, input="mesa\n", capture_output=True, text=True,
                          env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    report, predicted = done.stdout.splitlines()
    scores = json.loads(report)
    with open(copy / "runs/edited/metrics.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert scores["balanced_accuracy"] == float(rows[scores["step"]]["valid_balanced_accuracy"]) > 0.3
    assert scores["loss"] == pytest.approx(float(rows[scores["step"]]["valid_loss"]), rel=1e-5)
    assert predicted.partition("\t")[0] in (copy / "data/prepared/labels.txt").read_text().splitlines()
    return json.loads((copy / "runs/edited/config.json").read_text()), output


def assert_exported(copy, name="edited"):
    """The exported model names the categories that the run does."""
    run(copy, "export", "--ckpt", name, "--out", "exported", "--dtype", "float32")
    wanted = run(copy, "evaluate", "--ckpt", name, "--predict", "tiny.csv").stdout
    done = subprocess.run([sys.executable, "exported/classify.py", "exported/model.npz", "tiny.csv"], cwd=copy,
                          capture_output=True, text=True)
    assert len(wanted.splitlines()) > 300
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [
        line.partition("\t")[0] for line in wanted.splitlines()], done.stderr


def assert_refused(copy, name, *words):
    """export.py says in a line what classify.py lacks, and writes nothing."""
    done = run(copy, "export", "--ckpt", name, "--out", "refused", "--vectors", "refused.vec", check=False)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    for word in ("error: ", "classify.py", *words):
        assert word in error, error
    assert not list(copy.glob("*refused*"))


@pytest.mark.slow
def test_another_model(copy):
    apply(shown_edits()[0], copy)
    config, _ = train_and_evaluate(copy, "--model", "attention")
    assert config["model"] == "attention" and config["word_ngrams"] == 2 and config["dropout"] == 0.3
    assert not {"filters", "widths", "hidden", "scale", "layers"} & set(config)
    done = run(copy, "train", "--model", "attention", "--hidden", 8, check=False)
    assert_one_line_error(done, "--hidden", "attention")
    assert_refused(copy, "edited", "network attention", "NETWORKS")
    apply(shown_edits()[1], copy)
    assert_exported(copy)


@pytest.mark.slow
def test_another_optimizer_schedule_and_loss_with_a_flag(copy):
    apply(shown_edits()[2], copy)
    config, output = train_and_evaluate(copy, "--lr", 0.02, "--label-smoothing", 0.05)
    assert config["label_smoothing"] == 0.05
    first = next(line for line in output.splitlines() if " titles/s " in line)  # of the warm-up
    step = round(float(re.search(r"([\d.]+)%", first)[1]) / 100 * config["steps"])
    rate, table = (float(x) for x in re.search(r"lr (\S+), table (\S+)", first).groups())
    assert step < (warm_up := config["steps"] // 10)
    assert (rate, table) == pytest.approx((0.02 * step / warm_up, 0.1 * step / warm_up), rel=0.05)
    assert_exported(copy)


@pytest.mark.slow
def test_another_tokenizer(copy):
    apply(shown_edits()[3], copy)
    for command in (["train", "--epochs", 1], ["evaluate", "--ckpt", "bag", "--predict", "-"]):
        assert "classify.py" in run(copy, *command).stderr  # both the data and the runs are of another tokenizer
    run(copy, "prepare", "--data", "tiny.csv")
    words = (copy / "data/prepared/vocab.txt").read_text().split()
    assert "x00" in words and not any(digit in word for word in words for digit in "123456789")
    train_and_evaluate(copy)
    assert_exported(copy)


@pytest.mark.slow
def test_edits_of_a_line_or_two(copy):
    apply(FOCAL_LOSS, copy)
    apply(ATTENTION_POOLING, copy)
    train_and_evaluate(copy, "--model", "mlp")
    assert_refused(copy, "edited", "parameter Dense_0/bias of mlp", "NETWORKS")


@pytest.mark.slow
def test_what_is_edited_in_model_py_alone_is_not_exported(copy):
    apply(POOLINGS[0], copy)
    assert_refused(copy, "bag", "bag: ", "logits in the network mlp", "pooling", "the same change")
    assert_refused(copy, "filters", "filters: ", "logits in the network cnn")
    apply(POOLINGS[1], copy)
    assert_exported(copy, "bag")


@pytest.mark.slow
def test_a_run_of_other_code_is_told(copy):
    """That the code is another one is told in a line. Comments are no code. Resuming is refused, but for the scripts
    that the run keeps, and a copy of these that was changed is none."""
    def predicted():
        done = run(copy, "evaluate", "--ckpt", "bag", "--predict", "tiny.csv")
        return done.stdout, [line for line in done.stderr.splitlines() if not line.startswith("accuracy to expect")]

    before = predicted()
    apply(COMMENT, copy)
    run(copy, "train", "--resume", "bag")
    assert predicted() == before and before[1] == []
    apply(OTHER_CODE, copy)
    lines, [warning] = predicted()
    assert lines == before[0] and "runs/bag: model.py changed" in warning
    done = run(copy, "train", "--resume", "bag", check=False)
    assert_one_line_error(done, "model.py", "runs/bag/source/train.py --resume bag")
    subprocess.run([sys.executable, *done.stderr.partition(": python ")[2].split()], cwd=copy, check=True,
                   capture_output=True, env=environment())


    apply(OTHER_FIELD, copy)
    done = run(copy, "evaluate", "--ckpt", "bag", "--predict", "-", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "'power'" in done.stderr.splitlines()[-1]
    kept = copy / "runs/bag/source/model.py"
    kept.write_text(kept.read_text().replace("NGRAM_SAMPLES = 4", "NGRAM_SAMPLES = 3"))
    done = run_script("train", "--resume", "bag", cwd=copy, check=False, root=copy / "runs/bag/source")
    assert_one_line_error(done, "model.py changed")


def test_no_test_spells_out_a_configuration():
    """A new flag must turn no test red: configurations come from the scripts, by conftest.config_of."""
    for test in (ROOT / "tests").glob("test_*.py"):
        assert not re.search(r'"weight_decay"' + r": *\d", test.read_text(encoding="utf-8")), test
