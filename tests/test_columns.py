"""Columns beside the title, in small: what their values are to a model, and how the parts of a title stay apart."""
import decimal
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import classify
import data
import model
from classify import ABSENT, BORDER, GAP, Column
from titles import predict

WORDS = Column(json.dumps({"name": "brand", "kind": "word", "values": ["acme", "sri sri ayurveda", "-"]}), 1)
STEPS = Column(json.dumps({"name": "price", "kind": "number", "decimal": ".", "borders": [10.0, 20.0, 30.0]}), 5)


# --- values -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "decimal", "number"), [
    ("1.234,56", ".", 1234.56), ("1,234.56", ",", 1234.56), ("$ 1,299.00", ",", 1299), ("R$ 10", ".", 10),
    ("12 €", ",", 12), ("12,50 EUR", ".", 12.5), ("US$1.299", ",", 1299), ("Rs. 499", ".", 499), ("1.299", ",", 1299),
    ("1.299", ".", 1.299), ("1,299", ".", 1299), ("0,125", ".", 0.125), ("1 299,00", ".", 1299), ("1.5E3", ",", 1500),
    ("1'299.50", ",", 1299.5), ("1,00,000", ".", 100000), ("1.299.000", ".", 1299000), ("-3.5", ".", -3.5),
    ("- $ 3", ".", -3), ("99 %", ".", 99), (".5", ",", 0.5), ("12,-", ",", 12), ("1299.5e0", ",", 1299.5),
    ("١٢", ".", 12), ("U$S 1.200", ",", 1200), ("Bs. 12", ".", 12), ("S/ 10", ".", 10), ("12 eur", ".", 12),
    ("12.", ".", 12), *((text, ".", math.nan) for text in (
        "", "-", "Consultar", "10-20", "10 a 20", "500 ml", "12.345.67", "1,2,3", "--5", "1e999", "12:30", "2024-01-05",
        "$", "1.2.3", "x" * 300, "1" + ",1" * 300, "RTX 3060", "SKU-12", "ABC123", "500 GRS", "12-", "12.05.202",
        "-" + " " * 30_000 + "x"))])
def test_numbers_as_people_write_them(text, decimal, number):
    np.testing.assert_equal(classify.number_of(text, decimal), number)


def test_of_any_type_a_value_is_its_text():
    """What CSV, JSON, Parquet and pandas have of the same value is the same, and a float has its point."""
    for values in ((12, 12.0, np.int64(12), np.float32(12), "12"), (True, np.bool_(True), "true"),
                   (None, float("nan"), np.nan, pd.NA, pd.NaT, ""), (pd.Timestamp("2024-02-01"), "2024-02-01")):
        assert len({classify.value_text(value) for value in values}) == 1, values
    for value in (1.299, 1299.5, -0.125, 1e-7, 2.5e20, np.float64(0.1)):
        for sign in ".,":
            assert classify.number_of(classify.value_text(value), sign) == float(value)
    assert classify.word_key(classify.value_text(1.5)) == classify.word_key("1.5")
    assert len({*map(classify.word_key, ("ffe0", "ff", "type0", "typ"))}) == 4
    assert classify.number_of(classify.value_text(decimal.Decimal("0.0000001")), ".") == 1e-7
    for odd in (np.arange(3), [1, 2], b"acme", object()):
        assert isinstance(classify.value_text(odd), str)


def test_ids_of_values():
    given = ["Acmé", " ACME ", "sri-sri  ayurveda", "-", "", None, "unheard of", ABSENT, float("nan"), 7]
    assert WORDS.ids(given).tolist() == [2, 2, 3, 4, 1, 1, 0, 0, 1, 0]
    given = [9.99, "10", 10, "19,99", "1.000,00", "US$ 20", "?", None, ABSENT, -5, "1e9"]
    assert STEPS.ids(given).tolist() == [6, 7, 7, 7, 9, 8, 5, 5, 0, 6, 9]
    assert (WORDS.behind, STEPS.behind) == (5, 10)
    assert [WORDS.text(i) for i in range(1, 5)] == ["(missing)", "acme", "sri sri ayurveda", "-"]
    assert [STEPS.text(i) for i in range(5, 10)] == ["(missing)", "below 10", "10 to 20", "20 to 30", "from 30"]


def test_a_number_has_much_in_common_with_its_neighbours():
    rows, factors = classify.value_rows([WORDS, STEPS])
    made = np.zeros((10, 10))
    np.add.at(made, (np.arange(10)[:, None], rows), factors)
    side = classify.BESIDE
    expected = np.diag([0.0, *[1] * 9])
    for one, other in ((6, 7), (7, 8), (8, 9)):
        expected[one, other] = expected[other, one] = side
    np.testing.assert_array_equal(made, expected)
    assert classify.value_rows([])[0].tolist() == [[0]]


def rows_of(rows, titles=(), columns=(WORDS, STEPS)):
    """(titles, ids of values, names of columns that the rows lack)."""
    titles, values, odd = classify.read_rows(rows, titles, columns)
    lacking = re.findall(r"no column (\w+)", "".join(odd))
    assert bool(lacking) == bool(odd)
    return titles, values, lacking


def test_rows_are_titles_dictionaries_or_a_table():
    titles, values, lacking = rows_of(["a", None, "b"])
    assert titles == ["a", None, "b"] and not values.any() and values.shape == (3, 2) and not lacking
    dicts = [{"title": "a", "brand": "ACME", "price": 12.5}, {"Title": "b", "Price": None}, {"title": None}, "c", None]
    titles, values, lacking = rows_of(dicts)
    assert titles == ["a", "b", None, "c", None] and not lacking
    assert values.tolist() == [[2, 7], [0, 5], [0, 0], [0, 0], [0, 0]]
    frame = pd.DataFrame({"BRAND": ["Acme", None], "text": ["a", "b"]})
    for table in (frame, pa.Table.from_pandas(frame)):
        titles, values, lacking = rows_of(table)
        assert (titles, values.tolist(), lacking) == (["a", "b"], [[2, 0], [1, 0]], ["price"])
    frame = pd.DataFrame({"BRAND": ["x"], "Brand": ["acme"], "title": ["a"], "column_names": ["b"], "d": [1]})
    titles, values, lacking = rows_of(pd.concat([frame, frame[["d"]]], axis=1))  # nobody asks for d
    assert (titles, values.tolist(), lacking) == (["a"], [[0, 0]], ["brand", "price"])  # two brands may be meant
    frame = pd.DataFrame({"brand": ["x"], "Brand": ["acme"], "name": ["a"], "more": ["b"]})
    titles, values, lacking = rows_of(frame, ("name", "more", "most"))
    assert titles == [f"a{BORDER}b"] and values.tolist() == [[0, 0]] and lacking == ["most", "price"]
    for prices in (["12", "abc", None, "", "free"], pd.Series(["12", "abc", None, np.nan, "free"])):
        frame = pd.DataFrame({"title": [*"abcde"], "brand": "x", "price": prices})
        for table in (frame, frame.to_dict("records"), pa.Table.from_pandas(frame)):
            _, values, odd = classify.read_rows(table, (), (WORDS, STEPS))
            assert values[:, 1].tolist() == [7, 5, 5, 5, 5]
            assert odd == ["values of the column price are no numbers, so they count as missing"]
    assert rows_of([f"a{BORDER}b", " "])[0] == ["a b", " "]  # a control character of a title is a space
    assert rows_of([])[0] == [] and rows_of(pd.DataFrame({"title": []}))[1].shape == (0, 2)
    for wrong in ("a", b"a", {"title": "a"}, [{"name": "a"}], pd.DataFrame({"name": ["a"]}), ["a", 5], [["a"]],
                  pd.DataFrame([["a", "b"]], columns=["title", "title"]), np.zeros((2, 2))):
        with pytest.raises(TypeError):
            rows_of(wrong)


# --- parts of a title -------------------------------------------------------------------------------------------------

def test_parts_of_a_title_stay_apart():
    title = f"Mesa & silla{BORDER}roja{BORDER}de"
    words = ["mesa", "silla", *[""] * GAP, "roja", *[""] * GAP, "de"]
    assert data.tokenize(title) == words
    codes, distinct, lengths = data.tokenize_list([title, "roja de", f"a{BORDER}b&amp;c"])
    assert [distinct[code] for code in codes] == [*words, "roja", "de", "a", *[""] * GAP, "b", "c"]
    assert lengths.tolist() == [len(words), 2, 3 + GAP]
    index = {word: i for i, word in enumerate([*data.SPECIALS, "mesa", "silla", "roja", "de"])}
    ids, others = data.encode([title], index, 12)
    assert ids.tolist() == [[2, 3, 0, 0, 4, 0, 0, 5, 0, 0, 0, 0]] and not others
    features = {"hashes": np.arange(6, dtype=np.uint32), "buckets": np.uint32(1000), "first": np.int32(6)}
    for array in (ids, jnp.asarray(ids)):
        found = np.asarray(model.word_ngrams(features, array, 5)).reshape(4, 12)
        assert np.flatnonzero(found).tolist() == [0]  # the pair of the first two words, and nothing else
    one, other = data.keys_of([title, "mesa silla roja de"])
    assert one != other


@pytest.mark.slow
def test_no_filter_crosses_a_border():
    """The features of a CNN's widest windows are those of each part alone."""
    from test_model import random_predictor
    ready = random_predictor("cnn")
    kernel = {width: np.asarray(ready.params[f"filters_{width}"]) for width in (1, 2, 3)}
    assert max(kernel) <= GAP + 1
    draw = np.random.default_rng(0)
    parts = draw.integers(2, 50, (2, 3))
    whole = np.concatenate([parts[0], np.zeros(GAP, int), parts[1]])[None]

    def filters(ids):
        """The features of the first head, in which the maximum over the windows stands first."""
        vectors, weights, values = predict.inputs(ready, data.batch_of({"titles": jnp.asarray(ids)}))
        _, state = ready.module.apply({"params": ready.params}, vectors, weights, values, mutable=["intermediates"],
                                      capture_intermediates=lambda module, _: module.name == "Dropout_0")
        found = jax.tree.leaves(state["intermediates"])[0]
        return found[:, :sum(x.shape[-1] for x in kernel.values())]

    found = filters(whole)
    np.testing.assert_allclose(found, np.maximum(*(filters(part[None]) for part in parts)), rtol=1e-5, atol=1e-6)


# --- the network ------------------------------------------------------------------------------------------------------

def test_the_vectors_of_values_by_hand():
    """Each value as a normalized sum of rows of their table, in training and in the exported model alike."""
    columns, draw, side = [WORDS, STEPS], np.random.default_rng(0), classify.BESIDE
    table, weights = draw.normal(size=(10, 4)).astype(np.float32), np.float32([0, 1, 2, 3, 0, 1, 1.5, 2, 1, 3])
    ids = np.array([[2, 7], [3, 0], [0, 0], [4, 6], [1, 9]])
    made_of = [[[(2, 1)], [(7, 1), (6, side), (8, side)]], [[(3, 1)], []], [[], []], [[(4, 1)], [(6, 1), (7, side)]],
               [[(1, 1)], [(9, 1), (8, side)]]]
    norms = np.array([[math.sqrt(sum((2.5 * weights[row] * factor) ** 2 for row, factor in parts)) for parts in both]
                      for both in made_of])
    expected = np.array([[sum((2.5 * weights[row] * factor * table[row] for row, factor in parts), np.zeros(4)) /
                          (norm or 1) for parts, norm in zip(*both, strict=True)]
                         for both in zip(made_of, norms, strict=True)])
    features = model.value_features({"value_weight": 2.5}, columns)
    settings = {"columns": ["brand", "price"], "value_weight": 2.5}
    exported = classify.Values(settings, {"values": table, "value_scale": np.ones(10, np.float16),
                                          "value_weights": weights}, columns, columns)
    for found in (model.lookup(table, model.draw_values(features, jnp.asarray(weights), ids))[:2],
                  exported.vectors(ids)):
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], norms, rtol=1e-5)


def test_values_are_left_out_together():
    features, ids = model.value_features({}, [WORDS, STEPS]), np.tile([[2, 7]], (4000, 1))
    [(_, weights)] = model.draw_values(features, jnp.ones(10), ids, jax.random.key(0), 0.3)
    there = np.asarray(weights > 0).reshape(4000, -1).sum(1)
    assert {*there.tolist()} == {0, 4} and abs((there == 0).mean() - 0.3) < 0.03
    [(_, weights)] = model.draw_values(features, jnp.ones(10), ids)
    assert (np.asarray(weights) > 0).sum(2).tolist() == [[1, 3]] * 4000
