"""Samples as people have them: stacked, as the model takes them, scalars, tables; both readers agree."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import DataError
from compiler.evaluate.arrays import open_arrays
from compiler.evaluate.layout import Layout, find_layouts, fits, forms
from compiler.evaluate.samples import batch_of, load_samples
from compiler.model.numerics import Array
from compiler.model.spec import TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 3, 4))
FIXED = TensorSpec("image", "float32", (1, 3, 4))
TABLE = TensorSpec("table", "float32", (5, 2))
VECTOR = TensorSpec("vector", "float32", (1,))
RATE = TensorSpec("rate", "float32", ())
ROWS = TensorSpec("rows", "float32", ("N", 2))

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape, dtype=np.float32)


def both(folder: Path, inputs: tuple[TensorSpec, ...], **arrays: Array) -> list[dict[str, Array]]:
    """The samples by one reader, which the other must give too, one by one."""
    np.savez(folder / "s.npz", **arrays)
    items = [dict(item) for item in load_samples(folder / "s.npz", inputs).items]
    dataset = open_arrays(folder / "s.npz", inputs, labelled=None, count=None)
    others = list(dataset.batches(1))
    assert dataset.count == len(others) == len(items)
    for item, other in zip(items, others, strict=True):
        for name, array in item.items():
            assert array.shape == other[name].shape, name
            np.testing.assert_array_equal(array, other[name])
    return items


@pytest.mark.parametrize(
    ("image", "count", "extra"),
    list(product((IMAGE, FIXED), (1, 2, 5, 7), ("table", "tables", "rate", "rates", "vector", "vectors"))),
)
def test_what_has_no_batch_is_saved_once_or_once_per_sample(
    tmp_path: Path, image: TensorSpec, count: int, extra: str
) -> None:
    spec = {"t": TABLE, "r": RATE, "v": VECTOR}[extra[0]]
    shape = tuple(map(int, spec.shape))
    array = floats(*((count,) if extra.endswith("s") else ()), *shape)
    images = floats(count, 3, 4)
    items = both(tmp_path, (image, spec), image=images, **{spec.name: array})
    assert len(items) == count
    for row, item in enumerate(items):
        assert item["image"].shape == (1, 3, 4)
        assert item[spec.name].shape == shape
        np.testing.assert_array_equal(item["image"], images[row : row + 1])
        np.testing.assert_array_equal(item[spec.name], array[row] if extra.endswith("s") else array)


def test_inputs_that_all_have_no_batch_are_one_sample(tmp_path: Path) -> None:
    longer = TensorSpec("longer", "float32", (9, 2))
    items = both(tmp_path, (TABLE, longer, RATE), table=floats(5, 2), longer=floats(9, 2), rate=floats())
    assert len(items) == 1
    assert [array.shape for array in items[0].values()] == [(5, 2), (9, 2), ()]


def test_a_fixed_batch_is_filled_by_its_rows(tmp_path: Path) -> None:
    eight = TensorSpec("image", "float32", (8, 3, 4))
    np.savez(tmp_path / "s.npz", image=floats(64, 3, 4), rate=np.float32(2))
    samples = load_samples(tmp_path / "s.npz", (eight, RATE))
    assert len(samples.items) == 64
    assert batch_of(samples, (eight, RATE), 8)["image"].shape == (8, 3, 4)
    first = next(open_arrays(tmp_path / "s.npz", (eight, RATE), labelled=None, count=None).batches(8))
    assert first["image"].shape == (8, 3, 4) and first["rate"].shape == ()


def test_rows_of_a_dimension_of_its_own_beside_a_batch(tmp_path: Path) -> None:
    items = both(tmp_path, (IMAGE, ROWS), image=floats(3, 3, 4), rows=floats(7, 2))
    assert [item["rows"].shape for item in items] == [(7, 2)] * 3


def test_a_scalar_alone_and_a_list_of_them(tmp_path: Path) -> None:
    assert len(both(tmp_path, (RATE,), rate=floats())) == 1
    assert [item["rate"].shape for item in both(tmp_path, (RATE,), rate=floats(4))] == [()] * 4


@pytest.mark.parametrize(
    ("spec", "shape", "said"),
    [
        (IMAGE, (3, 3, 5), r"Save it as \(samples, 3, 4\): one row per sample"),
        (TABLE, (5, 3), r"Save it as \(5, 2\), the same for every sample, or as \(samples, 5, 2\), one per sample"),
        (RATE, (2, 2), r"Save it as \(\), the same for every sample, or as \(samples\), one per sample"),
        (VECTOR, (3, 2), r"Save it as \(1,\), the same for every sample, or as \(samples, 1\), one per sample"),
    ],
)
def test_the_message_names_forms_that_fit(tmp_path: Path, spec: TensorSpec, shape: tuple[int, ...], said: str) -> None:
    np.savez(tmp_path / "s.npz", **{spec.name: floats(*shape)})
    with pytest.raises(DataError, match=said):
        load_samples(tmp_path / "s.npz", (spec,))
    sizes = [dim if isinstance(dim, int) else 6 for dim in spec.shape]
    assert not fits(spec, shape) and forms(spec)
    assert fits(spec, tuple(sizes)) and (spec is IMAGE or fits(spec, (9, *sizes)))


def test_lengths_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    other = TensorSpec("other", "float32", ("batch", 2))
    np.savez(tmp_path / "s.npz", image=floats(3, 3, 4), other=floats(4, 2))
    with pytest.raises(DataError, match="different numbers of samples"):
        load_samples(tmp_path / "s.npz", (IMAGE, other))


def test_scalars_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", image=floats(2, 3, 4), rate=np.float32("nan"))
    with pytest.raises(DataError, match="1 samples hold NaN"):
        load_samples(tmp_path / "s.npz", (IMAGE, RATE))


def test_a_table_as_long_as_there_are_samples_stays_a_table() -> None:
    shapes = {"image": (5, 3, 4), "table": (5, 2)}
    assert find_layouts((IMAGE, TABLE), shapes) == {"image": Layout.ROWS, "table": Layout.SHARED}
