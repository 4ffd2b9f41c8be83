# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same seeds, without the network and without anything the user has cached."""

import gc
import ipaddress
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml
from safetensors.torch import load_file, save_file

# Hugging Face libraries read their variables when they are imported, so this comes before any such import.
for name in [name for name in os.environ if name.startswith("HF_")]:
    del os.environ[name]  # a token or an endpoint of the user's
_home = tempfile.TemporaryDirectory(prefix="vanilla-transformer-tests-")  # removed when the process ends
os.environ["HF_HOME"] = _home.name
os.environ["HF_DATASETS_CACHE"] = os.path.join(_home.name, "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(_home.name, "inductor")  # what it finds there, it does not compile

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a worker for each core

import numpy as np  # noqa: E402 -- after the environment, which torch reads, like the processes that tests start
import torch  # noqa: E402

PATIENCE = 300  # seconds with a browser, for machines that do much else


def _refuse_other_machines(event: str, arguments: tuple) -> None:
    """An audit hook; RuntimeError, because clients of the network retry or swallow every OSError."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and not _is_loopback(address[0]):  # other addresses are paths of local sockets
        raise RuntimeError(f"a test tried to connect to {address}: tests are offline")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


sys.addaudithook(_refuse_other_machines)


def seed_all() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef):
    """A shared fixture is the same, whichever test asks for it first."""
    if fixturedef.scope != "function":
        seed_all()
    return (yield)


def settings_of_the_process() -> dict[str, object]:
    """Process-wide settings that the package's code must leave as they are."""
    return {
        "working directory": os.getcwd(),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def as_in_a_new_process() -> None:
    """Undo what commands, runs and compilers leave in a process; outside the tests each has its own."""
    seed_all()
    gc.unfreeze()  # `translate` freezes what it imports
    logging.getLogger("vanilla_transformer").setLevel(logging.NOTSET)  # `train` sets its level
    if "transformers" in sys.modules:
        from transformers.utils.logging import enable_progress_bar

        enable_progress_bar()  # our commands have bars of their own
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    if "torch._dynamo" in sys.modules:
        from torch._dynamo.utils import counters

        if counters:
            torch._dynamo.reset()
            counters.clear()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test changes the process for the tests after it."""
    as_in_a_new_process()
    before = settings_of_the_process()
    with mock.patch.dict(os.environ):  # Accelerate writes into it
        yield
    assert settings_of_the_process() == before


@pytest.fixture
def browser():
    """Chromium; its log `performance` has every request."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.fail("this test drives Chromium; on Debian: apt-get install chromium chromium-driver", pytrace=False)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, Service(programs[1]))
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


def write_reversals(folder: Path, name: str, pairs: int, seed: int = 0) -> dict[str, str]:
    """Write a corpus that is learnt in seconds, letters and the same letters in reverse; returns its two files."""
    letters = random.Random(f"{name} {seed}")
    lines = [[letters.choice("abcdefgh") for _ in range(letters.randint(1, 6))] for _ in range(pairs)]
    sides = {"source": lines, "target": [line[::-1] for line in lines]}
    files = {side: folder / f"{name}.{side}" for side in sides}
    for side, texts in sides.items():
        files[side].write_text("".join(f"{' '.join(text)}\n" for text in texts), encoding="utf-8")
    return {side: str(path) for side, path in files.items()}


class TinyRun:
    """The configuration file of a run of a second, and runs from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.output_dir = folder / "run"
        self.config = folder / "tiny.yaml"
        values = {
            "data": {"train": write_reversals(folder, "train", 120), "name": "reversals"},
            "tokenizer": {"kind": "symbols"},
            "model": {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.1},
            "training": {
                "output_dir": str(self.output_dir),
                "max_updates": 8,
                "max_source_tokens": 100,
                "max_target_tokens": 100,
                "checkpoint_every": 4,
                "log_every": 2,
                "trackers": [],
            },
            "optimizer": {"warmup_steps": 20},
            "generation": {"max_tokens_beyond_source": 3},
        }
        self.config.write_text(yaml.safe_dump(values), encoding="utf-8")

    def validation(self) -> list[str]:
        """Overrides that add a validation corpus."""
        files = write_reversals(self.folder, "validation", 12)
        return [f"data.validation.{side}={path}" for side, path in files.items()]

    def corpora(self, kind: str, *corpora: tuple[int, dict]) -> str:
        """An override that gives a list: corpora of so many pairs, each with these fields."""
        listed = [write_reversals(self.folder, f"{kind}-{own['name']}", pairs) | own for pairs, own in corpora]
        return f"data.{kind}={json.dumps(listed)}"

    def load(self, *overrides: str):
        from vanilla_transformer.training.configuration import load_run_config

        return load_run_config(self.config, list(overrides))

    def train(self, *overrides: str):
        """One run, as if in a process of its own."""
        from accelerate.state import AcceleratorState

        from vanilla_transformer.training.loop import train

        AcceleratorState._reset_state(reset_partial_state=True)
        return train(self.load(*overrides))


@pytest.fixture
def tiny_run(tmp_path: Path) -> TinyRun:
    return TinyRun(tmp_path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with weights drawn from a seed, for a corpus of letters in reverse; tests only read it.

    The result of a training of seconds would depend on rounding, and so on threads and the CPU. With these weights
    every machine computes the same, except for the rounding of one pass.
    """
    run = TinyRun(tmp_path_factory.mktemp("model"))
    run.train("training.max_updates=2", "training.checkpoint_every=1", "optimizer.learning_rate_scale=1e-9")
    file = run.output_dir / "model" / "model.safetensors"
    draws = torch.Generator().manual_seed(3)  # the seed of several with the most different translations
    before = sorted(load_file(file).items())
    weights = {name: tensor + 0.5 * torch.randn(tensor.shape, generator=draws) for name, tensor in before}
    # Padding, start and unknown word are never generated: their logit is the negative sum of states whose mean is 1.
    weights["model.decoder.layers.0.feed_forward_norm.bias"].fill_(1.0)
    weights["model.encoder.embed_tokens.weight"][[0, 1, 3]] = -1.0
    save_file(weights, file, {"format": "pt"})
    return file.parent
