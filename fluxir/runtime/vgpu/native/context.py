"""What native code shares with Python: the words of a launch's context, and how a warp's state lies in memory.

The context is an array of 64-bit words: addresses, sizes, counters. A warp's state begins with 32 words of `PC` (the basic block
where each lane stands, or where it waits), then the coordinates of its threads, then its registers.
"""

from __future__ import annotations

from .text import LANES, Text

__all__ = [
    "COUNTED",
    "DONE",
    "FINDING",
    "HEADER",
    "STEPS",
    "REGISTERS",
    "WAITS_BLOCK",
    "WAITS_WARP",
    "WORDS",
    "count_word",
    "field",
    "field_address",
]

COUNTED = ("requests", "bytes", "sectors", "wavefronts", "ideal_wavefronts")
_KINDS = ("global", "shared", "local")
_WHATS = ("load", "store", "atomic")

_FIELDS = (
    # memory: first byte, shadow, bytes (of shared memory of a block, of local memory of a thread)
    "heap heap_shadow heap_bytes shared shared_shadow shared_bytes local local_shadow local_bytes "
    "parameters parameter_address shared_states local_states "
    # what the sanitizer keeps: of each granule the last block (or period and thread) that wrote or read it
    "checks global_races writer reader atomic many shared_races shared_writer shared_reader shared_other shared_adder "
    "shared_other_adder shared_tag shared_race_bytes tag "
    "now floor clocks touched_load touched_store "
    # where we are
    "warps warp_bytes warp_state code enter threads block last_block ctaid.x ctaid.y ctaid.z ntid.x ntid.y ntid.z "
    "nctaid.x nctaid.y nctaid.z "
    "first_thread clock multiprocessors dynamic_smem_size total_smem_size spins "
    # what stops us
    "stop steps step_limit "
    # for instructions whose meaning is in Python, and for barriers: where who waits goes on, and what they brought
    "groups queues python scratch table resume popc and or seed noise "
    "exp2 exp2.data log2 log2.data sin sin.data cos cos.data tanh tanh.data "
    # counters
    "block_warps block_threads branches divergent_branches barriers tensor_flops"
).split()

WORDS = {name: i for i, name in enumerate(_FIELDS)}
for _kind in _KINDS:
    for _what in _WHATS:
        for _counted in COUNTED:
            WORDS[f"{_counted}.{_kind} {_what}"] = len(WORDS)

DONE = 0x7FFF_FFFF  # a lane that has ended, or does not exist
WAITS_BLOCK = 0x1000_0000  # plus the number of the waiting place
WAITS_WARP = 0x2000_0000
FINDING, STEPS = 1, 2  # why the code stopped: the sanitizer has something to say; the launch does not end

# A warp's state, in vectors of 32 words: where its lanes stand, their coordinates in the block, what they bring to a barrier, and
# where they stand when a block begins (0, or DONE for lanes that do not exist), and how many blocks the warp has run.
HEADER = {"pc": 0, "tid.x": 128, "tid.y": 256, "tid.z": 384, "brought": 512, "member": 640, "start": 768, "turn": 896}
REGISTERS = 128 * len(HEADER)  # bytes before the registers


def count_word(counted: str, kind: str, what: str) -> str:
    return f"{counted}.{kind} {what}"


def field_address(f: Text, name: str) -> str:
    return f.at("%c", 8 * WORDS[name])


def field(f: Text, name: str, kind: str = "i64") -> str:
    """A word of the context."""
    return f.load(kind, field_address(f, name))


assert LANES == 32
