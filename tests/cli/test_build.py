from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from tests.cli.conftest import Place, make_place, write_model


@pytest.fixture
def two(place: Place) -> Place:
    log = str(place.root / "built.log")
    place.moody({"left": {"log": log}, "right": {"log": log, "seconds": 0.01}})
    return place


def built(place: Place) -> list[str]:
    log = place.root / "built.log"
    return sorted(log.read_text().split()) if log.exists() else []


def test_two_devices_share_the_border_stage_and_get_a_build_each(two: Place) -> None:
    shutil.rmtree(two.cache)
    outcome = two.build()
    assert outcome.code == 0, outcome.err
    assert built(two) == ["left", "right"]
    assert outcome.err.count("nodes become") == 1
    left, right = two.manifest("left"), two.manifest("right")
    assert left["stages"][0] == right["stages"][0]
    assert left["stages"][-1] != right["stages"][-1]
    assert left["verdict"]["parity"]["status"] == "passed"
    assert {path.name for path in two.dist.iterdir()} == {"left", "right", "build.json", "report.html"}


def test_second_run_starts_no_build_and_gives_the_same_bytes(two: Place) -> None:
    assert two.build().code == 0
    before = two.digests()
    outcome = two.build("--json")
    assert outcome.code == 0, outcome.err
    assert built(two) == ["left", "right"]
    assert two.digests() == before
    stages = json.loads((two.dist / "left" / "measurements.json").read_text())["stages"]
    assert all(stage["from_store"] for stage in stages)


def test_only_the_device_whose_profile_changed_is_built_again(two: Place) -> None:
    assert two.build().code == 0
    two.profile("right", log=str(two.root / "built.log"), seconds=0.02)
    assert two.build().code == 0
    assert built(two) == ["left", "right", "right"]


@pytest.mark.slow
def test_same_inputs_in_another_folder_give_the_same_bytes(tmp_path: Path, site: Path) -> None:
    places = []
    for name in ("here", "elsewhere"):
        place = make_place(tmp_path / name, site)
        place.write_fleet({"one": place.profile("one"), "two": place.profile("two", "reference")})
        assert place.build().code == 0
        places.append(place)
    assert places[0].digests() == places[1].digests()


def test_device_option_builds_only_that_one_and_keeps_what_build_json_says_of_the_others(two: Place) -> None:
    assert two.build("--device", "left").code == 0
    assert {path.name for path in two.dist.iterdir()} == {"left", "build.json", "report.html"}
    assert two.build("-d", "right").code == 0
    assert list(json.loads((two.dist / "build.json").read_text())["devices"]) == ["left", "right"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--device", "middle"), ("middle", "--device", "one, two")),
        (("--precision", "fp4"), ("fp4", "--precision", "fp32")),
        (("--skip-pass", "make-coffee"), ("make-coffee", "--skip-pass", "remove-dead-nodes")),
        (("--stop-after", "999"), ("999", "--stop-after", "fleetc plan")),
        (("--stop-after", "-1"), ("-1", "--stop-after")),
        (("--stop-after", "x"), ("--stop-after", "x")),
        (("--build-timeout", "0"), ("--build-timeout",)),
        (("--no-such-option",), ("--no-such-option",)),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_option_that_cannot_be_obeyed_is_code_2_and_nothing_is_built(
    shared: Place, args: tuple[str, ...], words: tuple[str, ...], as_json: bool
) -> None:
    out = shared.root / "nothing"
    outcome = shared.run("build", shared.fleet, "-o", out, *args, *(["--json"] if as_json else []))
    assert outcome.code == 2, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.err.count("no pass is named") <= 1
    assert not out.exists()
    assert outcome.json["exit_code"] == 2 if as_json else outcome.out == ""


def test_skipped_and_later_passes_are_planned_as_left_out(two: Place) -> None:
    assert two.build("--skip-pass", "fuse-conv-affine", "--stop-after", "20").code == 0
    passes = two.manifest("left")["plan"]["passes"]
    skipped = [step for step in passes[:20] if step["name"] == "fuse-conv-affine"]
    assert [step["reason"] for step in skipped] == ["--skip-pass"] * len(skipped) != []
    assert [step["reason"] for step in passes[20:]] == ["--stop-after 20"] * len(passes[20:]) != []
    ran = [(step["number"], step["name"]) for step in passes if step["runs"]]
    assert [(record["number"], record["name"]) for record in two.manifest("left")["passes"]] == ran


def test_stop_after_zero_delivers_the_model_as_imported(two: Place) -> None:
    assert two.build("--stop-after", "0", "-d", "left").code == 0
    assert two.manifest("left")["passes"] == []
    assert len(onnx.load(two.dist / "left" / "border.onnx").graph.node) == 9


def test_dumped_passes_are_models(two: Place) -> None:
    dump = two.root / "dump"
    assert two.build("--dump-passes", dump, "-d", "left").code == 0
    files = sorted((dump / "left").glob("*.onnx"))
    assert len(files) > 1
    for file in files:
        onnx.checker.check_model(onnx.load(file))


def test_dumping_under_a_file_is_an_output_error(two: Place) -> None:
    outcome = two.build("--dump-passes", two.fleet / "dump")
    assert outcome.code == 2
    assert "dump-passes" in outcome.err


def test_precision_converts_the_border_model(two: Place) -> None:
    outcome = two.build("--precision", "fp16", "-d", "left", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["devices"][0]["precision"] == "fp16"
    assert two.manifest("left")["plan"]["decisions"]["precision"]["value"] == "fp16"


def test_json_report_of_a_build_has_every_device(two: Place) -> None:
    outcome = two.build("--json", "--repeat", "2")
    rows = {row["device"]: row for row in outcome.json["devices"]}
    assert set(rows) == {"left", "right"}
    assert rows["left"]["status"] == "delivered"
    assert rows["left"]["evidence"] == "measured-host"
    assert rows["left"]["error"] is None
    (latency,) = json.loads((two.dist / "left" / "measurements.json").read_text())["latency"]
    assert latency["runs"] == 2 and latency["p50_ms"] > 0


def test_text_report_of_a_build_is_a_table(two: Place) -> None:
    lines = two.build().out.splitlines()
    assert lines[0].split()[:3] == ["device", "target", "precision"]
    assert [line.split()[0] for line in lines[1:3]] == ["left", "right"]


@pytest.mark.needs_openvino
def test_openvino_and_reference_are_reproducible(place: Place) -> None:
    pytest.importorskip("openvino")
    place.write_fleet({"kiosk": "intel-n100", "oracle": place.profile("oracle", "reference")})
    outcome = place.build("--check-reproducible", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["reproducible"] is True


def test_random_bytes_are_not_reproducible_and_the_file_is_named(place: Place) -> None:
    place.moody({"noisy": {"random": "silent"}})
    outcome = place.build("--check-reproducible", "--json")
    assert outcome.code == 5
    assert "noisy/payload/noise.bin" in outcome.json["what"]
    assert [row["status"] for row in outcome.json["devices"]] == ["delivered"]


def test_random_bytes_that_the_manifest_names_are_allowed(place: Place) -> None:
    place.moody({"noisy": {"random": "named"}})
    outcome = place.build("--check-reproducible")
    assert outcome.code == 0, outcome.err
    manifest = place.manifest("noisy")
    assert manifest["artifact"]["non_reproducible"] == {"payload/noise.bin": "it is noise"}
    assert "payload/noise.bin" not in manifest["files"]


def test_folder_that_is_no_artifact_is_not_replaced(two: Place) -> None:
    (two.dist / "left").mkdir(parents=True)
    (two.dist / "left" / "thesis.txt").write_text("years of work")
    outcome = two.build()
    assert outcome.code == 2
    assert str(two.dist / "left") in outcome.err
    assert (two.dist / "left" / "thesis.txt").read_text() == "years of work"


def test_verification_covers_min_opt_and_max(place: Place) -> None:
    place.write_fleet({"wide": {"profile": place.profile("wide"), "batch": {"min": 1, "opt": 3, "max": 5}}})
    assert place.build().code == 0
    points = place.manifest("wide")["verdict"]["parity"]["points"]
    assert [point["sizes"] for point in points] == ["batch=1", "batch=3", "batch=5"]


def test_inputs_may_have_any_name(place: Place) -> None:
    text = "(float[batch, 4] file) => (float[batch, 4] allow_pickle) { allow_pickle = MatMul(file, w) }"
    write_model(place.root / "model.onnx", text, w=(4, 4))
    place.moody({"one": {}})
    outcome = place.build()
    assert outcome.code == 0, outcome.err
