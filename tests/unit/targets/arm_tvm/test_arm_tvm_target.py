import subprocess
import sys
import zipfile

import pytest
from arm_tvm_models import conv_model

from compiler.errors import ProfileError, TargetUnavailable
from compiler.fleet.profile import HardwareProfile, validate_options
from compiler.target import Target, find_target
from compiler.target.capability import find_unsupported
from targets.arm_tvm import TARGET
from targets.arm_tvm.bundle import runtime_libraries
from targets.arm_tvm.graph.capability import capability_of
from targets.arm_tvm.graph.lower import OWN_OPERATORS


def test_target_is_found_by_name_and_satisfies_the_contract():
    assert find_target("tvm") is TARGET
    assert isinstance(TARGET, Target)


def test_capability_imports_no_toolchain():
    code = (
        "import sys; from compiler.fleet.profile import load_profile; from targets.arm_tvm import TARGET; "
        "TARGET.capability(load_profile('raspberry-pi-5')); TARGET.toolchain(); TARGET.check(None); "
        "sys.exit(any(name.split('.')[0] in ('tvm', 'tvm_ffi', 'ziglang') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.needs_tvm
def test_every_claimed_operator_is_one_that_the_importer_or_we_convert():
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    assert set(capability_of("sdot").ops) <= {*_get_convert_map(), *OWN_OPERATORS}


def test_convolutional_model_is_accepted_whole():
    assert find_unsupported(conv_model(), capability_of("sdot")) == ()


def profile_with(**options: object) -> HardwareProfile:
    return HardwareProfile(schema=1, name="board", target="tvm", target_options=options)


def test_options_come_from_the_profile():
    options = validate_options(TARGET.Options, profile_with(mtriple="aarch64-linux-gnu", mattr=["+neon"]))
    assert (options.arch, options.mcpu, options.mattr) == ("aarch64", "generic", ("+neon",))


@pytest.mark.parametrize(
    "options",
    [
        {"mtriple": "riscv64-linux-gnu"},
        {"mtriple": "aarch64-apple-darwin"},
        {"mtriple": "aarch64-linux-gnu", "mattr": ["neon"]},
        {"mtriple": "aarch64-linux-gnu", "mcpus": "x"},
        {},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ProfileError):
        validate_options(TARGET.Options, profile_with(**options))


def test_wheel_of_another_digest_is_not_used_and_the_remedy_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")  # pip cannot be started
    wheel = runtime_libraries.AARCH64_WHEELS[0]
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / wheel.filename, "w") as archive:
        archive.writestr("tvm/lib/libtvm_runtime.so", b"something else")
    with pytest.raises(TargetUnavailable, match=wheel.sha256):
        runtime_libraries.runtime_files("aarch64", cache_dir=tmp_path)


@pytest.mark.needs_tvm
@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_every_library_comes_with_the_licence_it_is_handed_on_under(arch, cache_dir):
    files = runtime_libraries.runtime_files(arch, cache_dir=cache_dir)
    assert files["NOTICE.tvm-ffi"].read_text().startswith("Apache TVM FFI\n")
    assert "Apache License" in files["LICENSE.tvm-ffi"].read_text()
    assert "Redistributions in binary form must" in files["LICENSE.libbacktrace"].read_text()
    assert files["NOTICE"].read_text().startswith("Apache TVM\n")


@pytest.mark.needs_tvm
def test_libraries_are_taken_from_the_cache_without_pip_and_damage_is_noticed(cache_dir, monkeypatch, tmp_path):
    files = runtime_libraries.runtime_files("aarch64", cache_dir=cache_dir)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert runtime_libraries.runtime_files("aarch64", cache_dir=cache_dir) == files
    damaged = files["NOTICE"]
    whole = damaged.read_bytes()
    try:
        damaged.write_bytes(b"other")
        with pytest.raises(TargetUnavailable):
            runtime_libraries.runtime_files("aarch64", cache_dir=cache_dir)
    finally:
        damaged.write_bytes(whole)
