"""Data of every kind become the same batches each time, and what is wrong with files is told at once."""

from __future__ import annotations

import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compiler.errors import DataError
from compiler.evaluate import Preprocess, open_dataset, run_dataset
from compiler.evaluate.select import select
from compiler.model.background import run_ahead
from compiler.model.spec import TensorSpec

ROWS = TensorSpec("x", "float32", ("batch", 3))
PICTURE = TensorSpec("image", "float32", ("batch", 3, 8, 8))
PLAIN = Preprocess()


def people(folder: Path, names: str = "abc", each: int = 2) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            Image.new("RGB", (16, 12), (10 * number, index, 200)).save(folder / name / f"{index}.png")
    return folder


def table(path: Path, rows: int, **others: np.ndarray) -> Path:
    np.savez(path, x=np.arange(3 * rows, dtype=np.float32).reshape(rows, 3), **others)
    return path


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 40))
def test_batches_hold_every_chosen_row_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, size: int, less: int
) -> None:
    count = max(1, rows - less)
    dataset = open_dataset(table(tmp_path_factory.mktemp("d") / "x.npz", rows), (ROWS,), count=count)
    batches = list(dataset.batches(size))
    assert all(len(batch["x"]) == size for batch in batches[:-1]) and len(batches[-1]["x"]) <= size
    found = np.concatenate([batch["x"] for batch in batches])
    assert len(found) == count == dataset.count and (np.diff(found[:, 0]) > 0).all()
    assert set(found[:, 0] / 3) <= set(range(rows))


def test_an_archive_is_unpacked_once_for_all_who_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Archive(zipfile.ZipFile):
        def open(self, name, *rest, **others):  # type: ignore[no-untyped-def]
            opened.append(str(name))
            return super().open(name, *rest, **others)

    path = table(tmp_path / "x.npz", 50)
    datasets = [open_dataset(path, (ROWS,)), open_dataset(path, (ROWS,), count=20)]
    monkeypatch.setattr(zipfile, "ZipFile", Archive)
    for dataset in (*datasets, *datasets):
        assert sum(len(batch["x"]) for batch in dataset.batches(8)) == dataset.count
    assert opened == ["x.npy"]
    table(path, 60)  # another file of the same name
    (batch,) = open_dataset(path, (ROWS,)).batches(60)
    assert np.array_equal(batch["x"], np.arange(180).reshape(60, 3))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_whatever_their_layout_and_packing(tmp_path: Path, save: object, order: str) -> None:
    values = np.asarray(np.random.default_rng(0).normal(size=(50, 3)), ">f4", order=order)  # type: ignore[call-overload]
    save(tmp_path / "x.npz", x=values, labels=np.arange(50), origin=np.array("a test"))  # type: ignore[operator]
    dataset = open_dataset(tmp_path / "x.npz", (ROWS,), labelled=True)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in dataset.batches(7)]), values)
    assert dataset.origin == "x.npz: a test" and dataset.labels is not None and dataset.labels[-1] == 49


def test_fewer_samples_keep_people_whole() -> None:
    labels = np.repeat(np.arange(10), 4)
    chosen = labels[select(40, labels, 10, where="")]
    assert np.unique(chosen, return_counts=True)[1].tolist() == [2] * 5


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({}, "there are no labels"),
        ({"labels": np.arange(3)}, "different numbers of samples"),
        ({"labels": np.zeros(4)}, "labels are float64"),
        ({"labels": np.arange(4), "y": np.zeros(4)}, "arrays 'y' that the model has no input for"),
    ],
)
def test_arrays_whose_labels_do_not_match_are_refused(tmp_path: Path, others: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset(table(tmp_path / "x.npz", 4, **others), (ROWS,), labelled=True)


def test_no_samples_and_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        open_dataset(table(tmp_path / "x.npz", 0), (ROWS,))
    with pytest.raises(DataError, match="9 samples are asked for, there are 2"):
        open_dataset(table(tmp_path / "x.npz", 2), (ROWS,), count=9)
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "nowhere", (ROWS,))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        open_dataset(tmp_path / "empty", (PICTURE,), preprocess=PLAIN)


def test_nan_in_a_sample_is_an_error_after_the_samples_before_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[0, 0, 0], [0, np.nan, 0]], np.float32))
    with pytest.raises(DataError, match="NaN or infinity"):
        list(open_dataset(tmp_path / "x.npz", (ROWS,)).batches(1))


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "x.npz", 4000)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(path, (ROWS,))
    np.savez(tmp_path / "y.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="pickled"):
        open_dataset(tmp_path / "y.npz", (ROWS,))


def test_pictures_become_inputs_as_preprocess_says(tmp_path: Path) -> None:
    how = Preprocess(color="bgr", scale=255, mean=(0.5,), std=(0.5, 1, 1))
    dataset = open_dataset(people(tmp_path, "ab"), (PICTURE,), preprocess=how, labelled=True)
    image = next(iter(dataset.batches(4)))["image"]
    assert image.shape == (4, 3, 8, 8) and dataset.labels is not None and list(dataset.labels) == list("aabb")
    np.testing.assert_allclose(image[3, :, 0, 0], [(200 / 255 - 0.5) / 0.5, 1 / 255 - 0.5, 10 / 255 - 0.5], atol=1e-6)


def test_margins_and_fit_change_the_picture_as_named(tmp_path: Path) -> None:
    Image.new("L", (20, 10), 255).save(tmp_path / "a.png")
    gray = TensorSpec("image", "uint8", ("batch", 10, 10, 1))

    def centre_and_corner(**options: object) -> tuple[int, int]:
        how = Preprocess(color="gray", interpolation="nearest", **options)  # type: ignore[arg-type]
        image = next(iter(open_dataset(tmp_path, (gray,), preprocess=how).batches(1)))["image"]
        return int(image[0, 5, 5, 0]), int(image[0, 0, 0, 0])

    assert centre_and_corner() == centre_and_corner(fit="crop") == centre_and_corner(margin_pct=-20) == (255, 255)
    assert centre_and_corner(fit="pad") == centre_and_corner(margin_pct=20) == (255, 0)


def test_pixels_content_and_labels_are_in_the_digest(tmp_path: Path) -> None:
    folder = people(tmp_path / "f")
    first = open_dataset(folder, (PICTURE,), preprocess=PLAIN, labelled=True).digest
    assert first == open_dataset(folder, (PICTURE,), preprocess=PLAIN, labelled=True).digest
    assert first != open_dataset(folder, (PICTURE,), preprocess=Preprocess(scale=2), labelled=True).digest
    Image.new("RGB", (9, 9)).save(folder / "a/0.png")
    assert first != open_dataset(folder, (PICTURE,), preprocess=PLAIN, labelled=True).digest


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_bombs_and_files_that_are_no_pictures_are_all_named_before_anything_is_decoded(tmp_path: Path) -> None:
    folder = people(tmp_path)
    (folder / "a/bomb.png").write_bytes(huge_png())
    (folder / "b/text.jpg").write_text("no picture")
    (folder / "c/empty.png").touch()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "c/deep.png")
    with pytest.raises(DataError, match="4 problems") as caught:
        open_dataset(folder, (PICTURE,), preprocess=PLAIN)
    assert all(name in str(caught.value) for name in ("bomb.png", "text.jpg", "empty.png", "deep.png"))


def test_cut_pictures_are_all_named_when_the_rest_has_been_read(tmp_path: Path) -> None:
    folder = people(tmp_path)
    for name in ("a/0.jpg", "c/0.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:900])
    dataset = open_dataset(folder, (PICTURE,), preprocess=PLAIN)
    with pytest.raises(DataError, match="2 problems") as caught:
        list(dataset.batches(1))
    assert "a/0.jpg" in str(caught.value) and "c/0.jpg" in str(caught.value)


def test_pictures_without_labels_or_preprocessing_or_with_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    folder = people(tmp_path)
    with pytest.raises(DataError, match="need `preprocess`"):
        open_dataset(folder, (PICTURE,))
    with pytest.raises(DataError, match="no batch of pictures with 1 channels"):
        open_dataset(folder, (PICTURE,), preprocess=Preprocess(color="gray"))
    with pytest.raises(DataError, match="the model takes"):
        open_dataset(folder, (PICTURE,), preprocess=Preprocess(size=(9, 8)))
    with pytest.raises(DataError, match="feed one input"):
        open_dataset(folder, (PICTURE, ROWS), preprocess=PLAIN)
    Image.new("L", (4, 4)).save(folder / "loose.png")
    with pytest.raises(DataError, match=r"1 of 7 pictures have no label: loose.png"):
        open_dataset(folder, (PICTURE,), preprocess=PLAIN, labelled=True)


def test_both_spellings_of_pairs_are_read(tmp_path: Path) -> None:
    for name in ("Ada_0001", "Ada_0002", "Bo_0001"):
        (tmp_path / name[:-5]).mkdir(exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(tmp_path / name[:-5] / f"{name}.jpg")
    spellings = (
        "1 1\nAda\t1\t2\nAda\t1\tBo\t1\n",
        "Ada/Ada_0001.jpg,Ada/Ada_0002.jpg,1\nAda/Ada_0001.jpg Bo/Bo_0001.jpg 0",
    )
    tables = []
    for text in spellings:
        (tmp_path / "pairs.txt").write_text(text)
        dataset = open_dataset(tmp_path / "pairs.txt", (PICTURE,), preprocess=PLAIN, labelled=True)
        assert dataset.count == 3 and dataset.labels is not None
        tables.append(dataset.labels)
    np.testing.assert_array_equal(*tables)
    assert tables[0][:, :3].tolist() == [[0, 1, 1], [0, 2, 0]]


def test_pairs_that_lead_out_of_the_folder_or_nowhere_are_told_by_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("../a.jpg b.jpg 1\nAda 1 2\nthis is no pair at all\n")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "pairs.txt", (PICTURE,), preprocess=PLAIN)
    for said in ("pairs.txt:1: '../a.jpg' leads out", "pairs.txt:2: there is no picture", "pairs.txt:3: the line is"):
        assert said in str(caught.value)


def test_no_more_steps_run_ahead_than_allowed() -> None:
    started, lock = [0], threading.Lock()

    def step() -> int:
        with lock:
            started[0] += 1
            return started[0]

    results = run_ahead((step for _ in range(100)), workers=4, ahead=5)
    next(results)
    assert started[0] <= 5
    assert len(list(results)) == 99


MODEL = """<ir_version: 10, opset_import: ["": 20]>
doubled (float[{batch}, 3] x) => (float[{batch}, 3] y) {{ y = Add (x, x) }}"""


@pytest.mark.parametrize("batch", ["batch", "4", "1"])
def test_outputs_of_all_samples_are_stacked_whatever_batch_the_model_fixes(tmp_path: Path, batch: str) -> None:
    model = ir.from_onnx_text(MODEL.format(batch=batch))
    spec = TensorSpec("x", "float32", (int(batch) if batch.isdigit() else batch, 3))
    outputs = run_dataset(model, open_dataset(table(tmp_path / "x.npz", 10), (spec,)), batch=3)
    np.testing.assert_array_equal(outputs["y"], 2 * np.arange(30, dtype=np.float32).reshape(10, 3))
