"""The Flax modules and the sparse embedding table: shapes in, logits out. No files, no flags, no loop.

Modules take word vectors and weights, not word ids. The table of vectors is no Flax parameter: `lookup` gathers the
rows a batch needs, the gradient is taken with respect to these rows, and `update` adds to them in place, so a step
costs the same however large the table is. To add a model, write a module with the same call and name it in MODELS.
"""
import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
    """A bag of word vectors; without hidden layers this is fastText's classifier (Joulin et al. 2016), except that
    words are weighted and the bag divided by the norm of the weights instead of their sum, as TF-IDF vectors are."""
    classes: int
    hidden: Sequence[int] = ()
    dropout: float = 0.5                                                # share of the words left out in training
    scale: float = 5.0                                                  # length of the weight vector of a title

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, L, D], [B, L] -> [B, C]
        weights = nn.Dropout(self.dropout, deterministic=not train)(weights)
        norm = jnp.sqrt(jnp.sum(weights ** 2, -1, keepdims=True) + 1e-12)
        bag = jnp.einsum("bld,bl->bd", vectors, self.scale * weights / norm)
        return Head(self.classes, self.hidden, self.dropout)(bag, train)


class CNN(nn.Module):
    """The sentence CNN (Kim 2014): filters of several widths over the words, the maximum of each over the title, a
    dense layer. A window begins at every word that has a weight (not at padding, nor at words that training did not
    see), so padding is never pooled."""
    classes: int
    filters: int = 100                                                  # of each width
    widths: Sequence[int] = (1, 2, 3)
    hidden: Sequence[int] = ()
    dropout: float = 0.3

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, L, D], [B, L] -> [B, C]
        word = (weights > 0)[..., None]                                 # [B, L, 1]
        vectors = vectors * word
        pooled = []
        for width in self.widths:
            kernel = self.param(f"filters_{width}", nn.initializers.lecun_normal((0, 1), 2),
                                (width, vectors.shape[-1], self.filters))
            windows = self.param(f"bias_{width}", nn.initializers.zeros, (self.filters,))
            for offset in range(min(width, vectors.shape[1])):          # a convolution as shifted matrix products
                ahead = jnp.pad(vectors[:, offset:], ((0, 0), (0, offset), (0, 0)))
                windows += ahead @ kernel[offset]                       # [B, L, F]
            pooled.append(jnp.where(word, nn.relu(windows), 0).max(1))  # relu >= 0: an empty title pools to 0
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.concatenate(pooled, -1))
        return Head(self.classes, self.hidden, self.dropout)(x, train)


class RNN(nn.Module):
    """Gated recurrent units (Cho et al. 2014) over the words in both directions, each up to the last word of the title
    and not into the padding; the maximum of each unit over the words, a dense layer."""
    classes: int
    units: int = 100                                                    # in each direction
    hidden: Sequence[int] = ()
    dropout: float = 0.3

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, L, D], [B, L] -> [B, C]
        word = weights > 0
        length = (word * jnp.arange(1, word.shape[1] + 1)).max(1)
        both = nn.Bidirectional(nn.RNN(nn.GRUCell(self.units)), nn.RNN(nn.GRUCell(self.units)))
        x = masked_max(both(vectors * word[..., None], seq_lengths=length), word)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Head(self.classes, self.hidden, self.dropout)(x, train)


class Transformer(nn.Module):
    """A small pre-norm encoder (Vaswani et al. 2017; Xiong et al. 2020) that sees words alone, no padding; the maximum
    over the words, a dense layer."""
    classes: int
    layers: int = 2
    heads: int = 4
    hidden: Sequence[int] = ()
    dropout: float = 0.2

    @nn.compact
    def __call__(self, vectors, weights, train=False):                  # [B, L, D], [B, L] -> [B, C]
        word, dim = weights > 0, vectors.shape[-1]
        angle = jnp.arange(word.shape[1])[:, None] / 10_000 ** (jnp.arange(dim) // 2 * 2 / dim)
        place = jnp.where(jnp.arange(dim) % 2, jnp.cos(angle), jnp.sin(angle))          # [L, D]
        x = vectors * word[..., None] + self.param("place", nn.initializers.constant(0.1), ()) * place
        drop = nn.Dropout(self.dropout, deterministic=not train)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.heads * -(-dim // self.heads))
            x += drop(attention(nn.LayerNorm()(x), mask=nn.make_attention_mask(word, word)))
            x += drop(nn.Dense(dim)(nn.gelu(nn.Dense(4 * dim)(nn.LayerNorm()(x)))))
        x = drop(masked_max(nn.LayerNorm()(x), word))
        return Head(self.classes, self.hidden, self.dropout)(x, train)


def masked_max(x, word):
    """x [B, L, F], word [B, L] bool -> [B, F], the maximum over the words; 0 where there are none."""
    return jnp.where(word.any(1, keepdims=True), jnp.where(word[..., None], x, -jnp.inf).max(1), 0)


MODELS = {"mlp": MLP, "cnn": CNN, "rnn": RNN, "transformer": Transformer}


# --- the embedding table ----------------------------------------------------------------------------------------------

def init_table(key, rows, dim):
    """[rows, dim] float32, uniform with variance 1 / (3 dim), so that a vector's length is about 0.6; row 0 is 0."""
    table = jax.random.uniform(key, (rows, dim), minval=-1, maxval=1) / math.sqrt(dim)
    return table.at[0].set(0)


def lookup(table, word_weights, ids):
    """ids [...] -> (vectors [..., D], weights [...]); the weight of padding is 0."""
    return table[ids], word_weights[ids]


def update(table, accumulator, ids, gradients, rate):
    """Row-wise Adagrad on the rows that a batch used: the squared gradients of a row are averaged over its dimensions
    into one accumulator (Duchi et al. 2011 with one rate a row). Row 0, padding, is left alone.

    Args: table [V, D], accumulator [V], ids [...], gradients [..., D] of the loss with respect to table[ids], rate.
    Returns the new (table, accumulator); under jit with donation both are changed in place, without a copy.
    """
    ids = jnp.where(ids == 0, table.shape[0], ids)  # out of range, so the scatter drops it
    accumulator = accumulator.at[ids].add(jnp.mean(gradients ** 2, -1), mode="drop")
    scale = rate / jnp.sqrt(accumulator.at[ids].get(mode="fill", fill_value=1) + 1e-6)
    return table.at[ids].add(-scale[..., None] * gradients, mode="drop"), accumulator


def idf(titles, rows):
    """Weight of each word: [N, L] ids -> [rows] float32, log((1 + N) / (1 + titles with the word)) + 1 as in
    scikit-learn's TfidfTransformer; 0 for padding and for words that no title has."""
    count = np.zeros(rows, np.int64)
    for start in range(0, len(titles), 100_000):
        block = np.sort(titles[start:start + 100_000], axis=1)
        first = np.concatenate([np.ones((len(block), 1), bool), block[:, 1:] != block[:, :-1]], 1)
        count += np.bincount(block[first], minlength=rows)
    weights = np.log((1 + len(titles)) / (1 + count)) + 1
    weights[(count == 0) | (np.arange(rows) == 0)] = 0
    return weights.astype(np.float32)


# --- building and scoring ---------------------------------------------------------------------------------------------

def build(config):
    """The module that a run's configuration describes; fields a module does not have are left out."""
    module = MODELS[config["model"]]
    fields = {name: config[name] for name in module.__dataclass_fields__ if name in config}
    return module(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def init(config, key):
    """All that prediction needs, from random numbers: {"params", "table" [V, D], "word_weights" [V]}."""
    table_key, key = jax.random.split(key)
    table = init_table(table_key, config["vocabulary"], config["dim"])
    vectors = jnp.zeros((1, config["max_len"], config["dim"]))
    params = build(config).init(key, vectors, vectors[..., 0])["params"]
    return {"params": params, "table": table, "word_weights": jnp.ones(len(table)).at[0].set(0)}


@functools.partial(jax.jit, static_argnames="module")
def logits(module, variables, ids):
    """[B, L] word ids -> [B, C]; dropout is off."""
    vectors, weights = lookup(variables["table"], variables["word_weights"], ids)
    return module.apply({"params": variables["params"]}, vectors, weights)


def combined(modules, variables, shifts, ids):
    """[B, L] word ids -> [B, C] logits of several models together: the mean of their log-probabilities, each with its
    shift [C] added to the logits first (such as the log prior)."""
    z = [logits(*member, ids) + shift for *member, shift in zip(modules, variables, shifts, strict=True)]
    return z[0] if len(z) == 1 else sum(map(jax.nn.log_softmax, z)) / len(z)


@functools.partial(jax.jit, static_argnames="modules")
def score_batch(modules, variables, shifts, ids, labels):
    z = combined(modules, variables, shifts, ids)
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


def score(modules, variables, shifts, titles, labels):
    """Judge every row once by one or several models (see `combined`): dictionary of [N] arrays `prediction`, `loss`
    (cross-entropy, nats), `rank` of the true category (0 = first) and `probability` of the prediction."""
    return in_batches(lambda ids, y: score_batch(modules, variables, shifts, ids, y), titles, labels.astype(np.int32))


def balanced_accuracy(labels, predictions):
    """Mean recall over the categories that occur in `labels`, as scikit-learn's balanced_accuracy_score."""
    size = np.bincount(labels)
    right = np.bincount(labels[labels == predictions], minlength=len(size))
    return float(np.mean(right[size > 0] / size[size > 0]))
