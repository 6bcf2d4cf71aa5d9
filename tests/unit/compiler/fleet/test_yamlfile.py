"""Only plain YAML 1.2 data comes in, with its lines; everything else is refused fast, with its place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import ProfileError
from compiler.fleet.yamlfile import MAX_BYTES, MAX_DEPTH, MAX_VALUES, Origin, dotted, parse_yaml, read_yaml


def parse(text: str) -> dict[str, object]:
    return dict(parse_yaml(text, name="f.yaml", error=ProfileError).data)


def refusal(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse(text)
    return str(caught.value)


def refusal_of_file(path: Path) -> str:
    with pytest.raises(ProfileError) as caught:
        read_yaml(path, error=ProfileError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("012", 12),
        ("0o17", 15),
        ("0x1f", 31),
        ("-7", -7),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("9" * 5000, "9" * 5000),
        ("'7'", "7"),
        ("'null'", "null"),
        ("[a, [b]]", ["a", ["b"]]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_follow_the_yaml_1_2_core_schema_and_stay_finite(text: str, value: object) -> None:
    got = parse(f"key: {text}")["key"]
    assert got == value and type(got) is type(value)


def test_every_key_and_item_knows_its_line() -> None:
    origin = parse_yaml("a: 1\nb:\n  c: [x,\n    y]\n", name="f.yaml", error=ProfileError).origin
    assert origin.lines[("b", "c")] == 3
    assert origin.place(("b", "c", 1)) == "f.yaml:4 b.c[1]"
    assert origin.place(("b", "missing", "below")) == "f.yaml:2 b.missing.below"
    assert Origin().place(("b",)) == "b"


def test_keys_that_would_garble_a_message_are_quoted() -> None:
    assert dotted(("a", "b\x1b[31m c")) == "a.'b\\x1b[31m c'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1\nb: *x\n", "f.yaml:1 a: YAML anchors and aliases"),
        ("a: 1\nb: *x\n", "f.yaml:2 b: YAML anchors and aliases"),
        ("a: 1\n<<: {b: 2}\na: 3\n", "f.yaml:3 a: repeated key; it stands already in line 1"),
        ("a: !!python/object/apply:os.system [id]\n", "YAML tags are not read"),
        ("a: !!int '3'\n", "YAML tags are not read"),
        ("%YAML 1.1\n---\na: 1\n", "YAML directives"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: a second document"),
        ("- a\n- b\n", "f.yaml:1: expected a mapping"),
        ("just words\n", "f.yaml:1: expected a mapping"),
        ("1: a\n", "expected a text key"),
        ("? [a]\n: b\n", "expected a text key"),
        ("null: a\n", "expected a text key"),
        ("a:\n\tb: 1\n", "never with tabs"),
        ("a: [1, 2\n", "is not YAML"),
        ("a: \x01\n", "is not YAML"),
        ('a: "\\ud800"\n', "surrogate"),
        ('a: "\\UFFFFFFFF"\n', "is not YAML"),
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("# nothing\n", "comments only"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        ("[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("a: {" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("a: [" + "1," * MAX_VALUES + "]", f"holds more than {MAX_VALUES} keys and values"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(text: str, said: str) -> None:
    assert said in refusal(text)


def test_ten_megabytes_of_aliases_are_refused_fast(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.yaml"
    line = "a: &a [x]\n" + "".join(f"b{i}: [*a, *a, *a, *a, *a, *a, *a, *a]\n" for i in range(1000))
    bomb.write_text(line * 300)
    assert bomb.stat().st_size > 10_000_000
    start = time.monotonic()
    assert "is larger than" in refusal_of_file(bomb)
    bomb.write_text((line * 300)[:MAX_BYTES])
    assert "anchors and aliases" in refusal_of_file(bomb)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b"a: 1\nb: \xff\xfe\n", ":2: is not UTF-8"),
        (b"a: 1\n\nb: \0\n", ":3: holds NUL bytes"),
        ("a: 1\n".encode("utf-16"), "holds NUL bytes"),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path, raw: bytes, said: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(raw)
    assert said in refusal_of_file(file)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(file, error=ProfileError).data == {"a": 1}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (".", "is a folder or a device"),
        ("/dev/zero", "is a folder or a device"),
        ("no/such/file", "No such file"),
        ("x" * 5000, "File name too long"),
        ("nul\0byte", "null"),
    ],
)
def test_what_is_no_readable_file_is_refused(path: str, said: str) -> None:
    assert said in refusal_of_file(Path(path))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(alphabet="{}[]:,-?&*!|>'\"%@`#\n\t \\~<=ab1\x85\ufeff", max_size=60).map(str.encode)
)
def test_no_bytes_raise_anything_but_the_given_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_bytes(raw)
    try:
        document = read_yaml(file, error=ProfileError)
    except ProfileError as refused:
        assert str(refused)
    else:
        assert set(document.data) == {keys[0] for keys in document.origin.lines if len(keys) == 1}
