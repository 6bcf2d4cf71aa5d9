"""Tables on a terminal."""

from __future__ import annotations

from compiler.cli.text import COLUMNS, table


def test_a_table_with_long_names_fits_and_keeps_both_ends_of_them() -> None:
    names = [f"camera-{'x' * 50}-{number}" for number in (1, 2)]
    rows = [
        (name, "openvino", "fp16-weights", "deferred", "145 -> 85", "120 dB", "1.71 ms", "measured-host")
        for name in names
    ]
    head = ("device", "target", "precision", "MiB", "nodes", "parity", "latency or work", "evidence")
    lines = table(rows, head).splitlines()
    assert max(map(len, lines)) == COLUMNS
    assert lines[1].startswith("camera-…") and "x-1  openvino" in lines[1] and "x-2  openvino" in lines[2]
    assert all(cell in lines[1] for cell in rows[0][1:])


def test_a_table_that_fits_is_left_as_it_is() -> None:
    assert table([("kiosk", "1")], ("device", "MiB")) == "device  MiB\nkiosk   1"
