"""Settings files that are small on disk and large in memory, or no settings at all."""

import pytest
import yaml

from model.errors import ModelError
from model.settings_file import MAX_BYTES, check_plain, parse_json, parse_yaml, shown
from tests.support.cpu_cost import costs_at_most

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def test_settings_are_read_as_yaml_reads_them():
    text = "a: &x {b: [1, 2.5, null, yes], c: 'ü'}\nd: *x\ne: {<<: *x, c: 3}\n"
    assert parse_yaml(text.encode(), "f") == yaml.safe_load(text)
    assert parse_json(b'{"a": [1, null]}', "f") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (BOMB.encode(), "more than 100000 values"),
        (b"a: &a [*a]", "stands for nothing"),
        (b"a: " + b"[" * 500_000, "deeper than"),
        (b"a:\n" + b"".join(b" " * n + b"- \n" for n in range(200)), "deeper than|no YAML"),
        (b"a: [" + b"1, " * 200_000 + b"]", "more than 100000 values"),
        (b"a: " + b"1:1" * 30_000, "characters"),
        (b"a: " + b"9" * 5000, "digits"),
        (b"a: 2001-99-99", "month"),
        (b"? [a, b]\n: c\n? {a: b}\n: d", "unhashable"),
        (b"a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        (b"a: \xff\xfe", "no UTF-8"),
        (b"#" * (MAX_BYTES + 1), "larger than"),
        (b"a: b: c", "mapping values"),
        (b"".join(b"%%TAG !a%d! tag:x\n" % n for n in range(150_000)) + b"---\na: b", "directives"),
    ],
    ids=range(14),
)
def test_what_is_no_settings_file_is_refused_in_one_short_line_at_once(data, reason):
    with costs_at_most(75), pytest.raises(ModelError, match=reason) as caught:
        parse_yaml(data, "config.yaml")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"[" * 200_000, b"{", b'{"a": ' + b"9" * 5000 + b"}"], ids=range(3)
)
def test_json_that_is_no_record_is_refused(data):
    with pytest.raises(ModelError, match="no JSON"):
        parse_json(data, "metrics.json")


def test_a_value_of_any_size_is_shown_shortly():
    nested: list = ["x" * 1000]
    for _ in range(60):
        nested = [nested, nested]
    for value in (nested, "y" * 10**6, 10**6000, {str(n): nested for n in range(1000)}):
        assert len(shown(value)) <= 300
    assert shown("a\nb") == "'a\\nb'"


def test_values_of_settings_are_plain_few_and_small():
    check_plain(
        {"depth": 4, "layers": [3, 4, 6, 3], "rate": 0.1, "norm": None, "x": True}, "kwargs"
    )
    deep: dict = {}
    for _ in range(8):
        deep = {"a": deep}
    shared: list = [0]
    for _ in range(60):
        shared = [shared, shared]
    for value in ({"depth": 10**9}, {"x": object()}, {"x": b"y"}, deep, shared, [0] * 2000):
        with pytest.raises(ModelError, match=r"^kwargs="):
            check_plain(value, "kwargs")
