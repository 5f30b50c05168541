"""Names of columns, and what they say of the values: labels, event times, ids, amounts, indices."""

import re

LABELS = tuple(
    "label click clicked isclick isclicked clk y target converted conversion isconversion"
    " isconverted isattributed purchased ispurchase ispurchased purchase bought clicks conversions"
    " outcome response engaged liked islike like watched finish rating ratings stars eventtype"
    " action behavior behaviour".split()
)
"""Names of a label without marks and capitals, the surest first."""
COUNTS = frozenset("clicks conversions purchases views orders likes installs sales count".split())
"""Names of labels that are counts."""
CRITEO = tuple(f"I{at}" for at in range(1, 14))
"""Counts of Criteo's data set."""
_TIMES = tuple(
    "ts timestamp time eventtime eventtimestamp datetime eventdatetime date eventdate createdat"
    " created unixtime unixtimestamp epoch hour day".split()
)
_TIME_TOKENS = frozenset("ts timestamp time date datetime at".split())
_ID_TOKENS = frozenset(
    "id ids uid uuid guid user item ad ads sku code zip zipcode postcode site app device campaign"
    " creative publisher advertiser product movie video song artist category cat brand type class"
    " segment channel slot zone region city country state store shop seller page query session"
    " placement model os browser language lang ip phone account customer member hour weekday dow"
    " month".split()
)
_AMOUNT_TOKENS = frozenset(
    "price amount cost age count cnt num number n qty quantity duration seconds secs sec minutes"
    " ms dwell size width height length len score distance total sum avg mean median min max rate"
    " ratio pct percent weight depth temp temperature impressions views clicks visits sales revenue"
    " budget bid ctr cvr income salary year hours days ago latency likes comments shares followers"
    " speed altitude".split()
)
_LIST_TOKENS = frozenset(
    "list lists array set history hist basket cart sequence seq recent tags tag genres genre"
    " keywords keyword interests topics skills words tokens labels likes liked disliked clicked"
    " viewed bought purchased watched seen visited impressions multi".split()
)
_HISTORY_TOKENS = frozenset(
    "history hist basket cart recent liked disliked clicked viewed bought purchased watched seen"
    " visited played read ordered click view purchase order like watch visit play last previous"
    " prev next similar related session".split()
)
"""Words for things of the past, in names that don't say which things."""
_THING_TOKENS = frozenset(
    "item product movie film video song track artist article news story book listing property hotel"
    " ad creative sku game app recipe post page content asin offer job course".split()
)
"""Words for the things that people click."""
_NO_THING_TOKENS = frozenset(
    "c n l id ids uid uuid guid code codes key keys name names no num list lists array set of by in"
    " the user customer first second".split()
)
"""Words of a name that don't say which things its values are."""
_WEIGHTS = frozenset(
    "weight weights sampleweight sampleweights eventweight exampleweight importanceweight"
    " importance w ipw wt".split()
)
_SAMPLING_RATIOS = frozenset(
    "samplingratio sampleratio samplingrate samplerate samplingprob sampleprob samplingprobability"
    " downsample downsampling downsamplerate downsamplingrate downsampleratio downsamplingratio"
    " negativesamplingrate negativesamplingratio negsamplingrate keepratio keeprate".split()
)
_INDICES = frozenset(
    "id index idx uuid guid row rowid rownum rownumber eventid impressionid requestid impid logid"
    " recordid".split()
)


def plain_name(name: str) -> str:
    """The name in small letters, without marks."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _tokens(name: str) -> list[str]:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [word.lower() for word in words]


def is_time_name(name: str) -> bool:
    """True for the name of an event time."""
    tokens = _tokens(name)
    return plain_name(name) in _TIMES or (bool(tokens) and tokens[-1] in _TIME_TOKENS)


def time_rank(name: str) -> int:
    """The less, the surer that a column of that name is the event time."""
    plain = plain_name(name)
    return _TIMES.index(plain) if plain in _TIMES else len(_TIMES)


def says_id(name: str) -> bool:
    """True for a name that says that values are names of things."""
    tokens = _tokens(name)
    return bool(tokens) and (
        tokens[-1] in _ID_TOKENS or (not says_amount(name) and bool(_ID_TOKENS & set(tokens)))
    )


def says_amount(name: str) -> bool:
    """True for a name that says that values are amounts."""
    return bool(_AMOUNT_TOKENS & set(_tokens(name)))


def says_list(name: str) -> bool:
    """True for a name that says that values are lists: "genres", "clicked_item_ids"."""
    tokens = _tokens(name)
    if not tokens:
        return False
    last = tokens[-1]
    plural = last not in _ID_TOKENS and _singular(last) in _ID_TOKENS | _THING_TOKENS
    return plural or last == "ids" or bool(_LIST_TOKENS & set(tokens))


def things(name: str) -> frozenset[str]:
    """The words of a name that say which things its values are, in the singular."""
    return frozenset(map(_singular, _tokens(name))) - _NO_THING_TOKENS - _HISTORY_TOKENS


def says_history(name: str) -> bool:
    """True for a name of things of the past that does not say which: "history", "liked"."""
    return bool(_HISTORY_TOKENS & set(_tokens(name))) and not things(name)


def says_thing(name: str) -> bool:
    """True for the name of what people click: "item_id", "movie"."""
    tokens = _tokens(name)
    return bool({*tokens, *map(_singular, tokens)} & _THING_TOKENS)


def _singular(word: str) -> str:
    if word.endswith("s") and word[:-1] in _ID_TOKENS | _THING_TOKENS:
        return word[:-1]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word


def is_weight_name(name: str) -> bool:
    """True for the name of the weight of an event."""
    return plain_name(name.removeprefix("n_")) in _WEIGHTS


def is_sampling_name(name: str) -> bool:
    """True for the name of the share of events that were kept."""
    return plain_name(name.removeprefix("n_")) in _SAMPLING_RATIOS


def is_index_name(name: str) -> bool:
    """True for a name of what counts rows or events."""
    plain = plain_name(name)
    return plain in _INDICES or re.fullmatch(r"(unnamed|indexlevel)\d+", plain) is not None


def is_label_name(name: str) -> bool:
    """True for the name of a label."""
    return plain_name(name) in LABELS


def can_be_written(name: str) -> bool:
    """False for a name with half of a surrogate pair, which no file holds."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in name)
