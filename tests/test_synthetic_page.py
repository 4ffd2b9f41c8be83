# SPDX-License-Identifier: Apache-2.0
"""docs/synthetic.md: its commands are commands, of configs that exist, and each finds what the ones before it write."""

import re
import shlex

import pytest

from tests.test_readme import REPOSITORY
from vanilla_transformer.cli import _parser
from vanilla_transformer.console.shipped_configs import find_config
from vanilla_transformer.training.configuration import load_run_config

PAGE = (REPOSITORY / "docs" / "synthetic.md").read_text(encoding="utf-8")
TEXT = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
VARIABLES = dict(re.findall(r'^([A-Z]+)="(.*)"$', TEXT, flags=re.MULTILINE))
LINES = re.sub(r"\$([A-Z]+)", lambda name: VARIABLES[name[1]], TEXT).splitlines()
# Without what is piped into it, and the launcher; lines of other programs are left out.
PARTS = [re.split(r"vanilla-transformer |vanilla_transformer\.cli ", line) for line in LINES]
COMMANDS = [shlex.split(parts[-1].split(" > ")[0]) for parts in PARTS if len(parts) > 1]


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_every_command_is_a_command(words: list[str]):
    arguments = _parser().parse_args(words)
    if arguments.command == "train" and not any("=[{" in override for override in arguments.overrides):
        assert load_run_config(find_config(arguments.config), arguments.overrides)


def test_folders_are_those_of_the_commands_before():
    made = {"runs/multi30k", "runs/multi30k_student"}  # by the configs
    for words in COMMANDS[1:]:  # the first shows the launcher
        arguments = _parser().parse_args(words)
        models = getattr(arguments, "model", None) or []  # `evaluate` and `translate` take several
        models = [models] if isinstance(models, str) else models
        used = [*models, *getattr(arguments, "overrides", [])]
        for folder in re.findall(r"(runs/\w+)/model|path[=:] ?(\w+)/corpus", " ".join(used)):
            assert "".join(folder) in made
        made |= {getattr(arguments, "output", None) or ""} | set(re.findall(r"output_dir=(\S+)", " ".join(used)))
