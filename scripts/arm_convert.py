"""Models for the peers: ONNX → ncnn's and MNN's files in float and in 8 bits.

ncnn's converter leaves two things to its user that its loader supports: paddings along channels, and the scales of
8-bit layers (its tools for them are in no wheel). Both are written here as ncnn's loader reads them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from arm_guest import Guest, PeerUnavailable

PROGRAM = Path(__file__).with_name("arm_guest_program.py")
INT8_MAX = 127
WEIGHTED = {"Convolution": ("6", "5"), "ConvolutionDepthWise": ("6", "5"), "InnerProduct": ("2", "1")}
"""ncnn's layers with weights → the parameters that hold their count and whether there is a bias."""
HOLDS_DATA = {"MemoryData", "Gemm", "BatchNorm", "Deconvolution", "MultiHeadAttention", "PReLU", "Scale"}
PADDED = re.compile(r"^ignore Pad (\S+) param pads=\(([-0-9,]+)\)", re.MULTILINE)

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True)
class Layer:
    """One line of ncnn's param file."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...]

    def get(self, key: str, default: int = 0) -> int:
        """An integer parameter."""
        return int(dict(self.parameters).get(key, default))

    def __str__(self) -> str:
        head = f"{self.kind:24} {self.name:24} {len(self.inputs)} {len(self.outputs)}"
        return " ".join((head, *self.inputs, *self.outputs, *(f"{key}={value}" for key, value in self.parameters)))


def parse_layers(text: str) -> list[Layer]:
    """The layers of a param file: magic number, counts, then one layer in each line."""
    return [_parse_layer(line.split()) for line in text.splitlines()[2:] if line.strip()]


def _parse_layer(words: Sequence[str]) -> Layer:
    kind, name, taken, given = words[0], words[1], int(words[2]), int(words[3])
    blobs, rest = words[4 : 4 + taken + given], words[4 + taken + given :]
    pairs = tuple((pair.split("=", 1)[0], pair.split("=", 1)[1]) for pair in rest)
    return Layer(kind, name, tuple(blobs[:taken]), tuple(blobs[taken:]), pairs)


def format_layers(layers: Sequence[Layer]) -> str:
    """The param file of layers."""
    blobs = sum(len(layer.outputs) for layer in layers)
    return "\n".join(("7767517", f"{len(layers)} {blobs}", *map(str, layers))) + "\n"


def find_paddings(log: str) -> dict[str, tuple[int, ...]]:
    """Layer → ONNX pads of all four dimensions, from what the converter says it leaves out."""
    return {name: tuple(map(int, pads.split(","))) for name, pads in PADDED.findall(log)}


def replace_paddings(layers: Sequence[Layer], paddings: Mapping[str, Sequence[int]]) -> list[Layer]:
    """The layers with every `Pad` written as ncnn's own Padding with zeros: rows, columns and channels.

    Raises:
        PeerUnavailable: A Pad whose amounts the converter did not tell.
    """
    return [_padding(layer, paddings) if layer.kind == "Pad" else layer for layer in layers]


def _padding(layer: Layer, paddings: Mapping[str, Sequence[int]]) -> Layer:
    pads = paddings.get(layer.name, ())
    if len(pads) != 8 or pads[0] or pads[4]:
        raise PeerUnavailable(f"ncnn's converter does not tell how {layer.name} pads: {pads}")
    keys = {"0": pads[2], "1": pads[6], "2": pads[3], "3": pads[7], "4": 0, "5": 0, "7": pads[1], "8": pads[5]}
    return replace(layer, kind="Padding", parameters=tuple((key, str(value)) for key, value in keys.items()))


def quantize_ncnn(layers: Sequence[Layer], data: bytes, ranges: Mapping[str, float]) -> tuple[list[Layer], bytes]:
    """The model with 8-bit scales: of weights by output channel, of activations by tensor, both symmetric.

    A layer whose only reader is another such layer gives 8 bits itself, as ncnn's own tool arranges it.

    Args:
        layers: A float model.
        data: Its weights in float32.
        ranges: Largest absolute value of each blob that a layer with weights reads.

    Raises:
        PeerUnavailable: A layer whose weights have another format.
    """
    offset, chunks, found = 0, [], []
    for layer in layers:
        if layer.kind in HOLDS_DATA:
            raise PeerUnavailable(f"8-bit scales are not written for a model with ncnn's layer {layer.kind}")
        if layer.kind not in WEIGHTED:
            found.append(layer)
            continue
        weights, length = _weights(layer, data, offset)
        chunks.append(data[offset : offset + length])
        offset += length
        after = _next_scale(layer, layers, ranges)
        scales = [_scales(weights), [INT8_MAX / max(ranges[layer.inputs[0]], 1e-12)], [after] if after else []]
        chunks.extend(np.array(part, "<f4").tobytes() for part in scales)
        found.append(replace(layer, parameters=(*layer.parameters, ("8", "101" if after else "1"))))
    if offset != len(data):
        raise PeerUnavailable(f"ncnn's weights have {len(data)} bytes, its layers {offset}")
    return found, b"".join(chunks)


def _weights(layer: Layer, data: bytes, offset: int) -> tuple[Floats, int]:
    """Weights (output channels, …) of the layer at `offset`, and how many bytes they and the bias take."""
    size, bias = (layer.get(key) for key in WEIGHTED[layer.kind])
    wanted = layer.get("0")
    if int.from_bytes(data[offset : offset + 4], "little"):
        raise PeerUnavailable(f"the weights of ncnn's {layer.name} are not float32")
    array = np.frombuffer(data, "<f4", size, offset + 4).reshape(wanted, -1)
    return array, 4 + 4 * size + (4 * wanted if bias else 0)


def _scales(weights: Floats) -> Floats:
    return np.asarray(INT8_MAX / np.maximum(np.abs(weights).max(axis=1), 1e-12), np.float32)


def _next_scale(layer: Layer, layers: Sequence[Layer], ranges: Mapping[str, float]) -> float:
    """Activation scale of the only layer that reads this one's output, if that is a convolution; else 0."""
    readers = [other for other in layers if layer.outputs[0] in other.inputs]
    fits = len(readers) == 1 and all("Convolution" in one.kind for one in (layer, *readers))
    return INT8_MAX / max(ranges[layer.outputs[0]], 1e-12) if fits else 0.0


def convert_ncnn(model: Path, samples: Floats, guest: Guest, folder: Path, *, cpu: str) -> dict[str, Path]:
    """Precision → model without suffix: float (fp32 and fp16 load the same file) and 8 bits.

    Args:
        model: ONNX of static shapes.
        samples: Inputs (count, channels, rows, columns) to calibrate with.
        guest: Runs ncnn.
        folder: An existing one for the files.
        cpu: QEMU's CPU.

    Raises:
        PeerUnavailable: The converter failed, or left something out.
    """
    names = {key: folder / name for key, name in (("param", "float.param"), ("bin", "float.bin"))}
    log = _run_pnnx(guest, model, folder, names)
    layers = replace_paddings(parse_layers(names["param"].read_text("ascii")), find_paddings(log))
    names["param"].write_text(format_layers(layers), "ascii")
    np.save(folder / "samples.npy", samples)
    ranges = folder / "ranges.json"
    guest.run(PROGRAM, "blobs", names["param"], names["bin"], folder / "samples.npy", ranges, cpu=cpu)
    quantized, data = quantize_ncnn(layers, names["bin"].read_bytes(), json.loads(ranges.read_text("ascii")))
    (folder / "int8.param").write_text(format_layers(quantized), "ascii")
    (folder / "int8.bin").write_bytes(data)
    return {"fp32": folder / "float", "fp16": folder / "float", "int8": folder / "int8"}


def _run_pnnx(guest: Guest, model: Path, folder: Path, names: Mapping[str, Path]) -> str:
    others = {key: folder / f"unused.{key}" for key in ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnpy")}
    wanted = {**others, "ncnnparam": names["param"], "ncnnbin": names["bin"], "fp16": 0}
    command = [str(guest.pnnx), str(model), *(f"{key}={value}" for key, value in wanted.items())]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode or not names["bin"].exists():
        raise PeerUnavailable(f"pnnx ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return ended.stdout + ended.stderr


def convert_mnn(model: Path, samples: Floats, guest: Guest, folder: Path, *, unit: float, cpu: str) -> dict[str, Path]:
    """Precision → .mnn file.

    Args:
        model: ONNX of static shapes.
        samples: Pictures (count, 3, rows, columns) to calibrate with; written as PNG, as MNN's tool reads them.
        guest: Runs MNN's tools.
        folder: An existing one for the files.
        unit: What a white pixel is in the model's input: 1 or 255.
        cpu: QEMU's CPU.
    """
    plain, quantized = folder / "float.mnn", folder / "int8.mnn"
    arguments = ("-f", "ONNX", "--modelFile", model, "--MNNModel", plain, "--bizCode", "bench")
    guest.run(PROGRAM, "tool", "mnnconvert", *arguments, cpu=cpu)
    if not plain.exists():
        raise PeerUnavailable("MNN's converter wrote no model")
    found = {"fp32": plain, "fp16": plain}
    config = folder / "mnn.json"
    config.write_text(json.dumps(_mnn_config(samples, folder / "pictures", unit)), "ascii")
    guest.run(PROGRAM, "tool", "mnnquant", plain, quantized, config, cpu=cpu)
    return found | ({"int8": quantized} if quantized.exists() else {})


def _mnn_config(samples: Floats, pictures: Path, unit: float) -> dict[str, object]:
    pictures.mkdir(exist_ok=True)
    for index, picture in enumerate(_pictures(samples, unit)):
        picture.save(pictures / f"{index}.png")
    channels, rows, columns = samples.shape[1:]
    layout = "RGB" if channels == 3 else "GRAY"
    scale = {"format": layout, "mean": [0.0] * channels, "normal": [unit / 255] * channels}
    size = {"width": columns, "height": rows}
    methods = {"feature_quantize_method": "KL", "weight_quantize_method": "MAX_ABS"}
    return {**scale, **size, **methods, "path": f"{pictures}/", "used_image_num": len(samples), "model": "float.mnn"}


def _pictures(samples: Floats, unit: float) -> Iterator[Any]:
    from PIL import Image

    for sample in samples:
        pixels = np.rint(sample.transpose(1, 2, 0) * (255 / unit)).clip(0, 255).astype(np.uint8)
        yield Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)  # gray has no axis of channels
