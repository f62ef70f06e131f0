"""The commands in the documents can be typed as they stand: they parse, and no option swallows a target."""

import re
import shlex
from importlib import import_module

import check_profiles
import pytest
from conftest import ROOT
from snakemake.cli import get_argument_parser
from triptych.cli import COMMANDS, build_parser

DOCUMENTS = [
    ROOT / "README.md",
    *(path for name in ("docs", "config", "profiles") for path in (ROOT / name).glob("*.md")),
]
OTHERS = [ROOT / "Makefile", *sorted((ROOT / "config").glob("*.yaml")), *sorted((ROOT / "profiles").glob("*/*.yaml"))]
TARGETS = {"all", "plan", "test"}
STEPS = "|".join(set(check_profiles.rules()) - TARGETS)
# What the options that take several values may be followed by; `...` and variables stand for anything.
VALUES = {
    "--configfile": r".+\.ya?ml",
    "--config": r"\w+=.*",
    "--quiet": "all|host|progress|reason|rules",
    "--forcerun": STEPS,
    "--until": STEPS,
    "--sdm": "conda|apptainer",
}
SEVERAL = {
    option
    for action in get_argument_parser(profiles=[])._actions
    if action.nargs in ("+", "*")
    for option in action.option_strings
}


SNAKEMAKE = r"(?:^|[\s:=])(?:snakemake|\$\(SNAKEMAKE\)) (.+)"
TRIPTYCH = r"(?:^|[;&|#]) *triptych (.+)"  # where a command begins, and not in `git clone ... triptych`


def commands(text: str, markdown: bool, program: str = SNAKEMAKE) -> list[str]:
    """Commands of a program in a document: lines of code blocks and, in Markdown, what is `between ticks`."""
    text = text.replace("\\\n", " ")
    lines = text.splitlines()
    if markdown:
        blocks = re.findall(r"^ *```.*?\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
        rest = re.sub(r"^ *```.*?\n.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", rest)]
    found = (re.search(program, line) for line in lines)
    return [match[1] for match in found if match]


def faults(command: str) -> list[str]:
    """Words of a command that an option before them would swallow."""
    found, option = [], ""
    for word in shlex.split(command, comments=True):
        if word.startswith("-"):
            option = word
        elif option in SEVERAL and word != "..." and "$" not in word and not re.fullmatch(VALUES.get(option, ""), word):
            found.append(f"{option} swallows {word}")
        elif option not in SEVERAL:
            option = ""  # it has its one value
    return found


@pytest.mark.parametrize("document", DOCUMENTS + OTHERS, ids=lambda path: path.name)
def test_no_command_has_a_target_where_an_option_swallows_it(document):
    found = commands(document.read_text(encoding="utf-8"), document.suffix == ".md")
    assert [(command, fault) for command in found for fault in faults(command)] == []


def test_the_documents_hold_commands():
    found = [command for path in DOCUMENTS for command in commands(path.read_text(encoding="utf-8"), markdown=True)]
    assert len(found) > 15
    assert any(command.startswith("plan ") for command in found), "in a block or between ticks"
    assert any("--forcerun" in command for command in found)


def parse(command: str) -> None:
    """Parse a command of Triptych; its name alone may stand in a text. What it cannot parse exits with status 2."""
    name, *words = shlex.split(re.split(r" [|>;&]", command)[0], comments=True)
    if name.startswith("-") or name not in COMMANDS:
        build_parser().parse_args([name, *words])
    elif name == "resume":
        get_argument_parser(profiles=[]).parse_args(words)
    elif words:
        import_module(COMMANDS[name].module).build_parser().parse_args(words)


def test_every_command_of_triptych_is_one_that_it_understands():
    code = sorted((ROOT / "workflow").rglob("*.py"))
    for document in DOCUMENTS + OTHERS + code:
        for command in commands(document.read_text(encoding="utf-8"), document.suffix == ".md", TRIPTYCH):
            try:
                parse(command)
            except SystemExit as left:
                assert not left.code, f"{document}: triptych {command}"


def test_the_documents_show_every_command_of_triptych():
    by_hand = [path for path in DOCUMENTS if path.name != "commands.md"]
    texts = [path.read_text(encoding="utf-8") for path in by_hand]
    found = {command.split()[0] for text in texts for command in commands(text, True, TRIPTYCH)}
    assert set(COMMANDS) - found == {"schema"}, "which `make schema` runs"


@pytest.mark.parametrize(
    "command", ["stauts", "status --configfil", "convert vqa-rad --from a", "resume --profil", "plan x"]
)
def test_a_command_that_is_wrong_is_found(command):
    with pytest.raises(SystemExit, match="2"):
        parse(command)


def test_nobody_is_told_to_set_a_path_or_to_run_a_module():
    told = [path for folder in ("workflow/scripts", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")]
    for document in DOCUMENTS + OTHERS + told:
        text = document.read_text(encoding="utf-8")
        assert "PYTHONPATH=" not in text and "python -m triptych" not in text, document


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```\nsnakemake --configfile a.yaml plan  # costs\n```", ["--configfile swallows plan"]),
        ("Say `snakemake --configfile a.yaml\nresults/a.md` once.", ["--configfile swallows results/a.md"]),
        ("  ```\n  A=b snakemake --config yes_retrain=true test\n  ```", ["--config swallows test"]),
        ("`snakemake --quiet rules plan`", ["--quiet swallows plan"]),
        ("`snakemake --until train_stage all`", ["--until swallows all"]),
        ("`snakemake plan --profile p --configfile a.yaml`", []),
        ("`snakemake --configfile a.yaml --profile p plan`", []),
    ],
)
def test_a_swallowed_target_is_found(text, said):
    (command,) = commands(text, markdown=True)
    assert faults(command) == said
