"""Owns the codes FX07xx: devices, drivers and the virtual GPU."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0701",
    "no CUDA driver",
    "device",
    """
    The NVIDIA driver's library `libcuda.so.1` is not installed or found no GPU. fluxir does not fall back to the CPU: a
    program asked for on a GPU runs there or not at all.

    `nvidia-smi` must work. Inside a container start it with `--gpus all`. To run without a GPU use `--device cpu`, or
    `--device vgpu`, which executes the same PTX on a simulator.
    """,
)

declare(
    "FX0702",
    "PyCUDA is not installed",
    "device",
    """
    Running on a real GPU goes through PyCUDA, which is an extra: `pip install 'fluxir[cuda]'`. It is built against the
    CUDA headers. Compiling PTX and running it on `--device vgpu` need neither.
    """,
)

declare(
    "FX0703",
    "device not found",
    "device",
    """
    The device number is not among those the driver reports; `fluxir doctor` lists them. CUDA_VISIBLE_DEVICES hides
    devices and renumbers the rest.
    """,
)

declare(
    "FX0704",
    "CUDA module failed to load",
    "device",
    """
    The driver's compiler rejected the PTX. Its log is shown. A driver older than the PTX version is the usual reason:
    compile for the target that matches, or update the driver.
    """,
)

declare(
    "FX0705",
    "kernel launch failed",
    "device",
    """
    The driver refused to start a kernel, or reported an error of an earlier one. After such an error the CUDA context is
    lost: start a new process. `--device vgpu` runs the same kernel with checks and names the faulty access.
    """,
)

declare(
    "FX0706",
    "device is out of memory",
    "device",
    """
    The device has less free memory than the program needs for weights, arguments and temporaries. The message gives both
    numbers. Use a smaller batch, or free arrays that other programs hold.
    """,
)

declare(
    "FX0707",
    "program was compiled for another device",
    "device",
    """
    PTX for `sm_90` does not run on older GPUs, and PTX for `sm_90a` only on exactly that architecture; CPU code needs the
    instructions it was compiled for. Compile for the device: `fluxir doctor` names its target.
    """,
)

declare(
    "FX0708",
    "illegal memory access in a kernel",
    "user",
    """
    The virtual GPU found a load or store outside every buffer, a misaligned one, or a read of memory that was never
    written. The message names kernel, line of PTX, thread and address. A real GPU notices some of these and says less: the
    notes list the kernels that ran since it was last known to be well, and FLUXIR_GPU_SYNC=on waits after each and names
    the one. For PTX made by fluxir this is a defect: please report it.
    """,
)

declare(
    "FX0709",
    "data race in a kernel",
    "user",
    """
    The virtual GPU found two threads that touch one address, at least one of them writing, with no barrier between. The
    message names both lines of PTX. For PTX made by fluxir this is a defect: please report it.
    """,
)

declare(
    "FX0710",
    "instruction not supported by the virtual GPU",
    "unsupported",
    """
    The PTX uses an instruction, modifier or register that the virtual GPU does not execute. Everything fluxir emits is
    covered, so this concerns PTX from elsewhere: rewrite the instruction, or run the kernel on a real device.
    """,
    hint="`fluxir vgpu instructions` lists what it runs, `fluxir vgpu check FILE.ptx` all that is missing for a file",
)

declare(
    "FX0711",
    "PTX does not parse",
    "user",
    """
    The text given to the virtual GPU is not PTX that it can read, or it does not fit together: a name is used that is not
    declared, an operand has the wrong kind, a kernel is asked for that is not there. The message names the line.
    """,
    hint="`fluxir vgpu check FILE.ptx` tries to load a file",
)

declare(
    "FX0712",
    "the virtual CUDA driver cannot be loaded",
    "device",
    """
    Programs for CUDA run on virtual GPUs through a library `libcuda.so.1` of ours. gcc builds it once for each user, and it
    must be loaded before anything else loads a driver: call `install` before PyCUDA is imported, in a process of its
    own where the machine has an NVIDIA driver.
    """,
)

declare(
    "FX0714",
    "a kernel's threads do not work together as they must",
    "user",
    """
    The virtual GPU stopped a kernel whose threads wait for each other in vain or read what is not there yet: a barrier that
    only some threads of a block reach, a warp shuffle from a thread that does not take part, a loop that waits for memory
    nobody writes, data of an asynchronous copy that was not waited for, a failed assertion or a trap. The message names
    kernel, line of PTX and thread. For PTX made by fluxir this is a defect: please report it.
    """,
)
