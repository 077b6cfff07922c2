"""docs/configuration.md is what `make docs` writes, and holds every setting of every job."""

import pytest

from jobs.cli import build_parser
from tests.docs.generator import generator


@pytest.fixture(scope="module")
def page() -> str:
    return generator.page()


def test_the_page_is_current(page):
    written = generator.PAGE.read_text(encoding="utf-8")
    assert written == page, "docs/configuration.md is not current: run `make docs`"


def test_the_page_depends_on_the_code_alone(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert generator.page() == page
    assert str(generator.ROOT) not in page


def test_every_setting_of_every_job_has_a_row_and_a_text(page):
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    jobs = generator.jobs()
    assert {f"{job}.py" for job in jobs} == sections.keys()
    whole = sections[f"{generator.BASE}.py"]
    for job in jobs:
        keys = build_parser(generator.config_class(job)).get_defaults().keys()
        rows = sections[f"{job}.py"]
        if f"](#{generator.BASE}py)" in rows:
            rows += whole
        missing = [key for key in keys if key != "config" and f"| `{key}` |" not in rows]
        assert missing == [], job
    bare = [line for line in page.splitlines() if line.endswith("|  |")]
    assert bare == []  # A setting without a text.


def test_groups_within_mappings_are_listed(page):
    assert "| `own.NAME.root` |" in page
    assert "| `own.NAME.val_fraction` |" in page
