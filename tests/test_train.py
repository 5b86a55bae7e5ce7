"""Training: the compiled loop against simple ones, and the configuration."""
import dataclasses
import io
import re
import sys

import jax
import numpy as np
import pytest
from conftest import WORD_MODELS, config_of, leaves_equal, new_state, run_script

import data
import model
import train
from titles import cli, configuration, files, predict, settings
from titles.cli import UserError
from titles.progress import Place, Progress
from titles.settings import Setting, by_model


def small_problem(*flags, **changes):
    """(config, new state, what the compiled loop reads): 64 titles of 4 words, 3 categories, a table of 94 rows."""
    draw = np.random.default_rng(0)
    titles = draw.integers(0, 20, (64, 4)).astype(np.uint16)  # ids 20 to 29 never occur
    labels = draw.integers(0, 3, 64).astype(np.uint8)
    config = config_of("--dim", 6, "--buckets", 64, "--dropout", 0.3, "--lr", 0.01, *flags, titles=titles,
                       **{"vocabulary": 30, "classes": 3, "steps": 40} | changes)
    features = model.feature_tables(config, words_of(config["vocabulary"]))
    state = new_state(config, features, titles)
    return config, state, train.training_arrays(
        config, features, {"titles": titles, "labels": labels, "reliable": labels != 3})


def words_of(count):
    return [*data.SPECIALS, *(f"word{i}" for i in range(2, count))]


MLP_AND_CNN = ["mlp", pytest.param("cnn", marks=pytest.mark.slow)]  # what a module computes is not at stake


@pytest.mark.parametrize("name", MLP_AND_CNN)
def test_a_scanned_chunk_equals_single_steps(name):
    config, state, arrays = small_problem("--model", name)
    order = np.random.default_rng(0).permutation(64)[:40].reshape(5, 8)
    chunk = train.make_train_chunk(config)
    together, loss = chunk(jax.tree.map(np.copy, state), arrays, order, width=4)
    losses = []
    for rows in order:
        state, one = chunk(state, arrays, rows[None], width=4)
        losses.append(one)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_changes_the_rows_it_used_and_no_other():
    config, state, arrays = small_problem()
    before = np.array(state["variables"]["table"])
    state["variables"]["params"]["Head_0"]["Dense_0"]["kernel"] += 1.0 + np.arange(3)  # at zero it passes no gradient
    after, _ = train.make_train_chunk(config)(state, arrays, np.array([[3, 4]]), width=4)
    changed = np.flatnonzero((before != after["variables"]["table"]).any(1))
    features = jax.tree.map(np.asarray, arrays["features"])
    ids = np.asarray(arrays["batch"].ids)[[3, 4]]
    used = set(features["own"][ids].ravel()) | set(model.word_ngrams(features, ids, 2).ravel()) | {
        row for i in ids.ravel() for row in features["ngrams"][features["start"][i]:features["start"][i + 1]]}
    assert any(row >= config["vocabulary"] for row in changed)
    assert set(changed) <= used - {0} and len(changed)
    assert after["optimizer"]["step"] == 1


def test_frozen_vectors_stay():
    config, state, arrays = small_problem("--freeze-embeddings")
    before = np.array(state["variables"]["table"])
    head = np.array(state["variables"]["params"]["Head_0"]["Dense_0"]["bias"])
    after, _ = train.make_train_chunk(config)(state, arrays, np.arange(64).reshape(8, 8), width=4)
    assert np.array_equal(before, after["variables"]["table"])
    assert not np.array_equal(head, after["variables"]["params"]["Head_0"]["Dense_0"]["bias"])


def test_one_schedule_for_both_rates(monkeypatch):
    """Where it is 0, nothing moves; and what is printed is what the step uses."""
    monkeypatch.setattr(train, "schedule", lambda config, rate: lambda step: jax.numpy.where(step < 3, 0.0, 0.25))
    config, state, arrays = small_problem()
    state["variables"]["params"]["Head_0"]["Dense_0"]["kernel"] += 1.0 + np.arange(3)
    before = jax.tree.map(np.copy, state["variables"])
    chunk = train.make_train_chunk(config)
    state, _ = chunk(state, arrays, np.arange(24).reshape(3, 8), width=4)
    assert leaves_equal(before, state["variables"])
    state, _ = chunk(state, arrays, np.arange(8)[None], width=4)
    assert not np.array_equal(before["table"], state["variables"]["table"])
    assert not leaves_equal(before["params"], state["variables"]["params"])
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    Progress(config, train.RATES, train.schedule, 3, Place(0.0)).show(4, 1.0)
    assert "lr 2.5e-03, table 2.5e-02 " in out.getvalue()


def test_pretrained_vectors_are_the_start():
    vectors = np.zeros((30, 6), np.float32)
    vectors[5:9] = np.random.default_rng(0).normal(size=(4, 6)) * 7
    config, titles = small_problem()[0], np.arange(1, 29).reshape(7, 4)
    state = new_state(config, model.feature_tables(config, words_of(30)), titles, vectors)
    table = state["variables"]["table"]
    assert np.array_equal(table[5:9], vectors[5:9])
    assert 0.3 < np.std(table[9:]) / vectors[5:9].std() < 3 and not table[0].any()


def test_class_terms():
    shift, weight = train.class_terms("logit", np.array([3, 1, 0]))
    np.testing.assert_allclose(shift, np.log([0.75, 0.25, 0.125]), rtol=1e-6)
    assert weight.tolist() == [1, 1, 1]
    shift, weight = train.class_terms("weights", np.array([3, 1]))
    np.testing.assert_allclose(weight, [4 / 6, 2], rtol=1e-6)  # as scikit-learn's class_weight="balanced"
    assert shift.tolist() == [0, 0]
    assert [x.tolist() for x in train.class_terms("none", np.array([3, 1]))] == [[0, 0], [1, 1]]


def test_unreliable_rows_count_less():
    config, state, arrays = small_problem("--dropout", 0, "--unreliable-weight", 0.25)
    chunk, order = train.make_train_chunk(config), np.arange(8)[None]
    rows = {"titles": arrays["batch"].ids, "labels": np.asarray(arrays["labels"])}

    def loss(unreliable):
        mine = train.training_arrays(config, arrays["features"], rows | {"reliable": ~unreliable})
        return float(chunk(jax.tree.map(np.copy, state), mine, order, width=4)[1])

    single = [loss(np.arange(64) == i) for i in range(8)]  # each takes away three quarters of one row's loss
    full = loss(np.zeros(64, bool))
    np.testing.assert_allclose(loss(np.arange(64) % 2 == 0), full - sum(full - row for row in single[::2]), rtol=1e-5)
    np.testing.assert_allclose(loss(np.ones(64, bool)), full / 4, rtol=1e-5)


def test_size_rule():
    def rule(rows, vocabulary):
        return tuple(train.size_rule(rows, 25, 0.5, vocabulary).values())

    assert rule(500, 300) == (64, 25, 0.5, 1, 1 << 13, 0.01 / 64)
    assert rule(5_000, 4_000) == (64, 25, 0.5, 1, 1 << 16, 0.01)
    assert rule(5_000_000, 1_000_000) == (1024, 3, 0.028, 0.055, (1 << 21) - 576, 0.01)  # with the words n * 1,024
    sizes = [rule(rows, rows // 9 + 1) for rows in (10, 3_000, 100_000, 1_000_000, 10_000_000)]
    assert sizes == sorted(sizes, key=lambda size: (size[0], *(-x for x in size[1:4]), *size[4:]))


def test_flags_override_the_rule():
    wanted = {"batch_size": 5, "epochs": 2, "dropout": 0, "character_weight": 0.5, "buckets": 7, "accumulator": 0,
              "word_ngrams": 1, "lr": 3}
    assert config_of("--batch-size", 5, "--epochs", 2, "--dropout", 0, "--character-weight", 0.5, "--buckets", 7,
                     "--accumulator", 0, "--word-ngrams", 1, "--lr", 3).items() >= wanted.items()
    assert config_of("--maxn", 0, "--word-ngrams", 1)["epochs"] == 13
    assert config_of()["batch_size"] == 8 and config_of()["dim"] == 100  # as there are 8 rows, and no vectors
    assert config_of(meta={"vectors": np.zeros((50, 7))})["dim"] == 7
    titles = np.ones((9000, 3), np.uint8)
    assert config_of(titles=titles).items() >= train.size_rule(9000, 25, 0.5, 50).items()


@pytest.mark.parametrize("name", WORD_MODELS)
def test_the_configuration_holds_what_is_used_and_nothing_else(name):
    """Every field of the module, and no setting of another one; what prediction needs, it reads there."""
    config = config_of("--model", name)
    own = set(model.fields(name))
    assert own <= set(config)
    fields = set().union(*map(model.fields, model.MODELS)) - {"dropout", "word_ngrams"}
    assert not (fields | {"encoder_lr", "piece_dropout", "name_weight", "contrastive_steps"}) - own & set(config)
    module = model.build(config)
    for field in model.fields(name):
        assert np.array_equal(getattr(module, field), config[field])


@pytest.mark.parametrize("flags, name", [
    (("--model", "mlp", "--filters", 7), "filters"), (("--widths", 9), "widths"),
    (("--model", "rnn", "--layers", 2), "layers"), (("--maxn", 0, "--minn", 3), "minn"),
    (("--maxn", 0, "--character-weight", 0.5), "character_weight"),
    (("--maxn", 0, "--word-ngrams", 1, "--buckets", 7), "buckets"),
    (("--freeze-embeddings", "--table-lr", 0.1), "table_lr"), (("--accumulator=0.1", "--freeze-embeddings"),
                                                              "accumulator")])
def test_a_flag_that_nothing_uses_is_refused(flags, name):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag}: .*; leave it out"):
        config_of(*flags)
    at = next(i for i, given in enumerate(flags) if str(given).startswith(flag))
    rest = flags[:at] + flags[at + (1 if "=" in flags[at] else 2):]
    assert config_of(*rest).get(name, 0) == 0  # the number of buckets is then 0


def test_fastTexts_way_to_have_no_ngrams():
    config = config_of("--word-ngrams", 1, "--minn", 0, "--maxn", 0)
    assert config["maxn"] == config["buckets"] == 0 and not {"minn", "character_weight"} & set(config)


def test_a_weight_for_unreliable_rows_needs_label_quality():
    with pytest.raises(UserError, match=r"--unreliable-weight: .*how reliable its label is"):
        config_of("--unreliable-weight", 0.5, meta={"reliable_share": None})
    assert "unreliable_weight" not in config_of(meta={"reliable_share": None})


def test_a_field_of_a_module_needs_a_setting_or_a_default(monkeypatch):
    fields = model.fields("mlp")
    monkeypatch.setattr(model, "fields", lambda name: fields | {"slope": 0.25})
    assert config_of()["slope"] == 0.25 and "slope" not in config_of()["settings"]
    monkeypatch.setattr(model, "fields", lambda name: fields | {"slope": dataclasses.MISSING})
    with pytest.raises(UserError, match="SETTINGS has no slope, which the module of mlp needs"):
        config_of()


def test_a_new_setting_is_one_line(monkeypatch):
    """Its flag, its default in the help, its value in the configuration and in the command that trains again."""
    monkeypatch.setitem(train.SETTINGS, "mine", [
        Setting("smoothing", cli.fraction, by_model(0.1, cnn=0.2), "how much")])
    assert config_of()["smoothing"] == 0.1 and config_of("--model", "cnn")["smoothing"] == 0.2
    config = config_of("--smoothing", 0.3)
    assert config["smoothing"] == 0.3 and " --smoothing 0.3" in settings.command("x", config)
    assert settings.help_of(train.SETTINGS["mine"][0]) == "how much (default: 0.1, cnn 0.2)"


def documented_keys():
    """What titles/configuration.py says that config.json holds beside settings."""
    lines = re.findall(r"(?m)^    ([a-z_]+(?:, [a-z_]+)*)  ", configuration.__doc__)
    return {name for line in lines for name in line.split(", ")}


@pytest.mark.parametrize("name", WORD_MODELS)
def test_the_keys_of_a_configuration_are_documented(name, trained):
    config = config_of("--model", name)
    written = files.read_json(trained / "runs/bag/config.json").keys() - {"created", "checksum", "trained"}
    others = {"encoder", "pieces", "refit", "init_from", "earlier_rows", "values", "created", "checksum", "trained"}
    assert config.keys() - config["settings"] - model.fields(name).keys() | others | {"classes"} == documented_keys()
    assert name != "mlp" or written == config.keys()


def test_help_has_one_default_for_each_setting():
    said = run_script("train", "--help", cwd=".").stdout
    assert not re.search(r"\(default: [^()]*\)\s*\(default", said)
    for setting in settings.all_of(train.SETTINGS):
        assert settings.help_of(setting).count("(default: ") <= 1
        assert settings.flag_of(setting.name) in said


@pytest.mark.parametrize("start", [0, 0.25])
def test_start_of_adagrads_sums(start):
    _, state, _ = small_problem("--accumulator", start)
    np.testing.assert_array_equal(state["optimizer"]["accumulator"], np.full(30 + 64, start, np.float32))


# --- what makes it fast -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MLP_AND_CNN)
def test_the_loop_copies_no_table(name):
    """Scratch memory stays far below the table, no instruction copies it, and its buffer is the same one afterwards."""
    def buffers(state):
        return [state[part][name].unsafe_buffer_pointer()
                for part, name in (("variables", "table"), ("optimizer", "accumulator"))]

    config, state, arrays = small_problem("--model", name, vocabulary=200_000)
    table, order, chunk = state["variables"]["table"], np.arange(64).reshape(8, 8), train.make_train_chunk(config)
    program = chunk.lower(state, arrays, order, width=4).compile()
    assert program.memory_analysis().temp_size_in_bytes < table.nbytes / 4
    copies = [line for line in program.as_text().splitlines() if " copy(" in line and f"[{len(table)}" in line]
    assert not copies
    before = buffers(state)
    after, _ = program(state, arrays, order)
    assert buffers(after) == before


def test_a_copy_of_the_table_would_show():
    """The test above sees what it looks for: without donation the table is copied."""
    config, state, arrays = small_problem(vocabulary=200_000)
    chunk = jax.jit(train.make_train_chunk(config).__wrapped__, static_argnames="width")
    program = chunk.lower(state, arrays, np.arange(64).reshape(8, 8), width=4).compile()
    rows = len(state["variables"]["table"])
    assert any(" copy(" in line and f"[{rows}" in line for line in program.as_text().splitlines())


def test_nothing_moves_between_host_and_device_in_the_loop():
    config, state, arrays = small_problem()
    order, chunk = np.arange(64).reshape(8, 8), train.make_train_chunk(config)
    state = jax.device_put(state)
    with jax.transfer_guard("disallow"):
        state, _ = chunk(state, arrays, jax.device_put(order), width=4)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):  # the guard is at work
            chunk(state, arrays, order, width=4)


@pytest.mark.slow
def test_more_epochs_compile_nothing_more(tiny, tmp_path):
    compiled = []
    for epochs in (1, 3):
        done = run_script("train", "--data", tiny / "data/prepared", "--epochs", epochs, cwd=tmp_path,
                          env={"JAX_LOG_COMPILES": "1"})
        compiled.append(sorted(re.findall(r"Finished XLA compilation of jit\((\w+)\)", done.stderr)))
    assert compiled[0] == compiled[1] == ["calibration_loss", "compose", "factors", "forward", "scores", "scores",
                                          "start", "train_chunk"]  # scores once for few rows, once for many


@pytest.mark.slow
def test_hidden_layers_learn_what_a_linear_classifier_does():
    """At the default settings, on titles of categories with 6 rows: two words of the category's own four, two that say
    nothing. A linear classifier finds all; two hidden layers without norm or way around them found a third."""
    draw, classes, words = np.random.default_rng(0), 40, words_of(400)
    labels = np.repeat(np.arange(classes), 12).astype(np.uint8)
    own = 2 + 4 * labels[:, None] + draw.permuted(np.tile(np.arange(4), (len(labels), 1)), axis=1)[:, :2]
    titles = np.concatenate([own, draw.integers(2 + 4 * classes, 400, own.shape)], 1).astype(np.uint16)
    split = [{"titles": titles[i::2], "labels": labels[i::2], "reliable": labels[i::2] < 0} for i in range(2)]

    config = config_of("--hidden", 32, 16, titles=titles[::2], meta={
        "vocab": words, "labels": [*map(str, range(classes))], "training_rows": [6] * classes})
    features = model.feature_tables(config, words)
    state = new_state(config, features, titles[::2])
    groups = data.length_groups(titles[::2], config["batch_size"])
    programs = train.compile_chunks(config, state, train.training_arrays(config, features, split[0]), groups)
    for epoch in range(config["epochs"]):
        for width, order in data.batches(groups, config["batch_size"], 0, epoch):
            state, _ = programs[width](state, order)
    found = train.evaluate_rows(predict.make_predictor(config, state["variables"], features), split[1], "valid")
    assert found["valid_balanced_accuracy"] > 0.95
