# SPDX-License-Identifier: Apache-2.0
"""An option given twice is an error, whatever the command."""

import argparse
from collections.abc import Iterator

import pytest

from tests.test_readme import REPOSITORY
from vanilla_transformer.cli import _parser, main
from vanilla_transformer.console.arguments import ArgumentParser

MAY_BE_REPEATED = {("evaluate", "--reference"), ("quickstart", "--set")}


def every_option(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple]:
    """(subcommands, parser, option) for every option of every subcommand, but --help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from every_option(subparser, (*before, name))
        elif action.option_strings and not isinstance(action, argparse._HelpAction):
            yield before, parser, action


OPTIONS = list(every_option(_parser()))


VALUES = {"--with": "marian"}  # of options that "1" is no value of


def arguments_for(option: argparse.Action) -> list[str]:
    if option.nargs == 0:
        return [option.option_strings[-1]]
    name = option.option_strings[-1]
    return [name, str(next(iter(option.choices))) if option.choices else VALUES.get(name, "1")]


def example(names: tuple[str, ...], parser: argparse.ArgumentParser, option: argparse.Action):
    return pytest.param(parser, option, id=" ".join((*names, option.option_strings[-1])))


@pytest.mark.parametrize(
    ("parser", "option"),
    [example(*option) for option in OPTIONS if (option[0][-1], option[2].option_strings[-1]) not in MAY_BE_REPEATED],
)
def test_repeated_option_is_an_error(parser, option, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments_for(option) * 2)
    assert caught.value.code == 2
    assert f"{option.option_strings[-1]}: given twice; give it once" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("parser", "option"),
    [example(*option) for option in OPTIONS if (option[0][-1], option[2].option_strings[-1]) in MAY_BE_REPEATED],
)
def test_appending_options_may_be_repeated(parser, option):
    assert getattr(parser.parse_args(arguments_for(option) * 2), option.dest) == ["1", "1"]


def test_options_of_all_commands_are_found():
    assert {names for names, _, _ in OPTIONS} >= {("translate",), ("evaluate",), ("plot", "attention"), ("average",)}


def test_abbreviation_counts_as_the_option(capsys):
    parser = ArgumentParser()
    parser.add_argument("--beams")
    with pytest.raises(SystemExit):
        parser.parse_args(["--beams", "1", "--bea=1"])
    assert "argument --beams: given twice" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["a --beams 1 b c", "--beams 1 a b c", "a b c --beams 1", "a b --beams 1 c"])
def test_arguments_of_any_number_stand_on_both_sides_of_options(arguments: str):
    parser = ArgumentParser()
    parser.add_argument("first")
    parser.add_argument("more", nargs="*")
    parser.add_argument("--beams")
    assert vars(parser.parse_args(arguments.split())) == {"first": "a", "more": ["b", "c"], "beams": "1"}


def test_unknown_option_is_no_argument(capsys):
    parser = ArgumentParser()
    parser.add_argument("more", nargs="*")
    with pytest.raises(SystemExit):
        parser.parse_args(["a", "--beans", "b"])
    assert "unrecognized arguments: --beans" in capsys.readouterr().err


def test_parser_can_be_reused():
    parser = ArgumentParser()
    parser.add_argument("--beams")
    assert [parser.parse_args(["--beams", value]).beams for value in "12"] == ["1", "2"]


@pytest.mark.parametrize(
    "command",
    [
        ["train", "configs/small.yaml", "training.seed=1", "training.seed=2"],
        ["finetune", "configs/finetune.yaml", "training.seed=1", "training.seed=2"],
        ["compare", "configs/compare.yaml", "training.seed=1", "training.seed=2"],
        ["compare", "training.seed=1", "training.seed=2"],
        ["quickstart", "--set", "training.seed=1", "--set", "training.seed=1"],
    ],
    ids=" ".join,
)
def test_repeated_override_is_an_error(command, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # the configs are there
    assert main(command) == 1
    assert "training.seed=… is given, too; give each value once\n" in capsys.readouterr().err
