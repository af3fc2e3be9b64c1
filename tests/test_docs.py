"""The documentation and the code say the same."""

import re
import tomllib
from pathlib import Path

import pytest

from config import ENV_VARIABLE, SETTINGS, TEST_VARIABLES

ROOT = Path(__file__).parent.parent
NAMES = {ENV_VARIABLE, *(item.name for item in SETTINGS)}
DOCUMENTS = sorted([ROOT / "README.md", ROOT / ".env.example", *(ROOT / "docs").glob("**/*.md")])
VARIABLE = re.compile(r"\bCANDLERY_[A-Z0-9_]+\b")


def table_rows(document: str) -> dict[str, list[str]]:
    """Rows of the Markdown tables by their first cell, without the code marks."""
    lines = (ROOT / document).read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def example_values() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    return dict(line.removeprefix("#").split("=", 1) for line in lines if line.startswith("#CANDLERY_"))


def test_every_setting_is_in_the_settings_table_with_its_meaning():
    rows = table_rows("docs/settings.md")
    assert set(rows) == NAMES
    assert {item.name: rows[item.name][1] for item in SETTINGS} == {item.name: item.setting.doc for item in SETTINGS}


def test_every_default_in_the_settings_table_is_right():
    rows = table_rows("docs/settings.md")
    for item in SETTINGS:
        said = rows[item.name][0].split(";")[0].strip("`").replace(", ", ",")
        default = item.setting.write(item.default) or "empty"
        assert said == default or item.field == "data_dir", item.name


def test_every_setting_is_in_the_example_file_with_its_default():
    defaults = {item.name: item.setting.write(item.default) for item in SETTINGS if item.field != "data_dir"}
    assert example_values() == {ENV_VARIABLE: "development", "CANDLERY_DATA_DIR": ""} | defaults


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_that_a_document_names_exists(document: Path):
    named = set(VARIABLE.findall(document.read_text("utf-8")))
    unknown = {name for name in named - NAMES if not name.startswith(TEST_VARIABLES)}
    # The sample of a fault report is a name that must not exist.
    assert unknown <= ({"CANDLERY_PROT"} if document.name == "settings.md" else set())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_local_link_of_a_document_leads_somewhere(document: Path):
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text("utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_dependency_has_its_licence_and_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {
        re.split(r"[^\w-]", line)[0] for line in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    rows = table_rows("docs/dependencies.md")
    assert set(rows) == wanted
    assert all(len(row) == 3 and all(row) for row in rows.values())
