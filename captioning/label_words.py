"""What a caption says when it names a class: the class of a sample_id and the words around it.

The table is ours, written by hand for the class names of manifests/classes-*.txt: words by one of
which a plain description of the action is known. It is lenient on purpose: a caption without any
of them tells of something else.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq

from datasets_build.caption_words import STOP_WORDS, stem, words_of
from datasets_build.protocols import class_list, ids_of_name
from datasets_build.schema import SAMPLE_ID

CLASS = "class"

# Words of class names that are too common in captions to tell the class; where one does tell it,
# it stands again in the table below.
COMMON_WORDS = (
    "put take make move two something object thing stuff self oneself other side hand arm finger "
    "head face foot back time front"
)

RELATED_WORDS: Mapping[str, str] = {
    "drink water": "sip swallow cup bottle glass mug beverage",
    "eat meal": "food bite chew snack bowl plate spoon fork sandwich fruit apple banana",
    "brush teeth": "toothbrush toothpaste mouth",
    "brush hair": "comb hairbrush groom",
    "drop": "fall release let floor ground",
    "pick up": "lift grab collect retrieve bend reach grasp",
    "throw": "toss hurl fling pitch cast",
    "sit down": "seat chair lower",
    "stand up": "rise rose risen chair",
    "clapping": "applaud applause",
    "reading": "book page paper magazine document",
    "writing": "pen pencil paper note notebook scribble",
    "tear up paper": "rip shred tore",
    "put on jacket": "coat wear sleeve hoodie shirt clothing don dress",
    "take off jacket": "coat remove sleeve hoodie shirt clothing undress",
    "put on a shoe": "boot sneaker lace footwear slipper",
    "take off a shoe": "boot sneaker lace footwear slipper",
    "put on glasses": "eyeglasses spectacles sunglasses eyewear",
    "take off glasses": "eyeglasses spectacles sunglasses eyewear",
    "put on a hat/cap": "headwear helmet beanie",
    "take off a hat/cap": "headwear helmet beanie",
    "cheer up": "celebrate celebration joy excited raise fist victory",
    "hand waving": "greet goodbye hello gesture",
    "kicking something": "leg swing",
    "reach into pocket": "trousers pants jacket",
    "hopping": "jump bounce skip one-legged",
    "jump up": "leap hop bounce",
    "phone call": "telephone smartphone mobile cellphone ear talk speak",
    "play with phone/tablet": "smartphone mobile cellphone device screen ipad scroll swipe type",
    "type on a keyboard": "laptop computer desktop desk",
    "point to something": "gesture indicate finger",
    "taking a selfie": "photo picture photograph camera phone smartphone",
    "check time (from watch)": "wrist wristwatch clock",
    "rub two hands": "palm wash together friction scrub",
    "nod head/bow": "lean bend tilt down forward",
    "shake head": "turn sideways head disagree",
    "wipe face": "face forehead sweat tissue towel cloth rub",
    "salute": "military forehead",
    "put palms together": "pray prayer namaste clasp press fold",
    "cross hands in front": "x cross",
    "sneeze/cough": "nose mouth sneezing tissue",
    "staggering": "stumble sway wobble unsteady dizzy drunk lurch balance",
    "falling down": "collapse floor ground trip lie",
    "headache": "head temple forehead pain hurt",
    "chest pain": "heart clutch hurt discomfort ache",
    "back pain": "back waist spine lower hurt ache discomfort",
    "neck pain": "hurt ache discomfort massage nape shoulder",
    "nausea/vomiting": "vomit sick stomach retch nauseous ill throw",
    "fan self": "cool wave air hot face",
    "punch/slap": "hit strike fist fight attack",
    "kicking": "leg strike attack",
    "pushing": "shove",
    "pat on back": "shoulder tap touch back",
    "point finger": "gesture indicate accuse",
    "hugging": "embrace cuddle",
    "giving object": "hand pass offer receive exchange",
    "touch pocket": "reach steal pickpocket bag",
    "shaking hands": "handshake greet",
    "walking towards": "approach meet closer",
    "walking apart": "away separate leave opposite",
    "put on headphone": "earphone headset earbud ear",
    "take off headphone": "earphone headset earbud ear",
    "shoot at basket": "basketball ball throw hoop",
    "bounce ball": "dribble basketball",
    "tennis bat swing": "racket racquet paddle hit badminton",
    "juggle table tennis ball": "ping pong paddle racket bounce bat",
    "hush": "quiet silence silent shush lips mouth finger",
    "flick hair": "toss brush stroke touch",
    "thumb up": "approval gesture",
    "thumb down": "disapproval gesture",
    "make OK sign": "okay gesture circle finger",
    "make victory sign": "peace v gesture finger",
    "staple book": "stapler paper document",
    "counting money": "cash bill banknote note currency",
    "cutting nails": "clip clipper trim fingernail",
    "cutting paper": "scissors",
    "snap fingers": "click finger",
    "open bottle": "cap lid unscrew twist",
    "sniff/smell": "nose scent inhale",
    "squat down": "crouch bend knee",
    "toss a coin": "flip throw",
    "fold paper": "crease origami",
    "ball up paper": "crumple crush squeeze scrunch",
    "play magic cube": "rubik puzzle twist rotate",
    "apply cream on face": "lotion rub face moisturizer cheek sunscreen",
    "apply cream on hand": "lotion rub moisturizer sunscreen",
    "put on bag": "backpack rucksack strap shoulder",
    "take off bag": "backpack rucksack strap shoulder",
    "put object into bag": "backpack place insert",
    "take object out of bag": "backpack remove pull",
    "open a box": "lid package carton",
    "move heavy objects": "lift carry push drag box chair table",
    "shake fist": "clench anger angry threaten",
    "throw up cap/hat": "toss air",
    "capitulate": "surrender raise yield give",
    "cross arms": "fold",
    "arm circles": "rotate swing spin windmill",
    "arm swings": "wave back forth",
    "run on the spot": "jog place knee march",
    "butt kicks": "heel jog run leg",
    "cross toe touch": "bend stretch foot",
    "side kick": "leg",
    "yawn": "tired sleepy mouth",
    "stretch oneself": "raise overhead arm",
    "blow nose": "tissue handkerchief",
    "hit with object": "strike beat swing stick bat attack",
    "wield knife": "stab blade swing slash attack",
    "knock over": "push bump collide fall shove",
    "grab stuff": "snatch steal take pull seize",
    "shoot with gun": "pistol aim weapon point fire",
    "step on foot": "stomp tread toe",
    "high-five": "slap clap palm",
    "cheers and drink": "toast clink glass cup bottle",
    "carry object": "lift hold box table chair together",
    "take a photo": "picture photograph camera phone smartphone pose",
    "follow": "behind after",
    "whisper": "ear secret lean tell",
    "exchange things": "swap trade pass give hand receive",
    "support somebody": "help assist hold lean carry walk",
    "rock-paper-scissors": "game fist",
    "pick up with one hand": "lift grab collect retrieve bend reach grasp",
    "pick up with two hands": "lift grab collect retrieve bend reach grasp",
    "drop trash": "bin garbage rubbish litter waste throw discard",
    "walk around": "stroll pace step stride",
    "donning": "jacket coat wear shirt clothing dress sleeve don",
    "doffing": "jacket coat remove shirt clothing undress sleeve take",
    "carry": "lift hold box bring",
}


@cache
def _names_by_action(dataset: str) -> dict[int, str]:
    return dict(class_list(dataset, 120))


def class_of_sample(sample_id: str) -> str | None:
    """The class name that an NTU or NW-UCLA sample_id carries; None for any other."""
    ids = ids_of_name(sample_id)
    return None if ids is None else _names_by_action(ids.dataset).get(ids.action_id)


@cache
def label_stems(class_name: str) -> frozenset[str]:
    """Stems of which a caption of the class is expected to hold at least one.

    Those of the name's own words that are neither STOP_WORDS nor COMMON_WORDS, and of the words in
    RELATED_WORDS; a name that is not in the table has only its own. Empty where nothing is left.
    """
    own = {w for w in words_of(class_name) if w not in STOP_WORDS and stem(w) not in _COMMON_STEMS}
    return frozenset(map(stem, own.union(words_of(RELATED_WORDS.get(class_name, "")))))


def read_classes(path: Path) -> dict[str, str]:
    """sample_id to class name from a CSV or Parquet table with these two columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or the file cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a .csv or .parquet file with the columns "
            f"{SAMPLE_ID} and {CLASS}"
        )
    try:
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from error
    if not rows or not {SAMPLE_ID, CLASS} <= rows[0].keys():
        found = ", ".join(map(str, rows[0])) if rows else "no row"
        raise ValueError(f"{path} needs the columns {SAMPLE_ID} and {CLASS}; it has {found}")
    return {str(row[SAMPLE_ID]): str(row[CLASS]) for row in rows if row[CLASS]}


_COMMON_STEMS = frozenset(map(stem, COMMON_WORDS.split()))
