"""Owns the codes FX05xx: targets, schedules, and the making of machine code."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0501",
    "unknown target",
    "usage",
    """
    `fluxir targets` lists every target. CPU targets are `cpu` (this machine) and `cpu:x86-64-v1` to `cpu:x86-64-v4`; GPU
    targets are NVIDIA's architecture names.

        --target cuda                                   say which GPU: sm_80 is the A100, sm_90 the H100

    PTX for `sm_80` also runs on newer GPUs; for `sm_90a` only on that one.
    """,
)

declare(
    "FX0502",
    "op has no code for this target",
    "unsupported",
    """
    The op works elsewhere, and code generation for this target does not have it yet; `fluxir ops` shows which. It is an
    error rather than a slow detour through another device. Compile for another target, or write the computation with other
    ops.
    """,
)

declare(
    "FX0503",
    "LLVM rejected the generated code",
    "internal",
    """
    The LLVM IR that fluxir wrote did not pass LLVM's parser or verifier. This is a defect of fluxir. The dump directory
    holds the `.ll` file; please report it with the program.
    """,
)

declare(
    "FX0506",
    "ptxas rejected the generated PTX",
    "internal",
    """
    NVIDIA's assembler found an error in PTX that fluxir wrote. Its message is shown. If it says that the `.version` or
    `.target` is not supported, the ptxas is older than the target: name a newer one with FLUXIR_PTXAS. Anything else is a
    defect of fluxir.
    """,
)

declare(
    "FX0508",
    "kernel needs more resources than the target has",
    "limit",
    """
    A kernel's shared memory, threads or registers exceed the limits of the target. `fluxir targets NAME` lists them. A
    smaller tile in the schedule helps, where you chose it; otherwise please report the program.
    """,
)

declare(
    "FX0509",
    "this machine cannot run code for this target",
    "device",
    """
    The code uses instructions that this processor does not have, or the machine is of another kind. Running it would
    stop the process with an illegal instruction, so it is refused.

        compiled for cpu:x86-64-v4, this machine has x86-64-v3

    Compile on, or for, the machine it runs on: `--target cpu:x86-64-v2` runs nearly everywhere.
    """,
)

declare(
    "FX0511",
    "ptxas not found",
    "usage",
    """
    Checking PTX with the assembler was asked for, and no `ptxas` is in PATH, in NVIDIA's Python wheels or where
    FLUXIR_PTXAS points.

        pip install nvidia-cuda-nvcc                    brings one, and needs no GPU
    """,
)

declare(
    "FX0512",
    "unknown stage",
    "usage",
    """
    Stages that can be shown are: traced, simplified, fused, loops, llvm, asm (CPU targets) and ptx (GPU targets).

        fluxir show model.py --stage fused
    """,
)

declare(
    "FX0514",
    "machine code could not be linked",
    "internal",
    """
    The object code refers to a symbol that neither it nor the runtime defines. This is a defect of fluxir: please report
    the program.
    """,
)

declare(
    "FX0515",
    "memory access out of bounds in loop IR",
    "user",
    """
    The interpreter of the loop level met a load or store outside its memory. For loop IR written by hand, correct the
    index; for loop IR made by fluxir this is a defect: please report the program.
    """,
)

declare(
    "FX0516",
    "threads of a block wait for each other forever",
    "user",
    """
    The interpreter of a GPU kernel found threads that wait in different places: some at a barrier that others never reach
    (because they took another branch of an `if`), or lanes of a warp at a shuffle that not all lanes take part in.

    Move the barrier out of the branch: all threads of a block must reach the same barrier, all lanes of a warp the same
    shuffle. For loop IR made by fluxir this is a defect: please report the program.
    """,
)

declare(
    "FX0517",
    "LLVM crashed",
    "internal",
    """
    The process that translated a kernel died in LLVM: of an assertion, or of an access to memory that is not its own.
    Your process is not harmed. This is a defect of fluxir or of LLVM. The reproducer is a test with the LLVM IR beside
    it; please report it. `FLUXIR_OPT_LEVEL=0` may get round it.
    """,
)
