"""Word lists of the lexicon extractor: what a newspaper's lexicon gets wrong in captions."""

COLOURS = frozenset(
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
    "smaller bigger mean matching outdoor indoor lit crowded hooded uniformed bundled",
    "N": "t-shirt set sled stick top closeup close-up knit karate ship bear back flip nighttime "
    "daytime",
    "M": "shorts tracks dresses glasses sunglasses goggles others christmas clothes stairs",
    "R": "very half together indoors outdoors outside inside upside-down headfirst nearby midair "
    "mid-air onstage downhill uphill sideways side-by-side away forward there not only",
    "I": "in on at of by for with like past whilst",
    "P": "that which who what something someone somebody anything nothing everyone themselves",
    "V": "is are was were be has have had does do can having being been doing made seen did",
    "C": "and or &",
}
CLOSED = {word: "J" for word in COLOURS} | {
    word: kind for kind, words in _CLASSES.items() for word in words.split()
}
BARE_NUMBERS = frozenset("one another each both all some several many few".split())

# Nouns of the lexicon that captions use as verbs, or the other way round.
VERBS = (
    "act aim approach attack attempt balance bark bat battle bend bike bite block blow boogie "
    "bounce bound bowl box break brush camp canoe capture cart catch celebrate chase cheer chew "
    "climb compete cook cover crash crawl cross dance dash depict dig dive dribble drink drive "
    "eat embrace enjoy exercise exit face feature fight fish float fly gather gesture glance "
    "grab greet grill hand handle hang help hike hit hold hug hurdle jog jump kick kiss kneel "
    "land laugh lay lead lean leap lick lie line look march move nap nose paddle paint pass paw "
    "perform photograph picnic pitch play point pose practice prepare press pull punch race "
    "raft ramp reach read relax rest retrieve return ride roll row run sail scale score serve "
    "shake share shop shout shovel show sit skate skateboard ski sleep slide smile smoke sniff "
    "snowboard splash spray sprint squat stand stare step stick stop stretch stroll surf swim "
    "swing swoop tackle talk throw toss touch trail train trot try tug turn type use view wade "
    "wait walk watch wave wear work wrestle"
).split()
BASE_FORMS = frozenset(VERBS)
S_FORMS = frozenset(
    word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")
    for word in VERBS
    if not word.endswith("y") or word[-2] in "aeiou"
)
COLLECTIVES = frozenset("couple crowd family group pair team trio".split())
# In -ing, but things. Every other -ing noun of the lexicon is a verb in captions.
THINGS_IN_ING = frozenset(
    "awning bedding building carving ceiling clearing clothing crossing dressing dwelling earring "
    "evening frosting icing king landing lighting morning offspring opening outcropping outing "
    "painting pudding railing ring rigging scaffolding seating setting sibling siding sling "
    "spring stocking string swing thing topping wedding wing".split()
)
# These name a kind of thing wherever they stand: "in swimming trunks", "near parking lots".
KINDS_IN_ING = frozenset(
    "baking bathing boxing cutting dining diving drinking fishing frying hiking living parking "
    "racing rocking running shopping skating sleeping swimming training walking washing wrestling "
    "writing".split()
)
SUFFIX_PARTICIPLES = frozenset(
    "colored coloured covered dotted filled haired lined shaped sized topped".split()
)
# Adjectives that stand for a noun when none follows: "an adult", "the blonde".
NOUNS_TOO = frozenset(
    "adult american asian blond blonde brunette cloth concrete denim female husky leather male "
    "orange plaid teen".split()
)
BEFORE_CLAUSES = frozenset("after as before by for like while without".split())
NOT_VERBS_AFTER = frozenset("next close prior".split())
BE = frozenset("am is are was were".split())
# Sports that are two words: "a man rock climbing" has no rock.
SPORTS = frozenset(
    "break dancing|bull riding|dirt biking|horse racing|horse riding|horseback riding|"
    "ice climbing|ice fishing|ice skating|jet skiing|kite boarding|kite surfing|"
    "mountain biking|mountain climbing|rock climbing|roller blading|roller skating|"
    "skate boarding|snow boarding|snow skiing|snow tubing|wake boarding|water skiing|"
    "white-water rafting|wind surfing".split("|")
)
# "waist high", "knee deep"
MEASURING_PARTS = frozenset("ankle chest hip knee neck shoulder thigh waist".split())
# Not nouns when a noun stands before them.
VERBS_AFTER_NOUNS = frozenset(
    "gather hold laugh look perform read share sit smile stare try wade watch wear wrestle".split()
)
