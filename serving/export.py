"""`fleetc export`: an artifact as the model repository of another server, or as what update systems carry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click

from compiler import read_artifact
from compiler.store.atomic import replacing_folder
from compiler.store.disk import output_errors
from compiler.target import Artifact, DataError
from serving.builds import manifest_digest, read_signature, service_times
from serving.exporting import (
    NAME,
    Backend,
    choose_backend,
    choose_batching,
    ovms_config,
    settings_of,
    to_text,
    triton_config,
)
from serving.genai import TOKENIZER, TOKENIZER_SETTINGS, genai_config, special_in, tokenizer_settings
from serving.ladder import SLO_MS
from serving.protocol import Signature

MARK = "fleetc.json"
"""Stands in every exported folder: what it is from, and that it may be replaced."""

VERSION = "1"

SETTINGS = "config.json"
MODEL_FILE = {Backend.TENSORRT: "model.plan"}


@dataclass(frozen=True)
class Exported:
    """An artifact, read for export.

    Args:
        artifact: What is exported.
        signature: What it takes and gives.
        service_s: Batch size → seconds of one run, as measured; none where nobody did.
        slo_s: Time that a request has.
        manifest_sha256: Digest of its manifest.
    """

    artifact: Artifact
    signature: Signature
    service_s: dict[int, float]
    slo_s: float
    manifest_sha256: str


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--triton", type=click.Path(path_type=Path, file_okay=False), help="Triton's model repository to add to.")
@click.option("--ovms", type=click.Path(path_type=Path, file_okay=False), help="Folder for OpenVINO Model Server.")
@click.option("--ort-genai", type=click.Path(path_type=Path, file_okay=False), help="Folder for onnxruntime-genai.")
@click.option("--tuf", type=click.Path(path_type=Path, file_okay=False), help="Fleet whose TUF repository gets it.")
@click.option("--mender", type=click.Path(path_type=Path, dir_okay=False), help="Mender artifact to write.")
@click.option("--oci", type=click.Path(path_type=Path, file_okay=False), help="OCI image layout to write.")
@click.option("--hawkbit", type=click.Path(path_type=Path, dir_okay=False), help="Calls of hawkBit's Management API.")
@click.option("--swupdate", type=click.Path(path_type=Path, dir_okay=False), help="Image of SWUpdate (.swu) to write.")
@click.option("--name", help="What clients call the model; the artifact's folder by default.")
@click.option("--python", is_flag=True, help="Run it in Triton's Python backend, with all settings of the artifact.")
@click.option("--tokenizer", type=click.Path(path_type=Path, dir_okay=False), help="--ort-genai: tokenizer.json.")
@click.option("--keys", type=click.Path(path_type=Path, file_okay=False), help="--tuf: folder of the keys.")
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="--mender: private key to sign it with.")
@click.option("--rollout", type=click.Path(path_type=Path, dir_okay=False), help="--hawkbit: file of its groups.")
@click.option("--samples", type=click.Path(path_type=Path), help="Inputs of a device's health run; random by default.")
@click.option("--expected", type=click.Path(path_type=Path), help="Their outputs; computed here by default.")
def export(
    artifact: Path,
    name: str | None,
    python: bool,
    tokenizer: Path | None,
    keys: Path | None,
    key: Path | None,
    rollout: Path | None,
    samples: Path | None,
    expected: Path | None,
    **places: Path | None,
) -> None:
    """Write ARTIFACT in the form of another system.

    As a model repository for Triton or OpenVINO Model Server; a language model as a folder for onnxruntime-genai; or as
    one archive that devices install, for the fleet's TUF repository, for Mender, as an OCI image, for hawkBit, or for
    SWUpdate.
    """
    chosen = [(system, place) for system, place in places.items() if place is not None]
    if len(chosen) != 1:
        forms = ", ".join(f"--{system.replace('_', '-')}" for system in places)
        raise DataError(f"give one of {forms}", where="fleetc export", remedy="fleetc export --help")
    (system, place) = chosen[0]
    owners = {"python": "triton", "tokenizer": "ort-genai", "keys": "tuf", "key": "mender", "rollout": "hawkbit"}
    given = {"python": python or None, "tokenizer": tokenizer, "keys": keys, "key": key, "rollout": rollout}
    for option, owner in owners.items():
        if given[option] is not None and system.replace("_", "-") != owner:
            what = f"--{option} belongs to --{owner}"
            raise DataError(what, where=f"--{option}", remedy=f"Use it with --{owner}.")
    if system not in ("triton", "ovms", "ort_genai"):
        from rollout.exporting import Transport, export_build

        with output_errors(place):
            transport = Transport(system)
            options = {"keys": keys, "key": key, "rollout": rollout, "samples": samples, "expected": expected}
            click.echo(export_build(artifact, transport, place, **options))
        return
    name = name or artifact.resolve().name
    if not NAME.fullmatch(name):
        raise DataError(
            f"'{name}' is no name of a model for other servers",
            where="--name",
            remedy="Use letters, digits, `_`, `-` and `.`.",
        )
    if system == "ort_genai":
        click.echo(export_genai(artifact, place, tokenizer=tokenizer, name=name))
        return
    exported = read_exported(artifact)
    if system == "triton":
        click.echo(export_triton(exported, place, name=name, is_python=python))
    else:
        click.echo(export_ovms(exported, place, name=name))


def read_exported(folder: Path) -> Exported:
    """Reads an artifact, every file compared with its digest.

    Raises:
        ArtifactError: The folder is not whole.
        DataError: It is deferred, or has tensors that no server takes.
    """
    delivered = read_artifact(folder)
    manifest, signature = delivered.manifest, read_signature(delivered)
    own = [rung for rung in manifest.ladder.rungs if not rung.folder] if manifest.ladder else []
    measured = {time.items: time.p95_ms / 1e3 for rung in own for time in rung.service}
    return Exported(
        delivered.artifact,
        signature,
        measured or service_times(delivered.measurements),
        (manifest.ladder.slo_ms if manifest.ladder else SLO_MS) / 1e3,
        manifest_digest(folder),
    )


def export_triton(exported: Exported, repository: Path, *, name: str, is_python: bool) -> Path:
    """Adds a model to a repository, in place of the one that was exported under that name before.

    Raises:
        DataError: Triton cannot run it as the build did, or the place holds something else.
        OutputError: The place cannot be written.
    """
    artifact, place = exported.artifact, repository / name
    backend = choose_backend(artifact, is_python=is_python)
    batching = choose_batching(exported.signature, exported.service_s, slo_s=exported.slo_s)
    config = triton_config(name, artifact, backend, exported.signature, batching)
    _refuse_foreign(place, {"exported_for": "triton", "model": name})
    with output_errors(place), replacing_folder(place) as draft:
        _copy_payload(artifact, draft / VERSION, first=MODEL_FILE.get(backend, ""))
        if backend is Backend.PYTHON:
            shutil.copyfile(Path(__file__).with_name("triton_model.py"), draft / VERSION / "model.py")
            _write(draft / VERSION / SETTINGS, settings_of(artifact))
        (draft / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
        _write(draft / MARK, _mark(exported, "triton", name))
    return place


def export_ovms(exported: Exported, place: Path, *, name: str) -> Path:
    """Writes a folder with the server's config and one model.

    Raises:
        DataError: The server cannot run it as the build did, or the place holds something else.
        OutputError: The place cannot be written.
    """
    config = ovms_config(name, exported.artifact)
    _refuse_foreign(place, {"exported_for": "ovms", "model": name})
    with output_errors(place), replacing_folder(place) as draft:
        _copy_payload(exported.artifact, draft / name / VERSION)
        _write(draft / "config.json", config)
        _write(draft / MARK, _mark(exported, "ovms", name))
    return place


def export_genai(folder: Path, place: Path, *, tokenizer: Path | None, name: str) -> Path:
    """Writes a folder that onnxruntime-genai opens: the model with its weights, its tokenizer, and what they mean.

    Raises:
        ArtifactError: The artifact's folder is not whole.
        DataError: It is no language model for ONNX Runtime, there is no tokenizer, or the place holds something else.
        OutputError: The place cannot be written.
    """
    delivered = read_artifact(folder)
    artifact = delivered.artifact
    if tokenizer is None:
        raise DataError(
            "onnxruntime-genai reads and writes text, and no tokenizer is named",
            where="--tokenizer",
            remedy="Name the model's: --tokenizer tokenizer.json.",
        )
    special = special_in(tokenizer)
    config = genai_config(artifact, delivered.manifest.generation, special=special)
    mark = {"exported_for": "onnxruntime-genai", "model": name, "manifest_sha256": manifest_digest(folder)}
    _refuse_foreign(place, {"exported_for": "onnxruntime-genai", "model": name})
    with output_errors(place), replacing_folder(place) as draft:
        _copy_payload(artifact, draft / "model")
        for file in sorted((draft / "model").iterdir()):  # genai wants all files side by side
            file.rename(draft / file.name)
        (draft / "model").rmdir()
        shutil.copyfile(tokenizer, draft / TOKENIZER)
        _write(draft / TOKENIZER_SETTINGS, tokenizer_settings(special))
        _write(draft / "genai_config.json", config)
        _write(draft / MARK, mark)
    return place


def _copy_payload(artifact: Artifact, folder: Path, *, first: str = "") -> None:
    """The payload without its settings, which the server's config says; the first file is the model."""
    folder.mkdir(parents=True)
    for place, file in enumerate(artifact.files):
        # a model's external data stand beside it under the name that it refers to
        name = first if first and place == 0 else PurePosixPath(file).name
        if name != SETTINGS:
            shutil.copyfile(artifact.root / file, folder / name)


def _refuse_foreign(place: Path, mine: Mapping[str, str]) -> None:
    """Refuses a place that holds anything but an earlier export of the same model."""
    if place.is_symlink() or (
        place.exists() and any(place.iterdir()) and not mine.items() <= _read_mark(place).items()
    ):
        raise DataError(
            "there is something that is no earlier export of this model",
            where=str(place),
            remedy="Choose another folder or --name, or remove it.",
        )


def _read_mark(place: Path) -> dict[str, Any]:
    try:
        value = json.loads((place / MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _mark(exported: Exported, server: str, name: str) -> dict[str, Any]:
    artifact = exported.artifact
    return {
        "exported_for": server,
        "model": name,
        "manifest_sha256": exported.manifest_sha256,
        "precision": artifact.precision,
        "target": artifact.target,
        "tools": dict(artifact.tools),
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
