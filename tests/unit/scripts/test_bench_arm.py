"""How figures are held against the bars."""

import pytest
from arm_host import summarize
from arm_ours import shares, sum_kernels
from bench_arm import judge, merge
from bench_models import sqnr_db

KERNEL = {"kernel": "conv", "count": 1, "tried": 2, "untuned": 400, "best": {"median": 400}, "stopped": "plateau"}


def bars(sections: dict) -> dict[str, dict]:
    return {bar["what"]: bar for bar in judge(sections)}


def instructions(untuned: object, tuned: object) -> dict:
    kinds = {"untuned": {"instructions": untuned}, "tuned": {"instructions": tuned}}
    return {"instructions": {"face": {"cores": {"cortex-a76": {"ours": {"fp32": kinds}}}}}}


def test_better_of_tuned_and_untuned_is_judged():
    found = bars(instructions(44.66e6, 40e6))
    assert found["face, cortex-a76, fp32: instructions"]["is_met"]
    ratio = found["face, cortex-a76, fp32: untuned / tuned"]
    assert (ratio["found"], ratio["is_met"]) == (1.117, True)


def test_missed_bar_tells_by_how_much():
    found = bars(instructions(81.2e6, None))["face, cortex-a76, fp32: instructions"]
    assert (found["is_met"], found["missed_by"]) == (False, 1.0)


def test_what_was_not_measured_is_not_met():
    for bar in judge({}):
        assert (bar["found"], bar["is_met"], bar["missed_by"]) == (None, False, None)
    assert {"instructions", "latency / ONNX Runtime's"} <= {bar["what"].split(": ")[-1] for bar in judge({})}


@pytest.mark.parametrize(("share", "is_met", "missed"), [(0.8, True, 0.0), (0.79, False, 0.01), (1.0, True, 0.0)])
def test_share_of_peak_must_be_reached(share, is_met, missed):
    sections = {"loop": {"face": {"cores": {"cortex-a76": {"fp16": {"share_of_peak": share}}}}}}
    bar = bars(sections)["face, cortex-a76, fp16: hottest loop's share of peak"]
    assert (bar["is_met"], bar["missed_by"]) == (is_met, missed)


def test_kernels_count_as_often_as_the_model_has_them():
    def kernel(count: int, untuned: float, best: float) -> dict:
        return KERNEL | {"count": count, "untuned": untuned, "best": {"median": best}}

    failed = kernel(9, 1, 1) | {"best": None}
    found = sum_kernels({"unit": "us", "evidence": "e", "kernels": [kernel(2, 10, 7), kernel(1, 5, 5), failed]})
    assert (found["untuned"], found["best"], found["trials"], found["stopped"]) == (25, 19, 6, ["plateau"])


def test_ratio_is_that_of_the_pairs():
    found = summarize([((1.0, 1.0, 9.0), (2.0,)), ((10.0,), (5.0,)), ((3.0,), (3.0, 2.5, 9.0))])
    assert (found["ratio"], found["ours_ms"], found["onnxruntime_ms"]) == (1.0, 3.0, 3.0)
    assert (found["fastest_ms"], found["fastest_ratio"]) == ([1.0, 2.0], 0.5)


def test_missed_bar_names_where_the_instructions_go():
    told = {
        "kernels": [KERNEL | {"count": 2}, KERNEL | {"kernel": "small", "untuned": 10}],
        "unit": "i",
        "evidence": "e",
    }
    goes_to = shares(sum_kernels(told), 1000)
    assert goes_to == {"conv x2": 0.8, "small x1": 0.01, "other kernels with choices": 0.0, "the rest": 0.19}
    sections = instructions(81.2e6, None)
    sections["instructions"]["face"]["cores"]["cortex-a76"]["ours"]["fp32"]["goes_to"] = goes_to
    assert bars(sections)["face, cortex-a76, fp32: instructions"]["goes_to"] == goes_to
    late = told | {"kernels": [*told["kernels"], KERNEL | {"kernel": "late", "best": None}]}
    assert shares(sum_kernels(late), 1000)["the rest, kernels that were not counted among it: 1"] == 0.19
    assert shares({"unavailable": "no QEMU"}, 1000) == {"unavailable": "no QEMU"}


def test_equal_outputs_have_no_noise(rng):
    values = rng.standard_normal(8).astype("float32")
    assert sqnr_db(values, values) == float("inf")
    assert sqnr_db(values, values * 1.1) == pytest.approx(20, abs=0.01)


def test_cores_that_were_not_measured_again_stay():
    models = {"face": {"date": "old", "cores": {"cortex-a76": {"fp32": 1}, "cortex-a72": {"fp32": 2}}}}
    merge(models, "face", {"date": "new", "cores": {"cortex-a76": {"fp32": 3}}})
    assert models["face"] == {"date": "new", "cores": {"cortex-a76": {"fp32": 3}, "cortex-a72": {"fp32": 2}}}
    merge(models, "mobilenet", {"threads_1": {}})
    assert models["mobilenet"] == {"threads_1": {}}
