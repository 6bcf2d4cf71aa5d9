from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.fleet.detect import host_isa
from compiler.fleet.profile import load_profile
from targets.intel_openvino.isa import VARIABLE, isa_limit

_NORMALIZED = """
import sys
import numpy as np
from pathlib import Path
from compiler.fleet.profile import load_profile
from compiler.target import TargetPlan
from compiler.target.testing import text_case
from targets.intel_openvino import TARGET, Options
net = text_case("net", "(float[2,5,8] x) => (float[2,5,8] y) { y = LayerNormalization(x, s, b) }",
                weights={"s": (8,), "b": (8,)}, batches=(1,))
profile, folder = load_profile("intel-n100"), Path(sys.argv[1])
runner = TARGET.load(TARGET.build(net.model(), TargetPlan("fp32", Options()), profile, workdir=folder))
assert np.isfinite(runner.run({"x": np.ones((2, 5, 8), np.float32)})["y"]).all()
print(runner.note)
"""

_SPELLED = """
import sys
import numpy as np
from pathlib import Path
from compiler.fleet.profile import load_profile
from compiler.target import TargetPlan
from compiler.target.testing import text_case
from targets.intel_openvino import TARGET, Options
net = text_case("net", "(float16[2,5,8] x) => (float16[2,5,8] y) "
                "{ m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes) "
                "e = Add(v, small) r = Sqrt(e) y = Div(d, r) }",
                weights={"axes": np.array([-1]), "small": np.float16(1e-3)}, batches=(1,))
profile, folder = load_profile("intel-n100"), Path(sys.argv[1])
runner = TARGET.load(TARGET.build(net.model(), TargetPlan("fp32", Options()), profile, workdir=folder))
assert np.isfinite(runner.run({"x": np.arange(80).reshape(2, 5, 8).astype(np.float16)})["y"]).all()
print(runner.note)
"""

_KERNELS = """
import json, sys
import numpy as np
from pathlib import Path
from compiler.fleet.profile import load_profile
from compiler.target import TargetPlan
from compiler.target.testing import text_case
from targets.intel_openvino import TARGET, Options
net = text_case("net", "(float[1,16,16,16] x) => (float[1,32,16,16] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
                weights={"w": (32, 16, 3, 3)}, batches=(1,))
profile, folder = load_profile(sys.argv[1]), Path(sys.argv[2])
artifact = TARGET.build(net.model(), TargetPlan("fp32", Options()), profile, workdir=folder)
runner = TARGET.load(artifact)
times = runner.layer_times({"x": np.ones((1, 16, 16, 16), np.float32)})
print(json.dumps([time.kernel for time in times]))
"""


@pytest.mark.parametrize(
    ("profile", "limit"),
    [
        ("intel-n100", "AVX2_VNNI"),
        ("intel-xeon-icelake", "AVX512_CORE_VNNI"),
        ("intel-xeon-sapphire-rapids", "AVX512_CORE_AMX"),
        ("amd-epyc-genoa", "AVX512_CORE_BF16"),
    ],
)
def test_each_profile_has_the_level_of_its_processor(profile: str, limit: str) -> None:
    cpu = load_profile(profile).cpu
    assert cpu is not None and isa_limit(cpu.isa, cpu.isa) == limit


def test_no_level_is_guessed_for_flags_that_say_too_little() -> None:
    assert isa_limit((), ("avx2", "fma")) == "" and isa_limit(("sse2",), ("sse2",)) == ""


@pytest.mark.needs_openvino
@pytest.mark.skipif("avx512f" not in host_isa(), reason="this processor has nothing beyond the device's AVX2")
def test_kernels_on_a_newer_machine_are_the_devices_own(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}

    def kernels(profile: str) -> list[str]:
        command = [sys.executable, "-c", _KERNELS, profile, str(tmp_path / profile)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    assert any("avx512" in kernel for kernel in kernels("intel-xeon-icelake"))
    assert not any("avx512" in kernel for kernel in kernels("intel-n100"))


@pytest.mark.needs_openvino
@pytest.mark.skipif("avx512f" not in host_isa(), reason="this processor has nothing beyond the device's AVX2")
@pytest.mark.parametrize("model", [_NORMALIZED, _SPELLED], ids=["one operator", "spelled, and fused by OpenVINO"])
def test_a_model_whose_kernels_do_not_obey_the_limit_runs_and_says_with_what(model: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", model, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "computed with instructions of AVX512_CORE" in done.stdout


@pytest.mark.parametrize(
    ("host", "layers", "limit"),
    [
        (("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni"), ("MVN",), "AVX512_CORE_VNNI"),
        (("avx2", "fma", "avx_vnni", "avx512f"), ("MVN",), "AVX512_CORE"),
        (("avx2", "fma", "avx_vnni", "avx512f"), ("Convolution",), "AVX2_VNNI"),
        (("avx2", "fma", "avx_vnni"), ("MVN",), "AVX2_VNNI"),
    ],
)
def test_a_limit_never_mixes_kernels_of_two_instruction_sets(
    host: tuple[str, ...], layers: tuple[str, ...], limit: str
) -> None:
    assert isa_limit(("avx2", "fma", "avx_vnni"), host, layers) == limit
