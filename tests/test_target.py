"""Targets: names, limits, and agreement with what LLVM itself says."""

from __future__ import annotations

import re
from dataclasses import replace

import llvmlite.binding as llvm
import pytest

from fluxir.errors import FluxError
from fluxir.target import CpuTarget, GpuTarget, Host, all_targets, host, parse_target

GPUS = [target for target in all_targets() if isinstance(target, GpuTarget)]
LEVELS = [f"cpu:x86-64-v{n}" for n in (1, 2, 3, 4)]


def gpu(name: str) -> GpuTarget:
    target = parse_target(name)
    assert isinstance(target, GpuTarget)
    return target


def cpu(name: str) -> CpuTarget:
    target = parse_target(name)
    assert isinstance(target, CpuTarget)
    return target


def test_every_target_parses_from_its_own_name() -> None:
    names = [target.name for target in all_targets()]
    assert len(set(names)) == len(names) and {"cpu", "sm_70", "sm_80", "sm_90", "sm_90a", "sm_120"} <= set(names)
    for target in all_targets():
        assert parse_target(target.name) is parse_target(f" {target.name} ") and parse_target(target.name) == target
        assert str(target) == target.name
    assert parse_target("cpu:native") == parse_target("cpu")


@pytest.mark.parametrize(
    "name",
    ["", "cuda", "sm_9", "sm_999", "sm_80a", "sm90", "cpu:", "cpu:x86-64-v5", "SM_80", "sm_80 --evil", "cpu:znver3"],
)
def test_other_names_are_errors_that_list_the_targets(name: str) -> None:
    with pytest.raises(FluxError) as caught:
        parse_target(name)
    assert caught.value.code == "FX0501" and caught.value.exit_code == 2 and "sm_90a" in str(caught.value.help)


@pytest.mark.parametrize("target", GPUS, ids=str)
def test_ptx_version_is_the_one_llvm_takes_for_the_target(target: GpuTarget) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.llvm_cpu)
    text = machine.emit_assembly(
        llvm.parse_assembly(f'target triple = "{target.triple}"\ndefine ptx_kernel void @k() {{ ret void }}\n')
    )
    found = re.search(r"^\.version ([\d.]+)\n\.target (\w+)", text, re.MULTILINE)
    assert found is not None and (found[1], found[2]) == (target.ptx_version, target.name)
    assert target.llvm_features == "+ptx" + found[1].replace(".", "")


@pytest.mark.parametrize("target", GPUS, ids=str)
def test_gpu_limits_make_sense(target: GpuTarget) -> None:
    assert target.warp == 32 and target.max_threads_per_block <= target.max_threads_per_sm
    assert 48 * 1024 <= target.shared_static <= target.shared_per_block <= target.shared_per_sm
    assert target.max_threads_per_sm % target.warp == 0 and target.registers_per_thread == 255


def test_known_gpu_limits() -> None:
    # CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    assert gpu("sm_80").shared_per_block == 163 * 1024 and gpu("sm_86").shared_per_block == 99 * 1024
    assert gpu("sm_90").shared_per_block == 227 * 1024 and gpu("sm_75").max_threads_per_sm == 1024
    assert gpu("sm_120").max_threads_per_sm == 1536 and gpu("sm_120").capability == (12, 0)


def test_gpu_features() -> None:
    assert not gpu("sm_75").has("cp.async") and gpu("sm_80").has("cp.async") and gpu("sm_120").has("cp.async")
    assert gpu("sm_90a").has("wgmma") and not gpu("sm_90").has("wgmma") and not gpu("sm_100a").has("wgmma")
    assert gpu("sm_100a").has("tcgen05") and not gpu("sm_120a").has("tcgen05")


def test_which_gpu_runs_which_ptx() -> None:
    assert gpu("sm_80").runs_on((9, 0)) and gpu("sm_80").runs_on((8, 6)) and not gpu("sm_86").runs_on((8, 0))
    assert gpu("sm_90a").runs_on((9, 0)) and not gpu("sm_90a").runs_on((10, 0))
    assert (
        gpu("sm_100f").runs_on((10, 3)) and not gpu("sm_100f").runs_on((12, 0)) and not gpu("sm_103f").runs_on((10, 0))
    )


def test_cpu_levels_grow() -> None:
    sets = [set(cpu(name).features) for name in LEVELS]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert [cpu(name).vector_bits for name in LEVELS] == [128, 128, 256, 512]
    assert [cpu(name).vector_registers for name in LEVELS] == [16, 16, 16, 32]
    assert cpu(LEVELS[2]).lanes(32) == 8 and cpu(LEVELS[2]).lanes(64) == 4 and cpu(LEVELS[0]).lanes(1024) == 1


@pytest.mark.parametrize("name", LEVELS)
def test_llvm_knows_the_level_and_every_feature(name: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = cpu(name)
    triple = llvm.Target.from_triple(target.triple)
    features = ",".join("+" + feature for feature in target.features)
    source = "define float @f(float %x) { ret float %x }"
    plain = triple.create_target_machine(cpu=target.llvm_cpu).emit_assembly(llvm.parse_assembly(source))
    named = triple.create_target_machine(cpu="x86-64", features=features).emit_assembly(llvm.parse_assembly(source))
    assert "ret" in plain and "ret" in named


def test_the_host_agrees_with_llvm() -> None:
    seen = llvm.get_host_cpu_features()
    for feature in host().features:
        assert seen[feature], f"{feature}: /proc says yes, LLVM says no"
    for feature in cpu(LEVELS[3]).features:
        assert seen.get(feature, True) == (feature in host().features), feature
    target = cpu("cpu")
    assert target.native and target.machine == host().machine
    assert 2**13 <= target.l1_bytes <= target.l2_bytes


def test_arm_targets() -> None:
    neon, sve = cpu("cpu:aarch64+neon"), cpu("cpu:aarch64+sve")
    assert set(neon.features) < set(sve.features) and neon.machine == "aarch64" != cpu(LEVELS[0]).machine
    for target in (neon, sve):
        assert target.vector_bits == 128 and target.vector_registers == 32
        assert all(target.has(ability) for ability in ("fma", "half", "round"))
    assert [cpu(f"cpu:aarch64+sve{n}").vector_bits for n in (256, 512)] == [256, 512]
    assert [cpu(name).has("fma") for name in LEVELS] == [False, False, True, True]
    assert [cpu(name).has("round") for name in LEVELS] == [False, True, True, True]


def test_the_target_nearest_to_a_machine() -> None:
    assert host().target in LEVELS or host().target.startswith("cpu:aarch64")
    assert Host("n1", "aarch64", ("lse", "neon"), 0, 2**16, 2**20, 2**25).target == "cpu:aarch64+neon"
    for name in ("cpu:aarch64+sve", "cpu:aarch64+sve256"):
        assert Host("v1", "aarch64", cpu(name).features, 0, 2**16, 2**20, 2**25).target == name
    assert cpu("cpu:aarch64+sve512").missing_on(Host("v1", "aarch64", cpu(name).features, 0, 0, 0, 0)) == ("sve512",)


def test_missing_features_are_named() -> None:
    old = Host("old", "x86_64", ("sse", "sse2"), 1, 2**15, 2**18, 2**20)
    assert cpu(LEVELS[0]).missing_on(old) == () and "avx2" in cpu(LEVELS[2]).missing_on(old)


def test_a_machine_that_there_is_no_code_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import fluxir.target as module

    other = Host("visionfive", "riscv64", (), 0, 2**15, 2**18, 2**20)
    monkeypatch.setattr(module, "host", lambda: other)
    module._native.cache_clear()
    try:
        with pytest.raises(FluxError, match="riscv64") as caught:
            parse_target("cpu")
        assert caught.value.code == "FX0509" and caught.value.exit_code == 6
        assert "cpu" not in [target.name for target in all_targets()]
    finally:
        module._native.cache_clear()


def test_the_fingerprint_tells_apart_what_code_depends_on() -> None:
    prints = [target.fingerprint() for target in all_targets()]
    assert len(set(prints)) == len(prints) and all("\n" not in text for text in prints)
    native = cpu("cpu")
    assert replace(native, l2_bytes=1).fingerprint() != native.fingerprint()
