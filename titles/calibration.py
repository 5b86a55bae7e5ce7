"""What a probability means: from the logits of validation rows to calibrated probabilities, weights and thresholds.

A classifier that was trained until it fits its rows is far too sure of itself. Two numbers mend that: the temperature
that divides its logits (Guo et al. 2017, On Calibration of Modern Neural Networks), and the smoothing, a share of the
probability that is spread over all categories, as a part of the labels may be plainly wrong. Both are fitted to whether
the likeliest category is right, for that is what its probability should say of titles like the validation rows. The
order of the categories stays. Thresholds then say from which probability on so many of a hundred titles are right.
How logits are made (model.py) and how a report looks (report.py) do not belong here.
"""
import jax
import jax.numpy as jnp
import numpy as np

# --- knobs ------------------------------------------------------------------------------------------------------------
ROWS = 5000                       # validation rows, drawn at random, that a checkpoint keeps logits of
BINS = 15                         # of the calibration error, with as many rows in each
PRECISIONS = (0.9, 0.95, 0.99)    # that a report gives thresholds for
STEPS = 20                        # shares of the titles that a threshold may let through: 5 %, 10 %, ...
NARROW = 8                        # a node with fewer than this part of all categories below it is narrow
CERTAINTY = 0.99                  # that a threshold keeps its promise on further rows of the same kind


def log_prior(training_rows):
    """Logarithm of the share of each category among so many training rows [C]; none counts as half a row."""
    count = np.maximum(training_rows, 0.5)
    return np.log(count / count.sum()).astype(np.float32)


@jax.jit
def cross_entropy(logits, labels):
    """[..., C] logits, [...] labels -> [...] nats."""
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]


def of_leaves(values, below, steps):
    """(those of the values [B, C] among which are the ones of the leaves below a node of each row, which of them these
    are), both [B, W]: below [B, 2] as in a classify.Tree; steps [W'], from the first leaf of the widest node to its
    last."""
    # Of narrow nodes the leaves are looked up, of wide ones all categories are gone through.
    categories = values.shape[1]
    if NARROW * len(steps) < categories:
        at = below[:, :1] + steps
        return jnp.take_along_axis(values, jnp.minimum(at, categories - 1), 1), at < below[:, 1:]
    leaf = jnp.arange(categories)
    return values, (below[:, :1] <= leaf) & (leaf < below[:, 1:])


def smoothed(logits, smoothing):
    """[..., C] logits after their temperature -> probabilities, of which the part `smoothing` is spread evenly."""
    return (1 - smoothing) * jax.nn.softmax(logits) + smoothing / logits.shape[-1]


@jax.jit
@jax.value_and_grad
def calibration_loss(values, logits, right):
    """Cross-entropy between `right` [N], how sure it is that the largest of logits [N, C] is that of the label, and the
    probability that (log temperature, log odds of the smoothing) give it. The largest of each row is 0."""
    # So its softmax is one over the sum. The gradient of a maximum would rest on XLA's computing twice, to the same
    # bits, what it compares, which it does not always do: jax 0.12.0.1 was wrong here (as in jax-ml/jax#40564).
    softmax = 1 / jnp.exp(logits * jnp.exp(-values[0])).sum(-1)
    smoothing = jax.nn.sigmoid(values[1])

    # As logarithm and log odds both numbers stay in range. float32 may round a probability to 1; what is left is then 0
    # and its logarithm infinite, hence the clipping.
    confidence = jnp.clip((1 - smoothing) * softmax + smoothing / logits.shape[-1], 1e-6, 1 - 1e-6)
    return -(right * jnp.log(confidence) + (1 - right) * jnp.log1p(-confidence)).mean()


@jax.jit
@jax.value_and_grad
def pooled_loss(weights, logits, labels):
    """Weights [M], logits of several models [M, N, C] -> the loss of their weighted sum."""
    return cross_entropy(jnp.einsum("m,mnc->nc", weights, logits), labels).mean()


def minimized(function, start, bounds, *arrays):
    """Where `function(values, *arrays)`, which returns value and gradient, is least within the bounds of each value."""
    from scipy.optimize import minimize
    return minimize(function, start, arrays, jac=True, method="L-BFGS-B", bounds=bounds).x


def fit(logits, labels):
    """(temperature, smoothing) that make the probability of the likeliest category the chance that it is right, for
    logits [N, C] float32 of rows with these labels [N]; see `calibration_loss`. NumPy arrays. Without rows nothing
    changes: (1, 0)."""
    if not len(labels):
        return 1.0, 0.0

    # A few rows without a mistake do not prove that there are none: targets are a little off 0 and 1, as in Platt 1999.
    right = logits.argmax(1) == labels
    hits, errors = right.sum(), (~right).sum()
    right = np.where(right, (hits + 1) / (hits + 2), 1 / (errors + 2)).astype(np.float32)

    # Few rows may drive both without end, hence bounds: temperatures of 0.05 to 55, and half at most to be spread.
    below = logits - logits.max(1, keepdims=True)
    log_temperature, odds = minimized(calibration_loss, np.array([0.5, -4.0]), [(-3, 4), (-12, 0)],
                                      *jax.device_put((below, right)))
    return float(np.exp(log_temperature)), float(1 / (1 + np.exp(-odds)))


def fit_weights(logits, labels, even):
    """Weights [M] of several models, not negative and 1 in sum, for their logits [M, N, C] after temperature: halfway
    between `even` [M], 1 in sum, and those whose weighted sum, times any factor, has the least cross-entropy; `even`
    where the latter gain no more than their standard error, or where there are no rows."""
    if not len(labels):
        return even

    # The average of sharp predictions that differ is too modest, so with a sum of 1 any single model would look better
    # than it deserves. The temperature is fitted afterwards: here each choice may have the factor that suits it.
    (logits, labels), factors = jax.device_put((logits, labels)), [(0, None)] * len(logits)
    best = minimized(pooled_loss, even, factors, logits, labels)
    averaged = jnp.einsum("m,mnc->nc", jnp.asarray(even, jnp.float32), logits)[None]
    unfitted = even * minimized(pooled_loss, np.ones(1), factors[:1], averaged, labels)

    # Weights that are as good as these by chance would only add noise.
    before, after = (np.asarray(cross_entropy(jnp.einsum("m,mnc->nc", jnp.asarray(weights, jnp.float32), logits),
                                              labels), np.float64) for weights in (unfitted, best))
    gain = before - after
    if gain.mean() <= gain.std() / np.sqrt(len(gain)):
        return even
    return (best / best.sum() + even) / 2  # other titles than these rows may suit another member


# --- promises ---------------------------------------------------------------------------------------------------------

def promises(confidence, right):
    """[(share of the rows that a threshold lets through, that threshold, the least precision among them)] of at most
    STEPS thresholds, from all rows to the fewest; classify.BaseClassifier.threshold takes the first that suffices.
    confidence [N] of validation rows, right [N] bool."""
    # A lower bound, exact for a binomial share (Clopper and Pearson 1934), with a certainty of 99 % and not the usual
    # 95 %, because the best of twenty is taken.
    from scipy.stats import beta
    order = np.argsort(-confidence, kind="stable")
    sorted_right = np.cumsum(right[order])
    found = []
    for step in range(STEPS, 0, -1):
        if rows := len(order) * step // STEPS:
            hits = sorted_right[rows - 1]
            least = beta.ppf(1 - CERTAINTY, hits, rows - hits + 1) if hits else 0.0
            found.append((step / STEPS, float(confidence[order[rows - 1]]), float(least)))
    return found


# --- calibration error ------------------------------------------------------------------------------------------------

def reliability(confidence, right):
    """[(mean confidence, accuracy, rows)] of at most BINS bins of equally many rows, in rising order."""
    order = np.argsort(confidence, kind="stable")
    return [(float(confidence[part].mean(dtype=np.float64)), float(right[part].mean()), len(part))
            for part in np.array_split(order, min(BINS, len(order)))]


def expected_error(confidence, right):
    """The expected calibration error: by how much confidence and accuracy differ, on average over the rows of all bins
    (Naeini et al. 2015, with bins of equally many rows)."""
    return sum(rows * abs(mean - accuracy) for mean, accuracy, rows in reliability(confidence, right)) / len(confidence)
