"""The Flax modules and the sparse embedding table: shapes in, logits out. No files, no flags, no loop.

Modules take word vectors and weights, not word ids, and return logits, or those of several classifiers, whose losses
are averaged in training, their log-probabilities in prediction. A word's vector is made of rows of the table: its own
and those of its hashed character n-grams, weighted by inverse document frequency (the n-grams' times
--character-weight) and divided by the norm of the weights, which is the word's weight. The table is no Flax parameter:
`lookup` gathers the rows a batch needs, the gradient is taken with respect to the words' vectors, and `update` adds to
the rows in place, so a step costs the same however large the table is. To add a model, write a module with the same
call and name it in MODELS.
"""
import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import data

NGRAM_SAMPLES = 4  # of a word's character n-grams, in a training step; prediction uses all

# --- modules ----------------------------------------------------------------------------------------------------------

class Head(nn.Module):
    """Hidden layers (none: a linear classifier) and logits, which start at zero: the first loss is ln C."""
    classes: int
    hidden: Sequence[int] = ()
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):                                 # [B, D] -> [B, C]
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros)(x)


class MLP(nn.Module):
    """A bag of the vectors of words and word n-grams; without hidden layers this is fastText's classifier (Joulin et
    al. 2016), except that features are weighted and the bag divided by the norm of the weights instead of their sum,
    as TF-IDF vectors are."""
    classes: int
    word_ngrams: int = 1                                                # with 2, vectors of pairs follow the words'
    hidden: Sequence[int] = ()
    dropout: float = 0.5                                                # of hidden layers, and share of features
    scale: float = 5.0                                                  # length of the weight vector of a title

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, L, D], [B, L] -> [B, C]
        return Head(self.classes, self.hidden, self.dropout)(self.scale * bag(vectors, weights), train)


def bag(vectors, weights):
    """[B, L, D], [B, L] -> [B, D], the weighted sum, divided by the norm of the weights; 0 where there are none."""
    return jnp.einsum("bld,bl->bd", vectors, weights / jnp.sqrt(jnp.sum(weights ** 2, -1, keepdims=True) + 1e-12))


class Pair(nn.Module):
    """Two classifiers that share the vectors and are trained together: a dense layer on features that know the order
    of the words, with the bag of words beside them; and the MLP."""
    classes: int
    word_ngrams: int
    hidden: Sequence[int]
    dropout: float

    @nn.compact
    def __call__(self, x, vectors, weights, train):                     # [B, F], [B, P, D], [B, P] -> [2, B, C]
        x = jnp.concatenate([x, bag(*words_alone(self, vectors, weights))], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return jnp.stack([Head(self.classes, self.hidden, self.dropout)(x, train),
                          MLP(self.classes)(vectors, weights, train)])


def words_alone(module, vectors, weights):
    """Vectors and weights without those of word n-grams, which follow the words'."""
    words = vectors.shape[1] // module.word_ngrams
    return vectors[:, :words], weights[:, :words]


class CNN(nn.Module):
    """The sentence CNN (Kim 2014): filters of several widths over the words, the maximum of each over the title; then a
    Pair. A window begins at every word that has a weight (not at padding, nor at words of which training saw no part),
    so padding is never pooled."""
    classes: int
    word_ngrams: int = 1
    filters: int = 100                                                  # of each width
    widths: Sequence[int] = (1, 2, 3)
    hidden: Sequence[int] = ()
    dropout: float = 0.4

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, P, D], [B, P] -> [2, B, C]
        words, word = words_alone(self, vectors, weights)
        word = (word > 0)[..., None]                                    # [B, L, 1]
        words = words * word
        pooled = []
        for width in self.widths:
            kernel = self.param(f"filters_{width}", nn.initializers.lecun_normal((0, 1), 2),
                                (width, words.shape[-1], self.filters))
            windows = self.param(f"bias_{width}", nn.initializers.zeros, (self.filters,))
            for offset in range(min(width, words.shape[1])):            # a convolution as shifted matrix products
                ahead = jnp.pad(words[:, offset:], ((0, 0), (0, offset), (0, 0)))
                windows += ahead @ kernel[offset]                       # [B, L, F]
            pooled.append(jnp.where(word, nn.relu(windows), 0).max(1))  # relu >= 0: an empty title pools to 0
        x = jnp.concatenate(pooled, -1)
        return Pair(self.classes, self.word_ngrams, self.hidden, self.dropout)(x, vectors, weights, train)


class RNN(nn.Module):
    """Gated recurrent units (Cho et al. 2014) over the words in both directions, each up to the last word of the title
    and not into the padding; the maximum of each unit over the words; then a Pair."""
    classes: int
    word_ngrams: int = 1
    units: int = 100                                                    # in each direction
    hidden: Sequence[int] = ()
    dropout: float = 0.4

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, P, D], [B, P] -> [2, B, C]
        words, word = words_alone(self, vectors, weights)
        word = word > 0
        length = (word * jnp.arange(1, word.shape[1] + 1)).max(1)
        both = nn.Bidirectional(nn.RNN(nn.GRUCell(self.units)), nn.RNN(nn.GRUCell(self.units)))
        x = masked_max(both(words * word[..., None], seq_lengths=length), word)
        return Pair(self.classes, self.word_ngrams, self.hidden, self.dropout)(x, vectors, weights, train)


class Transformer(nn.Module):
    """A small pre-norm encoder (Vaswani et al. 2017; Xiong et al. 2020) that sees words alone, no padding; the maximum
    over the words; then a Pair."""
    classes: int
    word_ngrams: int = 1
    layers: int = 2
    heads: int = 4
    hidden: Sequence[int] = ()
    dropout: float = 0.4

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, P, D], [B, P] -> [2, B, C]
        words, word = words_alone(self, vectors, weights)
        word, dim = word > 0, words.shape[-1]
        angle = jnp.arange(word.shape[1])[:, None] / 10_000 ** (jnp.arange(dim) // 2 * 2 / dim)
        place = jnp.where(jnp.arange(dim) % 2, jnp.cos(angle), jnp.sin(angle))          # [L, D]
        x = words * word[..., None] + self.param("place", nn.initializers.constant(0.1), ()) * place
        drop = nn.Dropout(self.dropout, deterministic=not train)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.heads * -(-dim // self.heads))
            x += drop(attention(nn.LayerNorm()(x), mask=nn.make_attention_mask(word, word)))
            x += drop(nn.Dense(dim)(nn.gelu(nn.Dense(4 * dim)(nn.LayerNorm()(x)))))
        x = masked_max(nn.LayerNorm()(x), word)
        return Pair(self.classes, self.word_ngrams, self.hidden, self.dropout)(x, vectors, weights, train)


def masked_max(x, word):
    """x [B, L, F], word [B, L] bool -> [B, F], the maximum over the words; 0 where there are none."""
    return jnp.where(word.any(1, keepdims=True), jnp.where(word[..., None], x, -jnp.inf).max(1), 0)


MODELS = {"mlp": MLP, "cnn": CNN, "rnn": RNN, "transformer": Transformer}


# --- the embedding table ----------------------------------------------------------------------------------------------

def init_table(key, rows, dim):
    """[rows, dim] float32, uniform with variance 1 / (3 dim), so that a vector's length is about 0.6; row 0 is 0."""
    table = jax.random.uniform(key, (rows, dim), minval=-1, maxval=1) / math.sqrt(dim)
    return table.at[0].set(0)


def feature_tables(config, words, known=None):
    """What there is to know of words (list of str that begins with data.SPECIALS), by --minn, --maxn and --buckets:
    `own` [W] rows of the table (UNKNOWN's, but for the first `known` words, by default the vocabulary), `start` [W + 1]
    and `ngrams` [T] rows of their character n-grams (see data.character_ngrams), the factor `character_weight` of their
    weights, `hashes` [W] and the `first` row and number of `buckets`, for word n-grams."""
    own = np.arange(len(words), dtype=np.int32)
    known = config["vocabulary"] if known is None else known
    start, bucket = data.character_ngrams(words, config["minn"], config["maxn"], max(config["buckets"], 1))
    ngrams = np.where(np.arange(len(bucket)) < start[-1], bucket + np.int32(config["vocabulary"]), 0)
    return {"own": np.where(own < known, own, data.UNKNOWN), "start": start, "ngrams": ngrams,
            "character_weight": np.float32(config["character_weight"]), "hashes": data.word_hashes(words),
            "first": np.int32(config["vocabulary"]), "buckets": np.uint32(config["buckets"])}


def word_ngrams(features, ids, longest):
    """Table rows of the n-grams of 2 to `longest` words of each title: [B, L] ids -> [B, (longest - 1) L], 0 where the
    title has ended. The hash is fastText's. NumPy or JAX arrays."""
    xp = jnp if isinstance(ids, jax.Array) else np
    value, rows = features["hashes"][ids], [ids[:, :0].astype(np.int32)]
    for ahead in range(1, longest):
        later = xp.pad(ids[:, ahead:], ((0, 0), (0, min(ahead, ids.shape[1]))))
        value = value * np.uint32(116049371) + features["hashes"][later]
        rows.append(xp.where(later > 0, (value % features["buckets"]).astype(np.int32) + features["first"], 0))
    return xp.concatenate(rows, 1)


def draw_features(config, features, weights, ids, key):
    """The rows of the table that a training step uses: [(rows [B, P, F], their weights [B, P, F]), ...], for words and,
    where wanted, word n-grams. Of a word's character n-grams NGRAM_SAMPLES are drawn, evenly spread over its n, with
    weights times character_weight (n / NGRAM_SAMPLES) ** 0.75 (1 would keep their sum the same on average, 0.5 the norm
    of the weights); dropout leaves out rows."""
    place_key, *drop_keys = jax.random.split(key, 3)
    rows, factor = features["own"][ids][..., None], jnp.ones((*ids.shape, 1))
    if config["maxn"]:
        start, n = features["start"][ids], features["start"][ids + 1] - features["start"][ids]
        place = (jnp.arange(NGRAM_SAMPLES) + jax.random.uniform(place_key, (*ids.shape, 1))) / NGRAM_SAMPLES
        place = start[..., None] + jnp.minimum((place * n[..., None]).astype(jnp.int32), n[..., None] - 1)
        drawn = jnp.where(n[..., None] > 0, features["ngrams"][place], 0)
        rows = jnp.concatenate([rows, drawn], -1)
        share = features["character_weight"] * (n[..., None] / NGRAM_SAMPLES) ** 0.75
        factor = jnp.concatenate([factor, jnp.broadcast_to(share, drawn.shape)], -1)
    parts = [(rows, factor * weights[rows])]
    if config["word_ngrams"] > 1:
        rows = word_ngrams(features, ids, config["word_ngrams"])[..., None]
        parts.append((rows, weights[rows]))
    keep = 1 - config["dropout"]
    return [(rows, jnp.where(jax.random.bernoulli(drop_key, keep, rows.shape), weight, 0))
            for drop_key, (rows, weight) in zip(drop_keys, parts, strict=False)]


def lookup(table, parts):
    """Parts as from `draw_features` -> (vectors [B, P, D], weights [B, P]) of words and word n-grams on end, and what
    each row adds to which vector, for `update`: rows [B, X], their shares [B, X], places [X] in 0 to P - 1."""
    norms, shares, vectors = [], [], []
    for rows, weight in parts:
        norms.append(jnp.sqrt(jnp.sum(weight ** 2, -1)))
        shares.append(weight / jnp.maximum(norms[-1], 1e-6)[..., None])
        vectors.append(sum(table[rows[..., i]] * shares[-1][..., i, None] for i in range(rows.shape[-1])))
    size = [rows.shape[2] for rows, _ in parts for _ in range(rows.shape[1])]
    rows, shares = (jnp.concatenate([x.reshape(len(x), -1) for x in all_parts], 1)
                    for all_parts in ([rows for rows, _ in parts], shares))
    return jnp.concatenate(vectors, 1), jnp.concatenate(norms, 1), (rows, shares, np.repeat(np.arange(len(size)), size))


def update(table, accumulator, used, gradients, rate):
    """Row-wise Adagrad on the rows that a batch used: the squared gradients of a row are averaged over its dimensions
    into one accumulator (Duchi et al. 2011 with one rate a row). Rows without a share, such as padding's, are left
    alone.

    Args: table [V, D], accumulator [V], used (rows, shares, places) as from `lookup`, gradients [B, P, D] of the loss
    with respect to its vectors, rate.
    Returns the new (table, accumulator); under jit with donation both are changed in place, without a copy.
    """
    rows, shares, places = used
    rows = jnp.where(shares == 0, len(table), rows)  # out of range, so the scatter drops it
    square = jnp.mean(gradients ** 2, -1)[:, places]
    accumulator = accumulator.at[rows].add(shares ** 2 * square, mode="drop")
    step = shares * rate / jnp.sqrt(accumulator.at[rows].get(mode="fill", fill_value=1) + 1e-6)
    return table.at[rows].add(-step[..., None] * gradients[:, places], mode="drop"), accumulator


@jax.jit
def compose(table, weights, features):
    """The vectors of words from all their n-grams, for prediction: (vectors [W, D], weights [W])."""
    start, own = features["start"], features["own"]
    word = jnp.repeat(jnp.arange(len(own)), jnp.diff(start), total_repeat_length=len(features["ngrams"]))

    def add(total, part):
        rows, word = part
        vectors, squares = total
        weight = features["character_weight"] * weights[rows]
        return (vectors.at[word].add(weight[:, None] * table[rows]), squares.at[word].add(weight ** 2)), None

    weight = weights[own]
    (vectors, squares), _ = jax.lax.scan(add, (weight[:, None] * table[own], weight ** 2), (
        features["ngrams"].reshape(-1, 4096), word.reshape(-1, 4096)))  # a part at a time, to save memory
    norm = jnp.sqrt(squares)
    return vectors / jnp.maximum(norm, 1e-6)[:, None], norm


def row_weights(config, features, titles):
    """Weight of each row of the table, from the training titles [N, L]: inverse document frequency as in `idf`, where
    titles with two words that share an n-gram count twice."""
    rows = config["vocabulary"] + config["buckets"]
    count = document_frequency(titles, len(features["own"]))
    total = np.bincount(features["own"], count, rows)
    in_ngrams = np.repeat(count, np.diff(features["start"]))
    total += np.bincount(features["ngrams"][:len(in_ngrams)], in_ngrams, rows)
    for start in range(0, len(titles) if config["word_ngrams"] > 1 else 0, 100_000):
        total += np.bincount(word_ngrams(features, titles[start:start + 100_000], config["word_ngrams"]).ravel(),
                             minlength=rows)
    total[0] = 0
    return idf(np.minimum(total, len(titles)), len(titles))


def document_frequency(titles, words):
    """How many titles [N, L] hold each word: [words] counts."""
    count = np.zeros(words, np.int64)
    for start in range(0, len(titles), 100_000):
        block = np.sort(titles[start:start + 100_000], axis=1)
        first = np.concatenate([np.ones((len(block), 1), bool), block[:, 1:] != block[:, :-1]], 1)
        count += np.bincount(block[first], minlength=words)
    return count


def idf(count, titles):
    """Weight of features that `count` of so many titles have: float32, log((1 + titles) / (1 + count)) + 1 as in
    scikit-learn's TfidfTransformer; 0 where no title has it."""
    return np.where(count == 0, 0, np.log((1 + titles) / (1 + count)) + 1).astype(np.float32)


# --- building and scoring ---------------------------------------------------------------------------------------------

def build(config):
    """The module that a run's configuration describes; fields a module does not have are left out."""
    module = MODELS[config["model"]]
    fields = {name: config[name] for name in module.__dataclass_fields__ if name in config}
    return module(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def init(config, key):
    """All that prediction needs, from random numbers: {"params", "table" [V, D], "weights" [V] of the table's rows}."""
    table_key, key = jax.random.split(key)
    table = init_table(table_key, config["vocabulary"] + config["buckets"], config["dim"])
    vectors = jnp.zeros((1, config["max_len"] * config["word_ngrams"], config["dim"]))
    params = build(config).init(key, vectors, vectors[..., 0])["params"]
    return {"params": params, "table": table, "weights": jnp.ones(len(table)).at[0].set(0)}


def predictor(variables, features):
    """What `logits` takes: the variables, with the vectors of all words made once."""
    vectors, norms = compose(variables["table"], variables["weights"], features)
    return variables | {"vectors": vectors, "norms": norms} | {
        name: features[name] for name in ("hashes", "first", "buckets")}


def extended(config, ready, words):
    """A predictor that knows further words (list of str), by the ids behind those it knows."""
    spare = [""] * ((1 << len(words).bit_length()) - len(words))  # few sizes, so that little is compiled
    features = feature_tables(config, [*data.SPECIALS, *words, *spare], known=0)
    more = predictor(ready, features)
    return ready | {name: jnp.concatenate([ready[name], more[name][len(data.SPECIALS):]])
                    for name in ("vectors", "norms", "hashes")}


def inputs(module, ready, ids):
    """What a module takes, from a predictor and [B, L] word ids: vectors [B, P, D], weights [B, P]."""
    vectors, weights = ready["vectors"][ids], ready["norms"][ids]
    if (longest := getattr(module, "word_ngrams", 1)) > 1:
        rows = word_ngrams(ready, ids, longest)
        vectors = jnp.concatenate([vectors, ready["table"][rows]], 1)
        weights = jnp.concatenate([weights, ready["weights"][rows]], 1)
    return vectors, weights


@functools.partial(jax.jit, static_argnames="module")
def logits(module, ready, ids):
    """A predictor and [B, L] word ids -> [B, C]; dropout is off."""
    z = module.apply({"params": ready["params"]}, *inputs(module, ready, ids))
    return z if z.ndim == 2 else jax.nn.log_softmax(z).mean(0)


def combined(modules, ready, shifts, ids):
    """[B, L] word ids -> [B, C] logits of several models together: the mean of their log-probabilities, each with its
    shift [C] added to the logits first (such as the log prior)."""
    z = [logits(*member, ids) + shift for *member, shift in zip(modules, ready, shifts, strict=True)]
    return z[0] if len(z) == 1 else sum(map(jax.nn.log_softmax, z)) / len(z)


@functools.partial(jax.jit, static_argnames="modules")
def score_batch(modules, ready, shifts, ids, labels):
    z = combined(modules, ready, shifts, ids)
    true = jnp.take_along_axis(z, labels[:, None], 1)
    log_sum = jax.nn.logsumexp(z, 1)
    top, prediction = best(z)
    return {"prediction": prediction, "loss": log_sum - true[:, 0], "rank": (z > true).sum(1),
            "probability": jnp.exp(top - log_sum)}


def best(z):
    """z [B, C] -> ([B] the largest of each row, [B] the first place where it is); XLA's argmax takes 5 times as long on
    a CPU."""
    top = z.max(1)
    return top, jnp.where(z == top[:, None], jnp.arange(z.shape[1]), z.shape[1] - 1).min(1)


def in_batches(function, ids, *others, batch_size=1024):
    """Call `function` on the rows of ids [N, L] and other arrays [N, ...] in batches of one size (the last one repeats
    rows), titles of up to L / 2 words apart from longer ones, so that two programs are compiled and little padding is
    computed. Returns its dictionary of results as [N, ...]."""
    half = -(-ids.shape[1] // 2)
    long = ids[:, half:].any(1)
    order, parts = [np.zeros(0, int)], []
    for rows, width in ((np.flatnonzero(~long), half), (np.flatnonzero(long), ids.shape[1])):
        for start in range(0, len(rows), batch_size):
            order.append(rows[start:start + batch_size])
            batch = np.resize(order[-1], batch_size)
            parts.append(function(ids[batch, :width], *(array[batch] for array in others)))
    place = np.argsort(np.concatenate(order))
    return {name: np.concatenate([np.asarray(part[name])[:len(rows)] for part, rows in
                                  zip(parts, order[1:], strict=True)])[place] for name in parts[0]}


def score(modules, ready, shifts, titles, labels):
    """Judge every row once by one or several models and their predictors (see `combined`): dictionary of [N] arrays
    `prediction`, `loss` (cross-entropy, nats), `rank` of the true category (0 = first) and `probability` of the
    prediction."""
    return in_batches(lambda ids, y: score_batch(modules, ready, shifts, ids, y), titles, labels.astype(np.int32))


def balanced_accuracy(labels, predictions):
    """Mean recall over the categories that occur in `labels`, as scikit-learn's balanced_accuracy_score."""
    size = np.bincount(labels)
    right = np.bincount(labels[labels == predictions], minlength=len(size))
    return float(np.mean(right[size > 0] / size[size > 0]))
