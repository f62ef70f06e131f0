"""The English that written captions need: articles, plurals, numbers."""

import re

_NUMBERS = ("no", "one", "two", "three", "four")

_IRREGULAR = {
    "person": "people", "child": "children", "mouse": "mice", "foot": "feet", "goose": "geese", "tooth": "teeth",
    "ox": "oxen", "die": "dice", "knife": "knives", "leaf": "leaves", "loaf": "loaves", "wolf": "wolves",
    "elf": "elves", "scarf": "scarves", "sheaf": "sheaves", "potato": "potatoes", "tomato": "tomatoes",
    "cactus": "cacti", "mango": "mangoes", "volcano": "volcanoes", "mosquito": "mosquitoes",
    "tornado": "tornadoes", "superhero": "superheroes",
    "fish": "fish", "sheep": "sheep", "deer": "deer", "moose": "moose", "bison": "bison", "squid": "squid",
    "shrimp": "shrimp", "blowfish": "blowfish", "jellyfish": "jellyfish", "buffalo": "buffalo",
}  # fmt: skip

# The head noun of a phrase ends before a preposition, or before the participle that says what someone does.
_HEAD_END = re.compile(
    r" (of|with|without|in|on|at|behind|beside|under|over|crossed with)\b"
    r"|\b(person|man|woman|hand|face|glass|leaf|couple|globe|triangle|airplane)(?= (mountain )?[a-z-]+ing\b)"
)

# Parts of names that lack their article: "face with medical mask" is made "face with a medical mask".
_NEEDS_ARTICLE = re.compile(
    r"\b(with|behind|without|wearing|on|in|crossed with|beside|raising|rowing|getting|taking|bouncing|lying in) "
    r"(?=(medical|halo|tongue|tear$|thermometer|head-bandage|monocle|wry|raised|open mouth|peeking|diagonal|veil|"
    r"skullcap|turban|headscarf|crown|straw|spoon|ribbon|arrow|garden|decorative|ballot|large cloud|small cloud|"
    r"rain cloud|cloud$|curl|lowered|hearing|handle|steamy|swirl|popping|umbrella|flash$|face$|mouth$|tuxedo|hand$|"
    r"boat|massage|haircut|ball$|bath|beard|pen$|key$|wrench|pick|nut|lamp|lotus)\b)"
)


def article(words: str) -> str:
    """Choose `a` or `an` by the sound that `words` begins with."""
    if re.match(r"X-|8|hour|honest|heir", words):
        return "an"
    return "an" if re.match(r"(?!uni(?!dent)|eu|ewe|one\b|use|ute)[aeiou]", words, re.IGNORECASE) else "a"


def add_articles(name: str) -> str:
    """Add the articles that short names lack: "face with a medical mask"."""
    return _NEEDS_ARTICLE.sub(lambda match: f"{match[1]} {article(match[2])} ", name)


def plural(name: str) -> str:
    """Give the plural of a noun phrase: its head noun changes ("slices of pizza", "people running", "wolves")."""
    match = _HEAD_END.search(name)
    end = len(name) if not match else match.start() if match[0].startswith(" ") else match.end()
    start = name.rfind(" ", 0, end) + 1
    return name[:start] + _plural_word(name[start:end]) + name[end:]


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man"):
        return word[:-2] + "en"
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def noun_phrase(name: str, count: int) -> str:
    """Give a noun phrase its article or number, up to four: "an apple", "two apples"."""
    return f"{article(name)} {name}" if count == 1 else f"{_NUMBERS[count]} {plural(name)}"
