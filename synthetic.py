"""Write a marketplace data set made from rules: any size, the shape of the MeLi Data Challenge 2019, no download.

    python synthetic.py                                              # 100 thousand titles, 120 categories
    python synthetic.py --rows 20000000 --categories 1588 --out data/raw/full_size.csv

The CSV has the challenge's header `title,label_quality,language,category`: Spanish and Portuguese product titles with
brands, model codes, units, promotions, misspellings and mojibake. As in the real data, categories differ 69 to 1 in
size, 6 % of the rows are `reliable`, and about 5.5 % of the others carry a wrong label, mostly a sibling's. Accessories
name the product they are for, many titles never say what they sell, and siblings share words, so no single keyword
decides a title and word order helps. Every category name starts with SYN_, so a report cannot pass for a real one.

The words stand in `synthetic.txt`, which says how to edit it. It holds 120 categories; more (up to 1,866) are derived
from them, such as SYN_BLENDERS_SPARE_PARTS. The bytes of the CSV depend on that file, --rows, --categories and --seed
alone. The seed picks the titles, not the rules: files of two seeds are two samples of one data set.

Time on two cores: the default 2 seconds, 20 million rows of 1,588 categories (1.9 GB) 25 seconds; memory below 400 MB.
Balanced accuracy to expect on the default file, 80 % of it for training: 0.64 for the most telling keyword, 0.81 for a
linear SVM on words, 0.84 on words and word pairs (class weights balanced). Wrong labels cap it at 0.945.
"""
import configparser
import random
import re
import sys
import unicodedata
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from titles import cli
from titles.cli import UserError

if __name__ == "__main__":
    cli.run(lambda: cli.require_packages(("numpy", "pyarrow", "tqdm")))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from titles import files

# --- knobs ------------------------------------------------------------------------------------------------------------

TABLES = Path(__file__).with_name("synthetic.txt")
ROWS, CATEGORIES = 100_000, 120
PREFIX = "SYN_"            # how prepare.py and every report recognise this data: keep
RELIABLE = 0.0592          # share of reliable rows; raise it to get reliable scores from a small file
NEVER_RELIABLE = 0.12      # share of categories without any reliable row
LABEL_NOISE = 0.055        # share of wrong labels among unreliable rows; 0 shows a model's ceiling
ONE_LANGUAGE = 0.016       # share of categories sold in one language only
FAR = 0.15                 # wrong labels and mentions that leave the family; lower is harder
NO_HEAD = 0.1              # titles of brand, model and attributes only; raise to make the task harder
VAGUE = 0.02               # titles with nothing but family and promotion words: nobody can tell
MENTION = 0.5              # titles that name a second product after their own; raise to reward word order
BORROWED = 0.18            # descriptive words and models taken from a sibling; raise to make words less telling
MISSPELT = 0.02            # share of fragments with a typing error
MOJIBAKE = 0.004           # titles with broken accents
PLAIN = 0.60               # titles without accents
MID_WORD = 0.08            # titles cut at 60 characters, whatever stands there
TOO_LONG = 0.012           # titles of more than 60 characters
SHORT = 0.3                # titles that stop early; the others fill the 60 characters a seller has
CASES = [0.62, 0.84]       # up to here titles are in title case, then in lower case, the rest in upper case
CHUNK = 50_000             # rows made at a time: memory grows with it, and the bytes written change with it
SIZES = [0, 0.03, 0.36, 0.43, 0.95, 1], [275, 1000, 5000, 9000, 17000, 19000]  # quantiles of category size: two humps

FIELDS = {                 # the fields of a title, and the share of titles that have each
    "lead": 0.25,
    "head": 1.0,           # NO_HEAD takes some away
    "mention": 1.0,        # connector, second product and a word for it; MENTION takes half of them away
    "word": 1.0,
    "brand": 0.5,
    "model": 0.55,
    "code": 0.3,           # letters, digits and a suffix
    "word2": 0.95,
    "common": 0.55,        # a word of the family
    "measure": 0.45,       # number and unit
    "attribute": 0.6,
    "coined": 0.2,         # a name of three syllables that means nothing
    "tail": 0.65,
    "dirt": 0.25}
ORDERS = [                 # in which sellers put them
    "lead head mention word brand model code word2 measure attribute coined common tail dirt",
    "head mention brand model code word measure word2 attribute common coined dirt tail lead",
    "lead head brand mention model code word attribute measure word2 common coined tail dirt",
    "head word mention word2 brand model code measure attribute common coined tail dirt lead",
    "head brand model code mention word word2 dirt attribute measure common coined tail lead",
    "brand model code head mention word word2 measure attribute common coined tail lead dirt",
    "head word word2 attribute brand mention model measure code common coined dirt tail lead",
    "tail lead head mention model word code brand word2 attribute measure coined common dirt",
    "model head mention word attribute word2 brand measure code common dirt coined tail lead",
    "lead coined head word mention brand code model word2 attribute measure common tail dirt"]

# --- tables -----------------------------------------------------------------------------------------------------------

KEYS = {                   # of each kind of section in synthetic.txt
    "family": ["brands", "words", "units"],
    "category": ["heads", "models", "words"],
    "derived": ["heads", "words", "excluded"],
    "lists": ["leads", "tails", "attributes", "connectors", "dirt", "syllables", "numbers", "letters"],
    "end": []}


def read_tables():
    """The sections of synthetic.txt by kind: {kind: [namespace of the name and, for each key, its `items`]}.
    Raises UserError where the file is not as its top says."""
    # The sections and lists are those of an INI file, for which the standard library has a reader.
    parser = configparser.RawConfigParser(delimiters=":", comment_prefixes="#", default_section="")
    tables = {kind: [] for kind in KEYS}
    try:
        parser.read_string(TABLES.read_text(encoding="utf-8-sig"), TABLES.name)
        for section in parser.sections():
            kind, _, name = section.partition(" ")
            record = SimpleNamespace(name=name, **{key: items(parser[section][key]) for key in KEYS[kind]})
            # A category belongs to the family above it, and a derived one will name the product that it is made from.
            if kind == "category":
                record.family, record.product = len(tables["family"]) - 1, name
            tables[kind].append(record)
    except (UnicodeDecodeError, KeyError, configparser.Error) as error:
        raise UserError(f"{TABLES}: {error}; see what the top of the file says of sections and keys") from None

    # The last section is missing where the file has been cut short, such as by a full disk.
    if not tables["end"]:
        raise UserError(f"{TABLES}: no section [end]; the file has been cut short")
    return tables


def items(text):
    """`vino=vinho, lata` -> [["vino", "lata"], ["vinho", "lata"]]: Spanish, Portuguese."""
    def clean(side):
        # Commas, and characters that no editor shows, are written as \x and their hexadecimal code.
        return re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), " ".join(side.split()))

    pairs = [[clean(side) for side in item.split("=")] for item in text.split(",")]
    return [[pair[0] for pair in pairs], [pair[-1] for pair in pairs]]


def choose_categories(tables, n):
    """The first n categories: those of the file, then the derived ones. Raises UserError where n is out of range."""
    # One rule after the other, as the products of a family stand together: few categories are siblings, so not easy.
    categories = list(tables["category"])
    for rule in tables["derived"]:
        for product in tables["category"]:
            if tables["family"][product.family].name not in rule.excluded[0]:
                heads = [[pattern.replace("{}", head) for head in product.heads[language][:3]
                          for pattern in rule.heads[language]] for language in (0, 1)]
                words = [rule.words[language] + product.words[language][:4] for language in (0, 1)]
                categories.append(SimpleNamespace(
                    name=rule.name.replace("{}", product.name), product=product.name, family=product.family,
                    heads=heads, models=product.models, words=words))
    if not 2 <= n <= len(categories):
        raise UserError(f"--categories {n}: must be between 2 and {len(categories)}")
    return categories[:n]


# --- tables to arrays -------------------------------------------------------------------------------------------------
# A title is a row of fragments. A fragment is a text with the spaces around it, known by its number; 0 is no text. A
# field draws its fragment from a list of choices, such as the Spanish head nouns of one category.

Choices = namedtuple("Choices", "fragments start size")  # of all lists of a kind on end; where each starts; its size
SPELLINGS = 8              # of each fragment: as in the tables, without accents, as mojibake, and five typing errors
CODE_SUFFIXES = [" ", " ", " ", "a ", "b ", "x ", "-2 ", "br ", "/1 ", "n "]


def number_fragments(tables, categories):
    """All fragments, and what fields draw them from: ([(text, glued)], {name: Choices of int32, int32, float32}). A
    glued fragment goes on with the word before it, so title case leaves it as it is."""
    def words(lists):
        return [[(f"{text} ", False) for text in texts] for texts in lists]

    def by_language(records, key):                       # list 2 i is of record i in Spanish, 2 i + 1 in Portuguese
        return [texts for record in records for texts in getattr(record, key)]

    # These lists are the same in both languages.
    families, lists = tables["family"], tables["lists"][0]
    dirt, syllables, letters, numbers = lists.dirt[0], lists.syllables[0], lists.letters[0], lists.numbers[0]
    letter_pairs = [first + second for first in letters for second in ["", *letters]]

    named = {
        "head": words(by_language(categories, "heads")),
        "dirt": words([["", *dirt]]),
        "model": words(by_language(categories, "models")),
        "word": words(by_language(categories, "words")),
        "brand": words(by_language(families, "brands")),
        "common": words(by_language(families, "words")),
        # Sellers write 500ml and 500 ml.
        "unit": [[fragment for unit in units for fragment in ((f"{unit} ", True), (f" {unit} ", False))]
                 for units in by_language(families, "units")],
        # The first syllable of a coined name begins a word, the last ends it.
        "syllable": [[(syllable + end, glued) for syllable in syllables]
                     for end, glued in (("", False), ("", True), (" ", True))],
        # Model codes, such as GM-9248B, and the numbers that measures have.
        "letters": [[(pair + end, False) for end in ("", "-", " ") for pair in letter_pairs]],
        "number": [[(str(number), False) for number in range(10_000)]],
        "round": [[(number, False) for number in numbers]],
        "suffix": [[(suffix, True) for suffix in CODE_SUFFIXES]],
        # Lists 0 and 1 are Spanish and Portuguese.
        "lead": words(lists.leads),
        "tail": words(lists.tails),
        "attribute": words(lists.attributes),
        "connector": words(lists.connectors)}

    # Fragments are numbered as they come: a text of many lists is stored once. The order decides who gets which typing
    # error, so it is part of the rules.
    numbered, result = {("", False): 0}, {}
    for name, lists in named.items():
        flat = [numbered.setdefault(fragment, len(numbered)) for fragments in lists for fragment in fragments]
        size = np.array([len(fragments) for fragments in lists])
        start = (size.cumsum() - size).astype(np.int32)
        result[name] = Choices(np.array(flat, np.int32), start, size.astype(np.float32))
    return list(numbered), result


def without_accents(text):
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def mistype(text, rng):
    """Swap, drop, double or insert a letter. The first letter and short texts stay, so that the word can be guessed."""
    i = rng.randrange(len(text) - 1) if len(text) > 4 else 0
    if i == 0 or not text[i:i + 2].isalpha():
        return text
    here, after = text[i], text[i + 1]
    return text[:i] + rng.choice([after + here, here, here * 2 + after, here + rng.choice("aeiosnrl")]) + text[i + 2:]


def written_forms(fragments):
    """Every fragment as it may be written: a flat pyarrow string array [case (title, lower, upper) x spelling x
    fragment]."""
    # A fragment is misspelt in five ways at most: people make the same mistakes, and a model can learn them.
    rng = random.Random(0)
    texts = [text for text, _ in fragments]
    plain = [without_accents(text) for text in texts]
    spellings = [texts, plain, [text.encode().decode("latin-1") for text in texts]]
    spellings += [[mistype(text, rng) for text in plain] for _ in range(SPELLINGS - len(spellings))]

    # str.title would raise the letter after an apostrophe or a digit too.
    forms = [[text if glued else " ".join(word.capitalize() for word in text.split(" "))
              for text, (_, glued) in zip(spelling, fragments, strict=True)] for spelling in spellings]
    forms += [[change(text) for text in spelling] for change in (str.lower, str.upper) for spelling in spellings]
    return pa.concat_arrays([pa.array(form, pa.string()) for form in forms])


def build_world(tables, categories):
    """All that does not depend on the seed: the fragments and their forms, how frequent categories and languages are.
    Arrays over categories are in the order of `names`, in which families stand together, as `sibling` needs them."""
    n = len(categories)
    categories = sorted(categories, key=lambda category: category.family)
    names = [PREFIX + category.name for category in categories]
    position = {category.name: i for i, category in enumerate(categories)}
    fragments, choices = number_fragments(tables, categories)
    forms = written_forms(fragments)

    # Sizes, languages and reliability are not drawn by --seed, so that two files are two samples of one data set.
    rng = np.random.default_rng(n)
    weight = rng.permutation(np.interp(np.linspace(0, 1, n), *SIZES))
    weight /= weight.sum()
    spanish, reliable = rng.uniform(0.35, 0.65, n), rng.uniform(0.2, 1.8, n)
    monolingual = rng.permutation(n)[:round(ONE_LANGUAGE * n)]
    spanish[monolingual] = np.arange(len(monolingual)) % 2
    reliable[rng.permutation(n)[:round(NEVER_RELIABLE * n)]] = 0

    # Category i owns the stretch of [0, 1] from cumulative[i] to cumulative[i + 1], its family that from low[i] to
    # high[i]: a random point of a stretch is a random category of everything, or of a family, by frequency.
    cumulative = np.r_[0, weight.cumsum()]
    family = np.array([category.family for category in categories])

    # Lengths are those in title case, nearly that of the other forms. An ending is what follows a title in the CSV.
    return SimpleNamespace(
        names=names, family=family, weight=weight, cumulative=cumulative, spanish=spanish,
        low=cumulative[np.searchsorted(family, family)], high=cumulative[np.searchsorted(family, family, "right")],
        reliable=reliable * RELIABLE / (reliable * weight).sum(),
        product=np.array([position[category.product] for category in categories]),
        choices=choices, forms=forms, fragments=len(fragments),
        length=pc.utf8_length(forms[:len(fragments)]).to_numpy(),
        endings=pa.array([f",{quality},{language},{name}\n" for name in names
                          for language in ("spanish", "portuguese") for quality in ("unreliable", "reliable")]))


# --- titles -----------------------------------------------------------------------------------------------------------
# A chunk of rows is made at once, an array operation for each decision. The random numbers are one stream, so whoever
# adds, drops or moves a draw changes every title.

class Draw:
    """Random numbers for a chunk of rows: each method returns an array [rows]."""

    def __init__(self, rng, rows):
        self.rng, self.rows = rng, rows

    def uniform(self):
        """A number in [0, 1) for each row, in double precision."""
        return self.rng.random(self.rows)

    def chance(self, probability):
        """Whether it happens, for each row."""
        return self.rng.random(self.rows, np.float32) < probability

    def fragment(self, choices, number=0):
        """A fragment of the list of this number for each row, the earlier ones likelier."""
        u = self.rng.random(self.rows, np.float32)
        index = (choices.size[number] * u * np.sqrt(u)).astype(np.int32)
        return choices.fragments[choices.start[number] + index]


def sibling(world, draw, category):
    """Another category for each row: of the same family, or any one with probability FAR, by frequency."""
    own, low, high = world.weight[category], world.low[category], world.high[category]
    far = (draw.uniform() < FAR) | (high - low - own < 1e-9)                 # an only child has no sibling
    low, high = np.where(far, 0, low), np.where(far, 1, high)
    # A point of the stretch without the category's own part, which it then steps over.
    point = low + draw.uniform() * (high - low - own)
    point += own * (point >= world.cumulative[category])
    return np.clip(np.searchsorted(world.cumulative, point, "right") - 1, 0, len(world.names) - 1)


def generate(world, draw):
    """The rows of a chunk: titles (pyarrow strings), and as NumPy arrays [rows] their true categories, labels,
    languages (0 Spanish, 1 Portuguese) and whether they are reliable."""
    # What is sold, and what the seller says it is: a wrong label is mostly a sibling's.
    category = np.searchsorted(world.cumulative, draw.uniform(), "right") - 1
    category = np.minimum(category, len(world.names) - 1)                    # the last sum may round to below 1
    language = (draw.uniform() >= world.spanish[category]).astype(np.int64)
    reliable = draw.uniform() < world.reliable[category]
    wrong = ~reliable & draw.chance(LABEL_NOISE)
    label = np.where(wrong, sibling(world, draw, category), category)

    # The second product is a plain one: accessories are for mixers, not for a mixer's spare parts. The lender is who
    # descriptive words are borrowed from.
    mentioned = world.product[sibling(world, draw, category)]
    lender = sibling(world, draw, category)

    # One draw decides, as a title without all that tells its category is without its head noun too.
    kind = draw.rng.random(draw.rows, np.float32)
    lists = SimpleNamespace(language=language, own=2 * category + language, other=2 * mentioned + language,
                            lent=2 * lender + language, family=2 * world.family[category] + language)
    fields = draw_fields(world.choices, draw, category, lists)
    shown = choose_fields(draw, fields, vague=kind < VAGUE, no_head=kind < VAGUE + NO_HEAD)
    fragments = order_fields(draw, fields, shown)
    return write_titles(world, draw, fragments), category, label, language, reliable


def draw_fields(choices, draw, category, lists):
    """The fragments of every field: {field: list of int arrays [rows], one for each fragment of the field}. lists: a
    namespace of the numbers [rows] of the lists that the title's `language`, `own` category and `family` have, the
    `other` product, and who has `lent` words."""
    def pick(name, number=0):
        return draw.fragment(choices[name], number)

    # Half of the model codes are a category's own and come again, so they can be learned; the others are noise.
    letters, numbers = choices["letters"].fragments, choices["number"].fragments
    code = (2000 * draw.uniform() ** 3).astype(np.int64)
    known = draw.chance(0.5)
    known_letters = letters[(category * 37 + code * 11) % len(letters)]
    known_number = numbers[(category * 7919 + code * 104729) % len(numbers)]

    # Words of siblings blur what words tell.
    def borrowed(name):
        return pick(name, np.where(draw.chance(BORROWED), lists.lent, lists.own))

    return {
        "lead": [pick("lead", lists.language)],
        "head": [pick("head", lists.own)],
        "mention": [pick("connector", lists.language), pick("head", lists.other),
                    pick("word", lists.other) * draw.chance(0.5)],
        "word": [borrowed("word")],
        "brand": [pick("brand", lists.family)],
        "model": [borrowed("model")],
        "code": [np.where(known, known_letters, pick("letters")), np.where(known, known_number, pick("number")),
                 pick("suffix")],
        "word2": [borrowed("word")],
        "common": [pick("common", lists.family)],
        "measure": [np.where(draw.chance(0.1), pick("number"), draw.rng.choice(choices["round"].fragments, draw.rows)),
                    pick("unit", lists.family)],
        "attribute": [pick("attribute", lists.language)],
        "coined": [pick("syllable", part) for part in range(3)],
        "tail": [pick("tail", lists.language)],
        "dirt": [pick("dirt")]}


def choose_fields(draw, fields, vague, no_head):
    """Which fields a title shows: {field: bool [rows]}."""
    shown = {field: draw.chance(share) for field, share in FIELDS.items()}
    # Nobody says a word twice, and a title without its product has no other product either.
    shown["word2"] &= fields["word2"][0] != fields["word"][0]
    shown["head"] &= ~no_head
    shown["mention"] &= ~no_head & draw.chance(MENTION)
    # Without a head noun it is for word, model and brand to tell the product; in a vague title nothing may tell it.
    for field in ("word", "model", "brand"):
        shown[field] |= no_head
    for field in ("word", "word2", "model", "code"):
        shown[field] &= ~vague
    return shown


def order_fields(draw, fields, shown):
    """The fragments of the titles in a seller's order: int array [rows, fragments], 0 where a field is not shown."""
    fragments = np.stack([fragment * shown[field] for field in FIELDS for fragment in fields[field]], axis=1)
    # The columns are now in the order of FIELDS; a seller's order of fields becomes an order of columns.
    owners = [field for field in FIELDS for _ in fields[field]]
    orders = np.array([[column for field in order.split() for column, owner in enumerate(owners) if owner == field]
                       for order in ORDERS])
    return np.take_along_axis(fragments, orders[draw.rng.integers(len(ORDERS), size=draw.rows)], axis=1)


def write_titles(world, draw, fragments):
    """Titles (pyarrow strings) of these fragments [rows, fragments]: cut to length, with a case and a spelling each."""
    # Most sellers stop at the fragment that no longer fits; a few go on and are cut off in the middle of a word.
    limit = np.where(draw.chance(SHORT), 12 + 48 * np.sqrt(draw.uniform()), 60 + 8 * draw.chance(TOO_LONG))
    mid_word = draw.chance(MID_WORD)
    limit[mid_word] = 200
    length = world.length[fragments]
    total = length.cumsum(axis=1)
    keep = (fragments > 0) & ((total <= limit[:, None]) | (total == length))    # the first stays, however long

    # A title has one case and one spelling, but for typing errors, which hit single fragments. See `written_forms`.
    case = np.searchsorted(CASES, draw.uniform())
    spelling = np.where(draw.chance(MOJIBAKE), 2, draw.chance(PLAIN))
    forms = (fragments + (world.fragments * (SPELLINGS * case + spelling))[:, None])[keep]     # of all titles on end
    wrong = draw.rng.integers(len(forms), size=int(MISSPELT * len(forms)))
    error = draw.rng.integers(3, SPELLINGS, size=len(wrong))
    forms[wrong] += world.fragments * (error - forms[wrong] // world.fragments % SPELLINGS)

    # Join the fragments of each title by whole-array operations; the spaces within are the fragments' own.
    offsets = np.r_[0, keep.sum(axis=1).cumsum()].astype(np.int32)
    titles = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), world.forms.take(pa.array(forms))), "")
    titles = pc.if_else(pa.array(mid_word), pc.utf8_slice_codeunits(titles, 0, 60), titles)
    return pc.utf8_trim_whitespace(titles)


# --- file -------------------------------------------------------------------------------------------------------------

def csv_chunk(world, seed, chunk, rows):
    """The lines of a chunk as one buffer. Whole-array operations release the interpreter lock, so threads help."""
    draw = Draw(np.random.default_rng([seed, chunk]), rows)
    titles, _, label, language, reliable = generate(world, draw)
    # Only the few titles with a comma or a quotation mark are quoted.
    special = pc.match_substring_regex(titles, '[",]')
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(titles.filter(special), '"', '""'), '"', "")
    endings = world.endings.take(pa.array(label * 4 + language * 2 + reliable))
    lines = pc.binary_join_element_wise(pc.replace_with_mask(titles, special, quoted), endings, "")
    return pc.binary_join(pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), lines), "")[0].as_buffer()


def write_csv(path, rows=ROWS, categories=CATEGORIES, seed=0):
    """Write the data set. An older file of that name stays until the new one is whole. Raises UserError where the
    number of categories is out of range or synthetic.txt is broken."""
    from tqdm import tqdm
    tables = read_tables()
    chosen = choose_categories(tables, categories)
    with files.atomic_write(path, "wb") as file, ThreadPoolExecutor(3) as pool:
        world = build_world(tables, chosen)
        file.write(b"title,label_quality,language,category\n")
        sizes = [min(CHUNK, rows - start) for start in range(0, rows, CHUNK)]
        chunks = cli.map_ahead(pool, lambda item: csv_chunk(world, seed, *item), enumerate(sizes), 1)
        for lines in tqdm(chunks, total=len(sizes), unit=" rows", unit_scale=CHUNK, disable=None):
            file.write(lines)


def main():
    parser = cli.argument_parser(__doc__)
    add = parser.add_argument
    add("--rows", type=cli.positive(int), default=ROWS, help="titles to write")
    add("--categories", type=int, default=CATEGORIES, help="the course subset has 632, the challenge 1588")
    add("--seed", type=cli.seed, default=0, help="another seed is another sample from the same categories")
    add("--out", default="data/raw/synthetic.csv", help="file to write; its folder is created")
    args = parser.parse_args()
    write_csv(args.out, args.rows, args.categories, args.seed)
    print(f"SYNTHETIC DATA, made from rules: {args.out}, {args.rows:,} rows, {args.categories:,} categories")


if __name__ == "__main__":
    cli.run(main)
