"""A run, or several, and rows -> probabilities: the Classifier that reports, predictions, exports and Python share.

A trained model with the vectors of all words is a Predictor; one or several that classify together are an Ensemble;
compiled functions make answers of an Ensemble and a data.Batch for each of its members. A Classifier reads checkpoints
and titles, and knows what its probabilities mean. What modules compute (model.py), what a run keeps (runs.py) and how
answers are written (evaluate.py, tables.py) do not belong here.
"""
import copy
import functools
import os
import sys
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import classify
import data
import model
from titles import calibration, cli, devices, encoder, runs, tree
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
PREDICT_ROWS = 32768  # titles classified at a time
BATCH_SIZES = (1, 64, 1024, 16384)  # of what is compiled
EXPLAINED, EXPLAINED_OF = 5, 40  # words that --explain writes at most, of the first so many of a title

# --- trained models ---------------------------------------------------------------------------------------------------

@flax.struct.dataclass
class Predictor:
    """A trained model that is ready to classify: what training wrote, with the vectors of all words made once."""
    module: nn.Module = flax.struct.field(pytree_node=False)
    word_ngrams: int = flax.struct.field(pytree_node=False)
    params: dict
    table: jax.Array        # [V, D]
    row_weights: jax.Array  # [V]
    words: tuple            # of all words the vectors [W, D] and their weights [W]
    further: tuple | None   # the same of words behind those, see `extended`
    features: dict          # `hashes` of words, `first` row and number of `buckets` for word n-grams
    values: tuple | None    # of a run with columns: the table of values [V, D], its weights [V], model.value_features


def make_predictor(config, variables, features, compose=model.compose):
    """The Predictor of a run's configuration, its variables as from model.init, and model.feature_tables of words with
    model.value_features of columns. An encoder's variables are the whole "params" and "table"; it needs no features of
    words. compose: model.compose, or what it was compiled of, where all of this is traced."""
    features, values = devices.put(features, devices.whole()), None
    if config.get("columns"):
        values = (variables["values"], variables["value_weights"],
                  {name: features[name] for name in ("value_rows", "value_factors")})
    if "encoder" in config:
        table = jnp.asarray(variables["table"])
        weights = jnp.ones(len(table)).at[0].set(0)
        return Predictor(model.build(config), 1, variables["params"], table, weights, (table, weights), None, {},
                         values)
    words = compose(variables["table"], variables["weights"], features, config.get("shard_table", False))
    kept = {name: features[name] for name in ("hashes", "first", "buckets")}
    return Predictor(model.build(config), config["word_ngrams"], variables["params"], variables["table"],
                     variables["weights"], words, None, kept, values)


def extended(config, predictor, words):
    """A Predictor that knows further words (list of str), by the ids behind those it knows."""
    # Filled up to a power of two, so that few sizes are compiled.
    spare = [""] * (max(8, 1 << len(words).bit_length()) - len(words))
    features = model.feature_tables(config, [*data.SPECIALS, *words, *spare], known=0)
    vectors, weights = model.compose(predictor.table, predictor.row_weights, features)
    hashes = jnp.concatenate([predictor.features["hashes"], features["hashes"][len(data.SPECIALS):]])
    return predictor.replace(further=(vectors[len(data.SPECIALS):], weights[len(data.SPECIALS):]),
                             features=predictor.features | {"hashes": hashes})


def inputs(predictor, batch):
    """What a module takes, for a data.Batch: vectors [B, P, D], weights [B, P] and both of values [B, K, D], [B, K]; as
    in training, without dropout."""
    ids = batch.ids
    values = jnp.zeros((len(ids), 0, predictor.table.shape[1])), jnp.zeros((len(ids), 0))
    if predictor.values:
        table, value_weights, features = predictor.values
        drawn = model.draw_values(features, value_weights, batch.values.astype(jnp.int32))
        *values, _ = model.lookup(table, drawn)
    vectors, weights = (of_all[ids] for of_all in predictor.words)
    if predictor.further:
        # Looked up apart: to append them to the vectors of all words would copy these.
        behind = ids.astype(jnp.int32) - (len(predictor.features["hashes"]) - len(predictor.further[1]))
        more, more_weights = (of_all[jnp.maximum(behind, 0)] for of_all in predictor.further)
        vectors = jnp.where(behind[..., None] < 0, vectors, more)
        weights = jnp.where(behind < 0, weights, more_weights)
    if predictor.word_ngrams > 1:
        rows = model.word_ngrams(predictor.features, ids, predictor.word_ngrams)
        vectors = jnp.concatenate([vectors, predictor.table[rows]], 1)
        weights = jnp.concatenate([weights, predictor.row_weights[rows]], 1)
    return vectors, weights, values


def forward(predictor, batch):
    """A data.Batch -> [B, C] logits; of several heads the mean of their log-probabilities."""
    z = predictor.module.apply({"params": predictor.params}, *inputs(predictor, batch))
    return z if z.ndim == 2 else jax.nn.log_softmax(z).mean(0)


logits = jax.jit(forward, compiler_options=model.QUICK_COMPILE)


@flax.struct.dataclass
class Ensemble:
    """One or several Predictors that classify together: as one model whose logits are the weighted sum of theirs."""
    predictors: tuple
    factors: tuple = (1.0,)  # of the logits of each; of a single one 1 / its temperature
    shifts: tuple = (0.0,)   # what is added to the logits of each before [C], such as the log prior
    smoothing: float = 0.0   # part of the probability that is spread evenly over all categories


def combined(ensemble, batches):
    """A data.Batch for each model -> [B, C] logits, the weighted sum of theirs; [B, C] logits without factors: the mean
    of their log-probabilities, of one its logits."""
    shifted = [forward(*each) + shift for *each, shift in zip(
        ensemble.predictors, batches, ensemble.shifts, strict=True)]
    return (sum(factor * z for factor, z in zip(ensemble.factors, shifted, strict=True)),
            shifted[0] if len(shifted) == 1 else sum(map(jax.nn.log_softmax, shifted)) / len(shifted))


def scores(ensemble, batches, labels, nodes=None):
    """`prediction`, its `probability`, `given_probability` of the label and its `rank` (0 = first), `calibrated_loss`
    (cross-entropy, nats) and `brier` score of the probabilities, `loss` without temperatures, factors and smoothing, as
    in training; of each row [B]. nodes: of a tree, as from Classifier.nodes; labels may then be inner nodes, which are
    as likely as the leaves below together and of the rank of the first, and there is `label_path` [B, L], the
    probabilities of the nodes above the label, and of the levels `at_level` [B, L] the likeliest node by its number
    there."""
    z, raw = combined(ensemble, batches)
    probabilities, smoothing = calibration.smoothed(z, ensemble.smoothing), ensemble.smoothing
    if nodes is None:
        best, given, share, own = (jnp.take_along_axis(values, labels[:, None], 1)[:, 0]
                                   for values in (z, probabilities, jax.nn.log_softmax(z), raw))
        leaves, of_tree = 1, {}
    else:
        below, leaves = nodes["below"][labels], jnp.diff(nodes["below"][labels])[:, 0]
        (logits_below, inside), (given, _), (share, _), (own, _) = (calibration.of_leaves(
            values, below, nodes["steps"][0]) for values in (z, probabilities, jax.nn.log_softmax(z), raw))
        best, given = jnp.where(inside, logits_below, -jnp.inf).max(1), jnp.where(inside, given, 0).sum(1)
        share, own = (jax.nn.logsumexp(values, 1, where=inside) for values in (share, own))
        of_tree = {"label_path": path_chances(z, smoothing, nodes, labels),
                   "at_level": jnp.stack([first_maximum(level_chances(z, smoothing, first))
                                          for first in nodes["first"]], 1)}

    # As the logarithm of a sum, which stays finite where the probability is too small for its type.
    calibrated = -jnp.logaddexp(jnp.log1p(-smoothing) + share, jnp.log(leaves * smoothing / z.shape[1]))
    return {"prediction": first_maximum(z), "rank": (z > best[:, None]).sum(1),
            "probability": probabilities.max(1), "given_probability": given,
            "loss": jax.nn.logsumexp(raw, 1) - own, "calibrated_loss": calibrated,
            "brier": (probabilities ** 2).sum(1) - 2 * given + 1} | of_tree


score_batch = jax.jit(scores, compiler_options=model.QUICK_COMPILE)


@functools.partial(jax.jit, compiler_options=model.QUICK_COMPILE)
def score_promised(promising, ensemble, batches, labels, nodes=None):
    """The same, and what the Ensemble that promises a precision predicts, with its probability, and of a tree those of
    the nodes above it, `promised_path` [B, L]."""
    z, _ = combined(promising.replace(predictors=ensemble.predictors), batches)
    found = ranked(z, promising.smoothing, 1)
    promised = {"promised_prediction": found["category"][:, 0], "promised_probability": found["probability"][:, 0]}
    if nodes is not None:
        promised["promised_path"] = path_chances(z, promising.smoothing, nodes, found["category"][:, 0])
    return scores(ensemble, batches, labels, nodes) | promised


@functools.partial(jax.jit, static_argnames="top", compiler_options=model.QUICK_COMPILE)
def top_batch(ensemble, batches, top):
    """The `top` likeliest categories and their probabilities [B, top]."""
    return ranked(combined(ensemble, batches)[0], ensemble.smoothing, top)


def ranked(z, smoothing, top):
    # Ranked by logits, as small probabilities may round to the same number.
    category = first_maximum(z)[:, None] if top == 1 else jax.lax.top_k(z, top)[1]
    probabilities = calibration.smoothed(z, smoothing)
    return {"category": category, "probability": jnp.take_along_axis(probabilities, category, 1)}


@functools.partial(jax.jit, static_argnames="top", compiler_options=model.QUICK_COMPILE)
def climb_batch(ensemble, batches, nodes, top):
    """The same, and `path` [B, L], the probabilities of the nodes above the likeliest category; nodes: as from
    Classifier.nodes."""
    z, _ = combined(ensemble, batches)
    found = ranked(z, ensemble.smoothing, top)
    return found | {"path": path_chances(z, ensemble.smoothing, nodes, found["category"][:, 0])}


@functools.partial(jax.jit, static_argnames="top", compiler_options=model.QUICK_COMPILE)
def level_batch(ensemble, batches, first, top):
    """The `top` likeliest nodes of a level, by their number there, and their probabilities [B, top]; first [M]: the
    first leaf of each."""
    z, _ = combined(ensemble, batches)
    probability, node = jax.lax.top_k(level_chances(z, ensemble.smoothing, first), top)
    return {"node": node, "probability": probability}


def path_chances(z, smoothing, nodes, categories):
    """Logits [B, C] -> the probabilities of the nodes [B, L] above categories, or other nodes, [B], and of themselves;
    nodes: as from Classifier.nodes."""
    p, below = jax.nn.softmax(z), nodes["below"][nodes["above"][categories]]
    found = [calibration.of_leaves(p, below[:, level], steps) for level, steps in enumerate(nodes["steps"])]
    sums = jnp.stack([jnp.where(is_below, chances, 0).sum(1) for chances, is_below in found], 1)
    return classify.node_chances(sums, jnp.diff(below)[..., 0], smoothing, z.shape[1])


def level_chances(z, smoothing, first):
    """Logits [B, C] -> the probabilities of the nodes of a level [B, M], by the first leaf of each [M]."""
    # Added up node by node, for a running sum has no digits left for nodes that are hardly likely.
    number = jnp.cumsum(jnp.zeros(z.shape[1], int).at[first[1:]].set(1))
    sums = jax.ops.segment_sum(jax.nn.softmax(z).T, number, len(first), indices_are_sorted=True).T
    return classify.node_chances(sums, jnp.diff(first, append=z.shape[1]), smoothing, z.shape[1])


@functools.partial(jax.jit, compiler_options=model.QUICK_COMPILE)
def all_batch(ensemble, batches):
    return {"probability": calibration.smoothed(combined(ensemble, batches)[0], ensemble.smoothing)}


# --- batches ----------------------------------------------------------------------------------------------------------

def first_maximum(z):
    """z [B, C] -> [B] the first column with the largest of each row; XLA's argmax takes 5 times as long on a CPU."""
    return jnp.where(z == z.max(1)[:, None], jnp.arange(z.shape[1]), z.shape[1] - 1).min(1)


def largest_batch(encoder):
    """How many titles are classified at a time, at most. A CPU has caches for few, and only many keep a GPU busy; where
    there is an encoder, each costs much more."""
    sizes = BATCH_SIZES[1:3] if devices.mesh().devices.flat[0].platform == "cpu" else BATCH_SIZES[2:]
    return sizes[not encoder]


def largest_batch_of(predictors):
    return largest_batch(any(hasattr(predictor.module, "encoder") for predictor in predictors))


def in_batches(function, batches, *others, largest):
    """Call `function` on rows, a data.Batch of all for each model, and other arrays [N, ...] in parts of one size (the
    last one repeats rows): the smallest of BATCH_SIZES that holds all, or `largest`. Titles of up to L / 2 words come
    apart from longer ones, in half the columns: two programs are compiled, and little padding is computed. Returns its
    dictionary of results as [N, ...]."""
    ids = [batch.ids for batch in batches]
    batch_size = min(largest, next((size for size in BATCH_SIZES if size >= len(ids[0])), BATCH_SIZES[-1]))
    whole = [array.shape[1] for array in ids]
    half = [-(-width // 2) for width in whole]
    long = np.any([array[:, width:].any(1) for array, width in zip(ids, half, strict=True)], 0)
    order, results, sharding = [np.zeros(0, int)], [], devices.parted(batch_size)
    for rows, widths in ((np.flatnonzero(~long), half), (np.flatnonzero(long), whole)):
        for start in range(0, len(rows), batch_size):
            order.append(rows[start:start + batch_size])
            part = np.resize(order[-1], batch_size)
            results.append(devices.shared(function(*devices.put((
                tuple(data.chosen(batch, part, width) for batch, width in zip(batches, widths, strict=True)),
                *(array[part] for array in others)), sharding))))

    # Results in the order of the rows again, without those that filled up a batch.
    back = np.argsort(np.concatenate(order))
    return {name: np.concatenate([np.asarray(result[name])[:len(rows)] for result, rows in
                                  zip(results, order[1:], strict=True)])[back] for name in results[0]}


def score(ensemble, batches, labels):
    """Evaluate an Ensemble on every row once: a dictionary of [N] arrays. batches: a data.Batch for each Predictor;
    labels [N]."""
    return in_batches(lambda parts, y: score_batch(ensemble, parts, y), batches, labels.astype(np.int32),
                      largest=largest_batch_of(ensemble.predictors))


# --- the classifier ---------------------------------------------------------------------------------------------------

class Classifier(classify.BaseClassifier):
    """One or several checkpoints that share vocabulary and labels, and classify together: the weighted sum of their
    logits. Made by `load`. The probability of the likeliest category is the chance that it is right, for titles like
    the validation rows (titles/calibration.py)."""

    def __init__(self, checkpoints, prior=None):
        """checkpoints: [(folder of a run, "best" or "latest")]; prior: "equal", "training", or None for the first
        run's own. Raises UserError where they do not go together, ValueError for another prior."""
        if prior not in (None, "equal", "training"):
            raise ValueError(f"prior {prior!r}: wanted equal or training")
        # The first run gives its folder to the report, and its name, with the others' behind it.
        (self.folder, which), *others = self.checkpoints = checkpoints
        self.name = "+".join([which, *(f"{folder.name}-{which}" for folder, which in others)])
        self.folders = [*{folder.resolve(): folder for folder, _ in checkpoints}.values()]
        self.members, self.steps, self.validation = [], [], []
        for folder, which in checkpoints:
            config, vocab, labels, saved, step = runs.restore(folder, which)
            if not self.members:
                self.config, self.vocab, self.labels = config, vocab, labels
                self.tree = classify.Tree(labels, config.get("data", {}).get("levels", 1) > 1)
                self.prepared, self.title_columns = saved["columns"], config.get("data", {}).get(
                    "title_columns", [])
            # With the same lists, ids mean the same to all members.
            if config["files"] != self.config["files"]:
                raise UserError(f"{folder}: has another vocabulary or other labels than {self.folder}; average runs on "
                                "the same prepared data")
            self.members.append((config, saved["variables"]))
            self.validation.append(jax.device_get(saved["validation"]))
            if not np.array_equal(self.validation[-1]["labels"], self.validation[0]["labels"]):
                raise UserError(f"{folder}: was evaluated on other validation rows than {self.folder}; average runs on "
                                "the same prepared data, which --init-from has left none of out")
            self.steps.append(step)

        # Of the columns that were prepared those that some member reads, and their numbers.
        self.column_numbers = [i for i, column in enumerate(self.prepared)
                               if any(column.name in config.get("columns", []) for config, _ in self.members)]
        self.columns = [self.prepared[i] for i in self.column_numbers]

        # Made where they are first asked for, and the same under any prior: the vectors of all words; hashes of all
        # character n-grams of the vocabulary, for `knows`. They do not hold the classifier, so that its memory is free
        # as soon as nobody has it.
        members, vocab, prepared = self.members, self.vocab, self.prepared
        self.predictors = functools.cache(lambda: tuple(
            make_predictor(config, variables, model.value_features(config, prepared) | (
                {} if "encoder" in config else model.feature_tables(config, vocab)))
            for config, variables in members))
        self.ngrams = functools.cache(
            lambda minn, maxn: np.unique(data.character_ngrams(vocab, minn, maxn, classify.HASHES)[1]))
        self.index = {word: i for i, word in enumerate(self.vocab)}

        self.has_own_prior = prior is None
        self.assume(prior or self.config["prior"])

    def assume(self, prior):
        """Set the prior of predictions, and what calibrates them under it."""
        # A run's logits are under the prior that its --balance aims at. Adding the log prior of the training rows, or
        # subtracting it, converts from one to the other.
        self.prior = prior
        log_prior = calibration.log_prior(self.config["training_rows"])
        own = [config["prior"] for config, _ in self.members]
        self.shifts = tuple(((prior == "training") - (one == "training")) * log_prior for one in own)

        # A run under its own prior is calibrated. What is put together anew is calibrated on the validation rows that
        # the checkpoints keep, which are the same of all.
        labels = self.validation[0]["labels"]
        self.temperatures = np.array([kept["temperature"] for kept in self.validation])
        self.smoothing, self.weights = self.validation[0]["smoothing"], np.ones(1)
        if len(own) > 1:
            # By cross-entropy on rows whose categories are as frequent as in training, so under that prior.
            shifts = [log_prior if one == "equal" else 0 for one in own]
            # Members that read words err alike, so all of them count as much as those that read pieces do.
            reads = ["encoder" in config for config, _ in self.members]
            even = np.array([1 / reads.count(one) for one in reads]) / len(set(reads))
            self.weights = calibration.fit_weights(np.stack([*map(
                np.divide, self.kept_logits(shifts), self.temperatures)]), labels, even)
        self.factors = (self.weights / self.temperatures).astype(np.float32)
        if len(own) > 1 or prior != own[0]:
            self.calibrate()

    def calibrate(self):
        """Fit the temperature of all members together, and the smoothing, to the validation rows, if there are any."""
        temperature, self.smoothing = calibration.fit(self.combined_kept(), self.validation[0]["labels"])
        self.factors /= np.float32(temperature)

    @property
    def is_calibrated(self):
        return len(self.validation[0]["labels"]) > 0

    @property
    def promising(self):
        """The classifier that promises a precision: this one, under the training prior unless another was asked for. A
        precision counts titles, and under the prior that they come with it is promised for more of them."""
        return self if self.prior == "training" or not self.has_own_prior else self.under_training_prior

    @functools.cached_property
    def under_training_prior(self):
        other = self.copied()
        other.assume("training")
        return other

    def copied(self):
        """A copy without what is kept under this prior."""
        other = copy.copy(self)
        for kept in ("ensemble", "validated", "promises", "level_promises", "rules", "under_training_prior"):
            vars(other).pop(kept, None)
        return other

    def under_mix(self, log_ratios):
        """The classifier that takes categories to be so much more frequent than in training, log_ratios [C] as from
        change.mix. What its probabilities mean is told by the validation rows, drawn anew by these ratios: as many as
        rows that count so unequally are worth (Kish 1965)."""
        other = self.under_training_prior.copied()
        other.prior, other.has_own_prior = "estimated", False
        weights = np.exp(log_ratios.astype(np.float64))[self.validation[0]["labels"]]
        rows = max(1, round(weights.sum() ** 2 / (weights ** 2).sum()))
        drawn = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(rows) + 0.5) / rows)
        other.validation = [kept | {name: kept[name][drawn] for name in ("logits", "labels")} for kept in
                            self.validation]
        other.shifts = tuple(shift + log_ratios / other.factors.sum() for shift in other.shifts)
        other.calibrate()
        return other

    @property
    def identity(self):
        """What tells this classifier from others: its prior, and of each checkpoint when its run began and its step."""
        return self.prior, [(config["created"], step)
                            for (config, _), step in zip(self.members, self.steps, strict=True)]

    def kept_logits(self, shifts):
        """The logits of each member on the validation rows that its checkpoint keeps [n, C], shifted."""
        return [kept["logits"].astype(np.float32) + shift for kept, shift in zip(self.validation, shifts, strict=True)]

    def combined_kept(self):
        """The logits of all members together on these rows [n, C]."""
        return sum(map(np.multiply, self.factors, self.kept_logits(self.shifts)))

    @functools.cached_property
    def validated(self):
        """Of these rows: the probability of the likeliest node of each level, from the top [n, L], whether it is right
        [n, L], the same of the nodes above the likeliest category [n, L] twice."""
        # Of a tree some rows at a time, for it may have many nodes.
        found, nodes, kept = [], self.tree, (self.combined_kept(), self.validation[0]["labels"])
        parts = max(1, len(kept[0]) // 512) if nodes.levels > 1 else 1
        for z, labels in zip(*(np.array_split(of, parts) for of in kept), strict=True):
            best, z = z.argmax(1), jnp.asarray(z)
            chances, likeliest = [np.asarray(calibration.smoothed(z, self.smoothing)).max(1)], [best]
            for level in reversed(range(1, nodes.levels)):
                numbers, first = nodes.at_level(level)
                of_level = classify.node_chances(np.add.reduceat(np.asarray(jax.nn.softmax(z)), first, 1), np.diff(
                    first, append=nodes.leaves), self.smoothing, nodes.leaves)
                chances.insert(0, of_level.max(1))
                likeliest.insert(0, numbers[of_level.argmax(1)])
            path = np.asarray(path_chances(z, self.smoothing, self.host_nodes, best))
            found.append((np.stack(chances, 1), np.stack(likeliest, 1) == nodes.above[labels], path,
                          nodes.above[best] == nodes.above[labels]))
        return tuple(map(np.concatenate, zip(*found, strict=True)))

    @functools.cached_property
    def promises(self):
        """(number of these rows, calibration.promises of the categories)."""
        chances, right, *_ = self.validated
        return len(chances), calibration.promises(chances[:, -1], right[:, -1])

    @functools.cached_property
    def level_promises(self):
        """calibration.promises of the levels above."""
        chances, right, *_ = self.validated
        return [calibration.promises(*of_level) for of_level in zip(chances.T[:-1], right.T[:-1], strict=True)]

    @functools.cached_property
    def rules(self):
        """tree.rules of these rows."""
        return tree.rules(*self.validated[2:])

    @functools.cached_property
    def ensemble(self):
        """The Ensemble that knows the vocabulary."""
        return Ensemble(self.predictors(), *devices.put((self.factors, self.shifts, self.smoothing), devices.whole()))

    def word_vectors(self, others=()):
        """(words, their vectors [n, D] float32): of the vocabulary, then of `others`, a list of words that are not in
        it. Raises UserError where there is not one model of words."""
        if len(self.members) > 1 or "encoder" in self.config:
            raise UserError("vectors of words: name one run with --ckpt, and not an encoder, which has none")
        predictor, first = self.ensemble.predictors[0], len(data.SPECIALS)
        words, vectors = self.vocab[first:], [predictor.words[0][first:len(self.vocab)]]
        if others:
            # What `extended` fills up to a power of two is no word.
            vectors.append(extended(self.config, predictor, list(others)).further[0][:len(others)])
        return [*words, *others], np.concatenate(jax.device_get(devices.shared(vectors)))

    def in_parts(self, function, rows, *others):
        """Call `function(ensemble, batches, *others)` on rows (classify.Rows, or list of titles) and arrays that go
        with them, by `in_batches`. Returns its dictionary of results, with `known` as from `knows`."""
        # A part at a time, so that memory does not grow with the titles.
        found, rows = [], self.rows(rows)
        for part in data.blocks(len(rows.titles), PREDICT_ROWS):
            ensemble, batches, known = self.read(rows.part(part))
            result = in_batches(functools.partial(function, ensemble), batches, *(array[part] for array in others),
                                largest=largest_batch_of(ensemble.predictors))
            found.append(result | {"known": known})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def read(self, rows):
        """(an Ensemble that knows all words of some rows (classify.Rows, or list of titles), a tuple of the data.Batch
        that each member reads, whether anything of a title is known [N])."""
        # To models of words those out of vocabulary get vectors from their n-grams, for these titles.
        ensemble, rows = self.ensemble, self.rows(rows)
        titles, predictors, batches = rows.titles, [], []
        known = np.zeros(len(titles), bool)
        words = functools.cache(lambda max_len: data.encode(titles, self.index, max_len))
        for (config, _), predictor in zip(self.members, ensemble.predictors, strict=True):
            if "encoder" in config:  # it knows all pieces, between two marks
                mine, others = encoder.pieces(config["encoder"]["name"], titles, config["encoder"]["max_len"]), []
                known |= (mine > 0).sum(1) > 2
            else:
                mine, others = words(config["max_len"])
                known |= self.knows(config, mine, others)
            predictors.append(extended(config, predictor, others) if others else predictor)
            read = [i for i, column in enumerate(self.columns) if column.name in config.get("columns", [])]
            batches.append(data.batch_of({"titles": mine, "columns": rows.values[:, read]}))
        return ensemble.replace(predictors=tuple(predictors)), tuple(batches), known

    def knows(self, config, ids, words):
        """Whether the training of a member has seen a word or an n-gram of each title [N]: ids [N, L] in the vocabulary
        and, behind it, in `words`."""
        # A word of the vocabulary is enough; n-grams are looked at only if some title has none.
        known = ((ids > data.UNKNOWN) & (ids < len(self.vocab))).any(1)
        if not known.all() and words and config["maxn"]:
            # N-grams are compared by hashes so long that two of them are hardly ever equal.
            start, hashes = data.character_ngrams([*data.SPECIALS, *words], config["minn"], config["maxn"],
                                                  classify.HASHES)
            # A running count of hits: its difference between the bounds of a word counts those in it.
            hits = np.cumsum(np.isin(hashes, self.ngrams(config["minn"], config["maxn"]), kind="sort"))
            of_words = np.diff(np.pad(hits, (1, 0))[start])[len(data.SPECIALS):] > 0
            known |= np.concatenate([np.zeros(len(self.vocab), bool), of_words])[ids].any(1)
        return known

    def likeliest(self, rows, top, level=None):
        """The `top` likeliest categories, or nodes of a level, of rows (classify.Rows, or list of titles): (numbers [N,
        top], probabilities [N, top], 0 where nothing of the title is known)."""
        level = level or self.tree.levels
        top = min(top, self.tree.size(level))
        if level == self.tree.levels:
            found = self.in_parts(functools.partial(top_batch, top=top), rows)
            number = found["category"]
        else:
            found = self.in_parts(lambda *both: level_batch(*both, self.nodes["first"][level - 1], top), rows)
            number = self.tree.at_level(level)[0][found["node"]]
        return number, np.where(found["known"][:, None], found["probability"], 0)

    def climb(self, rows, top):
        """The same of categories, and the probabilities [N, L] of the nodes above the likeliest, from the top."""
        found = self.in_parts(lambda *both: climb_batch(*both, self.nodes, min(top, self.tree.leaves)), rows)
        known = found["known"][:, None]
        return (found["category"], *(np.where(known, found[name], 0) for name in ("probability", "path")))

    @functools.cached_property
    def nodes(self):
        """`host_nodes` on the devices."""
        return devices.put(self.host_nodes, devices.whole())

    @functools.cached_property
    def host_nodes(self):
        """What compiled functions need of the tree: the leaves `below` nodes [M, 2], the nodes `above` [M, L], and of
        each level the `first` leaves of its nodes, and `steps` from the first leaf of the widest to its last."""
        first = tuple(self.tree.at_level(level)[1] for level in range(1, self.tree.levels + 1))
        steps = tuple(np.arange(np.diff(of_level, append=self.tree.leaves).max(initial=1)) for of_level in first)
        return {"below": self.tree.below, "above": self.tree.above, "first": first, "steps": steps}

    def score(self, rows, labels, promised=False):
        """What `scores` says of rows (classify.Rows, or list of titles) with labels [N], numbers of categories or of a
        tree of nodes; the probability is 0 where nothing of a title is known. promised: also `score_promised`."""
        nodes, function = self.nodes if self.tree.levels > 1 else None, score_batch
        if promised:  # it shares all but a few numbers, so one pass does for both
            function = functools.partial(score_promised, self.promising.ensemble.replace(predictors=()))
        found = self.in_parts(lambda *arrays: function(*arrays, nodes), rows, labels.astype(np.int32))
        known = found["known"]
        for name in ("probability", "promised_probability", "promised_path"):
            if name in found:
                found[name] = np.where(known if found[name].ndim == 1 else known[:, None], found[name], 0)
        for level in range(self.tree.levels if nodes is not None else 0):
            found["at_level"][:, level] = self.tree.at_level(level + 1)[0][found["at_level"][:, level]]
        return found

    def has_trained_on(self, keys):
        """Whether titles, given by data.title_keys [N], have trained any of the runs: [N] bool."""
        return np.isin(keys, self.trained_keys)

    @property
    def trained_keys(self):
        """data.title_keys of the titles that have trained any of the runs."""
        return np.concatenate([runs.trained_titles(folder) for folder in self.folders])

    def next(self, rows, number=100):
        """The rows that are the most useful to label next, the most useful first: their numbers [n], n being `number`,
        or less where no more differ. Rows are as for `predict`; missing titles, those without a word and those that
        have trained a run are not among them."""
        from titles import choose  # which trains nothing, so it is not among the scripts that make a run
        if number < 1:
            raise ValueError(f"number {number}: wanted 1 or more")
        _, present, rows = self.present(rows)
        pool, present = choose.Pool(number, self.trained_keys), np.array(present, int)
        for part in data.blocks(len(present), PREDICT_ROWS):
            mine = rows.part(part)
            pool.add(mine.titles, row=present[part], probability=self.likeliest(mine, 2)[1])
        return pool.chosen().get("row", np.zeros(0, int))

    def predict_proba(self, rows):
        """The probability of every category, in the order of `labels`: [N, C] float32; NaN for missing titles. Rows
        are as for `predict`. Where training has seen no word and no n-gram of a title, `predict` names no category;
        here it has the probabilities that the network gives to a title without words."""
        number, present, rows = self.present(rows)
        result = np.full((number, len(self.labels)), np.nan, np.float32)
        if present:
            result[present] = self.in_parts(all_batch, rows)["probability"]
        return result

    def probabilities(self, rows):
        """The probabilities of all categories of classify.Rows, [N, C] float32, whatever is known of their titles."""
        return self.in_parts(all_batch, rows)["probability"]

    def compare(self, rows, old=None):
        """Whether new titles, without labels, are like those that trained the runs: a dictionary of change.KEYS. rows
        are as for `predict`, those without a title left out; old: titles of validation rows (list of str), whose words
        are compared. Raises ValueError where no title is left that has not trained the runs, or where these had no
        validation rows."""
        from titles import change  # see `next`
        self.require_calibrated("compare")
        _, _, rows = self.present(rows)
        return change.compare(self, *change.sampled([rows]), old)

    def explain(self, rows, categories):
        """For each row (classify.Rows, or list of titles) the words that speak most for its category (ids [N]): a list
        of (word, by how much the logarithm of the probability falls without it), the largest first; a value of a column
        is one of them, as `brand=acme`."""
        # Each row and, behind it, the row without each of its words and values: all are scored at once. A BORDER
        # between the parts of a title, which is empty words, stays.
        rows, titles, values, features = self.rows(rows), [], [], []
        for title, of_row in zip(rows.titles, rows.values, strict=True):
            words = data.tokenize(title)[:EXPLAINED_OF]
            words = [word or classify.BORDER for before, word in zip(["", *words], words, strict=False)
                     if before or word]
            at = [i for i, word in enumerate(words) if word != classify.BORDER]
            told = [i for i in range(len(self.columns)) if of_row[i]]
            whole = " ".join(words)
            titles += [whole, *(" ".join(words[:i] + words[i + 1:]) for i in at), *[whole] * len(told)]
            values += [of_row] * (1 + len(at)) + [np.where(np.arange(len(of_row)) == i, 0, of_row) for i in told]
            features.append([words[i] for i in at] + [
                f"{self.columns[i].name}={self.columns[i].text(of_row[i])}".replace(" ", "_") for i in told])
        if not titles:
            return []
        sizes = [len(row) + 1 for row in features]
        found = self.score(classify.Rows(titles, np.stack(values)), np.repeat(categories, sizes))

        result, ends = [], np.cumsum(sizes)
        for row, end, size in zip(features, ends, sizes, strict=True):
            losses = found["calibrated_loss"][end - size:end]
            gains = zip(row, (losses[1:] - losses[0]).tolist(), strict=True)
            # Of a title of which nothing is known the category is a guess.
            gains = [item for item in gains if item[1] > 0 and found["known"][end - size]]
            result.append(sorted(gains, key=lambda item: -item[1])[:EXPLAINED])
        return result


def load(*ckpt, folder="runs", prior=None, data=cli.PREPARED, resting=None):
    """The Classifier of one or several checkpoints, named as for --ckpt ("cnn-1", "cnn-1/latest", "all"; "best" if none
    is). folder: of all runs; data: the prepared data, a path or several, that the runs of `best`, `latest` and `all`
    must have been trained on, see `fingerprint_for`.
    A warning says where they were trained without validation rows; resting: what is wanted of them that rests on these
    rows, such as --compare, or None. Raises UserError where a checkpoint cannot be found or read, where they do not go
    together, or where there is nothing to rest on."""
    cli.require_device()
    ckpt = [os.fspath(name) for name in ckpt or ["best"]]
    fingerprint = fingerprint_for(ckpt, data, folder)
    found = [one for name in ckpt for one in (
        runs.find_all(folder, fingerprint) if name == "all" else [runs.find(name, folder, fingerprint)])]

    # Two names may mean one checkpoint, such as best and the name of that run; it would only count twice.
    if len({(path.resolve(), which) for path, which in found}) < len(found):
        raise UserError(f"--ckpt {' '.join(ckpt)}: the same checkpoint twice")
    classifier = Classifier(found, prior)
    if resting and not classifier.is_calibrated:
        raise UserError(f"{resting}: {classifier.folder} {classify.UNCALIBRATED}")
    if not classifier.is_calibrated and devices.is_first():
        print(f"warning: {classifier.folder}: {classify.UNCALIBRATED}", file=sys.stderr)
    return classifier


def fingerprint_for(ckpt, prepared, folder):
    """The fingerprint of the prepared data that the runs of `best`, `latest` and `all` must be of; None where none of
    these is named, or where the usual folder is not there: then they may be of any data, and a warning says so where
    there are runs of several. Raises UserError where another folder holds no prepared data."""
    asking = {"best", "latest", "all"}.intersection(ckpt)
    if isinstance(prepared, (str, os.PathLike)) and Path(prepared) == cli.PREPARED:
        if not asking:
            return None
    else:
        for one in data.folders_of(prepared):
            data.read_meta(one)  # it says what is wrong
    if found := data.fingerprint_of(prepared):
        return found if asking else None
    if len({config["fingerprint"] for _, config in runs.all_runs(folder)}) > 1 and devices.is_first():
        print(f"warning: {prepared}: no prepared data here, and {folder}/ has runs of several; {min(asking)} is chosen "
              "by scores on validation rows that differ (name the data with --data, or the run)", file=sys.stderr)
    return None


def load_named(args):
    """The Classifier that --ckpt, --runs, --data and --prior name."""
    # What `estimated` says changes the prior of training.
    prior = "training" if args.prior == "estimated" else args.prior
    return load(*args.ckpt, folder=args.runs, prior=prior, data=args.data, resting=resting_on_validation(args))


def resting_on_validation(args):
    """What flags ask for that only validation rows can tell, or None."""
    given = {f"--{name}": getattr(args, name, None) for name in ("precision", "compare")} | {
        "--prior estimated": args.prior == "estimated"}
    return next((flag for flag, value in given.items() if value), None)
