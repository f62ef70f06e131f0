"""Files that `make schema` writes from the code say what the code says; `make check` runs this file too."""

import json
from collections.abc import Callable

import commands_page
import models_page
import pytest
from conftest import ROOT
from settings_reference import reference
from triptych.config.settings import Settings


def test_the_schema_for_editors_is_current():
    current = json.loads((ROOT / "config" / "schema.json").read_text(encoding="utf-8"))
    assert current == json.loads(json.dumps(Settings.model_json_schema(by_alias=False))), "run `make schema`"


@pytest.mark.parametrize(
    ("name", "page"),
    [("configuration", reference), ("models", models_page.page), ("commands", commands_page.page)],
)
def test_a_page_from_the_code_is_current(name: str, page: Callable[[], str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # no page depends on the terminal
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == page(), "run `make schema`"
