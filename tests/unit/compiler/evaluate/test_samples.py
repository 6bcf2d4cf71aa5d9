"""Samples that do not fit the model are refused with every reason; random ones repeat and say that they are random."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import DataError
from compiler.evaluate.samples import batch_of, load_samples, make_samples
from compiler.model.numerics import Array
from compiler.model.spec import TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 3, 4))
IDS = TensorSpec("ids", "int64", ("batch", 2))
TABLE = TensorSpec("table", "float32", (5,))


def images(count: int) -> Array:
    return np.random.default_rng(0).standard_normal((count, 3, 4), dtype=np.float32)


def npz(folder: Path, **arrays: Array) -> Path:
    np.savez(folder / "s.npz", **arrays)
    return folder / "s.npz"


def test_an_npz_holds_one_array_per_input(tmp_path: Path) -> None:
    given = images(3)
    samples = load_samples(npz(tmp_path, image=given, ids=np.arange(6).reshape(3, 2)), (IMAGE, IDS), count=2)
    assert len(samples.items) == 2 and samples.warnings == ()
    assert np.array_equal(samples.items[1]["image"], given[1:2])
    assert samples.items[1]["ids"].tolist() == [[2, 3]]


def test_an_npy_serves_a_model_of_one_input_and_stays_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(3))
    samples = load_samples(tmp_path / "x.npy", (IMAGE,))
    assert len(samples.items) == 3 and isinstance(samples.items[0]["image"], np.memmap)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    given = images(3)
    np.save(tmp_path / "b.npy", given[1:])
    np.save(tmp_path / "a.npy", given[:1])
    samples = load_samples(tmp_path, (IMAGE,), count=3)
    assert np.array_equal(np.concatenate([item["image"] for item in samples.items]), given)


def test_complete_samples_have_one_axis_more(tmp_path: Path) -> None:
    path = npz(tmp_path, image=images(2), table=np.arange(10, dtype=np.float32).reshape(2, 5))
    samples = load_samples(path, (IMAGE, TABLE))
    assert samples.items[1]["table"].tolist() == [5, 6, 7, 8, 9]
    batch = batch_of(samples, (IMAGE, TABLE), 3)
    assert batch["image"].shape == (3, 3, 4) and batch["table"].shape == (5,)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": images(2)}, "no array for 'ids'"),
        (
            {"image": images(2), "ids": np.zeros((2, 2), np.int64), "odd": images(1)},
            "'odd' that the model has no input",
        ),
        ({"image": images(2), "ids": np.zeros((2, 2), np.int32)}, r"'ids'.*int32, the model takes int64"),
        ({"image": images(2), "ids": np.zeros((2, 3), np.int64)}, r"shape \(2, 3\) does not fit"),
        ({"image": images(2), "ids": np.zeros((3, 2), np.int64)}, "different numbers of samples"),
        ({"image": images(2) * np.nan, "ids": np.zeros((2, 2), np.int64)}, r"2 samples hold NaN or infinity: 0, 1"),
        ({"image": images(0), "ids": np.zeros((0, 2), np.int64)}, "no samples"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Array], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_samples(npz(tmp_path, **arrays), (IMAGE, IDS))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = npz(tmp_path, image=images(2) * np.inf, ids=np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match=r"2 problems[\s\S]*'image'[\s\S]*'ids'"):
        load_samples(path, (IMAGE, IDS))


def test_fewer_samples_than_asked_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"9 samples are asked for, there are 2\s+Write `samples: 2`"):
        load_samples(npz(tmp_path, image=images(2)), (IMAGE,), count=9)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled objects are never read"):
        load_samples(tmp_path / "x.npy", (IMAGE,))
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(npz(tmp_path, image=np.array([{}], dtype=object)), (IMAGE,))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"text"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError):
        load_samples(tmp_path / name, (IMAGE,))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(3))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(tmp_path / "x.npy", (IMAGE,))


def test_an_archive_that_claims_to_unpack_to_terabytes_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3, 4)}"
    data = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("image.npy", data)
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(tmp_path / "x.npz", (IMAGE,))


@pytest.mark.parametrize("name", ["gone.npz", "notes.txt", "."])
def test_a_place_without_samples_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError):
        load_samples(tmp_path / name, (IMAGE,))


def test_constant_and_repeated_samples_are_warned_of(tmp_path: Path) -> None:
    given = np.concatenate([images(1), images(1), np.ones((1, 3, 4), np.float32)])
    warnings = load_samples(npz(tmp_path, image=given), (IMAGE,)).warnings
    assert warnings[0].startswith("1 of 3 samples are constant") and warnings[1].startswith("1 of 3 samples repeat")


def test_random_samples_repeat_and_are_labelled() -> None:
    mask = TensorSpec("mask", "bool", ("batch", "S"))
    first, again = (make_samples((IMAGE, IDS, mask), seed=7, count=2, sizes={"S": 6}) for _ in range(2))
    assert first.origin == "random, seed 7"
    for one, two in zip(first.items, again.items, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(first.items[0]["image"], first.items[1]["image"])
    assert set(first.items[0]["ids"].ravel()) <= {0, 1}
    assert first.items[0]["mask"].shape == (1, 6) and first.items[0]["mask"].dtype == np.bool_


def test_random_samples_need_every_size_and_a_numeric_type() -> None:
    bad = (TensorSpec("a", "float32", ("batch", "S")), TensorSpec("s", "object", (1,)))
    with pytest.raises(DataError, match=r"2 problems[\s\S]*'S' has no size[\s\S]*no random values"):
        make_samples(bad)


def test_a_batch_takes_samples_in_turn() -> None:
    samples = make_samples((IMAGE,), count=2)
    batch = batch_of(samples, (IMAGE,), 5)["image"]
    assert batch.shape == (5, 3, 4)
    assert np.array_equal(batch[0], batch[2]) and np.array_equal(batch[4:], samples.items[0]["image"])


def test_a_fixed_batch_is_filled_with_that_many_samples(tmp_path: Path) -> None:
    fixed = TensorSpec("image", "float32", (4, 3, 4))
    samples = load_samples(npz(tmp_path, image=images(3)), (fixed,))
    assert batch_of(samples, (fixed,), 1)["image"].shape == (4, 3, 4)
