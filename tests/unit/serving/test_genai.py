"""A language model as a folder for onnxruntime-genai: what its names and sizes are called there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import GenerationFacts, ProcessMemory
from compiler.model.decoder import CachePair, Decoder
from compiler.target import Artifact, DataError, TensorSpec
from serving.genai import genai_config, special_in, tokenizer_settings

LAYERS = 12
NAMES = [f"{number}.{kind}" for number in range(LAYERS) for kind in ("key", "value")]
DECODER = Decoder(
    ids="input_ids",
    logits="logits",
    pairs=tuple(CachePair(f"past_key_values.{name}", f"present.{name}") for name in NAMES),
    mask="attention_mask",
    vocabulary=49152,
)
FACTS = GenerationFacts(1024, 256, DECODER, ProcessMemory(None, None, None, Evidence.NONE), None, None, Evidence.NONE)


def artifact(tmp_path: Path, target: str = "onnxruntime") -> Artifact:
    cache = tuple(TensorSpec(f"past_key_values.{name}", "float32", ("batch", 3, "past", 64)) for name in NAMES)
    inputs = (TensorSpec("input_ids", "int64", ("batch", "sequence")), *cache)
    facts = {"config": {"intra_op_num_threads": 4, "inter_op_num_threads": 1}}
    return Artifact(tmp_path, target, "int4-weights", inputs, (), ("payload/model.onnx",), {}, facts=facts)


def test_names_and_sizes_are_those_of_the_build(tmp_path: Path) -> None:
    config = genai_config(artifact(tmp_path), FACTS, special={"<|end|>": 2, "<|start|>": 1})
    model = config["model"]
    assert model["eos_token_id"] == [1, 2] and model["context_length"] == config["search"]["max_length"] == 1024
    decoder = model["decoder"]
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (LAYERS, 3, 64)
    assert decoder["inputs"] == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    assert decoder["outputs"]["present_value_names"] == "present.%d.value"
    assert decoder["session_options"]["intra_op_num_threads"] == 4


def test_what_genai_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="built for target onnxruntime, and this is none"):
        genai_config(artifact(tmp_path), None, special={})
    with pytest.raises(DataError, match="built for target onnxruntime, and this is none"):
        genai_config(artifact(tmp_path, "openvino"), FACTS, special={})
    odd = replace(DECODER, pairs=(CachePair("cache_a_k", "new_a_k"), CachePair("cache_a_v", "new_a_v")))
    specs = (TensorSpec("cache_a_k", "float32", ("batch", 3, "past", 64)),)
    with pytest.raises(DataError, match="not numbered from 0"):
        genai_config(replace(artifact(tmp_path), inputs=specs), replace(FACTS, decoder=odd), special={})


def test_special_tokens_are_those_that_the_tokenizer_marks(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    added = [{"id": 0, "content": "<|end|>", "special": True}, {"id": 7, "content": "word", "special": False}]
    tokenizer.write_text(json.dumps({"added_tokens": added}))
    assert special_in(tokenizer) == {"<|end|>": 0}
    assert tokenizer_settings(special_in(tokenizer))["eos_token"] == "<|end|>"
    tokenizer.write_text("[]")
    with pytest.raises(DataError, match="cannot be read"):
        special_in(tokenizer)
