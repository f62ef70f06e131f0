"""pyproject.toml names every package that the code imports, and no other; the lock files hold them all."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import triptych
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Declared, but not imported by Triptych's own code, and why.
NOT_IMPORTED = {
    "snakemake-executor-plugin-slurm": "the profile for SLURM names it",
    "gguf": "transformers reads the packaged weights with it",
    "pylibjpeg": "pydicom decodes with it and the two below",
    "pylibjpeg-libjpeg": "",
    "pylibjpeg-openjpeg": "",
}


def name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def declared(group: str = "") -> set[str]:
    project = PROJECT["project"]
    return {name(text) for text in (project["optional-dependencies"][group] if group else project["dependencies"])}


def imported(text: str) -> set[str]:
    """Top-level modules that Python code imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def packages(modules: set[str], ours: set[str]) -> set[str]:
    """Distributions that hold modules, without the standard library and our own."""
    providers = packages_distributions()
    others = modules - sys.stdlib_module_names - ours
    return {name(distribution) for module in others for distribution in providers.get(module, [module])[:1]}


def test_the_package_imports_what_is_declared_and_nothing_else():
    files = (ROOT / "workflow/scripts/triptych").rglob("*.py")
    modules = set().union(*(imported(path.read_text(encoding="utf-8")) for path in files))
    for path in (ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")):
        modules |= set(re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    found = packages(modules, {"triptych"})
    assert found - declared() == declared("adamw-8bit") == declared("nf4"), "what single settings need"
    assert declared() - found <= set(NOT_IMPORTED)


def test_tests_benchmarks_and_tools_import_what_is_declared():
    files = [path for folder in ("tests", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")]
    modules = set().union(*(imported(path.read_text(encoding="utf-8")) for path in files))
    assert packages(modules, {"triptych", *(path.stem for path in files)}) - declared() - declared("dev") == set()


def test_the_lock_files_hold_what_is_declared():
    locked = "\n".join(path.read_text() for path in ROOT.glob("requirements*.lock"))
    names = {name(line) for line in re.findall(r"^([\w.-]+)==", locked, flags=re.MULTILINE)}
    assert (declared() | declared("dev")) - names == set()
    [backend] = PROJECT["build-system"]["requires"]
    assert f"\n{backend} " in locked, "make install builds with the locked one"


def test_there_is_one_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert PROJECT["project"]["version"] == triptych.__version__
    assert f"version: {triptych.__version__}" in citation.replace('"', "")
