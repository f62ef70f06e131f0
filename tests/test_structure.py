"""The package's structure: folders in the order in which the data flows, small files, small functions."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "workflow/scripts/triptych"
# A folder imports from those before it alone.
ORDER = (
    *("errors", "utils", "io", "config", "download", "data", "model", "features", "train", "evaluate"),
    *("tables", "export", "commands", "report", "serve", "workflow_hooks", "cli"),
)
MOST_LINES, LONGEST_FUNCTION = 400, 80
FILES = sorted(PACKAGE.rglob("*.py"))


def place(parts: tuple[str, ...]) -> int:
    return ORDER.index(parts[0].removesuffix(".py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_order_of_the_folders(path):
    parts = path.relative_to(PACKAGE).parts
    if parts == ("__init__.py",):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triptych."):
            imported = node.module.split(".")[1:]
        elif isinstance(node, ast.ImportFrom) and node.module == "triptych":
            imported = [name.name for name in node.names if name.name in ORDER]
        else:
            continue
        assert all(place((name,)) <= place(parts) for name in imported[:1]), f"line {node.lineno}: imports {imported}"


def test_files_and_functions_can_be_read_in_one_go():
    long = [str(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                long.append(f"{path}: {node.name}")
    assert not long


def test_every_folder_of_the_package_stands_in_the_order():
    found = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == {*ORDER, "__init__"}
