"""Tables in LaTeX as a strict reader sees them: what TeX would stop at, or typeset as something else, is an error."""

import re
import shutil

PDFLATEX = shutil.which("pdflatex")
COMMANDS = {
    *("begin", "end", "centering", "caption", "label", "toprule", "midrule", "bottomrule", "pm", "char"),
    *(f"text{name}" for name in ("backslash", "asciitilde", "asciicircum", "less", "greater", "bar", "asciigrave")),
}
TOKEN = re.compile(r"\\([A-Za-z]+)|\\(.)|(.)", flags=re.DOTALL)


def tabular(text: str) -> list[list[str]]:
    """Check a table and give the cells of its rows, in LaTeX.

    Raises:
        AssertionError: an unknown command, a special sign as it is, braces or environments that do not match, a row
            with more or fewer cells than columns, or one that begins with what ends the row before.
    """
    opened, depth, math = [], 0, False
    for place in TOKEN.finditer(text):
        word, sign, letter = place.groups()
        rest = text[place.end() :]
        if word:
            assert word in COMMANDS, f"unknown: \\{word}"
            if word in ("begin", "end"):
                [name] = re.match(r"\{(\w+)\}", rest).groups()
                if word == "begin":
                    opened.append((name, depth))
                else:
                    assert opened.pop() == (name, depth), f"\\end{{{name}}} ends something else"
        elif sign:
            assert sign in "&%_#${}\\", f"unknown: \\{sign}"
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            assert depth >= 0, "a brace that was not opened"
        elif letter == "$":
            math = not math
        else:
            assert letter not in '%#_^~"`', f"{letter} as it is"
            assert letter != "&" or opened[-1:] == [("tabular", 0)], "& beside a table"
            assert letter.isprintable() or letter == "\n", repr(letter)
    assert not opened and not depth and not math
    [(columns, body)] = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*)\\end\{tabular\}", text, flags=re.DOTALL)
    body = re.sub(r"\\(?:top|mid|bottom)rule\s*", "", body)
    assert not re.search(r"\n\s*[\[*]|^\s*[\[*]", body), "a row that begins with an argument of the command before"
    *lines, rest = re.split(r"\\\\(?=\s)", body)
    assert not rest.strip()
    found = [re.split(r"(?<!\\)&", line.strip()) for line in lines]
    assert {len(row) for row in found} <= {len(columns)}
    return [[cell.strip() for cell in row] for row in found]
