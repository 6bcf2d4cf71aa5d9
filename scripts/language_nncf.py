"""Runs in an environment with nncf and openvino: a decoder's weights in 4 bits by NNCF, saved as OpenVINO's IR.

    python language_nncf.py MODEL.onnx WINDOWS.npy int4|int4-awq|int4-scale OUT.xml

Nothing of fleetc is imported, so that the environment needs none of its packages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino

GROUP = 32


def main(model_file: str, windows_file: str, mode: str, out: str) -> None:
    """Compresses and saves."""
    model = openvino.Core().read_model(model_file)
    rows = np.load(windows_file)
    shapes = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}

    def feeds(row: np.ndarray) -> dict[str, np.ndarray]:
        made = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        made["position_ids"] = np.arange(len(row))[None]
        for name, shape in shapes.items():
            if name not in made:
                made[name] = np.zeros((1, shape[1].get_length(), 0, shape[3].get_length()), np.float32)
        return made

    options = {"awq": mode == "int4-awq", "scale_estimation": mode == "int4-scale"}
    dataset = nncf.Dataset([feeds(row) for row in rows]) if mode != "int4" else None
    compressed = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=GROUP,
        ratio=1.0,
        dataset=dataset,
        **(options if dataset else {}),
    )
    openvino.save_model(compressed, Path(out), compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
