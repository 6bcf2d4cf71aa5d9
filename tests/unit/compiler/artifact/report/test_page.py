from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from compiler.artifact.report import read_build, write_report
from tests.unit.compiler.artifact.report.conftest import competitor, failure, layer, manifest, trial, write_dist

NASTY = '<script>alert("x")</script>&amp;$x^2$'


class Elements(HTMLParser):
    """Tags, and the text of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found[key]) for key in ("href", "src", "xlink:href") if key in found]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(dist: Path, previous: Path | None = None) -> str:
    return write_report(read_build(dist), previous=read_build(previous) if previous else None).read_text()


def test_every_device_is_told_with_its_figures_and_their_evidence(dist: Path) -> None:
    found = Elements(page_of(dist))
    for words in (
        "kiosk gets int8, trial 2 of 2: 2.00 times as fast as the float original (measured-host)",
        "10.0 MiB",
        "50 % less than the float original",
        "4.00 ms",
        "90.0 % (85.0 to 94.0)",
        "TAR@FAR=0.001: 0.50 points lost (-0.5 to 1.5)",
        "memory: run: not judged: no runner",
        "1 passed, 1 not judged",
        "2 of 3 devices failed",
        "Nothing was delivered for refused: no candidate passes",
        "no compiler",
        "worst SQNR 40.0 dB",
        "onnxruntime 1.32.0",
        "0" * 64,
    ):
        assert words in re.sub(r"\s+", " ", found.text), words


def test_the_targets_that_competed_are_told_with_how_each_came_out(tmp_path: Path) -> None:
    contest = [competitor("openvino", "beaten"), competitor("reference", "won", 4.0)]
    trials = [trial(1, "fp32", target="openvino"), trial(2, "int8", target="reference")]
    found = Elements(page_of(write_dist(tmp_path, {"kiosk": manifest("kiosk", contest=contest, trials=trials)})))
    text = re.sub(r"\s+", " ", found.text)
    assert "kiosk gets int8 through reference, trial 2 of 2" in text and "1 openvino fp32: " in text
    assert "Which target" in text and "4.0 × the speed of the first" in text


def test_what_was_pruned_is_told_group_by_group_with_warnings(tmp_path: Path) -> None:
    group = {"name": "conv_a", "channels": 24, "kept": 16, "error": 0.01, "reason": "others cost less"}
    pruning = {
        "ratio": 0.31,
        "multiple": 8,
        "macs_before": 1000,
        "macs_after": 690,
        "parameters_before": 100,
        "parameters_after": 80,
        "groups": [group, {**group, "name": "conv_b", "kept": 24}],
        "repaired": [{"layer": "c", "before": 0.2, "after": 0.05}],
        "kept": {"conv_z": "it is the model's output 'y'"},
        "warnings": ["too few calibration samples"],
    }
    trials = [trial(1, "fp32"), trial(2, "int8", pruned=0.31)]
    page = page_of(write_dist(tmp_path, {"one": manifest("one", pruning=pruning, trials=trials)}))
    text = re.sub(r"\s+", " ", Elements(page).text)
    for words in (
        "What was pruned",
        "31 % of the multiply-accumulates: 1 000 → 690",
        "1 of 2 groups of channels",
        "24 → 16",
        "20.00 %",
        "5.00 %",
        "too few calibration samples",
        "31% of its multiply-accumulates are pruned",
    ):
        assert words in text, words


def test_plots_are_there_with_what_they_show_in_words(dist: Path) -> None:
    page = page_of(dist)
    assert page.count("<svg") == 9
    assert "Memory of 2 trials on disk and when run" in page
    assert "Tuning of 2 kernels: together they came to 66 % of what they took untuned." in page
    assert 'aria-label="2 trials by points of TAR@FAR=0.001 lost and speed-up' in page
    assert "2 layers: 1 in fp32, 1 in int8. The busiest, first, takes 50.0 % of time." in page
    assert "#0101" not in page and "var(--int8)" in page


def test_the_page_needs_neither_network_nor_script_and_its_links_work(dist: Path) -> None:
    found = Elements(page_of(dist))
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert len(found.ids) == len(set(found.ids))
    assert found.links and all(link.startswith("#") and link[1:] in found.ids for link in found.links)


def test_names_cannot_add_markup(tmp_path: Path) -> None:
    facts = manifest("one", trials=[trial(1, NASTY), trial(2, "int8")], layers=[layer(NASTY, why=NASTY)])
    facts["inputs"]["model"]["notes"] = [NASTY]
    page = page_of(write_dist(tmp_path, {"one": facts}, {NASTY: failure(what=NASTY)}))
    assert "<script" not in page
    assert NASTY in Elements(page).text


def test_a_fleet_in_which_everything_failed_says_so(tmp_path: Path) -> None:
    found = Elements(page_of(write_dist(tmp_path, {}, {"one": failure(), "two": failure(what="no disk")})))
    assert "Every device failed: nothing was delivered." in found.text
    assert "Relax it." in found.text and "no disk" in found.text


def test_a_fleet_without_devices_says_so(tmp_path: Path) -> None:
    assert "This build has no devices." in page_of(write_dist(tmp_path, {}))


def test_a_build_without_evaluation_has_no_plot_of_accuracy(tmp_path: Path) -> None:
    bare = trial(1, "fp32", accuracy=None, footprint=None, speed=None, gates=[])
    decision = {"precision": "fp32", "trial": 1, "reason": "asked for"}
    facts = manifest("one", trials=[bare], gates=[], layers=[], tuning=[], decision=decision)
    page = page_of(write_dist(tmp_path, {"one": facts}))
    assert "<svg" not in page
    assert "No accuracy was measured in any trial" in page and "SQNR 40 dB" in page


def test_differences_to_an_earlier_build_are_told(tmp_path: Path) -> None:
    old = write_dist(tmp_path / "old", {"one": manifest("one"), "same": manifest("same")}, {"two": failure()}, 8.0)
    new = write_dist(tmp_path / "new", {name: manifest(name) for name in ("one", "two", "three")})
    text = Elements(page_of(new, old)).text
    assert "latency -50.0 %" in text and "was failed, is delivered" in text and "new" in text


def test_the_head_says_what_was_executed_and_what_never(tmp_path: Path) -> None:
    unseen = manifest("gpu")
    unseen["verdict"]["parity"] |= {"status": "not executed", "evidence": "none", "reason": "no GPU", "points": []}
    text = Elements(page_of(write_dist(tmp_path, {"kiosk": manifest("kiosk"), "gpu": unseen}))).text
    assert "Executed on the machine that built it, outputs compared: kiosk." in text
    assert "Built and never executed: its speed is an estimate: gpu." in text


def test_the_same_manifests_give_the_same_bytes(dist: Path) -> None:
    assert page_of(dist) == page_of(dist)


def test_many_layers_and_trials_are_drawn(tmp_path: Path) -> None:
    layers = [layer(f"layer{index}", share=1 / 300) for index in range(300)]
    trials = [trial(number, "int8") for number in range(1, 25)]
    page = page_of(write_dist(tmp_path, {"one": manifest("one", layers=layers, trials=trials)}))
    assert page.count("<svg") == 5 and "layer299" in page
