# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are read as data: nothing in a pickle is executed."""

import argparse
import os
import sys
import types
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch

from vanilla_transformer.importing.checkpoint_file import StandIn, plain, read_checkpoint


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_refused_by_name_and_not_executed(tmp_path, new_format):
    path, made = tmp_path / "x.pt", tmp_path / "made"
    torch.save({"model": {}, "x": Attack(made)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"x\.pt holds an object of (posix|nt)\.mkdir") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not made.exists()


def test_a_foreign_class_is_refused_by_name(tmp_path):
    torch.save({"x": Fraction(1, 2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"holds an object of fractions\.Fraction: making it could run any code"):
        read_checkpoint(tmp_path / "x.pt")


def test_settings_and_statistics_are_read_as_stand_ins(tmp_path):
    content = {
        "args": argparse.Namespace(layers=2, inner=argparse.Namespace(rate=0.1)),
        "best": np.float64(3.5),
        "array": np.arange(3),
        "counts": defaultdict(int, a=1),
        "weight": torch.arange(4.0),
    }
    torch.save(content, tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt")
    assert isinstance(read["args"], StandIn)
    assert plain(read["args"]) == {"layers": 2, "inner": {"rate": 0.1}}
    assert read["counts"] == {"a": 1}
    assert torch.equal(read["weight"], content["weight"])


def test_omegaconf_is_read_without_omegaconf(tmp_path, monkeypatch):
    """Its containers keep nodes in `_content`, its nodes their value in `_val`."""

    def kind(module: str, name: str) -> type:
        made = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: made}))
        return made

    node, container = kind("omegaconf.nodes", "AnyNode"), kind("omegaconf.dictconfig", "DictConfig")
    value, settings = node(), container()
    value.__dict__["_val"] = 512
    settings.__dict__["_content"] = {"encoder_embed_dim": value}
    torch.save({"cfg": settings}, tmp_path / "x.pt")
    monkeypatch.undo()
    assert plain(read_checkpoint(tmp_path / "x.pt")["cfg"]) == {"encoder_embed_dim": 512}


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_what_is_no_checkpoint_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is (no checkpoint|damaged)") as error:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_checkpoint_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*x\.pt does not exist"):
        read_checkpoint(tmp_path / "x.pt")
