"""The script of the `scripted` model."""

import json

import pytest

from broker.bus.script import Script, ScriptInvalid, parse_script


def test_the_documented_example_is_what_an_empty_script_means() -> None:
    """The defaults are the object shown in the API page."""
    shown = (
        '{"tokens": 200, "rate": 50, "seed": 7, "burst": 1, "jitter": 0, "stall_at": null, "stall_ms": 0, "ttft_ms": 0,'
        ' "fail_at": null, "broken_at": null}'
    )
    assert parse_script(shown) == parse_script("{}") == Script()


def test_tokens_are_seed_dot_index_space() -> None:
    """Token i is exactly "{seed}.{i} "."""
    script = parse_script('{"seed": 9}')
    assert script.token(0) == "9.0 "
    assert script.text(9, 12) == "9.9 9.10 9.11 "
    assert script.text(4, 4) == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", -1),
        ("tokens", 1_000_001),
        ("tokens", "200"),
        ("tokens", True),
        ("tokens", 1.5),
        ("rate", -0.1),
        ("rate", 100_001),
        ("seed", None),
        ("seed", 2**53),
        ("burst", 0),
        ("burst", 1025),
        ("jitter", 1.01),
        ("stall_at", -1),
        ("stall_ms", 600_001),
        ("ttft_ms", -5),
        ("fail_at", "never"),
        ("broken_at", -1),
        ("speed", 3),
    ],
)
def test_the_wrong_field_is_named(field: str, value: object) -> None:
    """Whatever is wrong with one field, and a field that does not exist, is refused under that field's name."""
    with pytest.raises(ScriptInvalid) as caught:
        parse_script(json.dumps({"tokens": 5, field: value}))
    assert caught.value.param == field
    assert caught.value.message


@pytest.mark.parametrize("text", ["", "hello", "[1]", "7", "null", '{"tokens": 1', "[" * 100_000, "\ud800", "{} {}"])
def test_anything_else_is_refused_as_a_whole(text: str) -> None:
    """A text that is not one JSON object names no field, and never breaks the parser."""
    with pytest.raises(ScriptInvalid) as caught:
        parse_script(text)
    assert caught.value.param is None
    assert isinstance(caught.value, ValueError)
