"""Keys, signed artifacts, and what is said of one that was changed: by the command, and by the tools of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Place

pytest.importorskip("cryptography", reason="needs the extra trust")

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def signed(shared: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The shared build, signed by lab.pem; other.pem is somebody else's."""
    place = Place(tmp_path_factory.mktemp("signed") / "place", shared.env)
    shutil.copytree(shared.root, place.root)
    for name in ("lab.pem", "other.pem"):
        assert place.run("keygen", place.root / name).code == 0
    outcome = place.run("sign", place.dist, "--key", "lab.pem", "--builder", "https://builds.example/lab")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("signed by key") == 2
    return place


@pytest.fixture
def copy(signed: Place, tmp_path: Path) -> Place:
    """A copy to be damaged."""
    shutil.copytree(signed.root, tmp_path / "copy")
    return Place(tmp_path / "copy", signed.env)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(folder: Path) -> None:
    (folder / "payload").rename(folder.parent / "elsewhere")
    (folder / "payload").symlink_to(folder.parent / "elsewhere")


def edit(name: str, change: Callable[[Any], object]) -> Damage:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return damage


def test_a_signed_artifact_is_verified_and_run(signed: Place) -> None:
    outcome = signed.run("verify", signed.dist / "one", "--key", "lab.pub", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["status"] == "passed"
    assert list(outcome.json["signed_by"].values()) == ["https://builds.example/lab"]


def test_files_and_signatures_alone_are_verified_without_running_it(signed: Place) -> None:
    outcome = signed.run("verify", signed.dist / "two", "--key", "lab.pub", "--files-only")
    assert outcome.code == 0, outcome.err
    assert "not run" in outcome.out and "built by https://builds.example/lab" in outcome.out


DAMAGES: dict[str, tuple[Damage, str]] = {
    "changed payload": (lambda folder: flip(folder / "payload" / "model.onnx"), "payload/model.onnx was changed"),
    "changed manifest": (lambda folder: flip(folder / "manifest.json"), "manifest.json was changed"),
    "changed measurements": (lambda folder: flip(folder / "measurements.json"), "measurements.json was changed"),
    "changed bill of materials": (lambda folder: flip(folder / "bom.cdx.json"), "bom.cdx.json was changed"),
    "missing file": (lambda folder: (folder / "payload" / "model.onnx").unlink(), "payload/model.onnx is missing"),
    "foreign file": (lambda folder: (folder / "payload" / "extra.so").write_bytes(b"?"), "payload/extra.so was added"),
    "hidden file": (lambda folder: (folder / ".git").write_bytes(b"?"), ".git was added"),
    "linked folder": (link, "neither a file nor a folder: payload"),
    "pipe": (lambda folder: os.mkfifo(folder / "payload" / "pipe"), "neither a file nor a folder: payload/pipe"),
    "no signature": (lambda folder: (folder / "signature.sigstore.json").unlink(), "there is no signature.sigstore"),
    "half a signature": (lambda folder: (folder / "signature.sigstore.json").write_text("{"), "no OMS signature"),
    "deep signature": (lambda folder: (folder / "signature.sigstore.json").write_text("[" * 99999), "no OMS signature"),
    "signature of nothing": (
        edit("signature.sigstore.json", lambda value: value["dsseEnvelope"].update(signatures=[])),
        "names the key and is not of it",
    ),
    "no provenance": (lambda folder: (folder / "provenance.intoto.jsonl").unlink(), "there is no provenance"),
    "half a provenance": (lambda folder: (folder / "provenance.intoto.jsonl").write_text("{"), "no provenance: it can"),
    "empty provenance": (lambda folder: (folder / "provenance.intoto.jsonl").write_text("\n"), "has stated none"),
    "unsigned provenance": (
        edit("provenance.intoto.jsonl", lambda value: value.update(signatures=[])),
        "has stated none",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_artifact_that_is_not_what_was_signed_is_refused(name: str, copy: Place) -> None:
    damage, message = DAMAGES[name]
    damage(copy.dist / "one")
    outcome = copy.run("verify", copy.dist / "one", "--key", "lab.pub", "--json")
    assert outcome.code == 5
    assert outcome.json["error"] == "SignatureRefused"
    assert message in outcome.json["what"]


def test_an_artifact_that_others_signed_is_refused(signed: Place) -> None:
    outcome = signed.run("verify", signed.dist / "one", "--key", "other.pub")
    assert outcome.code == 5
    assert "it is signed by key" in outcome.err and "Name the public key of whoever signed it" in outcome.err


def test_every_key_that_is_named_must_have_signed(signed: Place) -> None:
    outcome = signed.run("verify", signed.dist / "one", "--key", "lab.pub", "--key", "other.pub")
    assert outcome.code == 5
    assert "no provenance" in outcome.err and "has stated none" in outcome.err


def test_provenance_of_another_artifact_is_refused(copy: Place) -> None:
    shutil.copy(copy.dist / "two" / "provenance.intoto.jsonl", copy.dist / "one")
    outcome = copy.run("verify", copy.dist / "one", "--key", "lab.pub")
    assert outcome.code == 5
    assert "is about other files" in outcome.err


def test_a_refused_artifact_is_not_read_at_all(copy: Place) -> None:
    """The manifest is of another schema, which reading it would say first."""
    edit("manifest.json", lambda value: value.update(schema=9))(copy.dist / "one")
    assert "has schema 9" in copy.run("verify", copy.dist / "one").err
    assert "manifest.json was changed" in copy.run("verify", copy.dist / "one", "--key", "lab.pub").err


def test_keys_that_cannot_be_read_are_usage(signed: Place) -> None:
    for key, said in (("nowhere.pub", "the key cannot be read"), ("fleet.yaml", "no public key")):
        outcome = signed.run("verify", signed.dist / "one", "--key", key)
        assert outcome.code == 2
        assert said in outcome.err


def test_a_folder_that_is_not_there_is_usage(signed: Place) -> None:
    outcome = signed.run("verify", signed.dist / "nobody", "--key", "lab.pub")
    assert outcome.code == 2
    assert "there is no such folder" in outcome.err


def test_what_is_no_part_of_the_build_is_not_signed(copy: Place) -> None:
    (copy.dist / "one" / "notes.txt").write_text("mine")
    outcome = copy.run("sign", copy.dist / "one", "--key", "lab.pem")
    assert outcome.code == 2
    assert "no part of the build: notes.txt" in outcome.err


def test_a_damaged_artifact_is_not_signed(copy: Place) -> None:
    flip(copy.dist / "one" / "payload" / "model.onnx")
    outcome = copy.run("sign", copy.dist / "one", "--key", "lab.pem")
    assert outcome.code == 2
    assert "not the bytes that were delivered" in outcome.err


def test_signing_twice_gives_the_same_bytes(copy: Place) -> None:
    before = {path: path.read_bytes() for path in (copy.dist / "one").iterdir() if path.is_file()}
    again = copy.run("sign", copy.dist / "one", "--key", "lab.pem", "--builder", "https://builds.example/lab")
    assert again.code == 0, again.err
    assert before == {path: path.read_bytes() for path in (copy.dist / "one").iterdir() if path.is_file()}


def test_an_equal_second_build_adds_its_builder_s_signature(copy: Place, shared: Place) -> None:
    outcome = copy.run("sign", copy.dist / "one", "--key", "other.pem", "--rebuilt", shared.dist / "one")
    assert outcome.code == 0, outcome.err
    both = copy.run("verify", copy.dist / "one", "--key", "lab.pub", "--key", "other.pub", "--files-only", "--json")
    assert both.code == 0, both.err
    assert len(both.json["signed_by"]) == 2
    before = (copy.dist / "one" / "provenance.intoto.jsonl").read_bytes()
    assert copy.run("sign", copy.dist / "one", "--key", "other.pem", "--rebuilt", shared.dist / "one").code == 0
    assert before == (copy.dist / "one" / "provenance.intoto.jsonl").read_bytes()


def test_a_second_build_with_other_bytes_is_named_and_not_signed(copy: Place) -> None:
    before = (copy.dist / "one" / "provenance.intoto.jsonl").read_bytes()
    outcome = copy.run("sign", copy.dist / "one", "--key", "other.pem", "--rebuilt", copy.dist / "two")
    assert outcome.code == 5
    assert "the second build has other bytes in:" in outcome.err and "manifest.json" in outcome.err
    assert before == (copy.dist / "one" / "provenance.intoto.jsonl").read_bytes()


def test_a_build_is_reproducible_whether_it_is_signed_or_not(signed: Place, shared: Place) -> None:
    from compiler.artifact.diff import compare_files

    assert compare_files(signed.dist / "one", shared.dist / "one") == ()


def test_the_statement_says_what_was_built_of_what(signed: Place) -> None:
    from compiler.store import file_digest
    from compiler.store.envelope import load
    from compiler.store.keys import read_public_key

    folder = signed.dist / "one"
    envelope = load((folder / "provenance.intoto.jsonl").read_bytes())
    assert envelope.signed_by(read_public_key(signed.root / "lab.pub"))
    statement = json.loads(envelope.payload)
    subjects = {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}
    assert subjects["manifest.json"] == file_digest(folder / "manifest.json")
    assert subjects["payload/model.onnx"] == file_digest(folder / "payload" / "model.onnx")
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["device"] == "one"
    roles = {item["annotations"]["role"]: item for item in definition["resolvedDependencies"] if "annotations" in item}
    assert roles["model"]["digest"]["sha256"] == file_digest(signed.root / "model.onnx")
    packages = [item["uri"].partition("@")[0] for item in definition["resolvedDependencies"] if "uri" in item]
    assert "pkg:pypi/fleetc" in packages


def test_the_bill_of_materials_is_valid_by_the_schema_of_cyclonedx(signed: Place) -> None:
    pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    for device in ("one", "two"):
        text = (signed.dist / device / "bom.cdx.json").read_text(encoding="utf-8")
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        assert json.loads(text)["metadata"]["component"]["name"] == device


def model_signing(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """The reference tool of OMS, in a process of its own: our filters of warnings are not its."""
    pytest.importorskip("model_signing", reason="needs model-signing")
    command = [sys.executable, "-m", "model_signing", *map(str, args)]
    env = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


def test_model_signing_accepts_the_signature_and_notices_a_change(copy: Place) -> None:
    folder = copy.dist / "one"
    command = (
        "verify",
        "key",
        "--public_key",
        copy.root / "lab.pub",
        "--signature",
        folder / "signature.sigstore.json",
    )
    accepted = model_signing(*command, folder)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    flip(folder / "payload" / "model.onnx")
    refused = model_signing(*command, folder)
    assert refused.returncode != 0
    assert "Hash mismatch for 'payload/model.onnx'" in refused.stdout + refused.stderr
