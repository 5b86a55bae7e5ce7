"""The Flax modules and the sparse embedding table: arrays in, logits out. No files, no flags.

Modules take word vectors and weights, not word ids, and vectors and weights of the values of columns. They return
logits, or those of several heads, whose losses are averaged in training, their log-probabilities in prediction. A
word's vector is made of rows of the table: its own and those of its hashed character n-grams, weighted by inverse
document frequency (the n-grams' times --character-weight) and divided by the norm of the weights, which is the word's
weight. The table is no Flax parameter: `lookup` gathers the rows that a batch needs, the gradient is taken with respect
to the words' vectors, and `update` adds to the rows in place, so a step costs the same however large the table is. An
encoder (titles/encoder.py) reads pieces of words instead: words without n-grams, with weight 1. Values of columns (a
brand, a price) have a table of their own, whose rows are gathered and updated as a word's are; their vectors have no
place among the words, so no pair and no filter sees them.

To add a model, write a module with the same call, and name it in MODELS here and in train.py. A field of it that has no
default is a Setting of train.py, which has the defaults; a run's configuration keeps them, and prediction reads them
there.
"""
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import classify
import data
from titles import devices

NGRAM_SAMPLES = 4  # of a word's character n-grams, in a training step; prediction uses all
LARGE, BLOCK = 1 << 19, 1 << 16  # rows of a table from which on it is drawn in blocks, and rows of a block
VALUE_DIM = 100  # numbers in the vector of a column's value beside an encoder; else as many as in a word's
PARTS = 1024  # of equally many rows, in which a table with --shard-table is drawn; its divisors of devices can share it
# On a CPU this takes half the time; only training gets slower. Other releases may not know it and refuse.
QUICK_COMPILE = {"xla_cpu_use_fusion_emitters": False} if jax.__version__.startswith("0.10.") else {}

# --- modules ----------------------------------------------------------------------------------------------------------

class Head(nn.Module):
    """Hidden layers (none: a linear classifier) and logits, which start at zero: the first loss is ln C. Hidden layers
    add to their input: each layer, and the logits, see the input and all layers before (as in Huang et al. 2017)."""
    classes: int
    hidden: Sequence[int]
    dropout: float

    @nn.compact
    def __call__(self, x, train=False):                                 # [B, D] -> [B, C]
        for width in self.hidden:
            # EDIT: the hidden layers. Plain ones learn the training rows as well, and say less of others. The norm (Ba
            # et al. 2016) mends most of that; its scale is small and not learned, so that more is left for the words'
            # vectors to learn; and the way around the layers gives a linear classifier's answer to add to.
            y = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
            y = 0.2 * nn.LayerNorm(use_scale=False, use_bias=False)(y)
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            x = jnp.concatenate([x, y], -1)
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros)(x)


class MLP(nn.Module):
    """A bag of the vectors of words and word n-grams; without hidden layers this is fastText's classifier (Joulin et
    al. 2016), except that features are weighted and the bag divided by the norm of the weights instead of their sum,
    as TF-IDF vectors are."""
    classes: int
    hidden: Sequence[int]
    dropout: float                                                      # of hidden layers
    scale: float                                                        # length of the weight vector of a title

    @nn.compact
    def __call__(self, vectors, weights, values, train=False):          # [B, P, D], [B, P], values -> [B, C]
        # EDIT: the pooling of the bag, also of the second classifier of cnn, rnn and transformer (what their first one
        # sees is in TwoHeads). Padding has weight 0 and must not count. A field that is added here is theirs, too.
        x = self.scale * bag(*with_values(vectors, weights, values))
        return Head(self.classes, self.hidden, self.dropout)(x, train)


def bag(vectors, weights):
    """[B, P, D], [B, P] -> [B, D], the weighted sum, divided by the norm of the weights; 0 where there are none."""
    return jnp.einsum("bpd,bp->bd", vectors, weights / jnp.sqrt(jnp.sum(weights ** 2, -1, keepdims=True) + 1e-12))


def with_values(vectors, weights, values):
    """Vectors [B, P, D] and weights [B, P] with those of K columns, a pair of [B, K, D] and [B, K], behind them. In one
    bag a column says the more the less is known of the title, and a title alone is as without columns."""
    return tuple(jnp.concatenate(both, 1) for both in zip((vectors, weights), values, strict=True))


def part(module, kind, **changes):
    """A module of another kind with the fields of the one that it is a part of, and these changes."""
    names = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
    return kind(**{name: getattr(module, name) for name in names} | changes)


class TwoHeads(MLP):
    """Two classifiers that share the vectors and are trained together: a dense layer on features that know the order of
    the words, with the bag of words and the columns beside them; and a linear MLP."""
    word_ngrams: int

    @nn.compact
    def __call__(self, x, vectors, weights, values, train):             # [B, F], [B, P, D], ... -> [2, B, C]
        x = jnp.concatenate([x, bag(*with_values(*words_alone(self, vectors, weights), values))], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return jnp.stack([Head(self.classes, self.hidden, self.dropout)(x, train),
                          part(self, MLP, hidden=(), dropout=0.0)(vectors, weights, values, train)])


def words_alone(module, vectors, weights):
    """Vectors and weights of the words without those of word n-grams, which follow them."""
    words = vectors.shape[1] // module.word_ngrams
    return vectors[:, :words], weights[:, :words]


class CNN(TwoHeads):
    """The sentence CNN (Kim 2014): filters of several widths over the words, the maximum of each over the title; then
    TwoHeads. A window begins at every word that has a weight (not at padding, nor at words of which training saw no
    part), so padding is never pooled."""
    filters: int                                                        # of each width
    widths: Sequence[int]                                               # in words

    @nn.compact
    def __call__(self, vectors, weights, values, train=False):          # [B, P, D], [B, P], values -> [2, B, C]
        # Only the words of a title count: what has no weight is zero, as if nothing stood there.
        words, word = words_alone(self, vectors, weights)
        word = (word > 0)[..., None]                                    # [B, L, 1]
        words = words * word

        # A convolution as a sum of shifted matrix products, which XLA runs faster on a CPU than its own convolution.
        pooled = []
        for width in self.widths:
            kernel = self.param(f"filters_{width}", nn.initializers.lecun_normal((0, 1), 2),
                                (width, words.shape[-1], self.filters))
            windows = self.param(f"bias_{width}", nn.initializers.zeros, (self.filters,))
            for offset in range(min(width, words.shape[1])):
                ahead = jnp.pad(words[:, offset:], ((0, 0), (0, offset), (0, 0)))
                windows += ahead @ kernel[offset]                       # [B, L, F]
            pooled.append(jnp.where(word, nn.relu(windows), 0).max(1))  # relu >= 0: an empty title pools to 0
        x = jnp.concatenate(pooled, -1)
        return part(self, TwoHeads)(x, vectors, weights, values, train)


class RNN(TwoHeads):
    """Gated recurrent units (Cho et al. 2014) over the words in both directions, each up to the last word of the title
    and not into the padding; the maximum of each unit over the words; then TwoHeads."""
    units: int                                                          # in each direction

    @nn.compact
    def __call__(self, vectors, weights, values, train=False):          # [B, P, D], [B, P], values -> [2, B, C]
        # The last word that counts ends the title, so the backward direction begins there and not in the padding.
        words, word = words_alone(self, vectors, weights)
        word = word > 0
        length = (word * jnp.arange(1, word.shape[1] + 1)).max(1)
        directions = nn.Bidirectional(nn.RNN(nn.GRUCell(self.units)), nn.RNN(nn.GRUCell(self.units)))
        x = masked_max(directions(words * word[..., None], seq_lengths=length), word)
        return part(self, TwoHeads)(x, vectors, weights, values, train)


class Transformer(TwoHeads):
    """A small pre-norm encoder (Vaswani et al. 2017; Xiong et al. 2020) that sees words alone, no padding; the maximum
    over the words; then TwoHeads."""
    layers: int
    heads: int

    @nn.compact
    def __call__(self, vectors, weights, values, train=False):          # [B, P, D], [B, P], values -> [2, B, C]
        words, word = words_alone(self, vectors, weights)
        word, dim = word > 0, words.shape[-1]

        # Sines and cosines tell the positions; their size is learned.
        angle = jnp.arange(word.shape[1])[:, None] / 10_000 ** (jnp.arange(dim) // 2 * 2 / dim)
        position = jnp.where(jnp.arange(dim) % 2, jnp.cos(angle), jnp.sin(angle))       # [L, D]
        x = words * word[..., None] + self.param("position", nn.initializers.constant(0.1), ()) * position

        # Each layer adds what attention and then a dense layer make of the normalized words.
        drop = nn.Dropout(self.dropout, deterministic=not train)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.heads * -(-dim // self.heads))
            x += drop(attention(nn.LayerNorm()(x), mask=nn.make_attention_mask(word, word)))
            x += drop(nn.Dense(dim)(nn.gelu(nn.Dense(4 * dim)(nn.LayerNorm()(x)))))
        x = masked_max(nn.LayerNorm()(x), word)
        return part(self, TwoHeads)(x, vectors, weights, values, train)


def masked_max(x, word):
    """x [B, L, F], word [B, L] bool -> [B, F], the maximum over the words; 0 where there are none."""
    # EDIT: the pooling of rnn and transformer.
    # Taken by its position: the gradient of max() asks which entries equal it, and a compiler may have computed these
    # twice with other rounding, which then gives no gradient, or NaN.
    position = jax.lax.stop_gradient(jnp.where(word[..., None], x, -jnp.inf)).argmax(1)
    best = jnp.take_along_axis(x, position[:, None], 1)[:, 0]
    return jnp.where(word.any(1, keepdims=True), best, 0)


class SentenceEncoder(nn.Module):
    """The layers of Google's Universal Sentence Encoder multilingual v3 (Yang et al. 2020), for the arrays of
    titles/encoder.py: vectors of pieces and their weights, of which 0 leaves a piece out -> a vector of length 1."""

    @nn.compact
    def __call__(self, vectors, weights):                               # [B, P, 512], [B, P] -> [B, 512]
        # What is left out is zero, as is what lies beyond the title, and does not count.
        piece = (weights > 0)[..., None]
        count = jnp.maximum(piece.sum(1), 1)                            # [B, 1]
        norm = functools.partial(nn.LayerNorm, epsilon=1e-12, use_fast_variance=False)
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)  # nothing is drawn, all is pretrained

        # Each width has 256 numbers of its own for every piece, and two layers that look at windows of them.
        x, features = norm(name="norm")(dense(3 * 256, name="project")(vectors)) * piece, [vectors]
        for part, width, before in zip(jnp.split(x, 3, -1), (2, 3, 5), (0, 1, 2), strict=True):
            part = (nn.relu(dense(256, name=f"window1_{width}")(windows(part, width, before))) + part) * piece
            features.append(nn.relu(dense(256, name=f"window2_{width}")(windows(part, width, before))) + part)

        # The sum over the pieces, divided by the root of their number, as is the bias of each piece.
        x = norm(name="norm_all")(jnp.concatenate(features, -1)) * piece
        x = jnp.sqrt(count) * dense(512, name="average")(x.sum(1) / count)

        # Dense layers that also add to the layer after the next.
        dense = functools.partial(dense, use_bias=False)
        y = nn.relu(dense(320, name="p1")(x) + dense(320, name="d1")(nn.relu(dense(320, name="d0")(x))))
        z = jnp.tanh(dense(512, name="p3")(y) + dense(512, name="d3")(nn.relu(dense(512, name="d2")(y))))
        return z / jnp.sqrt(jnp.maximum(jnp.sum(z ** 2, -1, keepdims=True), 1e-12))


def windows(x, width, before):
    """[B, P, F] -> [B, P, width F]: each position with its neighbours, from `before` ahead of it on; 0 beyond the
    ends."""
    padded = jnp.pad(x, ((0, 0), (before, width - 1 - before), (0, 0)))
    return jnp.concatenate([padded[:, offset:offset + x.shape[1]] for offset in range(width)], -1)


class Encoder(nn.Module):
    """A pretrained encoder below a linear classifier. It reads pieces, whose vectors are rows of the table as they are,
    instead of words. With its layers frozen it takes the vector of a title, made once before the training, as the only
    vector."""
    classes: int
    dropout: float                                                      # of the title's vector
    scale: float                                                        # length of that vector
    freeze_layers: bool
    encoder, below, dim = "use", SentenceEncoder, 512                   # its name, layers and numbers of a piece

    @nn.compact
    def __call__(self, vectors, weights, values, train=False):          # [B, P, D], [B, P], values -> [B, C]
        x = vectors[:, 0] if self.freeze_layers else self.below(name="layers")(vectors, weights)
        if values[0].shape[1]:
            x = jnp.concatenate([x, bag(*values)], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(self.scale * x)
        return Head(self.classes, (), 0.0, name="head")(x)


# EDIT: the models. Their names stand in MODELS of train.py, too, their settings in SETTINGS there.
MODELS = {"mlp": MLP, "cnn": CNN, "rnn": RNN, "transformer": Transformer, "encoder": Encoder}


def fields(name):
    """{field: default, or dataclasses.MISSING} of a model's module: the settings that it uses, and `classes`."""
    found = {field.name: field.default for field in dataclasses.fields(MODELS[name])}
    return {name: value for name, value in found.items() if name not in ("parent", "name")}


def encoder_of(name):
    """The name of the encoder whose pieces a model reads; None where it reads words."""
    return getattr(MODELS[name], "encoder", None)


def build(config):
    """The module that a run's configuration describes. Raises KeyError where a field is not in it."""
    values = {name: config[name] for name in fields(config["model"])}
    return MODELS[config["model"]](**{
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


# --- the embedding table ----------------------------------------------------------------------------------------------

def table_rows(config):
    """How many rows the table has: of words, then of n-grams; with --shard-table filled up to a multiple of PARTS."""
    rows = config["vocabulary"] + config["buckets"]
    return rows + -rows % PARTS if config.get("shard_table") else rows


def shardings(config, tree):
    """Where each array of a state, or of its variables, goes: every device has all of it, but with --shard-table a part
    of the table's rows, their weights and sums."""
    def sharding(path, x):
        # Deeper in the tree these names mean something else.
        is_table = len(path) <= 2 and getattr(path[-1], "key", None) in ("table", "weights", "accumulator")
        return devices.parted(len(x)) if is_table and config.get("shard_table") else devices.whole()

    return jax.tree_util.tree_map_with_path(sharding, tree)


def init(config, key):
    """All that prediction needs, from random numbers: {"params", "table" [V, D], "weights" [V] of the table's rows}. Of
    an encoder what training changes: "params", and "table" with the "pieces" [V] of its rows, unless it is frozen. Of
    one that reads columns also the table of their "values" [W, D], and the "value_weights" [W] of its rows."""
    table_key, key = jax.random.split(key)
    of_values, read = {}, len(config.get("columns") or ())
    if read:
        table = init_table(jax.random.fold_in(key, 1), config["values"], value_dim(config))
        of_values = {"values": table, "value_weights": jnp.ones(len(table)).at[0].set(0)}
    values = jnp.zeros((1, read, value_dim(config))), jnp.zeros((1, read))
    if "encoder" in config:
        vectors = jnp.zeros((1, config["encoder"]["max_len"], MODELS[config["model"]].dim))
        variables = {"params": build(config).init(key, vectors, vectors[..., 0], values)["params"]} | of_values
        return variables if config["freeze_embeddings"] else variables | {
            "table": jnp.zeros((config["pieces"], vectors.shape[-1])),
            "pieces": jnp.zeros(config["pieces"], jnp.int32)}
    table = init_table(table_key, table_rows(config), config["dim"], config.get("shard_table", False))
    vectors = jnp.zeros((1, config["max_len"] * config["word_ngrams"], config["dim"]))
    params = build(config).init(key, vectors, vectors[..., 0], values)["params"]
    return {"params": params, "table": table, "weights": jnp.ones(len(table)).at[0].set(0)} | of_values


def value_dim(config):
    """Numbers in the vector of a column's value."""
    return config.get("dim", VALUE_DIM)


def init_table(key, rows, dim, parted=False):
    """[rows, dim] float32, uniform with variance 1 / (3 dim), so that a vector's length is about 0.6; row 0 is 0.
    parted: each device draws its own rows."""
    def drawn(key, rows):
        return jax.random.uniform(key, (rows, dim), minval=-1, maxval=1) / math.sqrt(dim)

    if parted:
        # Part after part, each from a key of its own: the same numbers on any number of devices.
        def draw(numbers):
            return jax.lax.map(lambda i: drawn(jax.random.fold_in(key, i), rows // PARTS), numbers).reshape(-1, dim)

        spec = devices.parted(PARTS).spec
        return jax.shard_map(draw, mesh=devices.mesh(), in_specs=spec, out_specs=spec, check_vma=False)(
            jnp.arange(PARTS)).at[0].set(0)
    if rows <= LARGE:
        return drawn(key, rows).at[0].set(0)

    # A block at a time, for drawing takes several times the memory of what is drawn. The last block may begin within
    # the one before.
    def add(i, table):
        return jax.lax.dynamic_update_slice(table, drawn(jax.random.fold_in(key, i), BLOCK), (i * BLOCK, 0))

    return jax.lax.fori_loop(0, -(-rows // BLOCK), add, jnp.zeros((rows, dim))).at[0].set(0)


def feature_tables(config, words, known=None):
    """What there is to know of words (list of str that begins with data.SPECIALS), as a dictionary:

    `own` [W] row of the table, UNKNOWN's but for the first `known` words (by default the vocabulary); `start` [W + 1]
    and `ngrams` [T] rows of their character n-grams (see data.character_ngrams), each of the `word` [T];
    `character_weight`, the factor on the weights of these; `hashes` [W], the `first` row and the number of `buckets`,
    for word n-grams.
    """
    # Rows of the table: first those of the vocabulary's words, then the buckets of all n-grams.
    own = np.arange(len(words), dtype=np.int32)
    known = config["vocabulary"] if known is None else known
    minn, weight = (config["minn"], config["character_weight"]) if config["maxn"] else (0, 1)
    start, bucket = data.character_ngrams(words, minn, config["maxn"], max(config["buckets"], 1))
    ngrams = np.where(np.arange(len(bucket)) < start[-1], bucket + np.int32(config["vocabulary"]), 0)
    word = np.append(np.repeat(own, np.diff(start)), np.full(len(ngrams) - start[-1], own[-1]))
    return {"own": np.where(own < known, own, data.UNKNOWN), "start": start, "ngrams": ngrams, "word": word,
            "character_weight": np.float32(weight), "hashes": classify.word_hashes(words),
            "first": np.int32(config["vocabulary"]), "buckets": np.uint32(config["buckets"])}


def word_ngrams(features, ids, longest):
    """Table rows of the n-grams of 2 to `longest` words of each title: [B, L] ids -> [B, (longest - 1) L], 0 where the
    title, or a part of it, has ended. NumPy or JAX arrays."""
    xp, rows = jnp if isinstance(ids, jax.Array) else np, [ids[:, :0].astype(np.int32)]
    inside = ids > 0
    for ahead, value in enumerate(classify.word_ngram_hashes(features["hashes"][ids], longest), 1):
        found = (value % features["buckets"]).astype(np.int32) + features["first"]
        inside = inside[:, :-1] & (ids[:, ahead:] > 0)
        found = xp.where(inside, found, 0)
        rows.append(xp.pad(found, ((0, 0), (0, min(ahead, ids.shape[1])))))
    return xp.concatenate(rows, 1)


def threefry(key, number):
    """A block of Threefry-2x32 with 20 rounds (Salmon et al. 2011, Parallel random numbers): key [..., 2], number [...]
    uint32 -> [..., 2]. A random key of jax.random.fold_in or split is such a block."""
    keys = [key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ np.uint32(0x1BD11BDA)]
    x, y = keys[0] + np.zeros_like(number), keys[1] + number
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = (y << np.uint32(turn) | y >> np.uint32(32 - turn)) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return np.stack([x, y], -1)


def step_keys(seed, steps):
    """The random keys of all steps, [steps, 4, 4] uint32: of each its own, and three that are made of it; those of
    jax.random, whose programs take a second to compile: by themselves, or in the loop again and again."""
    key = threefry(np.array([[0, seed]] * 2, np.uint32), np.ones(2, np.uint32))
    own = threefry(key, np.arange(steps, dtype=np.uint32)[:, None])
    more = threefry(own[:, None], np.arange(3, dtype=np.uint32)[:, None])
    return np.concatenate([own[:, None], more], 1).reshape(steps, 4, 4)


def draw_features(config, features, weights, ids, keys):
    """The rows of the table that a training step uses, drawn at random.

    Args: features as from `feature_tables`; weights [V] of the table's rows; ids [B, L] of words; three random keys.
    Returns: [(rows [B, P, F], their weights [B, P, F]), ...], for words and, where wanted, for word n-grams. Of a
    word's n character n-grams NGRAM_SAMPLES are drawn, evenly spread over the word, with weights times
    character_weight (n / NGRAM_SAMPLES) ** 0.75 (1 would keep their sum the same on average, 0.5 the norm of the
    weights); dropout leaves out rows.
    """
    position_key, *drop_keys = keys

    # Every word's own row, with weight factor 1.
    rows, factor = features["own"][ids][..., None], jnp.ones((*ids.shape, 1))
    if config["maxn"]:
        # One random offset a word, then equal steps over its n-grams.
        start, n = features["start"][ids], features["start"][ids + 1] - features["start"][ids]
        position = (jnp.arange(NGRAM_SAMPLES) + jax.random.uniform(position_key, (*ids.shape, 1))) / NGRAM_SAMPLES
        position = start[..., None] + jnp.minimum((position * n[..., None]).astype(jnp.int32), n[..., None] - 1)
        drawn = jnp.where(n[..., None] > 0, features["ngrams"][position], 0)
        rows = jnp.concatenate([rows, drawn], -1)
        drawn_factor = features["character_weight"] * (n[..., None] / NGRAM_SAMPLES) ** 0.75
        factor = jnp.concatenate([factor, jnp.broadcast_to(drawn_factor, drawn.shape)], -1)
    drawn_rows = [(rows, factor * weights[rows])]
    if config["word_ngrams"] > 1:
        rows = word_ngrams(features, ids, config["word_ngrams"])[..., None]
        drawn_rows.append((rows, weights[rows]))

    keep = 1 - config["dropout"]
    return [(rows, jnp.where(jax.random.bernoulli(drop_key, keep, rows.shape), weight, 0))
            for drop_key, (rows, weight) in zip(drop_keys, drawn_rows, strict=False)]


def draw_pieces(config, ids, key):
    """The same for ids [B, P] of pieces, whose rows of the table have weight 1: some are left out, but never the first
    of a title, so that one stays."""
    keep = jax.random.bernoulli(key, 1 - config.get("piece_dropout", 0.0), ids.shape).at[:, 0].set(True)
    return [(ids[..., None], jnp.where(keep & (ids > 0), 1.0, 0.0)[..., None])]


def value_features(config, columns):
    """The rows of the table of values, and the factors on their weights, that make each value of these
    classify.Columns."""
    rows, factors = classify.value_rows(columns)
    return {"value_rows": rows, "value_factors": factors * np.float32(config.get("value_weight", 1))}


def draw_values(features, weights, ids, key=None, dropout=0.0):
    """The same as `draw_features` for ids [B, K] of values, all of which are left out of a row together, with the
    probability `dropout`. weights [V] of the rows of their table."""
    rows = features["value_rows"][ids]
    weights = weights[rows] * features["value_factors"][ids]
    if key is not None:
        weights = jnp.where(jax.random.bernoulli(key, 1 - dropout, (len(ids), 1, 1)), weights, 0)
    return [(rows, weights)]


class Gathered(NamedTuple):
    """Which rows of the table made which vectors of a batch; `update` gives their gradients back to the rows."""
    rows: jax.Array          # [B, X]
    weights: jax.Array       # [B, X] normalized: the vector is the sum of rows times these
    positions: np.ndarray    # [X] of the vectors, in 0 to P - 1


def lookup(table, drawn_rows, parted=False):
    """Rows as from `draw_features` -> (vectors [B, P, D], weights [B, P]) of words, then word n-grams; and Gathered.
    parted: whether each device has a part of the table's rows."""
    norms, normalized, vectors = [], [], []
    for rows, weight in drawn_rows:
        norms.append(jnp.sqrt(jnp.sum(weight ** 2, -1)))
        normalized.append(weight / jnp.maximum(norms[-1], 1e-6)[..., None])
        vectors.append((sums_of_parts if parted else sums_of_rows)(table, rows, normalized[-1]))

    # For `update` all rows of a title stand side by side, with the position of the vector that each went into.
    size = [rows.shape[2] for rows, _ in drawn_rows for _ in range(rows.shape[1])]
    rows, normalized = (jnp.concatenate([x.reshape(len(x), -1) for x in of_all], 1)
                        for of_all in ([rows for rows, _ in drawn_rows], normalized))
    return (jnp.concatenate(vectors, 1), jnp.concatenate(norms, 1),
            Gathered(rows, normalized, np.repeat(np.arange(len(size)), size)))


def sums_of_rows(table, rows, weights):
    """[B, P, D] sums over the last axis of rows [B, P, F] of the table, times their weights [B, P, F]."""
    # Column by column: [B, P, F, D], which all at once would need, does not fit the cache.
    return sum(table[rows[..., i]] * weights[..., i, None] for i in range(rows.shape[-1]))


def sums_of_parts(table, rows, weights):
    """The same of a table whose rows are parted among the devices. Each sums those that it has, for all titles, and
    these sums are added: left to itself the compiler would add up each of the F columns."""
    def sums(part, rows, weights):
        rows = rows - jax.lax.axis_index("data") * len(part)
        here = (rows >= 0) & (rows < len(part))
        return jax.lax.psum(sums_of_rows(part, jnp.where(here, rows, 0), jnp.where(here, weights, 0)), "data")

    everywhere = jax.sharding.PartitionSpec()
    return jax.shard_map(sums, mesh=devices.mesh(), in_specs=(devices.parted(len(table)).spec, everywhere, everywhere),
                         out_specs=everywhere)(table, rows, weights)


def update(table, accumulator, gathered, gradients, rate):
    """Row-wise Adagrad on the rows that a batch used: the squared gradients of a row are averaged over its dimensions
    into one accumulator (Duchi et al. 2011 with one rate a row). Rows of weight 0, such as padding's, are left alone.

    Args: table [V, D], accumulator [V], gathered as from `lookup`, gradients [B, P, D] of the loss with respect to its
    vectors, rate.
    Returns the new (table, accumulator); under jit with donation both are changed in place, without a copy.
    """
    # EDIT: the optimizer of the table.
    # Rows that do not count get a number out of range, which the scatter drops.
    rows, weights, positions = gathered
    rows = jnp.where(weights == 0, len(table), rows)

    # All squares are added before a step is taken, so a row that comes twice in a batch takes two equal steps.
    square = jnp.mean(gradients ** 2, -1)[:, positions]
    accumulator = accumulator.at[rows].add(weights ** 2 * square, mode="drop")
    step = weights * rate / jnp.sqrt(accumulator.at[rows].get(mode="fill", fill_value=1) + 1e-6)
    return table.at[rows].add(-step[..., None] * gradients[:, positions], mode="drop"), accumulator


@functools.partial(jax.jit, static_argnames="parted", compiler_options=QUICK_COMPILE)
def compose(table, weights, features, parted=False):
    """The vectors of words from all their n-grams, for prediction: (vectors [W, D], weights [W]). parted: each device
    gets a part of the words, to whose number zeros are added where they cannot be shared evenly."""
    own = features["own"]
    own = jnp.pad(own, (0, -len(own) % devices.mesh().size if parted else 0))

    def add(total, block):
        rows, word = block
        vectors, squares = total
        weight = features["character_weight"] * weights[rows]
        return (vectors.at[word].add(weight[:, None] * table[rows]), squares.at[word].add(weight ** 2)), None

    # A block of n-grams at a time, for the rows of all of them would take much memory.
    weight = weights[own]
    (vectors, squares), _ = jax.lax.scan(add, (weight[:, None] * table[own], weight ** 2), (
        features["ngrams"].reshape(-1, 4096), features["word"].reshape(-1, 4096)))
    norm = jnp.sqrt(squares)
    composed = vectors / jnp.maximum(norm, 1e-6)[:, None], norm
    return jax.lax.with_sharding_constraint(composed, devices.parted(len(own))) if parted else composed


def row_weights(config, features, titles):
    """Weight of each row of the table, from the training titles [N, L]: inverse document frequency as in `idf`, where
    titles with two words that share an n-gram count twice."""
    # A word's titles count for its own row and for the rows of its n-grams.
    rows = table_rows(config)
    count = document_frequency(titles, len(features["own"]))
    total = np.bincount(features["own"], count, rows)
    in_ngrams = np.repeat(count, np.diff(features["start"]))
    total += np.bincount(features["ngrams"][:len(in_ngrams)], in_ngrams, rows)

    # Word n-grams are counted where they stand, a block of titles at a time.
    for block in data.blocks(len(titles)) if config["word_ngrams"] > 1 else ():
        total += np.bincount(word_ngrams(features, titles[block], config["word_ngrams"]).ravel(), minlength=rows)
    total[0] = 0
    return idf(np.minimum(total, len(titles)), len(titles))


def value_weights(columns, values):
    """Weight of each row of the table of values, as of words: columns [N, K] of ids of the training rows."""
    count = np.bincount(columns.ravel(), minlength=values)
    count[0] = 0
    return idf(count, len(columns))


def document_frequency(titles, words):
    """How many titles [N, L] hold each word: [words] counts."""
    count = np.zeros(words, np.int64)
    # In a sorted title, a word that comes again stands behind itself.
    for rows in data.blocks(len(titles)):
        block = np.sort(titles[rows], axis=1)
        first = np.concatenate([np.ones((len(block), 1), bool), block[:, 1:] != block[:, :-1]], 1)
        count += np.bincount(block[first], minlength=words)
    return count


def idf(count, titles):
    """Weight of features that `count` of so many titles have: float32, log((1 + titles) / (1 + count)) + 1 as in
    scikit-learn's TfidfTransformer; 0 where no title has it."""
    return np.where(count == 0, 0, np.log((1 + titles) / (1 + count)) + 1).astype(np.float32)


def counts(weights, titles):
    """How many of so many titles have each feature, from its weight: the inverse of `idf`."""
    return np.where(weights == 0, 0, (1 + titles) / np.exp(np.asarray(weights, np.float64) - 1) - 1)
