# SPDX-License-Identifier: Apache-2.0
"""Commands whose standard streams a shell has closed."""

import subprocess
import sys

import pytest

from vanilla_transformer import Translator

CLI = f"{sys.executable} -W ignore -m vanilla_transformer.cli"


def in_a_shell(command: str, data: bytes = b"a b\n") -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", command], input=data, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("closed", "said"), [("<&-", b"standard input is closed"), (">&-", b"standard output is closed")]
)
def test_translating_from_or_to_nowhere_is_one_line(model_folder, closed: str, said: bytes):
    done = in_a_shell(f"{CLI} translate {model_folder} --quiet {closed}")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"vanilla-transformer translate: error: " + said)
    assert done.stderr.count(b"\n") == 1


def test_without_an_error_stream_a_command_works_quietly(model_folder):
    (expected,) = Translator.from_pretrained(model_folder).translate(["a b"])
    done = in_a_shell(f"{CLI} translate {model_folder} 2>&-")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{expected}\n", b"")


@pytest.mark.parametrize("closed", ["2>&-", "2< /dev/null"], ids=["closed", "open for reading alone"])
def test_an_error_without_an_error_stream_stays_off_the_output(closed: str):
    done = in_a_shell(f"{CLI} evaluate --reference text {closed}")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("command", ["--help", "translate --help"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_help_works_with_any_of_them_closed(command: str, closed: str):
    assert in_a_shell(f"{CLI} {command} {closed}").returncode == 0


@pytest.mark.parametrize("command", ["train nowhere.yaml", "plot positions", "evaluate --hypothesis a --reference a"])
def test_every_command_refuses_a_closed_output_before_its_work(command: str):
    done = in_a_shell(f"{CLI} {command} >&-")
    assert done.returncode == 1
    assert b"standard output is closed: send it to a file, or to /dev/null" in done.stderr


def test_files_do_not_get_the_numbers_of_closed_streams():
    code = (
        "from vanilla_transformer.console.streams import prepare_streams; prepare_streams()\n"
        "import os; number = os.open(os.devnull, os.O_RDONLY)\n"
        "print(number, file=open('/dev/fd/9', 'w'))"
    )
    done = in_a_shell(f'{sys.executable} -c "{code}" 9>&1 <&- >&- 2>&-')
    assert int(done.stdout) > 2
