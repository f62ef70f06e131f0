"""The command `triptych`: every subcommand has a help page with an example, starts fast and is completed by shells."""

import os
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import triptych
from conftest import ROOT
from triptych.cli import COMMANDS, SHELLS, completion, main


def run(*words: str) -> subprocess.CompletedProcess:
    """Run `triptych` in a process of its own, in which the working tree is what is installed."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'workflow/scripts')!r}); sys.argv = ['triptych', *{words!r}]\n"
    code += "from triptych.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def leave(capsys, *words: str) -> str:
    """Run a command that ends with a page; gives the page."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_page_with_an_example_that_parses(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    page = leave(capsys, name, "--help")
    assert page.startswith(f"usage: triptych {name} ") and "__main__" not in page
    description, example = page.split("\n\n")[1], page.split("example: ")[1]
    assert len(description.split()) > 5 and "`" not in description
    program, command, *words = shlex.split(example)
    assert (program, command) == ("triptych", name)
    import_module(COMMANDS[name].module).build_parser().parse_known_args(words)


def test_the_first_page_lists_every_command(capsys):
    page = leave(capsys, "--help")
    main([])
    assert capsys.readouterr().out == page
    lines = [line.split(maxsplit=1)[0] for line in page.splitlines() if line.startswith("    ") and line.strip()]
    assert [line for line in lines if line in COMMANDS] == list(COMMANDS)


def test_the_version_is_printed(capsys):
    assert leave(capsys, "--version") == f"triptych {triptych.__version__}\n"


def test_a_command_that_is_mistyped_is_told_the_others(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["stauts"])
    assert "invalid choice: 'stauts'" in capsys.readouterr().err


def test_an_error_is_one_line():
    ended = run("status", "--configfile", "nowhere.yaml")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: nowhere.yaml: cannot be read") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "reader", "said"),
    [
        ("print('x' * 100_000)", "gone", False),
        ("print('x')", "gone", False),
        ("raise BrokenPipeError('elsewhere')", "there", True),
    ],
)
def test_output_that_nobody_reads_any_more_ends_a_command_quietly(line, reader, said):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'workflow/scripts')!r}); sys.argv = ['triptych', 'status']\n"
    code += f"from triptych import cli\nfrom triptych.commands import status\ndef main(rest):\n    {line}\n"
    code += "status.main = main\ncli.main()"
    read, write = os.pipe()
    if reader == "gone":
        os.close(read)
    ended = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    if reader == "there":
        os.close(read)
    assert ended.returncode == 1
    assert ("BrokenPipeError: elsewhere" in ended.stderr) is said and bool(ended.stderr) is said


def test_no_command_waits_for_what_it_does_not_need():
    quick = ["plan", "status", "resume", "export", "convert", "schema"]  # the others load torch, or what loads it
    code = "import contextlib, io, sys; from triptych.cli import main\n"
    code += f"for words in ([], *([name, '--help'] for name in {quick})):\n"
    code += "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(words)\n"
    code += "    print(*words[:1], *{'torch', 'transformers', *([] if words else ['pyarrow'])} & set(sys.modules))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'workflow/scripts')!r})\n{code}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split() == quick


def test_the_installed_script_is_this_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("triptych", scripts["triptych"], "console_scripts").load() is main
    script = Path(sys.executable).parent / "triptych"
    if script.exists():
        assert subprocess.run([script, "--version"], capture_output=True, text=True).stdout.startswith("triptych ")


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_complete_commands_and_options(shell):
    pytest.importorskip("shtab")
    script = completion(shell)
    assert all(text in script for text in (*COMMANDS, "configfile", "equivalence-margin"))


@pytest.mark.parametrize(
    ("words", "completed"),
    [("triptych st", "status"), ("triptych status --w", "--watch"), ("triptych verify --configfile R", "README.md")],
)
def test_bash_completes(words, completed, tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "completion").write_text(completion("bash"))
    asked = f"source {tmp_path}/completion; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}\n"
    asked += '_shtab_triptych; echo "${COMPREPLY[@]}"'
    said = subprocess.run(["bash", "-c", asked], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.strip() == completed, said.stderr
