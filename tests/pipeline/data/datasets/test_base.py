import re

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.datasets.base import LeftOut, pair, safe_key

parts = st.lists(st.text(alphabet="abAB01_-. é/", min_size=1, max_size=6), min_size=1, max_size=3)


@given(parts)
def test_keys_are_safe(names: list[str]):
    key = safe_key(*names)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", key)
    assert key == safe_key(*names)


@given(st.lists(parts, min_size=2, max_size=20, unique_by=tuple))
def test_keys_of_different_names_differ(all_names: list[list[str]]):
    keys = [safe_key(*names) for names in all_names]
    assert len(set(keys)) == len(keys)


@given(st.text(min_size=1, max_size=300))
def test_keys_fit_into_a_tar_header(name: str):
    assert len(safe_key(name).encode()) <= 80


def test_plain_names_stay_as_they_are():
    assert safe_key("aachen_000000_000019") == "aachen_000000_000019"
    assert safe_key("val", "119", "frame0029") == "val__119__frame0029"
    assert safe_key("val", "_aB") == "val__ab-7f7c824e"


def test_names_with_one_key_are_reported():
    images = {"a": "a.jpg", "b": "b.jpg"}
    listing = pair(images, {"a": "a.png", "b": "b.png"}, lambda name: "same")
    assert [source.image for source in listing.sources] == ["a.jpg"]
    assert listing.left_out == (LeftOut("b.jpg", "its key is that of a.jpg"),)
