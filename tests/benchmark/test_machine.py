# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vanilla_transformer.benchmark import machine
from vanilla_transformer.benchmark.machine import check_import_order, describe_machine, lacks_precision


@pytest.mark.parametrize("modules", [["sys", "torch", "ctranslate2", "ctranslate2._ext"], ["torch"]])
def test_torch_before_ctranslate2_is_an_error(modules):
    with pytest.raises(RuntimeError, match="torch was imported before ctranslate2"):
        check_import_order(modules)


def test_ctranslate2_before_torch_is_accepted():
    check_import_order(["sys", "ctranslate2", "ctranslate2._ext", "ctranslate2.converters", "torch"])


@pytest.mark.parametrize(
    ("flags", "lacks"), [({"avx2"}, True), ({"avx512f"}, True), ({"avx512_bf16"}, False), ({"amx_bf16"}, False)]
)
def test_bfloat16_needs_its_instructions(monkeypatch, flags, lacks):
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    assert ("no bfloat16 instructions" in (lacks_precision("bfloat16", torch.device("cpu")) or "")) == lacks


def test_int8_needs_a_cpu():
    assert "device is cuda" in (lacks_precision("int8", torch.device("cuda")) or "")
    assert lacks_precision("int8", torch.device("cpu")) is None


def test_versions_are_of_the_imported_packages():
    assert describe_machine(torch.device("cpu"))["versions"]["torch"] == torch.__version__
