# SPDX-License-Identifier: Apache-2.0
"""Faults of what is stored: files damaged or changed, no room, no permission."""

import ctypes
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.system.process_faults import unless
from tests.system.trial_runs import Chain, NotRun, TrialRun, Trials
from vanilla_transformer.training.manifest import find_damage

DAMAGED = ("model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json", "manifest.json")
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000  # of unshare(2); os.unshare is there from Python 3.12 on


def damage(chain: Chain) -> None:
    """A file of the newest checkpoint is cut or one of its bits turned, and the run goes on from the one before."""
    if not _kill_with_checkpoints(chain, 2):
        return
    pick = chain.trials.random
    name, is_cut = pick.choice(DAMAGED), pick.random() < 0.5
    _spoil(chain.run, chain.run.checkpoints()[-1] / name, is_cut, pick)
    chain.suffered(f"{name} {'cut' if is_cut else 'with a bit turned'}")


def damage_tokenizer(chain: Chain) -> None:
    """The run's own, which lies beside the checkpoints."""
    if not _kill_with_checkpoints(chain, 1):
        return
    pick = chain.trials.random
    _spoil(chain.run, chain.run.output_dir / "tokenizer" / "tokenizer.json", pick.random() < 0.5, pick)
    chain.suffered("the run's tokenizer cut, or with a bit turned")


def damage_the_newer(chain: Chain) -> None:
    """Where only two checkpoints are kept: the last good one stays, whenever the next start is killed."""
    if not _kill_with_checkpoints(chain, 2):
        return
    run, pick = chain.run, chain.trials.random
    _spoil(run, run.checkpoints()[-1] / pick.choice(DAMAGED), pick.random() < 0.5, pick)
    good = run.newest()
    attempt = chain.start()
    attempt.goes_on_until(lambda: "batches: " in attempt.text())
    is_going = attempt.goes_on_for(chain.trials.moment(0.3))
    if is_going:
        attempt.stop()
        attempt.status()
    whole = [path for path in run.checkpoints() if find_damage(path) is None]
    is_lost = not whole or int(whole[-1].name.removeprefix("update-")) < good
    chain.suffered("the newest of two kept checkpoints damaged", *(["the last good one is gone"] if is_lost else []))
    if not is_going:
        chain.ended(attempt)


def change_data(chain: Chain) -> None:
    """Of the corpus that it trains on, every second time without another date; refused until it is as it was."""
    if not _kill_with_checkpoints(chain, 1):
        return
    run, pick = chain.run, chain.trials.random
    path = run.folder / f"train.{pick.choice(['source', 'target'])}"
    before, dates = path.read_text(encoding="utf-8"), path.stat()
    lines = before.splitlines(keepends=True)
    one, other = pick.sample([i for i in range(len(lines)) if lines[i] != lines[0]], 2)
    if pick.random() < 0.5:
        lines[one], lines[0] = lines[0], lines[one]
    else:
        lines[other] = lines[other].swapcase()
    path.write_text("".join(lines), encoding="utf-8")
    if pick.random() < 0.5:
        os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    newest = run.newest()
    failures = unless(run.start(), 1, f"{path} has changed since {run.output_dir} was trained on it")
    if run.newest() != newest:
        failures.append(f"it went on to update {run.newest()}")
    path.write_text(before, encoding="utf-8")
    chain.suffered("a data file changed since the checkpoint", *failures)


def fill_disk(trials: Trials) -> None:
    """A disk with room for none to all but one of the run's checkpoints; when there is more, the run goes on."""
    run, expected = trials.new_run(), trials.undisturbed()
    checkpoint = sum(path.stat().st_size for path in expected.checkpoints()[-1].rglob("*"))
    size = trials.random.uniform(0.2, 5.9) * checkpoint  # five are kept, beside the one being written
    found = in_own_mounts(_fill_disk_there, run.folder, round(size))
    if not found["failures"]:
        (run.folder / "model").rename(run.output_dir / "model")  # where the small disk was
    trials.book("disk full", *found["failures"], lost=found["lost"], wrong=not run.has_weights_of(expected))


def _fill_disk_there(folder: Path, size: int) -> dict[str, Any]:
    run = TrialRun(folder, processes=multiprocessing.get_context("fork"))
    run.output_dir.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(run.output_dir))
    failures = unless(run.start(), 1, "No space left on device")
    failures += [f"{path.name}: {find_damage(path)}" for path in run.checkpoints() if find_damage(path)]
    if run.is_writing():
        failures.append("what could not be written whole still takes up room")
    before = run.newest()
    _mount("-o", "remount,size=100m", str(run.output_dir))
    again = run.start()
    if again.status() != 0:
        failures.append(f"with more room it ended with {again.status()}: {again.text()[-500:]}")
    else:
        shutil.copytree(run.output_dir / "model", folder / "model")
    return {"failures": failures, "lost": max(0, before - again.resumed_from())}


def forbid_writing(chain: Chain) -> None:
    """The run's folder, with checkpoints in it or without, on a disk that is mounted for reading only."""
    if chain.trials.random.random() < 0.8 and not _kill_with_checkpoints(chain, 1):
        return
    chain.run.output_dir.mkdir(exist_ok=True)
    found = in_own_mounts(_forbid_writing_there, chain.run.folder)
    chain.suffered("read-only folder", *found["failures"])


def _forbid_writing_there(folder: Path) -> dict[str, Any]:
    run = TrialRun(folder, processes=multiprocessing.get_context("fork"))
    _mount("--bind", str(run.output_dir), str(run.output_dir))
    _mount("-o", "remount,bind,ro", str(run.output_dir))
    attempt = run.start()
    failures = unless(attempt, 1, f"training.output_dir={run.output_dir} cannot be written (Read-only file system)")
    if "model: " in attempt.text():
        failures.append("it was noticed only when all was prepared")
    return {"failures": failures}


def in_own_mounts(function: Callable[..., dict[str, Any]], folder: Path, *arguments: object) -> dict[str, Any]:
    """`function(folder, *arguments)` in a process whose mounts nobody else sees, and which end with it.

    Raises:
        NotRun: this machine or user cannot have such.
    """
    answer = folder / "answer.json"
    process = multiprocessing.get_context("forkserver").Process(
        target=_call_in_own_mounts, args=(answer, function, (folder, *arguments))
    )
    process.start()
    process.join()
    if not answer.exists():
        raise RuntimeError(f"the process with its own mounts ended with status {process.exitcode}")
    found = json.loads(answer.read_text(encoding="utf-8"))
    if "missing" in found:
        raise NotRun(found["missing"])
    return found


def _call_in_own_mounts(answer: Path, function: Callable, arguments: tuple) -> None:
    user, group = os.getuid(), os.getgid()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(NEW_USER | NEW_MOUNTS) != 0:
            raise NotRun(f"no mounts of one's own: {os.strerror(ctypes.get_errno())}")
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text, encoding="utf-8")
        found = function(*arguments)
    except NotRun as reason:
        found = {"missing": str(reason)}
    except Exception:
        found = {"failures": [traceback.format_exc()], "lost": 0}
    answer.write_text(json.dumps(found), encoding="utf-8")


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise NotRun(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def _kill_with_checkpoints(chain: Chain, count: int) -> bool:
    """Start the command, and kill it when there are at least so many checkpoints; whether it was still going."""
    attempt = chain.start()
    is_going = attempt.goes_on_until(lambda: len(chain.run.checkpoints()) >= count)
    if is_going and attempt.goes_on_for(chain.trials.moment(0.5)):
        attempt.stop()
        attempt.status()
        return True
    chain.ended(attempt)
    return False


def _spoil(run: TrialRun, path: Path, is_cut: bool, pick: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if is_cut:
        del content[pick.randrange(len(content)) :]
    else:
        content[pick.randrange(len(content))] ^= 1 << pick.randrange(8)
    path.write_bytes(content)
    run.spoilt[path] = bytes(content)
