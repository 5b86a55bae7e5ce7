"""Temperature, smoothing, weights, thresholds and calibration error, against SciPy and plain Python."""
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from scipy.stats import binom

import classify
from titles import calibration, predict, report, runs


def rows_of(temperature, smoothing=0.0, n=4000, classes=5, seed=0):
    """(logits [n, C], labels drawn from the probabilities that these two numbers make of them)."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(n, classes)) * 4
    probabilities = (1 - smoothing) * softmax(logits / temperature, 1) + smoothing / classes
    return logits.astype(np.float32), (probabilities.cumsum(1) > draw.random((n, 1))).argmax(1).astype(np.int32)


def likelihood(logits, labels, temperature, smoothing):
    """In float64: the mean log-likelihood of the largest logit's being right or wrong, with Platt's targets."""
    sure = ((1 - smoothing) * softmax(logits.astype(np.float64) / temperature, 1).max(1) + smoothing / logits.shape[1])
    sure = np.clip(sure, 1e-6, 1 - 1e-6)
    right = logits.argmax(1) == labels
    hits = right.sum()
    target = np.where(right, (hits + 1) / (hits + 2), 1 / (len(labels) - hits + 2))
    return (target * np.log(sure) + (1 - target) * np.log(1 - sure)).mean()


@pytest.mark.parametrize(("temperature", "smoothing"), [(0.5, 0.0), (1.0, 0.2), (3.0, 0.0), (2.0, 0.1)])
def test_temperature_and_smoothing_are_the_likeliest(temperature, smoothing):
    logits, labels = rows_of(temperature, smoothing)
    found = calibration.fit(logits, labels)
    best = minimize(lambda x: -likelihood(logits, labels, np.exp(x[0]), expit(x[1])), [0.0, -2.0], method="Nelder-Mead")
    assert likelihood(logits, labels, *found) >= -best.fun - 1e-4
    assert found[0] == pytest.approx(temperature, rel=0.2) and found[1] == pytest.approx(smoothing, abs=0.04)
    sure = np.asarray(calibration.smoothed(logits / found[0], found[1]))
    np.testing.assert_allclose(sure.sum(1), 1, rtol=1e-5)
    assert calibration.expected_error(sure.max(1), sure.argmax(1) == labels) < 0.03


def test_a_classifier_that_errs_nowhere_or_everywhere_has_finite_numbers():
    logits, _ = rows_of(1.0, n=50)
    for labels in (logits.argmax(1), logits.argmin(1)):
        temperature, smoothing = calibration.fit(logits, labels)
        assert 0.04 < temperature < 60 and 0 < smoothing <= 0.5
    temperature, smoothing = calibration.fit(logits, logits.argmax(1))
    sure = np.asarray(calibration.smoothed(logits / temperature, smoothing)).max(1)
    assert 0.95 < sure.mean() < 0.99  # 50 rows without a mistake


def test_weights_go_to_the_better_model():
    logits, labels = rows_of(1.0)
    noise = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32) * 4
    weights = calibration.fit_weights(np.stack([noise, logits, noise[::-1]]), labels, np.array([0.5, 0.3, 0.2]))
    np.testing.assert_allclose(weights, [0.25, 0.65, 0.1], atol=0.02)  # halfway to those it was given


@pytest.mark.parametrize("even", [[0.5, 0.5], [0.6, 0.4]], ids=str)
def test_weights_stay_where_others_are_no_better(even):
    logits, labels = rows_of(1.0, n=300)
    noise = np.random.default_rng(1).normal(size=(2, *logits.shape)).astype(np.float32) * 0.1
    np.testing.assert_array_equal(calibration.fit_weights(logits + noise, labels, np.array(even)), even)


def test_log_prior_counts_a_category_without_rows_as_half_a_row():
    np.testing.assert_allclose(calibration.log_prior([3, 0, 1]), np.log([3 / 4.5, 0.5 / 4.5, 1 / 4.5]), rtol=1e-6)


# --- of checkpoints ---------------------------------------------------------------------------------------------------

COUNT = np.array([900, 300, 100, 60, 40])  # training rows; validation rows are as frequent


@pytest.fixture
def classifier(monkeypatch):
    """A function of the priors of runs, one that is asked for, and the numbers of runs that have an encoder:
    (predict.Classifier, logits of each run [n, C], labels). Checkpoints keep logits that are made up, of which those of
    later runs say less and are sharper."""
    draw = np.random.default_rng(0)
    labels = draw.choice(5, 1500, p=COUNT / COUNT.sum())

    def classifier(priors, prior=None, encoders=()):
        kept = {}
        for i, own in enumerate(priors):
            z = (1 + i) * (np.eye(5)[labels] * 3 / (1 + 2 * i) + draw.normal(size=(1500, 5)))
            z += np.log(COUNT / COUNT.sum()) * (own == "training")
            kept[str(i)] = {"logits": z.astype(np.float16), "labels": labels, "temperature": np.float32(1.5 + i),
                            "smoothing": np.float32(0.3)}
        monkeypatch.setattr(runs, "restore", lambda folder, which: (
            {"files": {}, "prior": priors[int(folder.name)], "training_rows": COUNT.tolist()} | (
                {"encoder": {}} if int(folder.name) in encoders else {}), [], [*"abcde"],
            {"variables": None, "validation": kept[folder.name], "columns": []}, 1))
        return (predict.Classifier([(Path(name), "best") for name in kept], prior),
                [np.float64(run["logits"]) for run in kept.values()], labels)

    return classifier


@pytest.mark.parametrize("priors, prior, encoders, even", [
    (("equal", "equal"), "equal", (), [0.5, 0.5]), (("equal", "training"), "training", (), [0.5, 0.5]),
    (("equal",), "training", (), [1]), (("training",), "equal", (), [1]),
    (("equal", "training", "equal"), "equal", (), [1 / 3] * 3), (("equal",) * 3, "equal", (1,), [0.25, 0.5, 0.25]),
    (("training",) * 3, "equal", (0, 2), [0.25, 0.5, 0.25]), (("equal",) * 2, "equal", (0, 1), [0.5, 0.5])], ids=str)
def test_what_is_put_together_anew_is_calibrated_anew(classifier, priors, prior, encoders, even):
    """Several runs, or a run under another prior. Against SciPy, from the logits that are kept. Those that read words,
    and those that have an encoder, count as much together before weights are fitted."""
    found, logits, labels = classifier(priors, prior, encoders)
    log_prior = np.log(COUNT / COUNT.sum())

    # Weights are fitted to rows as frequent as in training, so under that prior; a single run needs none.
    under = [z / (1.5 + i) + log_prior * (own == "equal") / (1.5 + i)
             for i, (z, own) in enumerate(zip(logits, priors, strict=True))]

    def loss(weights):
        z = sum(weight * one for weight, one in zip(weights, under, strict=True))
        return (logsumexp(z, 1) - z[np.arange(len(z)), labels]).mean()

    weights = np.ones(1)
    if len(priors) > 1:
        best = minimize(loss, even, method="Nelder-Mead").x
        weights = (best / best.sum() + even) / 2
        assert best.min() > 0 and np.abs(weights - even).max() > 0.05
    np.testing.assert_allclose(found.weights, weights, atol=2e-3)

    # Temperature and smoothing are then those that fit all together, under the prior that is asked for.
    sign = [(prior == "training") - (own == "training") for own in priors]
    z = sum(weight / (1.5 + i) * (one + sign[i] * log_prior) for i, (weight, one) in enumerate(
        zip(weights, logits, strict=True)))
    best = minimize(lambda x: -likelihood(z, labels, np.exp(x[0]), expit(x[1])), [0.0, -2.0], method="Nelder-Mead")
    temperature, *others = found.weights / (1.5 + np.arange(len(priors))) / found.factors
    assert others == pytest.approx([temperature] * len(others))
    assert likelihood(z, labels, temperature, found.smoothing) >= -best.fun - 1e-4
    assert likelihood(z, labels, 1, 0.3) < -best.fun - 1e-3  # as they were, they would not fit

    # And the thresholds rest on these probabilities.
    sure = softmax(z / temperature, 1).max(1) * (1 - found.smoothing) + found.smoothing / 5
    chances, right, path, _ = found.validated
    np.testing.assert_allclose(chances[:, 0], sure, atol=0.01)
    assert (right[:, 0] == (z.argmax(1) == labels)).mean() > 0.995 and path.shape == chances.shape


def test_a_run_under_its_own_prior_keeps_its_calibration(classifier):
    found, *_ = classifier(["equal"])
    assert found.factors == np.float32(1 / 1.5) and found.smoothing == np.float32(0.3) and not found.shifts[0].any()


# --- promises ---------------------------------------------------------------------------------------------------------

def flat_classifier():
    classifier = classify.BaseClassifier()
    classifier.tree = classify.Tree(["a", "b"], False)
    return classifier


def threshold(confidence, right, precision):
    """What a classifier with these validation rows says."""
    classifier = flat_classifier()
    classifier.promises = len(right), calibration.promises(confidence, right)
    return classifier.threshold(precision)


def plain_threshold(confidence, right, precision):
    """By the definition: the lowest precision under which so many hits are not yet a surprise, for each share."""
    rows = sorted(zip(confidence, right, strict=True), key=lambda row: -row[0])
    for share in range(20, 0, -1):
        passed = rows[:len(rows) * share // 20]
        hits = sum(hit for _, hit in passed)
        # The exact bound reaches the precision if at that precision so many hits come in 1 % of the cases at most.
        if passed and binom.sf(hits - 1, len(passed), precision) <= 0.01:
            return passed[-1][0]
    return math.inf


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [30, 400, 3000])
def test_thresholds_equal_the_plain_definition(seed, n):
    draw = np.random.default_rng(seed)
    confidence = draw.random(n)
    right = draw.random(n) < confidence ** 0.3
    for precision in (0.8, 0.9, 0.95, 0.99):
        assert threshold(confidence, right, precision) == plain_threshold(confidence, right, precision)


def test_a_promise_is_kept_on_new_rows():
    """Validation rows drawn again and again from a population of which we know the precision above any threshold."""
    kept = []
    for seed in range(300):
        draw = np.random.default_rng(seed)
        confidence = draw.random(1000) ** 0.2
        t = threshold(confidence, draw.random(1000) < confidence, 0.9)
        kept.append((1 - t ** 6) / 1.2 / (1 - t ** 5) >= 0.9)  # the mean of the confidences above t
    assert sum(kept) >= 290


def test_what_cannot_be_promised_has_a_threshold_that_nothing_reaches():
    assert threshold(np.full(40, 0.9), np.ones(40, bool), 0.95) == math.inf  # too few rows to know
    assert threshold(np.full(400, 0.9), np.ones(400, bool), 0.95) == 0.9
    assert threshold(np.full(400, 0.9), np.zeros(400, bool), 0.95) == math.inf
    assert threshold(np.zeros(0), np.zeros(0, bool), 0.95) == math.inf


@pytest.mark.parametrize("seed", range(3))
def test_a_promise_that_cannot_be_kept_names_the_most_precise_one_that_can(seed):
    draw = np.random.default_rng(seed)
    confidence = draw.random(2000)
    right = draw.random(2000) < confidence ** 0.3
    classifier = flat_classifier()
    classifier.promises = 2000, calibration.promises(confidence, right)
    ((level, found), said) = classifier.rule(0.999)
    best, share = re.fullmatch(r"0.999 cannot be promised on these 2,000 validation rows, so no title gets a category; "
                               r"(0\.\d\d) can, for (\d+) % of titles", said).groups()
    assert level == 1 and found == [math.inf] == [classifier.threshold(float(best) + 0.01)]
    assert (confidence >= classifier.threshold(float(best))).mean() == int(share) / 100
    assert classifier.rule(float(best)) == ((1, [classifier.threshold(float(best))]), None)
    classifier.promises = 4, calibration.promises(np.ones(4), np.zeros(4, bool))
    assert classifier.rule(0.5)[1].endswith("; nothing can")
    for wrong in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            classifier.threshold(wrong)


@pytest.mark.parametrize(("threshold", "coverage", "precision"), [
    (0.8, 0.5, 0.5), (0.6, 0.75, 2 / 3), (0.9, 0.0, None), (math.inf, 0.0, None)])
def test_coverage_and_precision(threshold, coverage, precision):
    confidence, right = np.array([0.2, 0.6, 0.8, 0.8]), np.array([True, True, False, True])
    found = report.promises(lambda promised: threshold, confidence, right)
    assert list(found) == ["0.90", "0.95", "0.99"] and found["0.90"] == {
        "threshold": None if threshold == math.inf else threshold, "coverage": coverage, "precision": precision}


# --- calibration error ------------------------------------------------------------------------------------------------

def test_calibration_error_by_hand(monkeypatch):
    monkeypatch.setattr(calibration, "BINS", 2)
    confidence = np.array([0.9, 0.1, 0.8, 0.3])
    right = np.array([True, False, False, True])
    # Bins (0.1, 0.3) and (0.8, 0.9): mean confidence 0.2 and 0.85, half of each right.
    assert calibration.expected_error(confidence, right) == pytest.approx((2 * 0.3 + 2 * 0.35) / 4)
    assert calibration.reliability(confidence, right) == [(pytest.approx(0.2), 0.5, 2), (pytest.approx(0.85), 0.5, 2)]


@pytest.mark.parametrize("n", [1, 14, 15, 1000])
def test_calibration_error_equals_plain_python(n):
    draw = np.random.default_rng(n)
    confidence = draw.random(n)
    right = draw.random(n) < confidence
    rows, error, start = sorted(zip(confidence, right, strict=True)), 0.0, 0
    bins = min(15, n)
    for i in range(bins):  # the first bins are larger by one row where they cannot be equal
        part = rows[start:start + n // bins + (i < n % bins)]
        start += len(part)
        error += abs(math.fsum(c for c, _ in part) - sum(hit for _, hit in part)) / n
    assert calibration.expected_error(confidence, right) == pytest.approx(error)


def test_a_promise_that_is_just_kept_suffices():
    classifier = flat_classifier()
    classifier.promises = 100, [(1.0, 0.2, 0.5), (0.5, 0.7, 0.9)]
    assert [classifier.threshold(precision) for precision in (0.4, 0.5, 0.6, 0.9, 0.91)] == [0.2, 0.2, 0.7, 0.7, np.inf]
