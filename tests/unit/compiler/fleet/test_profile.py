"""Profiles are read strictly, every fact has its source, and every problem is told at once."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from compiler.errors import ProfileError
from compiler.fleet.profile import (
    HardwareProfile,
    find_profile,
    list_profiles,
    load_profile,
    profile_digest,
    profile_for,
    profile_of,
    to_dict,
    to_yaml,
    validate_options,
)
from compiler.fleet.yamlfile import parse_yaml

ROOT = Path(__file__).resolve().parents[4]
BOARD = """\
schema: 1
name: board
target: tvm
target_options:
  mcpu: cortex-a76
  threads: 4
cpu: {model: Cortex-A76, cores: 4, isa: [asimd]}
memory_mib: 4096
provenance:
  cpu: board manual
  memory_mib: board manual
"""
EXPECTED = {
    *("raspberry-pi-4", "raspberry-pi-5", "rk3588", "jetson-orin-nano-cpu", "jetson-orin-nano-gpu", "aws-graviton3"),
    *("ampere-altra", "intel-n100", "intel-xeon-icelake", "intel-xeon-sapphire-rapids", "amd-epyc-genoa"),
    *("nvidia-t4", "nvidia-a10", "nvidia-l4", "nvidia-rtx-4090", "nvidia-h100"),
}


def parse(text: str) -> HardwareProfile:
    return profile_of(parse_yaml(text, name="board.yaml", error=ProfileError))


def refusal(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse(text)
    return str(caught.value)


def test_the_promised_boards_are_built_in() -> None:
    assert set(list_profiles()) >= EXPECTED


@pytest.mark.parametrize("name", list_profiles())
def test_a_built_in_profile_is_complete(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description and profile.precisions and profile.provenance
    assert profile.target in ("tvm", "openvino", "tensorrt")
    if profile.target == "tensorrt":
        assert profile.accelerator is not None
        assert profile.target_options["compute_capability"] == profile.accelerator.compute_capability
    else:
        assert profile.cpu is not None and profile.cpu.isa and profile.cpu.clock_mhz and profile.cpu.l1_kib


@pytest.mark.parametrize("name", list_profiles())
def test_half_precision_is_claimed_only_with_the_instructions_for_it(name: str) -> None:
    profile = load_profile(name)
    if profile.cpu is None or profile.accelerator is not None:
        return
    isa, mattr = set(profile.cpu.isa), set(profile.target_options.get("mattr", ()))
    assert ("fp16" in profile.precisions) == bool(isa & {"asimdhp", "avx512_fp16"})
    assert ("bf16" in profile.precisions) == bool(isa & {"bf16", "avx512_bf16", "amx_bf16"})
    for flag, feature in {"asimdhp": "+fullfp16", "asimddp": "+dotprod", "i8mm": "+i8mm", "sve": "+sve"}.items():
        assert (feature in mattr) == (flag in isa and profile.target == "tvm")


def test_unknown_facts_are_none_and_known_ones_keep_their_values() -> None:
    profile = parse(BOARD)
    assert (profile.memory_mib, profile.power_w, profile.accelerator, profile.precisions) == (4096, None, None, ())
    assert profile.cpu is not None and (profile.cpu.cores, profile.cpu.threads, profile.cpu.isa) == (
        4,
        None,
        ("asimd",),
    )


def test_a_profile_cannot_be_changed_and_crosses_a_process_border() -> None:
    profile = parse(BOARD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.name = "other"  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(profile))
    assert copy == profile and copy.origin == profile.origin


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "memory_mib: 4096",
            "memory_mib: 4GB",
            "board.yaml:8 memory_mib: expected an integer number of MiB, got '4GB'",
        ),
        ("memory_mib: 4096", "memory_mib: 4096.5", "expected an integer number of MiB, got 4096.5"),
        ("memory_mib: 4096", "memory_mib: '4096'", "expected an integer number of MiB, got '4096'"),
        ("memory_mib: 4096", "memory_mib: 0", "must be greater than or equal to 1, got 0"),
        ("memory_mib: 4096", "memory_mib: true", "expected an integer number of MiB, got true"),
        ("memory_mib: 4096", "power_w: yes", "expected a number of watts, got 'yes'"),
        ("memory_mib: 4096", "memori_mib: 1", "board.yaml:8 memori_mib: unknown key; did you mean 'memory_mib'?"),
        ("cores: 4", "core: 4", "board.yaml:7 cpu.core: unknown key; did you mean 'cores'?"),
        ("cores: 4, ", "", "board.yaml:7 cpu.cores: is required and missing"),
        ("isa: [asimd]", "isa: asimd", "cpu.isa: expected a list, got 'asimd'"),
        ("isa: [asimd]", "isa: [asimd, 3]", "cpu.isa[1]: expected text, got 3"),
        ("{model: Cortex-A76, cores: 4, isa: [asimd]}", "fast", "cpu: expected a mapping, got 'fast'"),
        ("schema: 1", "schema: 2", "board.yaml:1 schema: expected 1, got 2"),
        ("name: board", "name: ../board", "name: must match pattern"),
        ("name: board", "origin: here", "origin: unknown key"),
        ("target: tvm", "", "target: is required and missing"),
        ("  cpu: board manual", "  cpu.model: manual", "does not say where these are from: cpu.cores, cpu.isa"),
        ("  cpu: board manual", "  cpu: x\n  cpu.isaa: y", "board.yaml:11 provenance.cpu.isaa: is not a fact"),
        ("  cpu: board manual", "  cpu: 3", "provenance.cpu: expected text, got 3"),
    ],
)
def test_a_mistake_is_told_with_file_line_key_and_remedy(old: str, new: str, said: str) -> None:
    assert old in BOARD
    assert said in refusal(BOARD.replace(old, new))


def test_all_problems_are_told_at_once() -> None:
    message = refusal("schema: 3\nname: B\ncpu: {}\nmemory_mib: x\npower_w: -1\nwhat: 1\n")
    assert message.startswith("9 problems:")
    for key in ("schema", "name", "target", "cpu.model", "cpu.cores", "memory_mib", "power_w", "what", "provenance"):
        assert f" {key}: " in message


def test_a_file_of_another_kind_is_refused_briefly_and_fast() -> None:
    assert len(refusal("".join(f"key{i}: 1\n" for i in range(20_000)))) < 20_000


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ProfileError, match="did you mean 'raspberry-pi-5'"):
        load_profile("rasberry-pi5")


def test_a_path_is_told_from_a_name_by_its_look(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(BOARD)
    assert load_profile(file) == load_profile(str(file)) == parse(BOARD)
    assert find_profile("nvidia-t4").name == "nvidia-t4.yaml"
    assert find_profile("nvidia-t4.yaml") == Path("nvidia-t4.yaml")


def test_the_digest_follows_the_facts_and_not_the_layout() -> None:
    digest = profile_digest(parse(BOARD))
    assert len(digest) == 64
    assert profile_digest(parse("# a comment\n" + BOARD.replace("4096", "0x1000"))) == digest
    assert profile_digest(parse(BOARD.replace("4096", "2048"))) != digest


@pytest.mark.parametrize("name", list_profiles())
def test_a_written_profile_reads_back_equal(name: str) -> None:
    profile = load_profile(name)
    again = parse(to_yaml(profile))
    assert again == profile and profile_digest(again) == profile_digest(profile)


def test_options_that_are_null_or_empty_survive_writing() -> None:
    options = {"a": None, "b": [], "c": {}, "d": {"e": None}, "f": [None, 1.5]}
    profile = dataclasses.replace(parse(BOARD), target_options=options)
    assert parse(to_yaml(profile)) == profile


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
@example("?0")
@example("? x")
def test_any_text_survives_writing_and_reading(text: str) -> None:
    profile = dataclasses.replace(parse(BOARD), description=text, target_options={f"k{text}": text, "list": [text]})
    assert to_dict(parse(to_yaml(profile))) == to_dict(profile)


@dataclass(frozen=True)
class Options:
    """What a target might accept."""

    mcpu: str
    hint: Literal["latency", "throughput"] = "latency"
    threads: Annotated[int | None, Field(ge=1)] = None
    mattr: tuple[str, ...] = ()


def test_target_options_become_the_targets_own_dataclass() -> None:
    assert validate_options(Options, parse(BOARD)) == Options(mcpu="cortex-a76", threads=4)


def test_wrong_target_options_are_told_with_line_and_nearest_key() -> None:
    profile = parse(BOARD.replace("mcpu: cortex-a76", "mcpi: x\n  hint: fast").replace("threads: 4", "threads: 0"))
    with pytest.raises(ProfileError) as caught:
        validate_options(Options, profile)
    message = str(caught.value)
    assert "board.yaml:5 target_options.mcpi: unknown key; did you mean 'mcpu'?" in message
    assert "board.yaml:6 target_options.hint: expected 'latency' or 'throughput', got 'fast'" in message
    assert "board.yaml:7 target_options.threads: must be greater than or equal to 1, got 0" in message
    assert "target_options.mcpu: is required and missing" in message


def test_options_of_a_profile_made_in_code_are_refused_without_a_line() -> None:
    made = HardwareProfile(schema=1, name="made", target="tvm", target_options={"mcpu": 3})
    with pytest.raises(ProfileError, match=r"^target_options.mcpu: expected text, got 3"):
        validate_options(Options, made)


def mutations(text: str) -> st.SearchStrategy[str]:
    piece = st.sampled_from(
        ["", "\n", "  ", ": ", "- ", "[", "{", "'", "&a ", "*a", "!!x ", "\t", "null", "1e9", "%", "\0", "é"]
    )
    edit = st.tuples(st.integers(0, len(text)), st.integers(0, 8), piece)
    return st.lists(edit, min_size=1, max_size=5).map(lambda edits: _edited(text, edits))


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    return text


@settings(max_examples=150, deadline=None)
@given(mutations((ROOT / "profiles/rk3588.yaml").read_text()))
def test_a_damaged_profile_is_read_or_refused_and_never_more(text: str) -> None:
    try:
        profile = parse(text)
    except ProfileError as refused:
        assert str(refused)
    else:
        assert isinstance(profile.target_options, Mapping)


def test_schemas_and_their_documentation_are_not_stale() -> None:
    pytest.importorskip("fastapi", reason="the build server's API is generated too: it needs the extra server")
    command = [sys.executable, str(ROOT / "scripts/generate_schemas.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("also", ["[tvm, reference]", "{tvm: {mtriple: x86_64}, reference: {}}"])
def test_other_targets_are_names_or_names_with_options(tmp_path: Path, also: str) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(f"schema: 1\nname: board\ntarget: openvino\ntarget_options: {{threads: 2}}\nalso: {also}\n")
    profile = load_profile(path)
    assert profile.targets == ("openvino", "tvm", "reference")
    own, other = profile_for(profile, "openvino"), profile_for(profile, "tvm")
    assert (own.target, own.target_options, own.also) == ("openvino", {"threads": 2}, None)
    assert (other.target, other.target_options, other.also) == ("tvm", (profile.also or {})["tvm"], None)
    assert other.origin.place(("target_options", "mtriple")) == f"{path}:5 also.tvm.mtriple"
    path.write_text(to_yaml(profile))
    assert load_profile(path) == profile


def test_a_target_that_only_a_fleet_names_has_the_options_that_the_profile_holds_for_it(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    other = "other_target_options: {tvm: {mtriple: x86_64}}"
    path.write_text(f"schema: 1\nname: board\ntarget: openvino\n{other}\n")
    profile = load_profile(path)
    assert profile.targets == ("openvino",)
    own, tvm = profile_for(profile, "openvino"), profile_for(profile, "tvm")
    assert (own.target_options, own.other_target_options) == ({}, {})
    assert (tvm.target, tvm.target_options, tvm.other_target_options) == ("tvm", {"mtriple": "x86_64"}, {})
    assert tvm.origin.place(("target_options", "mtriple")) == f"{path}:4 other_target_options.tvm.mtriple"
    path.write_text("schema: 1\nname: board\ntarget: tvm\nother_target_options: {tvm: {}}\n")
    with pytest.raises(ProfileError, match="the profile's own target"):
        load_profile(path)


@pytest.mark.parametrize(
    ("also", "what"),
    [("[openvino]", "the profile's own target"), ("[tvm, tvm]", "names a target twice"), ("tvm", "expected a mapping")],
)
def test_other_targets_that_are_none_are_refused(tmp_path: Path, also: str, what: str) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(f"schema: 1\nname: board\ntarget: openvino\nalso: {also}\n")
    with pytest.raises(ProfileError, match=what):
        load_profile(path)
