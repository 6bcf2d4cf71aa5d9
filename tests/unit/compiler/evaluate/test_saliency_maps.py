"""Maps of models whose maps are known, what makes two maps alike, and what has no answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import InvalidModel
from compiler.evaluate import Dataset, Images
from compiler.evaluate.saliency import (
    IMAGES,
    Explanation,
    Question,
    Run,
    ask,
    choose_pictures,
    compare_explanations,
    explain,
    rank_correlation,
    too_large,
    top_overlap,
)
from compiler.evaluate.saliency_maps import STEPS, PictureInput, cut, find_picture, order_masks, window_masks
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec

SPEC = TensorSpec("x", "float32", ("batch", 1, 20, 20))
PICTURE = PictureInput("x", channels_first=True)
WEIGHTS = np.random.default_rng(0).random((20, 20))


def pictures(count: int = 3, seed: int = 1) -> Array:
    return np.random.default_rng(seed).random((count, 1, 20, 20)).astype(np.float32)


def images(values: Array, task: str = "embedding", labels: Array | None = None) -> Images:
    rows = [values[place : place + 1] for place in range(len(values))]
    dataset = Dataset(len(rows), "set", "", (SPEC,), lambda: ((lambda row=row: {"x": row}) for row in rows), labels)
    return Images(dataset, PICTURE, task)


def model(function: Callable[[Array], Array]) -> Run:
    """A function of pictures (N, 1, 20, 20) as a model with the output `y`."""

    def run(dataset: Dataset) -> Arrays:
        batches = [batch["x"] for batch in dataset.batches(7)]
        return {"y": np.concatenate([function(batch) for batch in batches])}

    return run


def linear(weights: Array) -> Run:
    """Two classes: the weighted sum, and nothing."""
    return model(lambda x: np.stack([(x[:, 0] * weights).sum(axis=(1, 2)), np.zeros(len(x))], axis=1))


def asked(run: Run, data: Images) -> Question:
    return ask(run(data.dataset), data)


def alike(first: Run, second: Run, values: Array, task: str = "classification") -> tuple[object, ...]:
    question = asked(first, images(values, task))
    return compare_explanations(explain(first, question), explain(second, question))


def test_the_map_of_a_weighted_sum_is_what_each_window_adds_to_it() -> None:
    values = pictures(1)
    run = linear(WEIGHTS)
    question = asked(run, images(values, "classification"))
    found = explain(run, question)
    (grid,) = question.grids
    inside = WEIGHTS * (values[0, 0].astype(np.float64) - values[0, 0].mean(dtype=np.float64))
    for row, column in ((0, 0), (3, 7), (8, 8)):
        window = inside[grid.rows[row] : grid.rows[row + 2], grid.columns[column] : grid.columns[column + 2]]
        assert found.maps[0][row, column] == pytest.approx(window.sum(), rel=1e-4, abs=1e-4)


def test_a_model_is_like_itself_and_unlike_another() -> None:
    other = np.random.default_rng(9).random((20, 20))
    (same,) = alike(linear(WEIGHTS), linear(WEIGHTS), pictures(1))
    assert (same.correlation, same.overlap, same.insertion, same.deletion) == (pytest.approx(1), 1, 0, 0)
    near = alike(linear(WEIGHTS), linear(WEIGHTS + other / 50), pictures())
    far = alike(linear(WEIGHTS), linear(np.where(WEIGHTS > 0.5, 0.0, 1.0)), pictures())
    assert all(one.correlation > 0.98 for one in near)
    assert all(one.correlation < 0.7 for one in far) and all(one.overlap < 1 for one in far)


def test_maps_of_models_that_look_elsewhere_do_not_agree() -> None:
    def looking(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        field = np.kron(rng.random((5, 5)) ** 3, np.ones((4, 4))).astype(np.float32)
        basis = rng.standard_normal((400, 32)).astype(np.float32) / 20
        return model(lambda x: np.tanh((x[:, 0] * field).reshape(len(x), -1) @ basis))

    found = [alike(looking(seed), looking(seed + 100), pictures(1), "embedding")[0].correlation for seed in range(8)]
    assert abs(np.mean(found)) < 0.2 and max(found) < 0.8, found


def test_embeddings_are_explained_by_the_cosine_to_the_float_model_and_its_scale_does_not_matter() -> None:
    basis = np.random.default_rng(3).standard_normal((400, 8)).astype(np.float32)
    run = model(lambda x: x.reshape(len(x), -1) @ basis)
    scaled = model(lambda x: 5 * (x.reshape(len(x), -1) @ basis))
    question = asked(run, images(pictures(), "embedding"))
    assert explain(run, question).intact == pytest.approx(np.ones(3))
    assert all(one.correlation == pytest.approx(1, abs=1e-3) for one in alike(run, scaled, pictures(), "embedding"))


def test_a_person_with_two_pictures_is_explained_by_the_other_one() -> None:
    labels = np.array(["a", "b", "a", "c"])
    places, partners = choose_pictures(labels, 4)
    assert dict(zip(places, partners, strict=True)) == {0: 2, 1: 1, 2: 0, 3: 3}
    rows = np.array([[0, 1, 0, 5, 6], [2, 3, 1, 7, 7]])
    assert choose_pictures(rows, 4) == ([0, 1, 2, 3], [0, 1, 3, 3])
    assert choose_pictures(None, 11) == ([0, 2, 4, 6, 8, 10],) * 2 and choose_pictures(None, 2) == ([0, 1],) * 2
    many = choose_pictures(np.repeat(np.arange(IMAGES), 2), 2 * IMAGES)
    assert many[0] == list(range(0, 2 * IMAGES, 2)), "one picture of each person, before a second of any"
    run = model(lambda x: x.reshape(len(x), -1))
    question = asked(run, images(pictures(4), "verification", labels))
    assert np.array_equal(question.goals["y"][0], pictures(4)[2].ravel()) and "another" in question.words


def test_a_picture_of_one_colour_and_a_model_that_ignores_pictures_have_no_map_to_compare() -> None:
    constant = np.full((1, 1, 20, 20), 0.5, np.float32)
    (found,) = alike(linear(WEIGHTS), linear(WEIGHTS), constant)
    assert found.correlation is None and found.overlap is None and "whatever is covered" in found.why
    blind = model(lambda x: np.ones((len(x), 4), np.float32))
    for task in ("classification", "embedding"):
        assert all(one.correlation is None for one in alike(blind, blind, pictures(), task))


def test_a_candidate_that_ignores_the_picture_or_gives_nan_has_no_correlation() -> None:
    blind = model(lambda x: np.ones((len(x), 2), np.float32))
    broken = model(lambda x: np.full((len(x), 2), np.nan, np.float32))
    infinite = model(lambda x: np.full((len(x), 2), np.inf, np.float32))
    for candidate, why in ((blind, "the same whatever"), (broken, "NaN"), (infinite, "NaN or infinite")):
        for task in ("classification", "embedding"):
            found = alike(linear(WEIGHTS), candidate, pictures(), task)
            assert all(one.correlation == 0 and why in one.why for one in found if one.correlation is not None)
            assert task == "embedding" or all(one.correlation == 0 for one in found)


def test_nan_in_the_float_model_is_an_error_and_only_under_a_window_is_said() -> None:
    with pytest.raises(InvalidModel, match="NaN or infinity for 3 of 3"):
        asked(model(lambda x: np.full((len(x), 2), np.nan, np.float32)), images(pictures()))
    values = pictures(1)
    fragile = model(lambda x: np.where(x[:, 0, :2, :2].mean(axis=(1, 2), keepdims=False)[:, None] == x[:, 0, 0, :1],
                                       np.nan, x[:, 0, 0, :2]).astype(np.float32))  # fmt: skip
    (found,) = alike(fragile, fragile, values)
    assert found.correlation is None and "NaN" in found.why


def test_outputs_too_large_to_hold_for_every_window_are_told() -> None:
    assert too_large({"y": np.zeros((3, 300000))}) == "the outputs of one picture have 300000 numbers, more than 262144"
    assert too_large({"y": np.zeros((3, 200, 10)), "z": np.zeros((3, 5))}) == ""


def test_deletion_and_insertion_go_from_all_to_nothing_in_the_maps_order() -> None:
    grid = cut(20, 20)
    found = np.zeros(grid.shape)
    found[0, 0] = 1
    masks = list(order_masks(grid, found))
    assert [int(mask.sum()) for mask in masks] == [*range(360, 0, -40), *range(40, 400, 40)]
    assert not masks[0][:4, :4].any() and masks[STEPS - 1][:4, :4].all(), "the most important patches come first"
    assert np.array_equal(~masks[0], masks[STEPS - 1])


def test_a_worse_map_lowers_deletion_less() -> None:
    run = linear(np.where(np.arange(400).reshape(20, 20) < 100, 1.0, 0.0))
    question = asked(run, images(np.arange(400, 0, -1, dtype=np.float32).reshape(1, 1, 20, 20), "classification"))
    right = explain(run, question)
    never = np.broadcast_to(right.intact[:, None], right.deletion.shape)
    wrong = Explanation(right.maps, right.intact, right.blank, never, right.insertion)
    (found,) = compare_explanations(right, wrong)
    assert found.deletion > 0 and found.insertion == 0


@given(st.lists(st.integers(-50, 50), min_size=4, max_size=30).filter(lambda row: len(set(row)) > 1))
def test_rank_correlation_sees_order_only(row: list[int]) -> None:
    values = np.array(row, np.float64)
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    left, right = np.array([1.0, 2, 2, 4]), np.array([1.0, 3, 2, 4])
    assert rank_correlation(left, right) == pytest.approx(0.9486832980505138), "ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4"
    assert top_overlap(np.arange(20.0), np.arange(20.0)) == 1
    assert top_overlap(np.arange(20.0), -np.arange(20.0)) == 0


def test_windows_cover_every_pixel_and_small_pictures_have_fewer() -> None:
    for sides in ((20, 20), (150, 97), (5, 4)):
        masks = list(window_masks(cut(*sides)))
        assert masks[0].all() and not masks[1].any()
        assert np.logical_or.reduce([~mask for mask in masks[2:]]).all()
        assert len(masks) == 2 + np.prod(cut(*sides).shape)


def test_a_covered_part_has_the_pictures_mean_colour_in_its_own_type_and_layout() -> None:
    last = PictureInput("x", channels_first=False)
    value = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    seen = np.ones((4, 4), np.bool_)
    seen[1, 2] = False
    found = last.covered(value, seen)
    assert found.dtype == np.uint8 and found[0, 1, 2].tolist() == [22, 24, 24]
    assert np.array_equal(found[0][seen], value[0][seen]) and last.sides(value) == (4, 4)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("n", 3, 150, 150)], PictureInput("x0", True)),
        ([("n", 32, "w", 3)], PictureInput("x0", False)),
        ([("n", 1, "h", "w"), ("n", 7)], PictureInput("x0", True)),
        ([("n", 64, 7, 7)], "no image input"),
        ([("n", 3, 1, 1)], "no image input"),
        ([("n", 512)], "no image input"),
        ([("n", 3, 8, 8), ("n", 3, 8, 8)], "several image inputs (x0, x1)"),
    ],
)
def test_the_input_that_takes_pictures_is_found(shapes: list[tuple[int | str, ...]], expected: object) -> None:
    found = find_picture([TensorSpec(f"x{index}", "float32", shape) for index, shape in enumerate(shapes)])
    assert found == expected if isinstance(expected, PictureInput) else str(expected) in str(found)
    assert isinstance(find_picture([TensorSpec("x", "int64", ("n", 3, 8, 8))]), str)
