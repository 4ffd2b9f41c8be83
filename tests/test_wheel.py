# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist: what is in them, and that the package works where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tests.conftest import write_reversals
from vanilla_transformer import __version__
from vanilla_transformer.console.shipped_configs import config_names

REPOSITORY = Path(__file__).parents[1]
SHIPPED_SUFFIXES = {".py", ".h", ".cpp", ".html", ".js"}
TINY_MODEL = ("model.d_model=16", "model.d_ff=32", "model.num_layers=1", "model.num_heads=2")
TINY_RUN = (*TINY_MODEL, "tokenizer={kind: symbols}", "training.max_updates=2", "training.trackers=[]")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without the checkout on its path, and return its standard output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return done.stdout


def files_of_the_checkout() -> set[str]:
    """The files that a wheel must have, by their names in it."""
    package = REPOSITORY / "vanilla_transformer"
    sources = {path for path in package.rglob("*") if path.suffix in SHIPPED_SUFFIXES}
    configs = {
        f"vanilla_transformer/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "configs").rglob("*.yaml")
    }
    names = ("hub/model_card.md", "hub/LICENSE", "comparison/report_template.md", "exporting/exported_card.md")
    texts = {f"vanilla_transformer/{name}" for name in names}
    return {str(path.relative_to(REPOSITORY)) for path in sources} | configs | texts


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel alone; the other libraries are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    run(*command, cwd=folder)
    return folder


def test_the_wheel_has_the_package_its_configs_and_nothing_else(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_of_the_checkout()


def test_the_metadata_names_the_command_the_license_and_the_extras(installed: Path):
    metadata = PathDistribution(next(installed.glob("*.dist-info")))
    (script,) = metadata.entry_points
    assert (script.name, script.value) == ("vanilla-transformer", "vanilla_transformer.cli:main")
    assert metadata.version == __version__
    assert metadata.metadata["License-Expression"] == "Apache-2.0"
    assert "quickstart" in metadata.metadata.get_all("Provides-Extra", [])


def test_the_sdist_has_what_the_tests_need(distributions: Path):
    with tarfile.open(next(distributions.glob("*.tar.gz")), encoding="utf-8") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"configs/paper/base.yaml", "tests/conftest.py", "Makefile", "constraints.txt", "README.md"}


def test_the_package_index_would_accept_and_render_both(distributions: Path):
    """`--strict`: a README that does not render is an error."""
    printed = run(sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir(), cwd=distributions)
    assert printed.count("PASSED") == 2


def test_the_command_answers_away_from_a_checkout(installed: Path, tmp_path: Path):
    command = (sys.executable, installed / "bin" / "vanilla-transformer", "--help")
    assert run(*command, cwd=tmp_path, PYTHONPATH=str(installed)).startswith("usage: vanilla-transformer")


def test_shipped_configs_are_found_by_name_away_from_a_checkout(installed: Path, tmp_path: Path):
    code = """
import json
from vanilla_transformer.console.shipped_configs import CONFIGS, config_names, find_config
from vanilla_transformer.training.yaml_sections import read_yaml
print(json.dumps([str(CONFIGS), config_names(), read_yaml(find_config("paper/big"))]))
"""
    folder, names, big = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert folder == str(installed / "vanilla_transformer" / "configs")
    assert names == config_names()
    assert (big["model"]["num_layers"], big["model"]["d_model"]) == ("6", "1024")  # paper/base's word, and its own


def test_training_by_a_configs_name_away_from_a_checkout(installed: Path, tmp_path: Path):
    data = write_reversals(tmp_path, "train", 20)
    command = (sys.executable, "-m", "vanilla_transformer.cli", "train", "small", *TINY_RUN)
    run(
        *command, *(f"data.train.{side}={file}" for side, file in data.items()), cwd=tmp_path, PYTHONPATH=str(installed)
    )
    model = tmp_path / "runs" / "small" / "model"
    assert {"model.safetensors", "README.md", "LICENSE", "modeling_vanilla_transformer.py"} <= set(os.listdir(model))


def interpreter(version: str) -> Path:
    """Python of a version from the PATH, or this one; the test is skipped where there is none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no python{version} on the PATH")
    return Path(found)


@pytest.fixture(params=["3.11", "3.12", "3.13"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A new virtual environment, removed afterwards: torch takes gigabytes."""
    folder = tmp_path / "environment"
    run(interpreter(request.param), "-m", "venv", folder, cwd=tmp_path)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_installing_from_the_package_index(environment: Path, wheel: Path, tmp_path: Path):
    """Needs a network; downloads what `pip install vanilla-transformer` would, then what its extras bring."""

    def install(extra: str = "") -> None:
        requirement = f"vanilla-transformer{extra} @ {wheel.as_uri()}"
        options = ("--quiet", "--no-compile", "--constraint", REPOSITORY / "constraints.txt")
        run(environment / "bin" / "python", "-m", "pip", "install", *options, requirement, cwd=tmp_path)

    def program(*arguments: str) -> str:
        settings = {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
        return run(environment / "bin" / "vanilla-transformer", *arguments, cwd=tmp_path, **settings)

    install()
    code = "from vanilla_transformer import Translator, VanillaTransformerForConditionalGeneration"
    run(environment / "bin" / "python", "-c", code, cwd=tmp_path)
    assert program("--help").startswith("usage: vanilla-transformer")

    install("[quickstart]")
    printed = program("quickstart", "--set", "training.max_minutes=0.1", "covfefe")
    assert "words never seen in training:" in printed
    data = [f"data.train.{side}={file}" for side, file in write_reversals(tmp_path, "train", 20).items()]
    printed = program("train", "paper/base", *TINY_RUN, *data, "training.output_dir=runs/base")
    assert printed == "finished model: runs/base/model\n"

    install("[comparison]")
    tiny = ("long_range=null", "quality=null", "speed.lengths=[8]", "speed.repeats=1", "speed.batch_tokens=64")
    assert "report: runs/compare/report.md" in program("compare", *tiny)
