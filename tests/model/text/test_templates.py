"""The templates are those of published figures, letter by letter."""

import pytest

from model.config import TEMPLATES
from model.text.templates import names_of, templates_of


def test_each_named_list_has_its_published_length_and_place_for_the_label():
    found = {name: templates_of(name) for name in TEMPLATES}
    assert {name: len(each) for name, each in found.items()} == {
        "none": 1,
        "imagenet": 80,
        "cat-seg": 1,
        "vild": 14,
        "tcl": 9,
    }
    assert all(text.count("{}") == 1 for each in found.values() for text in each)
    assert all(len(set(each)) == len(each) for each in found.values())
    assert found["cat-seg"] == ("A photo of a {} in the scene",)


@pytest.mark.parametrize(
    ("name", "file"),
    [("imagenet", "imagenet80"), ("cat-seg", "single.catseg"), ("vild", "vild14"), ("tcl", "tcl9")],
)
def test_they_equal_the_lists_that_were_copied_from_the_sources(name, file, shared_data):
    text = shared_data(f"reference/open_vocab/templates.{file}.txt").read_text(encoding="utf-8")
    assert templates_of(name) == tuple(text.splitlines())


def test_own_templates_are_lines():
    assert templates_of("a {}\n\nthe {}.\n") == ("a {}", "the {}.")


def test_names_between_commas():
    assert names_of("car, auto", "none") == ("car, auto",)
    assert names_of("car, auto", "first") == ("car",)
    assert names_of(" car,, auto ,", "mean") == ("car", "auto")
    assert names_of(",", "first") == (",",)
