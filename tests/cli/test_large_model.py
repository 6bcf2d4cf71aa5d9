"""A model whose weights do not fit into one message: they lie beside it on the whole way to a board."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_transformer_model import encoder_of, make_transformer, save

from tests.cli.conftest import make_place

FLEET = """schema: 1
model: encoder.onnx
dims: {sequence: 8}
devices:
  board: {profile: raspberry-pi-5}
"""


@pytest.mark.slow
@pytest.mark.needs_tvm
def test_an_arm_model_of_300_megabytes_is_delivered(tmp_path: Path, site: Path) -> None:
    place = make_place(tmp_path, site)
    save(make_transformer(encoder_of(300, width=1024, opset=14)), place.root / "encoder.onnx")
    (place.root / "large.yaml").write_text(FLEET)
    outcome = place.run("build", "large.yaml", "-o", "dist", "--no-emulate")
    assert outcome.code == 0, outcome.err
    manifest = place.manifest("board")
    assert manifest["verdict"]["border"]["status"] == "passed"
    # above 256 MiB the border model's weights are in a file of their own
    assert (place.dist / "board" / "border.data").stat().st_size > 256 << 20
    payload = sum(file["bytes"] for name, file in manifest["files"].items() if name.startswith("payload/"))
    assert payload > 256 << 20
