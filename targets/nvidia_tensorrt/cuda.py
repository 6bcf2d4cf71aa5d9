"""The few calls of the CUDA driver that running an engine takes, through ctypes: no CUDA package is needed."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.target import Array, TargetUnavailable, ToolchainFailed

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Device:
    """One GPU of this machine: its ordinal at the driver, and its compute capability such as `8.9`."""

    ordinal: int
    compute_capability: str


def find_device(compute_capability: str) -> Device:
    """The first GPU of that compute capability.

    Raises:
        TargetUnavailable: There is no driver, no GPU, or none of that compute capability.
    """
    driver = _driver()
    count = c_int()
    _check(driver, driver.cuDeviceGetCount(byref(count)), "cuDeviceGetCount")
    devices = [_device(driver, ordinal) for ordinal in range(count.value)]
    for device in devices:
        if device.compute_capability == compute_capability:
            return device
    present = ", ".join(device.compute_capability for device in devices) or "none"
    raise TargetUnavailable(
        f"no NVIDIA GPU of compute capability {compute_capability} on this machine (found: {present})",
        remedy="Run it on the device it was built for.",
    )


class Memory:
    """Memory of one GPU and a stream on it, in the device's primary context."""

    def __init__(self, device: Device) -> None:
        self._driver, self._device, self._context, self._stream = _driver(), device.ordinal, c_void_p(), c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), c_int(device.ordinal))
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", byref(self._stream), c_int(0))

    @property
    def stream(self) -> int:
        """Handle of the stream, for TensorRT."""
        return int(self._stream.value or 0)

    def allocate(self, size_bytes: int) -> int:
        """Address of new memory on the GPU, at least one byte of it."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(max(size_bytes, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Gives back what `allocate` gave."""
        self._call("cuMemFree_v2", c_uint64(address))

    def upload(self, array: Array) -> int:
        """Address of a copy of the array on the GPU."""
        address, host = self.allocate(array.nbytes), np.ascontiguousarray(array)
        if host.nbytes:
            self._call("cuMemcpyHtoD_v2", c_uint64(address), host.ctypes.data_as(c_void_p), c_size_t(host.nbytes))
        return address

    def download(self, address: int, into: Array) -> None:
        """Fills a contiguous array from the GPU."""
        if into.nbytes:
            self._call("cuMemcpyDtoH_v2", into.ctypes.data_as(c_void_p), c_uint64(address), c_size_t(into.nbytes))

    def wait(self) -> None:
        """Returns when all work on the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Gives back the stream and the context."""
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", c_int(self._device))

    def _call(self, name: str, *arguments: Any) -> None:
        _check(self._driver, getattr(self._driver, name)(*arguments), name)


def driver_library() -> ctypes.CDLL:
    """The NVIDIA driver's library, not initialised. Raises TargetUnavailable where there is none."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise TargetUnavailable(
            f"no NVIDIA GPU or driver on this machine: {_LIBRARY} not found",
            remedy="Run it on a machine with an NVIDIA GPU and its driver.",
        ) from error


def _driver() -> ctypes.CDLL:
    driver = driver_library()
    code = driver.cuInit(0)
    if code:
        raise TargetUnavailable(
            f"the NVIDIA driver of this machine finds no usable GPU: {_error_name(driver, code)}",
            remedy="Run it on a machine with an NVIDIA GPU, or repair its driver.",
        )
    return driver


def _device(driver: ctypes.CDLL, ordinal: int) -> Device:
    handle, major, minor = c_int(), c_int(), c_int()
    _check(driver, driver.cuDeviceGet(byref(handle), ordinal), "cuDeviceGet")
    _check(driver, driver.cuDeviceGetAttribute(byref(major), _MAJOR, handle), "cuDeviceGetAttribute")
    _check(driver, driver.cuDeviceGetAttribute(byref(minor), _MINOR, handle), "cuDeviceGetAttribute")
    return Device(handle.value, f"{major.value}.{minor.value}")


def _check(driver: ctypes.CDLL, code: int, call: str) -> None:
    if code:
        raise ToolchainFailed(f"the CUDA driver failed in {call}: {_error_name(driver, code)}")


def _error_name(driver: ctypes.CDLL, code: int) -> str:
    name = c_char_p()
    get_name = driver.cuGetErrorName
    get_name.argtypes = [c_int, POINTER(c_char_p)]
    return name.value.decode() if not get_name(code, byref(name)) and name.value else f"error {code}"
