"""Shares of the peak: what a contender computes in its time, over what the very instruction can."""

import platform
from pathlib import Path

import pytest
from bench_x86 import with_shares
from x86_peak import measure_peak

from compiler.target import host_isa

FOUND = {
    "latency, threads 1": {
        "ours": {"fastest_ms": 2.0},
        "theirs": {"fastest_ms": 4.0},
        "ours over theirs": {"median": 0.5},
    }
}


def test_a_share_is_of_the_fastest_inference() -> None:
    rows = with_shares(FOUND, 100_000_000, {"gmacs_per_s": 100.0})["latency, threads 1"]
    assert [rows[name].get("share_of_peak") for name in rows] == [0.5, 0.25, None]


@pytest.mark.parametrize("macs", [None, 100], ids=["a shape is not known", "no peak"])
def test_what_is_not_known_gives_no_share(macs: int | None) -> None:
    found = with_shares(FOUND, macs, {"unavailable": "the peak of amx_int8 is not measured"})
    assert found["latency, threads 1"] == FOUND["latency, threads 1"] and found["macs"] == macs


def test_tiles_have_no_peak_of_vectors(tmp_path: Path) -> None:
    assert "amx_int8" in measure_peak("int8", {"avx512_vnni", "amx_int8"}, tmp_path)["unavailable"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instructions")
def test_a_core_multiplies_a_vector_or_two_a_cycle(tmp_path: Path) -> None:
    peak = measure_peak("fp32", host_isa(), tmp_path)
    width = 16 if "zmm" in peak["instruction"] else 8
    assert 0.3 * width <= peak["macs_per_cycle"] <= 2.1 * width
