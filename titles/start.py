"""The state of a training before its first step: random numbers, what is pretrained, what a former run has learned.

A state is {"variables": all that prediction needs, "optimizer": the rest}, two trees of arrays.
"""
import collections
import re

import jax
import jax.numpy as jnp
import numpy as np

import classify
import data
import model
from titles import devices, encoder, predict, runs


def former_run(config, folder):
    """What runs.restore returns of the run that a training begins from, or None; folder: of all runs."""
    return runs.restore(*runs.find(config["init_from"], folder)) if "init_from" in config else None


def begin(plan, optimizer, former=None):
    """What a training begins with: (state; `features` of words, as from model.feature_tables; `frozen` variables, which
    no step changes and the state has not; {split: rows}), on the devices but for the rows. With frozen layers titles
    are [N, 1], the row of their vector.

    plan: a configuration.Plan; optimizer: as from train.make_optimizer; former: as from `former_run`, one whose
    knowledge it begins with; a line says how much of it there is.
    """
    config, meta, arrays = plan.config, plan.meta, plan.arrays
    features, frozen = {}, {}
    rows = arrays["train"]
    if "encoder" in config:
        pretrained, arrays = pretrained_variables(config, meta, arrays, former and former[3]["variables"])
        state = state_of_pieces(config, optimizer, pretrained)
        frozen = {"table": pretrained["table"]} if config["freeze_embeddings"] else {}
    else:
        features = model.feature_tables(config, meta["words"])
        state = state_of_words(config, optimizer, features, rows["titles"], meta["vectors"])
    if config.get("columns"):
        features |= model.value_features(config, classify.columns_of(meta["columns"]))
        weights = devices.put(model.value_weights(rows["columns"], config["values"]), devices.whole())
        state = state | {"variables": state["variables"] | {"value_weights": weights}}
    if former:
        state, said = with_knowledge(state, config, meta, former)
        print(f"begins with what {config['init_from']} knows: {said}")
    state = devices.put(state, model.shardings(config, state))
    return state, *devices.put((features, frozen), devices.whole()), arrays


def random_state(config, optimizer):
    """The state of random numbers. Made under jit, so that the table comes into being where it stays."""
    sums = 0.0 if config["freeze_embeddings"] else config["accumulator"]

    def start():
        variables = model.init(config, jax.random.key(config["seed"]))
        of_table = {"accumulator": jnp.full(len(variables["table"]), sums)} if "table" in variables else {}
        if "values" in variables:
            of_table["value_sums"] = jnp.full(len(variables["values"]), config["accumulator"])
        return {"variables": variables, "optimizer": {
            "dense": optimizer.init(variables["params"]), "step": jnp.zeros((), jnp.int32)} | of_table}

    return jax.jit(start, out_shardings=model.shardings(config, jax.eval_shape(start)))()


def state_of_words(config, optimizer, features, titles, vectors=None):
    """The state of a model of words. titles [N, L] of the training rows give the weights of the table's rows; vectors
    [V, D] (zero where not found) are the start of the words' own rows."""
    state = random_state(config, optimizer)
    variables = dict(state["variables"])

    # A row that no training title uses gets weight 0: its numbers are random and must not count in predictions.
    variables["weights"] = devices.put(model.row_weights(config, features, titles), variables["weights"].sharding)

    # The words' own rows are the first of the table, so that is where their pretrained vectors go.
    if vectors is not None:
        found, table = vectors.any(1, keepdims=True), variables["table"]
        if found.any():  # words without a vector start as long as the others
            table *= vectors[found[:, 0]].std() / table.std()
        variables["table"] = table.at[:len(vectors)].set(jnp.where(found, vectors, table[:len(vectors)]))
    return state | {"variables": variables}


def state_of_pieces(config, optimizer, pretrained):
    """The state of an encoder, which begins as its package has it; pretrained: as from `pretrained_variables`. What is
    frozen is not in it."""
    state = random_state(config, optimizer)
    known = devices.put(pretrained, devices.whole())

    # Table and pieces are variables, layers and head are parameters.
    def filled(tree):
        return {name: known.get(name, value) for name, value in tree.items()}

    variables = filled(state["variables"]) | {"params": filled(state["variables"]["params"])}
    return state | {"variables": variables}


def pretrained_variables(config, meta, arrays, learned=None):
    """(what an encoder begins with: `table` [V, D] of the `pieces` [V], `layers`, and with a name_weight the `head`,
    as a former run has trained them on where given; arrays). Where the layers are frozen, vectors of all titles take
    the place of those of pieces, and in the arrays titles are [N, 1], the row of their vector."""
    def begun(pieces):
        # A former run brings the table of all pieces (runs.restore); those that are needed are taken.
        if learned:
            return np.asarray(learned["table"])[pieces], learned["params"]["layers"]
        return encoder.pretrained(config["encoder"]["name"], pieces)

    table, layers = begun(meta["pieces"])
    head = name_head(config, meta["labels"], begun) if config.get("name_weight") else {}
    if config["freeze_layers"]:
        # Nothing below the classifier changes, so each title goes through the layers once. Row 0 stays padding's.
        vectors, numbered = [np.zeros((1, table.shape[1]), np.float32)], {}
        for split, rows in arrays.items():
            if len(rows["titles"]):
                vectors.append(title_vectors(config, table, layers, rows["titles"]))
            end = sum(map(len, vectors))
            numbered[split] = rows | {"titles": np.arange(end - len(rows["titles"]), end, dtype=np.uint32)[:, None]}
        table, arrays = np.concatenate(vectors), numbered
    return {"table": table, "pieces": meta["pieces"].astype(np.int32), "layers": layers} | head, arrays


def title_vectors(config, table, layers, ids):
    """[N, D] vectors of titles as the layers of an encoder make them: table [V, D], their parameters, ids [N, P]."""
    module = model.MODELS[config["model"]].below()

    @jax.jit
    def vectors(table, layers, ids):
        return {"vectors": module.apply({"params": layers}, table[ids], (ids > 0).astype(jnp.float32))}

    table, layers = devices.put((table, layers), devices.whole())
    return predict.in_batches(lambda batches: vectors(table, layers, batches[0].ids), (data.batch_of({"titles": ids}),),
                              largest=predict.largest_batch(True))["vectors"]


def name_vectors(config, labels, begun):
    """[D, C] the vectors of the categories' names, which say much where there are few titles, and which of them say
    something [C] bool. begun: pieces -> (their table, layers)."""
    names = [" ".join(re.findall(r"[^\W_]+", label)).lower() for label in labels]
    pieces, (ids,) = data.compact([encoder.pieces(config["encoder"]["name"], names, config["encoder"]["max_len"])])
    # Names without a letter, such as numbers, say nothing.
    return title_vectors(config, *begun(pieces), ids).T, np.array([any(map(str.isalpha, one)) for one in names])


def name_head(config, labels, begun):
    """A linear classifier made of the vectors of the categories' names; those that say nothing begin with zeros, as all
    do without these vectors. begun: as `name_vectors` has it."""
    vectors, say = name_vectors(config, labels, begun)
    kernel = vectors * np.float32(config["name_weight"]) * say
    kernel = np.pad(kernel, ((0, model.value_dim(config) if config.get("columns") else 0), (0, 0)))
    return {"head": {"Dense_0": {"kernel": kernel, "bias": np.zeros(len(say), np.float32)}}}


def with_names(head, config, labels, mine, learned):
    """The head of an encoder, whose entries `mine` a former run has trained, with others for the rest: the mean of the
    trained ones and, as far from it as these are on average, what tells the category's name from theirs. learned: the
    former run's variables."""
    dense, new = head["Dense_0"], np.setdiff1d(np.arange(len(labels)), mine)
    kernel, bias = np.array(dense["kernel"]), np.array(dense["bias"])
    vectors, say = name_vectors(config, labels, lambda pieces: (np.asarray(learned["table"])[pieces],
                                                                learned["params"]["layers"]))
    told = np.intersect1d(mine, np.flatnonzero(say))
    vectors = vectors - vectors[:, told if len(told) else mine].mean(1, keepdims=True)
    mean, length = kernel[:, mine].mean(1), np.linalg.norm(vectors, axis=0)
    names = kernel[:len(vectors)]  # below them are those of columns, of which a name tells nothing
    far = np.linalg.norm(names[:, mine] - mean[:len(vectors), None], axis=0).mean()
    kernel[:, new], bias[new] = mean[:, None], bias[mine].mean()
    names[:, new] += far * (say * vectors / np.where(length > 0, length, 1))[:, new]
    return {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}


def with_knowledge(state, config, meta, former):
    """(a state with what a former run, as from runs.restore, has learned of the same words, n-grams and categories; how
    much was matched, as text). The rest stays as it is."""
    old, vocab, labels, saved, _ = former
    variables, learned = dict(state["variables"]), saved["variables"]

    # Arrays of the head that differ in shape where there is a category more have one entry for each along their last
    # axis; these are matched by the categories' names, and in a tree by where they stand.
    more = jax.eval_shape(lambda: model.init(config | {"classes": config["classes"] + 1}, jax.random.key(0)))["params"]
    if max(meta.get("levels", 1), old.get("data", {}).get("levels", 1)) > 1:
        mine, theirs, others = matched_leaves(meta["labels"], labels)
    else:
        (mine, theirs), others = matched(meta["labels"], labels), ""
    variables["params"] = jax.tree.map(
        lambda new, other, old: old if new.shape == other.shape else with_entries(new, old, mine, theirs),
        variables["params"], more, {part: learned["params"][part] for part in variables["params"]})
    said = f"{len(np.unique(mine)):,} of {config['classes']:,} categories" + (f" ({others})" if others else "")
    if config.get("columns") and old.get("columns"):
        variables, values = with_values(variables, config, meta, old, saved)
        said = f"{values} values of columns, {said}"
    if "encoder" in config:
        # Its vectors and layers are taken where the pretrained ones would be.
        if 0 < len(np.unique(mine)) < config["classes"]:
            variables["params"] |= {"head": with_names(variables["params"]["head"], config, meta["labels"],
                                                       np.unique(mine), learned)}
            said += ", the others begin with their names"
        return state | {"variables": variables}, said

    # Rows of the table: of words by their text, of n-grams by their hash. Their weights count the titles of both.
    mine, theirs = matched(meta["vocab"], vocab)
    said = f"{len(mine) - len(data.SPECIALS):,} of {len(meta['vocab']) - len(data.SPECIALS):,} words, {said}"
    mine = np.concatenate([mine, np.arange(config["buckets"]) + config["vocabulary"]])
    theirs = np.concatenate([theirs, np.arange(config["buckets"]) + old["vocabulary"]])
    variables["table"] = variables["table"].at[mine].set(learned["table"][theirs])
    variables["weights"] = with_counts(config, variables["weights"], learned["weights"], mine, theirs)
    return state | {"variables": variables}, said


def with_entries(array, learned, mine, theirs):
    """An array whose entries `mine` along the last axis are those that another has at `theirs`; their mean where
    several follow one another that go to the same."""
    own, first, count = np.unique(mine, return_index=True, return_counts=True)
    means = np.add.reduceat(np.asarray(learned)[..., theirs], first, axis=-1) / count.astype(learned.dtype)
    return array.at[..., own].set(means)


def with_counts(config, now, before, mine, theirs):
    """The weights [V] of rows of a table that count titles of two trainings: those of this one, `now`, and where its
    rows `mine` are rows `theirs` of the former one the weights `before`."""
    place = now.sharding
    now, before = devices.shared((now, before))
    count = model.counts(now, config["rows"])
    count[mine] += model.counts(before, config["earlier_rows"])[theirs]
    return devices.put(model.idf(count, config["rows"] + config["earlier_rows"]), place)


def with_values(variables, config, meta, old, saved):
    """(variables with what a former run of configuration `old` has learned of the values of columns that both read; how
    much was matched, as text). Words are matched as such, steps of numbers to those of the same rank."""
    others = {(column.name, column.kind): column for column in saved["columns"] if column.name in old["columns"]}
    mine, theirs, learned, size = [], [], saved["variables"], 0
    for column in classify.columns_of(meta["columns"]):
        size += column.behind - column.first if column.name in config["columns"] else 0
        other = others.get((column.name, column.kind))
        if other and column.name in config["columns"]:
            if column.kind == "word":
                own, its = matched(["", *column.values], ["", *other.values])
            else:
                own = its = np.arange(min(column.behind - column.first, other.behind - other.first))
            mine, theirs = [*mine, column.first + own], [*theirs, other.first + its]
    mine, theirs = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (mine, theirs))
    return variables | {
        "values": variables["values"].at[mine].set(learned["values"][theirs]),
        "value_weights": with_counts(config, variables["value_weights"], learned["value_weights"], mine, theirs)
    }, f"{len(mine):,} of {size:,}"


def matched(names, others):
    """The positions in two lists of str of what stands in both: two arrays of the same length."""
    position = {name: i for i, name in enumerate(others)}
    return positions((i, position[name]) for i, name in enumerate(names) if name in position)


def positions(pairs):
    """Pairs of positions in two lists as two arrays of the same length."""
    return np.array([*pairs], np.int64).reshape(-1, 2).T


def matched_leaves(names, others):
    """What the leaves of a tree begin with, of those of another: (positions in the lists of their paths, `names` and
    `others`: two arrays of the same length, where a leaf of several others stands several times in a row; how many
    leaves found theirs under another path, as text)."""
    mine, theirs = matched(names, others)
    new, gone = (np.setdiff1d(np.arange(len(every)), found) for every, found in ((names, mine), (others, theirs)))
    kept = {i: [j] for i, j in zip(mine, theirs, strict=True)}

    # A leaf that moved has its own name still. One that is now above or below its former place is split or merged.
    here, there = alone(names, new), alone(others, gone)
    both = [(here[name], there[name]) for name in here if name in there]
    moved = {i: [j] for i, j in both
             if not (leaf_above(names[i], {others[j]}) or leaf_above(others[j], {names[i]}))}

    # Those below what was a leaf begin as that one.
    left, before = [i for i in new if i not in moved], {name: j for j, name in enumerate(others)}
    split = {i: [before[path]] for i in left if (path := leaf_above(names[i], before))}

    # A leaf that others were below begins as their mean, but for those that stand elsewhere now.
    now, merged = {names[i]: i for i in left}, collections.defaultdict(list)
    elsewhere = {j for (j,) in moved.values()}
    for j in gone:
        if j not in elsewhere and (path := leaf_above(others[j], now)):
            merged[now[path]].append(j)

    found = sorted((kept | moved | split | merged).items())
    said = [f"{len(those):,} {how}" for how, those in (("moved", moved), ("split", split), ("merged", merged)) if those]
    return *positions((i, j) for i, its in found for j in its), ", ".join(said)


def alone(names, some):
    """{own name of a leaf, the last level of its path: position} of those leaves among `some`, positions in names, that
    share it with no other among them."""
    own = [names[i].rpartition(classify.PATH)[2] for i in some]
    count = collections.Counter(own)
    return {name: i for name, i in zip(own, some, strict=True) if count[name] == 1}


def leaf_above(name, leaves):
    """The nearest path above a leaf that is among `leaves`, or None."""
    path = name.split(classify.PATH)
    above = (classify.PATH.join(path[:end]) for end in range(len(path) - 1, 0, -1))
    return next((one for one in above if one in leaves), None)
