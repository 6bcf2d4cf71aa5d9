"""An artifact in the forms of other update systems, each judged by that system's own program where it is here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compiler.errors import DataError
from compiler.store.keys import generate_key, write_key_pair
from rollout import transports
from rollout.bundle import make_bundle
from rollout.device.agent import Agent, Settings
from rollout.device.source import Source
from rollout.swupdate import cpio, image_files
from serving.export import export
from tests.cli.conftest import Place


@pytest.fixture(scope="module")
def artifact(shared: Place) -> Path:
    return shared.dist / "two"


def exported(artifact: Path, *args: str | Path) -> Any:
    result = CliRunner().invoke(export, [str(artifact), *map(str, args)], catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.output


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian has it)")
    return found


def test_an_exported_build_is_the_same_bytes_and_a_device_runs_it(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The health run is fleetc's own command, in a process of its own."""
    assert make_bundle(artifact) == make_bundle(artifact)
    said = exported(artifact, "--tuf", tmp_path / "fleet")
    assert "assigned to every device: it is the first of its class" in said
    assert "assigned" not in exported(artifact, "--tuf", tmp_path / "fleet")
    folder = tmp_path / "device"
    root = (tmp_path / "fleet" / "root.json").read_bytes()
    source = Source(f"file://{tmp_path}/fleet/repository", folder, root=root, device_class="two")
    command = f"{sys.executable} -c 'from compiler.cli import main; main()' run"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    settings = Settings(folder, "d", "two", watch_s=0, command=f"{command} {{artifact}} {{inputs}} {{outputs}}")
    report = Agent(settings, source).look()
    assert (report["state"], report["why"], report["problem"]) == ("success", "", "")
    assert (folder / "current" / "artifact" / "manifest.json").read_bytes() == (artifact / "manifest.json").read_bytes()


def test_the_health_run_has_the_samples_and_results_that_were_given(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3, 8, 8), np.float32))
    np.savez(tmp_path / "y.npz", y=np.full((1, 4), 9.0, np.float32))
    bundle = make_bundle(artifact, samples=tmp_path / "x.npz", expected=tmp_path / "y.npz")
    with tarfile.open(fileobj=io.BytesIO(bundle.archive)) as tar:
        facts = json.loads(tar.extractfile("health/health.json").read())  # type: ignore[union-attr]
        assert facts["command"] == ["fleetc", "run", "{artifact}", "{inputs}", "{outputs}"]
        stored = tar.extractfile("health/outputs.npz").read()  # type: ignore[union-attr]
    with np.load(io.BytesIO(stored)) as outputs:
        assert outputs["y"].tolist() == [[9.0] * 4]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give one of --triton, --ovms, --ort-genai, --tuf, --mender, --oci, --hawkbit, --swupdate"),
        (["--tuf", "a", "--oci", "b"], "give one of"),
        (["--oci", "b", "--key", "k"], "--key belongs to --mender"),
        (["--mender", "b", "--keys", "k"], "--keys belongs to --tuf"),
        (["--oci", "b", "--python"], "--python belongs to --triton"),
    ],
)
def test_options_that_do_not_fit_are_refused(artifact: Path, args: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        exported(artifact, *args)


def test_a_folder_that_is_no_fleet_is_left_alone(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="there is something that is no fleet"):
        exported(artifact, "--tuf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_menders_own_program_accepts_the_artifact_and_its_signature(artifact: Path, tmp_path: Path) -> None:
    judge, (private, other) = program("mender-artifact"), (tmp_path / "a.pem", tmp_path / "b.pem")
    for path in (private, other):
        write_key_pair(generate_key(), path)
    signed, plain = tmp_path / "signed.mender", tmp_path / "plain.mender"
    exported(artifact, "--mender", signed, "--key", private)
    exported(artifact, "--mender", plain)

    def validate(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([judge, *map(str, args)], capture_output=True, text=True, check=False)

    assert validate("validate", plain).returncode == 0
    assert validate("validate", "-k", private.with_suffix(".pub"), signed).returncode == 0
    assert validate("validate", "-k", other.with_suffix(".pub"), signed).returncode != 0
    shown = validate("read", plain).stdout
    assert "Compatible devices: '[two]'" in shown
    assert hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest() in shown


def test_menders_own_client_installs_commits_and_rolls_back(artifact: Path, tmp_path: Path) -> None:
    """The real client, with its folders below one of ours; builds are installed by our update module."""
    client, folder, data = program("mender"), tmp_path / "builds", tmp_path / "data"
    # the client's folders are fixed: it gets a file system of its own, which nobody else sees
    script = 'mount --bind "$0" /usr/share && mount -t tmpfs tmpfs /etc && mkdir /etc/mender && '
    script += 'echo artifact_name=none >/etc/mender/artifact_info && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "share")]
    module = tmp_path / "share" / "mender" / "modules" / "v3" / "fleetc"
    module.parent.mkdir(parents=True)
    data.mkdir()
    module.write_bytes(Path(transports.__file__).with_name("mender-module.sh").read_bytes())
    module.chmod(0o755)
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("a folder of its own cannot be mounted here: that needs root")
    device_type = tmp_path / "device_type"
    device_type.write_text("device_type=two\n")
    (tmp_path / "mender.conf").write_text(json.dumps({"DeviceTypeFile": str(device_type)}))

    def mender(*args: str | Path) -> subprocess.CompletedProcess[str]:
        options = ["--no-syslog", "--config", tmp_path / "mender.conf", "--data", data]
        return subprocess.run(
            [*inside, client, *map(str, options), *map(str, args)],
            env={**os.environ, "FLEETC_FOLDER": str(folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    first = tmp_path / "first.mender"
    exported(artifact, "--mender", first)
    done = mender("install", first)
    assert done.returncode == 0, done.stderr
    assert mender("commit").returncode == 0
    digest = hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()
    assert (folder / "current").readlink().name == digest
    second = Path(shutil.copytree(artifact, tmp_path / "second"))
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps({**manifest, "fleetc": "0.0.2"}))
    exported(second, "--mender", tmp_path / "second.mender")
    assert mender("install", tmp_path / "second.mender").returncode == 0
    assert (folder / "current").readlink().name != digest
    assert mender("rollback").returncode == 0
    assert (folder / "current").readlink().name == digest
    device_type.write_text("device_type=robot\n")
    refused = mender("install", first)
    assert refused.returncode != 0
    assert "not compatible with device" in refused.stderr


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A docker-registry of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "store")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "registry.yml").write_text(json.dumps(config))
    command = [program("docker-registry"), "serve", str(folder / "registry.yml")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            ends = time.monotonic() + 20
            while time.monotonic() < ends:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[dict[str, str], bytes]:
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(url, body, names, method=method), timeout=20) as answer:
        return dict(answer.headers), answer.read()


def push(layout: Path, url: str) -> tuple[dict[str, Any], bytes]:
    """The image into a registry, as `two:v1`, by its API. Returns its entry in the index, and its manifest."""
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    manifest = (layout / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")).read_bytes()
    for blob in [json.loads(manifest)["config"], *json.loads(manifest)["layers"]]:
        place = ask("POST", f"{url}/v2/two/blobs/uploads/", b"")[0]["Location"]
        raw = (layout / "blobs" / "sha256" / blob["digest"].removeprefix("sha256:")).read_bytes()
        assert len(raw) == blob["size"]
        mark = "&" if "?" in place else "?"
        ask("PUT", f"{place}{mark}digest={blob['digest']}", raw, Content_Type="application/octet-stream")
    ask("PUT", f"{url}/v2/two/manifests/v1", manifest, Content_Type=entry["mediaType"])
    return entry, manifest


def test_an_oci_registry_takes_the_image_and_gives_it_back(artifact: Path, tmp_path: Path) -> None:
    said = exported(artifact, "--oci", tmp_path / "image")
    with registry(tmp_path) as url:
        entry, manifest = push(tmp_path / "image", url)
        headers, pulled = ask("GET", f"{url}/v2/two/manifests/v1", Accept=entry["mediaType"])
        layer = ask("GET", f"{url}/v2/two/blobs/{json.loads(manifest)['layers'][0]['digest']}")[1]
    assert entry["digest"] in said
    assert (headers["Docker-Content-Digest"], pulled) == (entry["digest"], manifest)
    assert layer == make_bundle(artifact).archive


def test_oras_pulls_the_archive_from_the_registry(artifact: Path, tmp_path: Path) -> None:
    """A client that others wrote, and that knows nothing of fleetc."""
    client = pytest.importorskip("oras.client", reason="oras is not installed (pip install oras)")
    exported(artifact, "--oci", tmp_path / "image")
    with registry(tmp_path) as url:
        push(tmp_path / "image", url)
        host = url.removeprefix("http://")
        (pulled,) = client.OrasClient(hostname=host, insecure=True).pull(f"{host}/two:v1", outdir=str(tmp_path / "out"))
    assert Path(pulled).name == "fleetc-build.tar"
    assert Path(pulled).read_bytes() == make_bundle(artifact).archive


def test_skopeo_copies_the_layout_into_a_registry_as_it_is(artifact: Path, tmp_path: Path) -> None:
    skopeo = program("skopeo")
    exported(artifact, "--oci", tmp_path / "image")
    entry = json.loads((tmp_path / "image" / "index.json").read_text())["manifests"][0]
    source = f"oci:{tmp_path}/image:{entry['annotations']['org.opencontainers.image.ref.name']}"
    with registry(tmp_path) as url:
        place = f"docker://{url.removeprefix('http://')}/two:v1"
        options = ["--insecure-policy", "copy", "--dest-tls-verify=false"]
        done = subprocess.run([skopeo, *options, source, place], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        headers, _ = ask("GET", f"{url}/v2/two/manifests/v1", Accept=entry["mediaType"])
    assert headers["Docker-Content-Digest"] == entry["digest"]


def test_an_image_of_swupdate_holds_the_archive_and_a_script_that_installs_it(artifact: Path, tmp_path: Path) -> None:
    exported(artifact, "--swupdate", tmp_path / "build.swu")
    parts, folder = tmp_path / "parts", tmp_path / "board"
    parts.mkdir()
    with (tmp_path / "build.swu").open("rb") as image:
        done = subprocess.run([program("cpio"), "-id"], cwd=parts, stdin=image, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    names = ["fleetc-build.tar", "fleetc-install.sh", "sw-description"]
    assert sorted(path.name for path in parts.iterdir()) == names
    assert (parts / names[0]).read_bytes() == make_bundle(artifact).archive
    places = {"FLEETC_FOLDER": str(folder), "FLEETC_ARCHIVE": str(parts / names[0])}
    script = ["sh", str(parts / names[1]), "postinst"]
    done = subprocess.run(script, env={**os.environ, **places}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "current").readlink().name == hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()


def test_swupdates_own_program_accepts_the_image_for_its_board_alone(artifact: Path, tmp_path: Path) -> None:
    """Debian's is built for signed images: the signature is put behind the description, as its users do."""
    judge, openssl, description = program("swupdate"), program("openssl"), tmp_path / "sw-description"
    files = image_files(make_bundle(artifact))
    description.write_bytes(files["sw-description"])
    key, certificate, signature = (str(tmp_path / name) for name in ("key.pem", "certificate.pem", "signature"))
    usage = ["-addext", "extendedKeyUsage=emailProtection"]
    made = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=t",
        *usage,
    ]
    signed = [
        "cms",
        "-sign",
        "-binary",
        "-in",
        str(description),
        "-out",
        signature,
        "-signer",
        certificate,
        "-inkey",
        key,
    ]
    for args in (made, [*signed, "-outform", "DER", "-nosmimecap"]):
        # a program's own libraries, where it was unpacked, are none for openssl
        subprocess.run([openssl, *args], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    first, *rest = files.items()
    image = tmp_path / "signed.swu"
    image.write_bytes(cpio(dict([first, ("sw-description.sig", Path(signature).read_bytes()), *rest])))
    for board, is_accepted in (("two:1", True), ("robot:1", False)):
        command = [judge, "-c", "-i", str(image), "-k", certificate, "-H", board]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode == 0) == is_accepted, done.stdout + done.stderr
        assert ("successful" in done.stdout) == is_accepted, done.stdout


def test_goosebit_takes_the_image_and_hands_it_to_a_device(artifact: Path, tmp_path: Path) -> None:
    """A server of hawkBit's device API: the image is uploaded, and a device that polls gets it."""
    python = os.environ.get("FLEETC_GOOSEBIT", "")
    if not python:
        pytest.skip("FLEETC_GOOSEBIT names no Python of an environment with goosebit")
    exported(artifact, "--swupdate", tmp_path / "build.swu")
    image = (tmp_path / "build.swu").read_bytes()
    done = subprocess.run(
        [python, str(Path(__file__).with_name("goosebit_device.py")), str(tmp_path / "build.swu"), "two"],
        env={**os.environ, "GOOSEBIT_DB_URI": f"sqlite://{tmp_path}/db", "GOOSEBIT_ARTIFACTS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "refused": 422,  # the archive alone, which has no description
        "sha1": hashlib.sha1(image).hexdigest(),
        "state": "FINISHED",
    }


ROLLOUT = """schema: 1
name: v2
fleet: fleet
device_class: two
build: dist/two
groups:
  - {name: lab, labels: {site: lab}}
  - {name: canary, share: 10%}
  - {name: half, share: 45%}
  - {name: rest, share: rest}
gates: {failed: 10%}
"""


def test_hawkbit_is_told_to_pause_after_every_group(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "rollout.yaml").write_text(ROLLOUT)
    exported(artifact, "--hawkbit", tmp_path / "calls.json", "--rollout", tmp_path / "rollout.yaml")
    calls = json.loads((tmp_path / "calls.json").read_text())
    assert [call["path"].rsplit("/", 1)[-1] for call in calls] == [
        "softwaremodules",
        "artifacts",
        "distributionsets",
        "rollouts",
        "start",
    ]
    groups = calls[3]["body"]["groups"]
    assert {group["successAction"]["action"] for group in groups} == {"PAUSE"}
    assert [group["targetPercentage"] for group in groups] == [100, 10, 50, 100]  # of what is left
    assert groups[0]["targetFilterQuery"] == "attribute.site==lab"
    assert groups[0]["successCondition"] == {"condition": "THRESHOLD", "expression": "90"}
    assert (tmp_path / "calls.tar").read_bytes() == make_bundle(artifact).archive
