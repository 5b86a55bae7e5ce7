"""data.py: its words against the specification in classify.py, and that against plainer code; the prepared arrays
against damage, vectors and batches."""
import gzip
import html
import json
import math
import pickle
import random
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import PACKED, save
from hypothesis import example, given, settings
from hypothesis import strategies as st

import classify
import data
from titles import files, formats
from titles.cli import UserError


def bulk_words(titles):
    """The words of each title by the bulk path."""
    codes, words, lengths = data.bulk_tokenize(pa.array(titles, pa.string()))
    assert len(codes) == lengths.sum() and len(lengths) == len(titles)
    ends = np.cumsum(lengths)
    return [[words[code] for code in codes[end - length:end]] for end, length in zip(ends, lengths, strict=True)]


def assert_bulk_agrees(titles):
    for title, words in zip(titles, bulk_words(titles), strict=True):
        assert words == data.tokenize(title), ascii(title)


def plain_words(title):
    """The words of a title in plain Python, which takes longer than the specification."""
    title = classify.ENTITY.sub(lambda found: html.unescape(found[0]), title).lower()
    kept = [c.lower() for c in unicodedata.normalize("NFKD", title) if unicodedata.category(c) not in classify.DROPPED]
    return classify.WORD.findall("".join(kept))


# --- tokenizer --------------------------------------------------------------------------------------------------------

CASES = {
    "Teléfono Móvil ÑANDÚ Coração": ["telefono", "movil", "nandu", "coracao"],
    "e\u0301cran pin\u0303a a\u0301\u0323b": ["ecran", "pina", "ab"],  # combining marks join what they stand on
    "ﬁltro ﬀ Ⅻ ＡＢＣ１２": ["filtro", "ff", "xii", "abc12"],            # compatibility forms
    "1ª 2º N° m² m³ H₂O": ["1a", "2o", "n", "m2", "m3", "h2o"],
    "½ kg, ¼": ["1", "2", "kg", "1", "4"],
    "$1.500,00 c/u 100%": ["1", "500", "00", "c", "u", "100"],
    "funda_iphone __x__ _": ["funda", "iphone", "x"],
    "iPhone7Plus 16GB xr-650": ["iphone7plus", "16gb", "xr", "650"],
    "İstanbul IĞDIR ılık": ["istanbul", "igdir", "ılık"],
    "STRASSE Straße": ["strasse", "straße"],
    "ΟΔΟΣ Σ ΆΛΦΑ": ["οδο\u03c2", "σ", "αλφα"],
    "Привет ЧАЙНИК": ["привет", "чаиник"],
    "नमस्ते हिन्दी": ["नमसत", "हनद"],
    "手机壳 iPhone壳X": ["手", "机", "壳", "iphone", "壳", "x"],
    "カメラ・レンズ ガラス ﾃﾚﾋﾞ": ["カ", "メ", "ラ", "レ", "ン", "ス", "カ", "ラ", "ス", "テ", "レ", "ヒ"],
    "𠀀b": ["𠀀", "b"],
    "한국 폰": [unicodedata.normalize("NFKD", "한국"), unicodedata.normalize("NFKD", "폰")],
    "שלום عَرَبِيّ": ["שלום", "عربي"],
    "rojo😀azul ❤️ ok👍🏽": ["rojo", "azul", "ok"],
    "a\0b c\u00a0d e/f g\u2028h i\tj\r\nk": list("abcdefghijk"),
    "tele\u00advisor sma\u200brt \u202btv\u200f wi\u2060fi\ufeff": ["televisor", "smart", "tv", "wifi"],
    "Caf&eacute; &Ntilde;and&uacute; L&#39;Or&#xE9;al&nbsp;5&Prime;": ["cafe", "nandu", "l", "oreal", "5"],
    "&Sigma;&Omicron;&Sigma; tele&shy;visor M&amp;M &lt;b&gt;": ["σο\u03c2", "televisor", "m", "m", "b"],
    "caf&amp;eacute; &amp;amp; &amp;Sigma;": ["caf", "eacute", "amp", "sigma"],  # decoded once, not twice
    "mouse&notebook negro&regalo AT&T &eacute &; &#;": [  # without a semicolon an ampersand separates
        "mouse", "notebook", "negro", "regalo", "at", "t", "eacute"],
    f"&#0;x&#xD800;y&#1;z &#{'9' * 5000}; &zz;": ["x", "yz", "9" * 5000, "zz"],
    "": [], " ": [], "¡¿!? --- \0": [],
}


@pytest.mark.parametrize("title", CASES, ids=ascii)
def test_tokenizer_on_cases_written_by_hand(title):
    assert data.tokenize(title) == CASES[title]


@given(st.text() | st.text(st.sampled_from("aB&;#xΣσςİ\u0301\u0323\ufb01é№ㄱ각桌ー가1_ \x85\ud800&amp")))
@example("ΑΣ. ΑΣ\u0301 &eacute;&amp;eacute; ſ ẞ")
def test_tokenizer_equals_one_plain_expression(title):
    title = title.replace(classify.BORDER, "")  # see test_columns.py
    assert classify.tokenize(title) == plain_words(title)


def test_tokenizer_equals_it_on_every_character():
    for code in range(0x110000):
        title = f"a{chr(code)}b\u0301{chr(code)}"
        if chr(code) != classify.BORDER:  # see test_columns.py
            assert classify.tokenize(title) == plain_words(title), hex(code)


def test_bulk_tokenizer_on_cases_written_by_hand():
    assert bulk_words(list(CASES)) == list(CASES.values())
    assert bulk_words([]) == []


def contexts(characters):
    return [form for c in characters for form in (c, f"a{c}b", f"Z {c}{c} 9", f"{c}É")]


def test_bulk_tokenizer_agrees_on_every_character_of_latin_greek_and_cyrillic():
    characters = [chr(c) for low, high in ((0, 0x530), (0x1e00, 0x20cf)) for c in range(low, high + 1)]
    assert_bulk_agrees(contexts(characters))
    draw = random.Random(0)  # and together, so that what one character does to its neighbours shows
    assert_bulk_agrees(["".join(draw.choices(characters, k=draw.randrange(40))) for _ in range(2000)])


def test_nothing_but_sigma_and_entities_looks_beyond_a_separator():
    """What lets the bulk path cut titles at ASCII separators first, and tokenize the pieces."""
    valid = [chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000]
    assert [c for c in valid if f"A.{c}".lower() != f"a.{c.lower()}" or f"{c}.A".lower() != f"{c.lower()}.a"] == ["Σ"]
    assert_bulk_agrees(["ΑΣ.Α", "ΑΣ. Α", "ΑΣ'", "Α'Σ", "ΟΔΟΣ/ΟΔΟΣ", "xΣ-Σx",
                        "Σ foo™", "ΟΔΟΣ 20℃", "№5 Σ"])  # the last three: compatibility forms of capitals
    assert all(c.lower() == c for title in ("LEGO™ №5", "20℃", "𝐀𝚺") for c in "".join(data.tokenize(title)))
    assert all(c.lower().lower() == c.lower() for c in valid)


def test_bulk_tokenizer_agrees_on_a_sample_of_all_characters():
    valid = [c for c in range(0x110000) if not 0xd800 <= c < 0xe000]
    assert_bulk_agrees(contexts(map(chr, random.Random(1).sample(valid, 3000))))


def test_words_hold_letters_and_digits_alone_and_no_letter_is_lost():
    for c in map(chr, [*range(0x3400), *range(0x9f00, 0xd800), *range(0xe000, 0x10000), *range(0x1f000, 0x20100)]):
        words = data.tokenize(c)
        decomposed = unicodedata.normalize("NFKD", c.lower())
        kept = "".join(k.lower() for k in decomposed if unicodedata.category(k)[0] in "LN")
        assert "".join(words) == kept, ascii(c)


SPECIAL = ("İıẞßΣςªº²½ﬁ\u212a\u212bc/u_-. \t\n\r\0\u00ad\u0301\u0308\u0345\u20dd\u200d\u200f\u202e"
           "ñÑéЙй手壳カ・ハ゛한אבِहि😀\ud800\udfff")
ENTITIES = st.lists(st.sampled_from([
    "&", "amp;", "&amp;", "&lt;", "eacute;", "&Sigma;", "&#931;", "&#x26;", "#38;", "&#0;", "&shy;", "&nbsp;", "Σ", "A",
    "é", " ", ".", ";", "\u200b", "\ud800"])).map("".join)
titles = st.lists(ENTITIES | st.text(
    st.one_of(st.sampled_from(SPECIAL), st.characters(), st.characters(max_codepoint=0x24f))), max_size=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(titles, st.integers(1, 12))
@example(["a" * 5000, "x y " * 3000, "", "ñ" * 3, "\ud83d"], 7)
@example([], 3)
@example([""], 1)
def test_encode_agrees_with_plain_python_on_any_string(titles, max_len):
    words = [data.tokenize(title) for title in titles]
    index = {word: 2 + i for i, word in enumerate(sorted({word for row in words for word in row})[::2])}
    index = dict(zip([*data.SPECIALS, *index], range(len(index) + 2), strict=True))
    encoded, others = data.encode(titles, index, max_len)
    both = index | {word: len(index) + i for i, word in enumerate(others)}
    reference = [([both[word] for word in row] + [0] * max_len)[:max_len] for row in words]
    assert encoded.shape == (len(titles), max_len) and len(both) == len(index) + len(others)
    assert encoded.tolist() == reference
    assert_bulk_agrees([title.encode("utf-8", "replace").decode() for title in titles])


def test_titles_of_a_megabyte():
    draw, size = random.Random(2), 1 << 20
    long = ["a" * size, "é" * (size // 2), "\u0301" * (size // 2), "手" * (size // 3), "x " * (size // 2), "\0" * size,
            "".join(draw.choices(SPECIAL[:-2], k=size // 2))]
    assert_bulk_agrees([*long, "corto"])
    encoded, others = data.encode([*long, "\udfff" * size], {"<pad>": 0, "<unknown>": 1, "a": 2}, 5)
    assert encoded[4].tolist() == [2 + 1 + others.index("x")] * 5 and not encoded[[2, 5, 7]].any()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=6), st.integers(0, 5),
       st.integers(0, 4))
def test_character_ngrams_equal_plain_python(words, minn, more):
    maxn = minn + more

    def fnv(text):
        value = 2166136261
        for character in text:
            value = (value ^ ord(character)) * 16777619 % 2 ** 32
        return value

    start, bucket = data.character_ngrams([*data.SPECIALS, *words], minn, maxn, 1000)
    assert start[0] == start[1] == start[2] == 0 and len(bucket) >= start[-1] and not bucket[start[-1]:].any()
    assert start.dtype == bucket.dtype == np.int32 and len(bucket).bit_count() == 1
    specified = classify.character_ngrams(words, minn, maxn, 1000)
    assert start[2:].tolist() == specified[0].tolist() and bucket[:start[-1]].tolist() == specified[1].tolist()
    for word, begin, end in zip(words, start[2:-1], start[3:], strict=True):
        text = f"<{word[:32]}>"
        assert bucket[begin:end].tolist() == [fnv(text[i:i + n]) % 1000 for n in range(max(minn, 1), maxn + 1)
                                              for i in range(len(text) - n + 1)]


def test_a_lone_surrogate_only_separates():
    assert data.tokenize("a\ud800b") == ["a", "b"]
    assert data.encode(["a\ud800b \udfff"], {"<pad>": 0, "a": 1, "b": 2}, 4)[0].tolist() == [[1, 2, 0, 0]]


@pytest.mark.parametrize("lengths", [[], [0], [3], [0, 2, 0, 5, 1, 0], [9, 9]], ids=str)
@pytest.mark.parametrize("max_len", [1, 3, 9])
def test_pad_cuts_and_fills(lengths, max_len):
    rows = [[10 * i + j + 1 for j in range(length)] for i, length in enumerate(lengths)]
    flat = np.array([x for row in rows for x in row], np.uint16)
    padded = data.pad(flat, np.array(lengths, np.int32), max_len)
    assert padded.dtype == np.uint16 and padded.shape == (len(lengths), max_len)
    assert padded.tolist() == [(row + [0] * max_len)[:max_len] for row in rows]


def test_bulk_tokenizer_takes_slices_of_arrays():
    whole = pa.array(["uno dos", "手 tres", "", "CUATRO"], pa.string())
    codes, words, lengths = data.bulk_tokenize(whole[1:])
    assert [words[code] for code in codes] == ["手", "tres", "cuatro"] and lengths.tolist() == [2, 0, 1]


# --- prepared arrays --------------------------------------------------------------------------------------------------

@pytest.fixture
def prepared(tiny, tmp_path):
    """A copy of the tiny prepared folder that a test may damage."""
    return Path(shutil.copytree(tiny / "data/prepared", tmp_path / "prepared"))


def rewrite_meta(folder, **changes):
    """Change meta.json as one who knows the format would, with a fingerprint that fits."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8")) | changes
    meta["files"] = {name: files.checksum(folder / name) for name in meta["files"]}
    meta["fingerprint"] = files.fingerprint(meta["files"])
    files.write_json(folder / "meta.json", files.with_checksum(meta))


def test_load_prepared_gives_what_the_files_hold(prepared):
    meta, arrays = data.load_prepared(prepared, text="test")
    assert list(arrays) == list(data.SPLITS) and len(arrays["test"]["text"]) == meta["rows"]["test"] > 0
    assert meta["vocab"][:2] == data.SPECIALS and meta["vectors"] is None
    assert meta["labels"] == ["CELULARES", "FUNDAS", "MESAS", "SILLAS"] == files.read_lines(prepared / "labels.txt")
    longest = max(np.flatnonzero(np.load(prepared / f"{split}_titles.npy").any(0)).max() + 1 for split in data.SPLITS)
    assert longest < meta["max_len"]
    for split in data.SPLITS:
        assert set(arrays[split]) == {"titles", "keys", "labels", "language", "reliable"} | (
            {"text", "file", "line"} if split == "test" else set())
        for kind in ("titles", "keys", "labels", "language", "reliable"):
            whole = np.load(prepared / f"{split}_{kind}.npy", allow_pickle=False)
            array = arrays[split][kind]
            assert array.dtype == whole.dtype and len(array) == meta["rows"][split]
            assert array.flags.c_contiguous
            if kind == "titles":  # columns that are padding in every split are dropped
                assert array.shape == (len(whole), longest) and not whole[:, longest:].any()
                unknown = whole == data.UNKNOWN
                assert unknown.any() == (split != "train")
                numbers = np.load(prepared / f"{split}_oov.npy", allow_pickle=False)
                whole[unknown] = len(meta["vocab"]) + numbers.astype(int)
                whole = whole[:, :longest]
            np.testing.assert_array_equal(array, whole)
    assert meta["words"] == meta["vocab"] + files.read_lines(prepared / "oov.txt")
    index = {word: i for i, word in enumerate(meta["words"])}
    np.testing.assert_array_equal(data.encode(arrays["test"]["text"], index, longest)[0], arrays["test"]["titles"])


def test_load_prepared_reads_only_the_splits_asked_for(prepared):
    (prepared / "test_titles.npy").unlink()
    assert list(data.load_prepared(prepared, ("train", "valid"))[1]) == ["train", "valid"]


NAMES = ("train_titles.npy", "valid_labels.npy", "test_language.npy", "test_reliable.npy", "vocab.txt", "labels.txt",
         "test_text.txt", "test_line.npy", "oov.txt", "valid_oov.npy")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "longer", "empty", "foreign"])
def test_a_damaged_file_is_named(prepared, name, damage):
    path = prepared / name
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {"cut": content[:-1], "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:],
               "longer": content + b"\n", "empty": b"", "foreign": b"<pad>\n<unknown>\nfunda\n"}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    with pytest.raises(UserError) as raised:
        data.load_prepared(prepared, text="test")
    assert str(path) in str(raised.value) and "run prepare.py again" in str(raised.value)
    assert ("missing" in str(raised.value)) == (damage == "missing")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}'])
def test_a_broken_meta_file_is_named(prepared, content):
    (prepared / "meta.json").write_text(content)
    with pytest.raises(UserError, match=r"meta\.json: "):
        data.load_prepared(prepared)


def test_meta_that_lists_other_files_or_has_another_format_is_refused(prepared):
    meta = json.loads((prepared / "meta.json").read_text(encoding="utf-8"))
    del meta["files"]["test_reliable.npy"]
    (prepared / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(UserError, match=r"meta\.json: changed .*; run prepare.py again"):
        data.load_prepared(prepared)
    rewrite_meta(prepared, format=3)
    with pytest.raises(UserError, match=rf"meta\.json: format version 3, expected {data.FORMAT}; run prepare.py"):
        data.load_prepared(prepared)


def test_data_prepared_with_another_tokenizer_is_warned_of(prepared, capsys):
    assert data.load_prepared(prepared)[0]["tokenizer"] == data.TOKENIZER
    assert capsys.readouterr().err == ""
    rewrite_meta(prepared, tokenizer="0" * 32)
    data.load_prepared(prepared)
    assert capsys.readouterr().err == (f"warning: {prepared}: was prepared with another classify.py; if its tokenizer "
                                       "was changed, run prepare.py again\n")


def test_meta_cannot_lead_outside_its_folder(prepared, tmp_path):
    np.save(tmp_path / "elsewhere.npy", np.zeros(3))
    (prepared / "test_").mkdir()
    meta = json.loads((prepared / "meta.json").read_text(encoding="utf-8"))
    meta["files"]["test_/../../../elsewhere.npy"] = files.checksum(tmp_path / "elsewhere.npy")
    files.write_json(prepared / "meta.json", files.with_checksum(meta))
    with pytest.raises(UserError, match=r"meta\.json: names a file outside"):
        data.load_prepared(prepared)


def test_a_folder_without_prepared_data_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"{folder}: no prepared data here; run prepare.py"):
            data.load_prepared(folder)
    assert not (tmp_path / "nowhere").exists()


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_no_array_needs_pickle_and_none_is_unpickled(prepared, monkeypatch):
    for path in prepared.glob("*.npy"):
        assert not np.load(path, allow_pickle=False).dtype.hasobject
    monkeypatch.chdir(prepared)
    labels = np.empty(1, object)
    labels[0] = Trap()
    with open(prepared / "test_labels.npy", "wb") as file:
        np.lib.format.write_array(file, labels, allow_pickle=True)
    pickle.loads(pickle.dumps(Trap()))
    assert Path("executed").exists(), "the trap works"
    Path("executed").unlink()
    rewrite_meta(prepared)
    with pytest.raises(UserError, match=r"test_labels\.npy: no plain array"):
        data.load_prepared(prepared)
    assert not Path("executed").exists()


def test_load_prepared_brings_back_what_a_killed_swap_left(prepared):
    prepared.rename(prepared.with_name("prepared.tmp-old"))
    meta, _ = data.load_prepared(prepared)
    assert meta["rows"]["train"] and not prepared.with_name("prepared.tmp-old").exists()


@pytest.mark.parametrize(("largest", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65_535, "uint16"),
                                                (65_536, "uint32"), (2**32 - 1, "uint32")])
def test_smallest_uint_holds_the_largest_id(largest, dtype):
    assert data.smallest_uint(np.int64(largest)) == dtype and np.array(largest).astype(dtype) == largest


# --- vectors ----------------------------------------------------------------------------------------------------------

VOCAB = [*data.SPECIALS, "mesa", "telefono", "nandu", "x9", "nada", "silla"]
VECTORS = ["mesa 1 2 3", "Mesa 9 9 9", "Teléfono 4 5 6", "TELÉFONO 8 8 8", "ñandú 7 7 7", "nandu -0.5 1e-3 .25",
           "otra 1 1 1", ", 0 0 0", "new york 5 5 5", "silla 0.1 0.2 0.3"]
EXPECTED = {"mesa": [1, 2, 3], "telefono": [4, 5, 6], "nandu": [-0.5, 1e-3, 0.25], "silla": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("header", [["10 3"], []], ids=["word2vec", "GloVe"])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"], ids=ascii)
def test_vectors_are_read(tmp_path, packed, header, end):
    path = save(tmp_path / "vectors.txt", PACKED[packed]("".join(line + end for line in header + VECTORS).encode()))
    bad = formats.BadRows(0.01)
    vectors = data.read_vectors(path, VOCAB, bad)
    assert vectors.dtype == np.float32 and vectors.shape == (len(VOCAB), 3) and bad.count == 0
    for word, vector in zip(VOCAB, vectors, strict=True):
        np.testing.assert_array_equal(vector, np.float32(EXPECTED.get(word, [0, 0, 0])))


def test_an_exact_word_wins_wherever_it_stands(tmp_path):
    for lines in (["Mesa 9 9", "mesa 1 2"], ["mesa 1 2", "MESA 9 9"], ["MÉSA 8 8", "mesa 1 2", "Mesa 9 9"],
                  ["mesa 1 2", "mesa 9 9"]):
        path = save(tmp_path / "vectors.txt", "\n".join(lines))
        assert data.read_vectors(path, VOCAB, formats.BadRows(1))[2].tolist() == [1, 2]


def test_bad_lines_of_vectors_are_counted(tmp_path):
    lines = [f"w{i} 1 2 3" for i in range(300)] + VECTORS
    for place, line in ((250, "mesa 1 x 3"), (100, "silla 1 2"), (50, "x9 1 nan 3"), (20, "")):
        lines.insert(place, line)
    path = save(tmp_path / "vectors.txt", "\n".join(lines) + "\n")
    bad = formats.BadRows(4)
    vectors = data.read_vectors(path, VOCAB, bad)
    assert (bad.count, bad.first) == (4, f"{path}:21: not a word and 3 numbers")
    assert vectors[VOCAB.index("mesa")].tolist() == [1, 2, 3] and not vectors[VOCAB.index("x9")].any()
    with pytest.raises(UserError, match=re.escape(f"{path}:21: not a word and 3 numbers (4 bad rows of 314; ")):
        data.read_vectors(path, VOCAB, formats.BadRows(0.01))


@pytest.mark.parametrize("header", [[], ["3 3\n"]])
def test_vectors_of_another_length_are_bad_lines(tmp_path, header):
    first = "mesa 1 2 3\n" if not header else "mesa 1 2\n"
    path = save(tmp_path / "vectors.txt", "".join([*header, first, "silla 1 2 3 4 5\n", "azul 4 5 6\n", "x y 7 8 9\n"]))
    bad = formats.BadRows(4)
    vectors = data.read_vectors(path, ["<pad>", "<unknown>", "mesa", "silla", "azul"], bad)
    assert bad.count == 1 + len(header) and vectors[4].tolist() == [4, 5, 6] and not vectors[3].any()


def test_a_number_too_large_for_float32_makes_a_bad_line(tmp_path, recwarn):
    bad = formats.BadRows(4)
    vectors = data.read_vectors(save(tmp_path / "v.txt", "mesa 1 2\nx9 1e99 1\n"), VOCAB, bad)
    assert bad.count == 1 and not vectors[VOCAB.index("x9")].any() and not recwarn.list


@pytest.mark.parametrize(("content", "message"), [
    (None, ": no such file"), ("", ": empty file"), ("id,title\n1,Silla\n", ":1: no vector here"),
    ("2 3\nrueda 1 2 3\nluz 4 5 6\n", ": no word of the vocabulary"), (b"x" * 9_000_000, ":1: a line of more"),
    ("mesa de color azul para el comedor\nlos nuevos son\n", ":1: not a word and 6 numbers"),
    (gzip.compress(b"mesa 1 2\n" * 999, mtime=0)[:20], ": broken compressed file")], ids=lambda x: repr(x)[:20])
def test_what_is_no_file_of_vectors_is_refused(tmp_path, content, message):
    if content is not None:
        save(tmp_path / "v.vec", content)
    with pytest.raises(UserError, match=f"v.vec{message}"):
        data.read_vectors(tmp_path / "v.vec", VOCAB, formats.BadRows(0.01))


# --- batches ----------------------------------------------------------------------------------------------------------

def titles_of(lengths, width=9):
    """Padded titles of these many words, [N, width]."""
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.uint16) * 7


SHORT_AND_LONG = titles_of(np.random.default_rng(0).choice([0, 1, 2, 3, 8, 9], 2000))


def test_short_and_long_titles_are_parted_where_least_is_padded():
    groups = data.length_groups(SHORT_AND_LONG, 8, 10)
    assert [group.width for group in groups] == [3, 9]
    np.testing.assert_array_equal(np.sort(np.concatenate([group.rows for group in groups])), np.arange(2000))
    length = (SHORT_AND_LONG > 0).sum(1)
    for rows, width, *_ in groups:
        assert rows.dtype == np.uint32 and not SHORT_AND_LONG[rows, width:].any()
    padded = {cut: ((length <= cut) * cut + (length > cut) * 9).sum() for cut in range(1, 10)}
    assert sum(len(rows) * width for rows, width, *_ in groups) == min(padded.values())


@pytest.mark.parametrize("lengths", [[3, 3, 9] * 26, [9] * 1000, [0] * 1000, [3] * 1000 + [9] * 79, [5]], ids=len)
def test_titles_are_not_parted_where_a_part_would_be_small(lengths):
    ((rows, width, *_),) = data.length_groups(titles_of(lengths), 8, 10)
    assert rows.tolist() == list(range(len(lengths))) and width == 9


@pytest.mark.parametrize(("rows", "batch_size", "max_steps"), [
    (1, 1, 1), (1, 8, 4), (7, 8, 50), (8, 8, 50), (9, 8, 50), (1000, 8, 50), (1001, 10, 7), (64, 1, 64), (65, 1, 64)])
def test_an_epoch_visits_every_row(rows, batch_size, max_steps):
    groups = data.length_groups(titles_of(np.arange(rows) % 10), batch_size, max_steps)
    found = data.batches(groups, batch_size, seed=3, epoch=1)
    for members, width, chunks, steps in groups:
        needed = math.ceil(len(members) / batch_size)
        assert 1 <= steps <= max_steps and chunks == math.ceil(needed / max_steps)  # no more chunks than needed
        assert 0 <= chunks * steps - needed < chunks  # even: less than one step too many in each chunk
        mine = [order for own, order in found if own == width]
        assert [order.shape for order in mine] == [(steps, batch_size)] * chunks
        assert all(order.dtype == np.uint32 for order in mine)
        counts = np.bincount(np.concatenate([order.ravel() for order in mine]), minlength=rows)[members]
        assert counts.sum() == chunks * steps * batch_size  # no row of another group
        assert counts.min() >= 1 and counts.max() <= counts.min() + 1
    assert sum(len(members) for members, *_ in groups) == rows


def bytes_of(found):
    return [(width, order.tobytes()) for width, order in found]


def test_the_order_is_a_function_of_seed_and_epoch():
    groups = data.length_groups(SHORT_AND_LONG, 8, 10)
    orders = {(seed, epoch): bytes_of(data.batches(groups, 8, seed, epoch)) for seed in range(3) for epoch in range(3)}
    for (seed, epoch), order in reversed(orders.items()):  # history does not matter
        assert bytes_of(data.batches(groups, 8, seed, epoch)) == order
    assert len({str(sorted(order)) for order in orders.values()}) == len(orders)
    widths = {tuple(width for width, _ in order) for order in orders.values()}
    assert len(widths) > 1 and all({*mixed[:len(mixed) // 2]} == {3, 9} for mixed in widths)  # long among short


def test_ngrams_come_from_the_beginning_of_a_word():
    """Else a title of a megabyte without a space would have millions."""
    begun = "".join(map(chr, range(97, 97 + classify.NGRAM_CHARACTERS)))
    (start, long), (_, short) = (classify.character_ngrams([word], 3, 5, 1000) for word in (begun + "z" * 99, begun))
    assert np.array_equal(long, short) and start[-1] == sum(len(begun) + 3 - size for size in (3, 4, 5))
