# SPDX-License-Identifier: Apache-2.0
"""The kernels against plain loops in double precision: kernels_test.cpp, with and without sanitizers."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vanilla_transformer.inference.native.compiler import FLAGS, SOURCE, cpu_features, find_compiler

PROGRAM = Path(__file__).with_name("kernels_test.cpp")
TESTS = re.findall(r'^    \{"(\w+)", \1\},$', PROGRAM.read_text(encoding="utf-8"), re.MULTILINE)
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
AVX2 = ["-mavx2", "-mfma"]
VECTORS = {  # name → flags of the compiler, and what the CPU must have
    "this CPU's vectors": (["-march=native"], ""),
    "AVX2": (AVX2, "avx2"),
    "AVX-VNNI": ([*AVX2, "-mavxvnni"], "avx_vnni"),
    "AVX-512 VNNI on narrower vectors": ([*AVX2, "-mavx512vl", "-mavx512vnni"], "avx512_vnni"),
    "the narrowest vectors": ([], ""),
}
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
ARM_CPUS = {  # name → flags of the compiler
    "the first 64-bit ARM": ["-march=armv8-a"],
    "Neoverse V1, with SVE and bfloat16": ["-mcpu=neoverse-v1"],
}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Threads that wait passively leave the cores to other processes.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"} | environment
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)


def build(folder: Path, flags: list[str], program: str = str(PROGRAM), compiler: list[str] | None = None) -> str:
    built = run(
        *(compiler or find_compiler()), *flags, "-I", str(SOURCE.parent), program, "-o", str(folder / "kernels_test")
    )
    assert built.returncode == 0, built.stderr
    return str(folder / "kernels_test")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> str:
    return build(tmp_path_factory.mktemp("kernels"), [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")])


def test_every_test_of_the_program_is_run(program):
    assert run(program).stdout.split() == TESTS


@pytest.mark.parametrize("name", TESTS)
def test_kernel(program, name):
    done = run(program, name)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("vectors", VECTORS)
def test_sanitizers_find_nothing(vectors, tmp_path):
    flags, feature = VECTORS[vectors]
    if feature and (platform.machine() not in ("x86_64", "AMD64") or feature not in cpu_features().split()):
        pytest.skip(f"this CPU has no {feature}")
    program = build(tmp_path, [*SANITIZERS, *flags, "-fopenmp", "-std=c++17"])
    for name in TESTS:
        done = run(program, name, ASAN_OPTIONS="detect_leaks=0")  # OpenMP's threads are never freed
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.slow
def test_sanitizers_find_a_read_beyond_the_end(tmp_path):
    """Otherwise the test above would show nothing."""
    wrong = tmp_path / "wrong.cpp"
    wrong.write_text(
        """
        #include <vector>
        #include "topk.h"
        int main() {
            std::vector<float> values(31), scores(1);
            std::vector<int64_t> indices(1);
            vanilla_transformer::blockwise_topk(values.data(), 32, 1, false, scores.data(), indices.data());
        }
        """,
        encoding="utf-8",
    )
    program = build(tmp_path, [*SANITIZERS, "-std=c++17"], str(wrong))
    assert "heap-buffer-overflow" in run(program).stderr


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ARM_CPUS)
def test_kernels_on_arm(cpu, tmp_path):
    """Compiled for ARM, and run by an emulator of it."""
    if not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)):
        pytest.fail("on Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static", pytrace=False)
    flags = [*ARM_CPUS[cpu], "-O3", "-fopenmp", "-std=c++17", "-static"]
    program = build(tmp_path, flags, compiler=[ARM_COMPILER])
    for name in TESTS:
        done = run(ARM_EMULATOR, program, name)
        assert done.returncode == 0, f"{name}: {done.stderr}"
