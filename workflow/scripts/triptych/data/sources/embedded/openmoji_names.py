"""Which OpenMoji drawings are used, each with a countable English name."""

import re
from dataclasses import dataclass
from pathlib import Path

import emoji

from triptych.data.sources.embedded.english import add_articles


@dataclass(frozen=True)
class Concept:
    """One drawing: the code points that name its file, and a countable English noun phrase without article."""

    code: str
    name: str


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


def concepts(folder: Path) -> tuple[Concept, ...]:
    """List the drawings in `folder` that are used, ordered by code; no two have the same name."""
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
