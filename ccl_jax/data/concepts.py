"""Noun phrases of English captions: the concepts that a concept-centric loss binds.

Each word gets a class from TextBlob's packaged lexicon and the closed lists below, a few
rules of context settle the words that are both noun and verb in captions ("a boy waves",
"the waves"), and a chunk grammar over the classes finds the phrases. Nothing is
downloaded. The classes are single letters, so that the grammar is a regular expression:

  D article, possessive, demonstrative     Q number, quantifier     R adverb
  J adjective, participle before a noun    N noun    M plural noun  S the 's of a genitive
  V verb    P pronoun    I preposition     C and, or     , comma    T to    . anything else

Before the context rules also: G -ing form, E participle or past form, B noun or verb.
"""

import difflib
import functools
import importlib.util
import pathlib
import re
import threading
from collections.abc import Callable

_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|['’]s\b|[^\w\s]")
# The bounds keep the search linear on text that is no caption at all.
_MODIFIERS = r"(?:R?J(?:(?:,?C|,)(?=R?J))?){0,8}"
_NOUNS = r"[NM]{1,6}"
_CHUNK = re.compile(rf"[DQ]{{0,3}}{_MODIFIERS}{_NOUNS}(?:S{_MODIFIERS}{_NOUNS})?")

# Lexicon tags (Penn treebank) to classes; a tag that is not here is ".".
_CLASS_OF_TAG = {
    **dict.fromkeys(("NN", "NNP"), "N"),
    **dict.fromkeys(("NNS", "NNPS"), "M"),
    **dict.fromkeys(("JJ", "JJR", "JJS"), "J"),
    **dict.fromkeys(("VB", "VBP", "VBZ", "MD"), "V"),
    **dict.fromkeys(("VBN", "VBD"), "E"),
    **dict.fromkeys(("RB", "RBR", "RBS", "RP"), "R"),
    **dict.fromkeys(("PRP", "WP", "WDT", "EX"), "P"),
    **{"VBG": "G", "DT": "D", "PRP$": "D", "CD": "Q", "IN": "I", "CC": "C", "TO": "T"},
}

# For words outside the lexicon; the first that fits.
_SUFFIX_TAGS = (
    (("able", "ful", "ible", "ient", "ish", "ive", "less", "tic", "ous", "al"), "JJ"),
    (("ate", "ify", "ise", "ize"), "VBP"),
    (("ed",), "VBN"),
    (("ly",), "RB"),
    (("is", "ss"), "NN"),
    (("s",), "NNS"),
)

# What the lexicon, made from newspapers, gets wrong in captions.
_COLOURS = frozenset(
    "beige black blond blonde blue brown cream crimson gold golden gray green grey khaki "
    "magenta maroon navy olive orange pink purple red silver tan teal turquoise violet white "
    "yellow".split()
)
_CLASSES = {
    "D": "a an the this these my your his her its our their whose",
    "Q": "one two three four five six seven eight nine ten eleven twelve some several all both "
    "each every another many few multiple various numerous no any",
    "J": "left right other own next same such more most lone chubby furry curly barefooted grassy "
    "snowy sandy rocky muddy plaid striped stuffed wooden concrete shirtless bald bearded tattooed "
    "barechested elderly teenage adult male female asian african american indian european chinese "
    "japanese german mexican french british english martial cloth denim leather opposing "
    "smaller bigger matching outdoor indoor lit crowded hooded uniformed bundled",
    "N": "t-shirt set sled stick top closeup close-up knit karate ship bear back flip",
    "M": "shorts tracks dresses glasses sunglasses goggles others christmas clothes stairs",
    "R": "very half together indoors outdoors outside inside upside-down headfirst nearby midair "
    "mid-air onstage downhill uphill sideways side-by-side away forward there not only",
    "I": "in on at of by for with like past whilst",
    "P": "that which who what something someone somebody anything nothing everyone themselves",
    "V": "is are was were be has have had does do can having being been doing made seen did",
    "C": "and or &",
}
_CLOSED = {word: "J" for word in _COLOURS} | {
    word: kind for kind, words in _CLASSES.items() for word in words.split()
}
_BARE_NUMBERS = frozenset("one another each both all some several many few".split())

# Nouns of the lexicon that captions use as verbs, or the other way round.
_VERBS = (
    "act aim approach attack attempt balance bark bat battle bend bike bite block blow boogie "
    "bounce bound bowl box break brush camp canoe capture cart catch celebrate chase cheer chew "
    "climb compete cook cover crash crawl cross dance dash depict dig dive dribble drink drive "
    "eat embrace enjoy exercise exit face feature fight fish float fly gather gesture glance grab "
    "greet grill hand handle hang help hike hit hold hug hurdle jog jump kick kiss kneel land "
    "laugh lay lead lean leap lick lie look march move nap nose paddle paint pass paw perform "
    "photograph picnic pitch play point pose practice prepare press pull punch race raft ramp "
    "reach read relax rest retrieve return ride roll row run sail scale score serve shake share "
    "shop shout shovel show sit skate skateboard ski sleep slide smile smoke sniff snowboard "
    "splash spray sprint squat stand stare step stick stop stretch stroll surf swim swing tackle "
    "talk throw toss touch trail train trot try tug turn type use view wade wait walk watch wave "
    "wear work wrestle"
).split()
_BASE_FORMS = frozenset(_VERBS)
_S_FORMS = frozenset(
    word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")
    for word in _VERBS
    if not word.endswith("y") or word[-2] in "aeiou"
)
_COLLECTIVES = frozenset("couple crowd family group pair team trio".split())
# In -ing, but things. Every other -ing noun of the lexicon is a verb in captions.
_THINGS_IN_ING = frozenset(
    "awning bedding building carving ceiling clearing clothing crossing dressing dwelling earring "
    "evening frosting icing king landing lighting morning offspring opening outcropping outing "
    "painting pudding railing ring rigging scaffolding seating sibling siding sling spring "
    "stocking string swing thing topping wedding wing".split()
)
# These name a kind of thing wherever they stand: "in swimming trunks", "near parking lots".
_KINDS_IN_ING = frozenset(
    "baking bathing boxing cutting dining diving drinking fishing frying hiking living parking "
    "racing rocking running shopping skating sleeping swimming training walking washing wrestling "
    "writing".split()
)
_SUFFIX_PARTICIPLES = frozenset(
    "colored coloured covered dotted filled haired lined shaped sized topped".split()
)
# Adjectives that stand for a noun when none follows: "an adult", "the blonde".
_NOUNS_TOO = frozenset(
    "adult american asian blond blonde brunette cloth concrete denim female husky leather male "
    "orange plaid teen".split()
)
_BEFORE_CLAUSES = frozenset("after as before by for like while without".split())
_NOT_VERBS_AFTER = frozenset("next close prior".split())

# Counts, not concepts, when "of" follows: "a group of people" gives "people".
_MEASURES = frozenset(
    "array assortment bit bunch couple dozens group groups handful kind line lot lots number pair "
    "pairs part row rows series set sort type variety".split()
)
# Places in the picture and talk about the picture.
_BOILERPLATE = frozenset(
    "air back background bottom center centre close-up closeup direction distance edge end "
    "foreground front image left middle midst others photo photograph picture rear right scene "
    "shot side sides thing things time top view way".split()
)
_SIDES = frozenset("back bottom far front left near opposite other right same top upper".split())
_PICTURES = frozenset("close-up closeup image photo photograph picture shot view".split())
_WHOLE_BOILERPLATE = frozenset({"the camera"})

_LOCK = threading.Lock()


def extract_phrases(caption: str, *, tagger: str = "textblob") -> tuple[str, ...]:
    """Finds the noun phrases of an English caption, with their attributes.

    Dropped are pronouns, repeats, places in the picture ("the background", "the left
    side"), talk about the picture ("a photo"), counts ("a group" of people), what the
    caption says is missing ("without a hat") and a phrase that is the whole caption.

    >>> extract_phrases("A girl in a red dress holds her umbrella .")
    ('a girl', 'a red dress', 'her umbrella')

    Args:
      caption: one caption, of one sentence or several.
      tagger: "textblob" (the packaged lexicon and the grammar of this module) or "spacy"
        (noun chunks of an installed English pipeline, then the same filter).

    Returns:
      The phrases in order: lower case, without punctuation; () if there are none.

    Raises:
      ValueError: for an unknown `tagger`, or one whose packages are not installed.
    """
    if tagger not in _CHUNKERS:
        nearest = difflib.get_close_matches(tagger, _CHUNKERS, n=1, cutoff=0)[0]
        raise ValueError(
            f"unknown tagger {tagger!r}: did you mean {nearest!r}? Known: {', '.join(_CHUNKERS)}"
        )
    tokens = _TOKEN.findall(caption.lower())
    whole = _join(tokens)
    phrases = []
    for start, end in _CHUNKERS[tagger](tokens):
        phrase = _join(tokens[start:end])
        if phrase != whole and _is_concept(tokens, start, end):
            phrases.append(phrase)
    return tuple(dict.fromkeys(phrases))


def _join(tokens):
    text = " ".join(token for token in tokens if token[-1].isalnum())
    return text.replace(" 's", "'s").replace(" ’s", "'s")


def _is_concept(tokens, start, end):
    words = [token for token in tokens[start:end] if token[0].isalnum()]
    if words[0] in ("no", "any") or (start and tokens[start - 1] == "without"):
        return False
    content = [word for word in words if _CLOSED.get(word) not in ("D", "Q")]
    if not content or len(content[-1]) < 2 or _CLOSED.get(content[-1]) == "P":
        return False
    head = content[-1]
    if end < len(tokens) and tokens[end] == "of" and head in _MEASURES | _PICTURES:
        return False
    if " ".join(words) in _WHOLE_BOILERPLATE:
        return False
    owned = words[0] in ("his", "her", "their", "its")  # "her back" is no place in the picture
    return owned or not (head in _BOILERPLATE and _SIDES.issuperset(content[:-1]))


def _chunks_by_lexicon(tokens):
    """(start, end) of every chunk of the grammar."""
    classes = "".join(_settle(tokens, [_word_class(token) for token in tokens]))
    return [match.span() for match in _CHUNK.finditer(classes)]


@functools.lru_cache(maxsize=1 << 16)
def _word_class(token):
    """The class of a word on its own."""
    if token in _CLOSED:
        return _CLOSED[token]
    if not token[0].isalnum():
        return "S" if token in ("'s", "’s") else "," if token == "," else "."
    if token[0].isdigit():
        return "Q" if token.isdigit() else "J"
    if "-" in token:
        last = token.rpartition("-")[2]
        if last == "old" or last.endswith(("ed", "ing", "like", "style")):
            return "J"
        return _word_class(last)
    if token.endswith("ing") and len(token) > 4:
        return "N" if token in _THINGS_IN_ING else "P" if token.endswith("thing") else "G"
    kind = _CLASS_OF_TAG.get(_lexicon_tag(token), ".")
    if kind in "NM" and (token in _BASE_FORMS or token in _S_FORMS):
        return "B"
    return kind


def _lexicon_tag(word):
    with _LOCK:  # so that threads do not each load it
        lexicon = _lexicon()
    tag = lexicon.get(word) or lexicon.get(word.capitalize())
    return tag or next((tag for endings, tag in _SUFFIX_TAGS if word.endswith(endings)), "NN")


@functools.cache
def _lexicon():
    """TextBlob's packaged {word: tag}.

    The file is read without importing TextBlob, which takes seconds, loads all of NLTK
    and fills its lexicon in a way that is not thread safe.
    """
    spec = importlib.util.find_spec("textblob")
    if spec is None:
        raise ValueError("the tagger 'textblob' needs its package: pip install textblob")
    path = pathlib.Path(spec.origin).parent / "en" / "en-lexicon.txt"
    if not path.exists():
        raise ValueError(f"this TextBlob has no {path}: pip install --upgrade textblob")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    entries = (line.split()[:2] for line in lines if not line.startswith(";;;"))
    return {entry[0]: entry[1] for entry in entries if len(entry) == 2}


def _settle(tokens, kinds):
    """Decides by context, left to right, what G, E, B and some V and J stand for."""
    padded = [*kinds, ".", "."]
    for i, token in enumerate(tokens):
        before = padded[i - 1] if i else "."
        after = padded[i + 1]
        kind = padded[i]
        if kind == "G":
            padded[i] = "J" if _gerund_modifies(tokens, padded, i, before, after) else "V"
        elif kind == "E":
            suffix = token in _SUFFIX_PARTICIPLES and before in "NM"
            modifies = after in "JNMGEB" and (suffix or before in "DQJRIC.,")
            modifies = modifies or (after == "V" and before in "DI")  # "in fallen leaves"
            padded[i] = "J" if modifies else "V"
            if suffix and modifies:
                padded[i - 1] = "J"
        elif kind in "BV":
            padded[i] = _noun_or_verb(tokens, padded, i, before, after)
        elif kind == "J" and token in _NOUNS_TOO and before in "DQJ":
            joined = after in "C," and padded[i + 2] == "J"
            padded[i] = "J" if after in "JNMEGB" or joined else "N"
        elif kind == "N" and before == "T" and after == "D":
            padded[i] = "V"
        elif kind == "N" and before in "DQI" and after == "J":
            # "a chocolate brown dog"
            shade = tokens[i + 1] in _COLOURS and padded[i + 2] in "NMB"
            padded[i] = "J" if shade else "N"
    return padded[:-2]


def _gerund_modifies(tokens, kinds, i, before, after):
    """Whether an -ing form stands before its noun ("a running dog")."""
    if after not in "JNMGEB":
        return False
    previous = tokens[i - 1] if i else ""
    if tokens[i] in _KINDS_IN_ING and before in "IV":
        # "wearing swimming trunks", but "is parking cars" and "while drinking beer".
        acts = previous.endswith("ing") and previous != "being"
        return acts if before == "V" else previous not in _BEFORE_CLAUSES
    if before == "Q":
        return previous not in _BARE_NUMBERS and after == "M"
    if before == "I":
        return previous in ("of", "with")
    if before == "J" and tokens[i] != "looking":
        start = i
        while start and kinds[start - 1] in "JCR":
            start -= 1
        return start > 0 and kinds[start - 1] in "DQ"
    return before in "DJS" or (i == 0 and after == "N")


def _noun_or_verb(tokens, kinds, i, before, after):
    """The class of a word that captions use as a noun and as a verb."""
    token = tokens[i]
    s_form = token in _S_FORMS
    noun = "M" if token.endswith("s") and not token.endswith("ss") else "N"
    if _CLOSED.get(token) == "V":
        return "V"
    if before in "DI" or (before == "E" and after in "I."):
        return noun
    if before == "J":
        # "a woman in red walks": the colour is the noun.
        dressed = i > 1 and (kinds[i - 2] == "I" or tokens[i - 2] == "wearing")
        return "V" if dressed and tokens[i - 1] in _COLOURS else noun
    if before == "Q":
        return "V" if kinds[i] == "V" and tokens[i - 1] in _BARE_NUMBERS else noun
    if before in "PV" and kinds[i] == "B":
        return "V" if before == "P" else noun
    if before == "T":
        return noun if i > 1 and tokens[i - 2] in _NOT_VERBS_AFTER else "V"
    if before in "NM":
        if s_form or kinds[i] == "V" and token not in _BASE_FORMS:
            return "V"
        several = before == "M" or tokens[i - 1] in _COLLECTIVES or "C" in kinds[max(0, i - 4) : i]
        return "V" if several else noun
    if before in "RC,":
        after_verb = i > 1 and kinds[i - 2] in "VRI"
        return "V" if kinds[i] == "V" or after == "D" or after_verb else noun
    return "V" if kinds[i] == "V" else noun


def _chunks_by_spacy(tokens):
    """(start, end) of spaCy's noun chunks over our own tokens."""
    with _LOCK:  # the pipeline writes to its vocabulary
        pipeline = _spacy_pipeline()
        from spacy.tokens import Doc

        document = pipeline(Doc(pipeline.vocab, words=tokens))
        return [(chunk.start, chunk.end) for chunk in document.noun_chunks]


@functools.cache
def _spacy_pipeline():
    try:
        import spacy
    except ImportError as error:
        raise ValueError("the tagger 'spacy' needs its package: pip install spacy") from error
    installed = sorted(name for name in spacy.util.get_installed_models() if name[:3] == "en_")
    if not installed:
        raise ValueError(
            "the tagger 'spacy' needs an English pipeline: python -m spacy download en_core_web_sm"
        )
    return spacy.load(installed[0])


_CHUNKERS: dict[str, Callable] = {"textblob": _chunks_by_lexicon, "spacy": _chunks_by_spacy}
