"""What calls of the driver return: the codes of `CUresult` that the virtual driver uses, with the driver's own words.

Source: `cuda.h`, enum `cudaError_enum`; the words are those of `cuGetErrorString`.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["WORDS", "CudaError", "Result", "of_finding"]


class Result(IntEnum):
    """The members that we return ourselves or let tests inject."""

    SUCCESS = 0
    INVALID_VALUE = 1
    OUT_OF_MEMORY = 2
    NOT_INITIALIZED = 3
    DEINITIALIZED = 4
    NO_DEVICE = 100
    INVALID_DEVICE = 101
    INVALID_IMAGE = 200
    INVALID_CONTEXT = 201
    NO_BINARY_FOR_GPU = 209
    ECC_UNCORRECTABLE = 214
    UNSUPPORTED_LIMIT = 215
    INVALID_PTX = 218
    UNSUPPORTED_PTX_VERSION = 222
    FILE_NOT_FOUND = 301
    INVALID_HANDLE = 400
    NOT_FOUND = 500
    NOT_READY = 600
    ILLEGAL_ADDRESS = 700
    LAUNCH_OUT_OF_RESOURCES = 701
    LAUNCH_TIMEOUT = 702
    PEER_ACCESS_ALREADY_ENABLED = 704
    PEER_ACCESS_NOT_ENABLED = 705
    CONTEXT_IS_DESTROYED = 709
    ASSERT = 710
    HOST_MEMORY_ALREADY_REGISTERED = 712
    HOST_MEMORY_NOT_REGISTERED = 713
    MISALIGNED_ADDRESS = 716
    LAUNCH_FAILED = 719
    NOT_SUPPORTED = 801
    STREAM_CAPTURE_UNSUPPORTED = 900
    STREAM_CAPTURE_INVALIDATED = 901
    ILLEGAL_STATE = 401
    STREAM_CAPTURE_UNMATCHED = 903
    STREAM_CAPTURE_ISOLATION = 905
    UNKNOWN = 999


WORDS = {
    Result.SUCCESS: "no error",
    Result.INVALID_VALUE: "invalid argument",
    Result.OUT_OF_MEMORY: "out of memory",
    Result.NOT_INITIALIZED: "initialization error",
    Result.DEINITIALIZED: "driver shutting down",
    Result.NO_DEVICE: "no CUDA-capable device is detected",
    Result.INVALID_DEVICE: "invalid device ordinal",
    Result.INVALID_IMAGE: "device kernel image is invalid",
    Result.INVALID_CONTEXT: "invalid device context",
    Result.NO_BINARY_FOR_GPU: "no kernel image is available for execution on the device",
    Result.ECC_UNCORRECTABLE: "uncorrectable ECC error encountered",
    Result.UNSUPPORTED_LIMIT: "limit is not supported on this architecture",
    Result.INVALID_PTX: "a PTX JIT compilation failed",
    Result.UNSUPPORTED_PTX_VERSION: "the provided PTX was compiled with an unsupported toolchain.",
    Result.FILE_NOT_FOUND: "file not found",
    Result.INVALID_HANDLE: "invalid resource handle",
    Result.ILLEGAL_STATE: "the operation cannot be performed in the present state",
    Result.NOT_FOUND: "named symbol not found",
    Result.NOT_READY: "device not ready",
    Result.ILLEGAL_ADDRESS: "an illegal memory access was encountered",
    Result.LAUNCH_OUT_OF_RESOURCES: "too many resources requested for launch",
    Result.LAUNCH_TIMEOUT: "the launch timed out and was terminated",
    Result.PEER_ACCESS_ALREADY_ENABLED: "peer access is already enabled",
    Result.PEER_ACCESS_NOT_ENABLED: "peer access has not been enabled",
    Result.CONTEXT_IS_DESTROYED: "context is destroyed",
    Result.ASSERT: "device-side assert triggered",
    Result.HOST_MEMORY_ALREADY_REGISTERED: "part or all of the requested memory range is already mapped",
    Result.HOST_MEMORY_NOT_REGISTERED: "pointer does not correspond to a registered memory region",
    Result.MISALIGNED_ADDRESS: "misaligned address",
    Result.LAUNCH_FAILED: "unspecified launch failure",
    Result.NOT_SUPPORTED: "operation not supported",
    Result.STREAM_CAPTURE_UNSUPPORTED: "operation not permitted when stream is capturing",
    Result.STREAM_CAPTURE_INVALIDATED: "operation failed due to a previous error during capture",
    Result.STREAM_CAPTURE_UNMATCHED: "capture was not ended in the same stream as it began",
    Result.STREAM_CAPTURE_ISOLATION: "dependency created on uncaptured work in another stream",
    Result.UNKNOWN: "unknown error",
}


class CudaError(Exception):
    """A call that fails with `result`. `detail`: more than the driver's words, for the log and for `cuGetErrorString`."""

    def __init__(self, result: Result, detail: str = "") -> None:
        self.result, self.detail = result, detail
        super().__init__(f"{result.name}: {detail or WORDS[result]}")


def of_finding(kind: str) -> Result:
    """The code that a device reports for a finding of the sanitizer. Races and reads of memory that was never written go
    unnoticed on a device; here they end the launch."""
    return {
        "out-of-bounds": Result.ILLEGAL_ADDRESS,
        "use-after-free": Result.ILLEGAL_ADDRESS,
        "read-only": Result.ILLEGAL_ADDRESS,
        "misaligned": Result.MISALIGNED_ADDRESS,
        "assert": Result.ASSERT,
        "deadlock": Result.LAUNCH_TIMEOUT,
        "limit": Result.LAUNCH_OUT_OF_RESOURCES,
    }.get(kind, Result.LAUNCH_FAILED)
