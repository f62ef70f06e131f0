"""Kinds of text that a setting may be: names, paths, lines, ids of the hub. Each is checked here, once, and as a whole.

Every text of a configuration has one of these kinds, or is one of a few words; `tests/config/test_texts.py` holds that.
"""

import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

CACHE_VARIABLE = "TRIPTYCH_CACHE"  # names the folder of downloads; takes precedence over the key `cache`

FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9.+-]*"  # names become folder names; `_` is left out to keep them unlike rules
HUB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?"
VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)  # as `os.path.expandvars` finds them
WANDB_REFUSES = "/\\#?%:"
LONGEST_PATH, LONGEST_PART = 3000, 255  # bytes; of the 4096 that Linux allows, results need some below their folder
UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, halves of characters, ends of lines and paragraphs


def _text(value: Any) -> Any:
    """Give a whole number as text: YAML reads the name `1` as one. A truth value is none."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_name(value: Any) -> bool:
    """Tell whether a value can be a name, which a whole number can."""
    return isinstance(_text(value), str) and re.fullmatch(FILE_NAME, _text(value)) is not None


def check_name(name: str) -> str:
    """Give the name of a stage, data set or ablation back.

    Raises:
        ValueError: it cannot be the name of a folder everywhere.
    """
    if not is_name(name):
        raise ValueError("a name may hold letters, digits, '.', '+' and '-' only, a letter or digit first")
    return name


def visible(text: str) -> str:
    """Give a text as one line: control characters are escaped, and what is very long is left out in the middle."""
    text = "".join(ascii(letter)[1:-1] if unicodedata.category(letter) in UNSEEN else letter for letter in text)
    return text if len(text) <= 2000 else f"{text[:1000]} ... {text[-200:]}"


def check_line(text: str) -> str:
    """Give a text of one line back.

    Raises:
        ValueError: it is empty, or holds a line break or another control character.
    """
    if unseen := [character for character in text if unicodedata.category(character) in UNSEEN]:
        raise ValueError(f"must be one line without control characters, and holds {unseen[0]!a}")
    if not text.strip():
        raise ValueError(f"must not be empty or blank; is {text!r}")
    return text


def check_path(text: str) -> str:
    """Give a path back as it is written.

    Raises:
        ValueError: it is no line, begins or ends with a blank, or names a user or variable that there is not.
    """
    check_line(text)
    if text != text.strip():
        raise ValueError(f"must not begin or end with a blank; is {text!r}")
    if len(os.fsencode(text)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_PART for part in text.split("/")):
        raise ValueError(f"is too long: {LONGEST_PART} bytes between two '/', and {LONGEST_PATH} in all, are the most")
    for name in (plain or braced for plain, braced in VARIABLE.findall(text)):
        if name not in os.environ:
            raise ValueError(f"names the variable {name}, which is not set; set it, or write the whole path")
    if text.startswith("~") and os.path.expanduser(text) == text:  # noqa: PTH111 - Path raises RuntimeError
        raise ValueError(f"begins with {text.split('/')[0]!r}, which is no user's folder here; write the whole path")
    return text


def check_results(text: str) -> str:
    """Give the path of the results folder back. Snakemake reads it as it stands, so that nothing in it is expanded.

    Raises:
        ValueError: it is no path, or one that Snakemake or a step would read as something else.
    """
    if text.startswith(("~", "-")):
        raise ValueError(f"must not begin with {text[0]!r}, which is not expanded here; write the whole path")
    if special := [character for character in text if character in "{}<>$"]:
        raise ValueError(f"must not hold {special[0]!r}, which is not expanded here; write the whole path")
    return check_path(text)


def check_hub_id(text: str) -> str:
    """Give the id of a model or data set of the hub back.

    Raises:
        ValueError: the hub has no such ids.
    """
    if not re.fullmatch(HUB_ID, text) or len(text) > 96 or "--" in text or ".." in text:
        raise ValueError(f"must be an id of the hub, such as owner/name, not {text!r}")
    return text


def check_wandb_name(text: str) -> str:
    """Give the name of a project or team of Weights & Biases back.

    Raises:
        ValueError: it is one that Weights & Biases refuses, of some only when runs are uploaded.
    """
    check_line(text)
    if bad := [character for character in text if character in WANDB_REFUSES]:
        raise ValueError(f"must not hold {bad[0]!r}: Weights & Biases refuses the characters {WANDB_REFUSES}")
    if len(text) > 128:
        raise ValueError(f"has {len(text)} characters; Weights & Biases allows 128")
    return text


def check_prose(text: str) -> str:
    """Give a text that a model reads back; it may have several lines.

    Raises:
        ValueError: it holds a control character other than ends of lines and tabs.
    """
    strange = [character for character in text if unicodedata.category(character) in ("Cc", "Cs")]
    if strange := [character for character in strange if character not in "\n\t"]:
        raise ValueError(f"must not hold control characters, and holds {strange[0]!a}")
    return text


# Numbers are allowed as names because YAML reads `1:` as one.
Name = Annotated[str, BeforeValidator(_text), AfterValidator(check_name)]
Line = Annotated[str, AfterValidator(check_line)]
Prose = Annotated[str, AfterValidator(check_prose)]
LocalPath = Annotated[str, AfterValidator(check_path)]
ResultsPath = Annotated[str, AfterValidator(check_results)]
WandbName = Annotated[str, AfterValidator(check_wandb_name)]
HubId = Annotated[str, AfterValidator(check_hub_id)]
# Pydantic's `$` is the end of the text; that of Python's `re` would let a line break behind it pass.
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="Full commit id on the hub.")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def located(text: str) -> Path:
    """Give the path that a setting or variable names, with `~` and `$VARIABLE` expanded."""
    return Path(os.path.expandvars(os.path.expanduser(text)))  # noqa: PTH111 - one place, in this order


def cache_folder(setting: str = "cache") -> Path:
    """Give the folder of downloads: what TRIPTYCH_CACHE names, or else the setting `cache`."""
    return located(os.environ.get(CACHE_VARIABLE) or setting)
