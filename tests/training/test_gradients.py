# SPDX-License-Identifier: Apache-2.0
"""Updates that cannot be made as they come: numbers that are not finite, batches that do not fit in memory."""

import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.distributed.launching import FSDP2, start_together, train_here
from vanilla_transformer.training import gradients as gradients_module
from vanilla_transformer.training import loop
from vanilla_transformer.training.checkpoint import Checkpoints, list_checkpoints
from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.training.gradients import backward
from vanilla_transformer.training.setup import set_up

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _little_to_collect() -> Iterator[None]:
    """A batch that is halved collects garbage, and would look through all that was imported each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def state_of(run) -> dict[str, torch.Tensor]:
    """Weights, Adam's moments and step counts, and the rate of the next update."""
    state = {name: weight.clone() for name, weight in run.state.bare_model().state_dict().items()}
    for index, values in run.state.optimizer.state_dict()["state"].items():
        state |= {f"{index}.{name}": value for name, value in values.items()}
    return state | {"rate": torch.tensor(run.state.schedule.get_last_lr())}


def without(positions: set[int]):
    """The loop's updates, but those at `positions` are never seen by it."""
    every = loop.updates

    def updates(run):
        for position, micro_batches in enumerate(every(run)):
            if position not in positions:
                yield micro_batches

    return updates


def after_backward(monkeypatch, change) -> None:
    """`change(state, position, losses)` returns what the loop sees of the backward pass of each update."""
    step, position = loop.backward, iter(range(1_000_000))
    monkeypatch.setattr(loop, "backward", lambda state, *rest: change(state, next(position), step(state, *rest)))


def nan_loss(positions: set[int]):
    def change(state, position, losses):
        return losses._replace(loss=losses.loss * NAN) if position in positions else losses

    return change


def infinite_gradient(positions: set[int]):
    def change(state, position, losses):
        if position in positions:
            state.model.get_input_embeddings().weight.grad[0, 0] = INFINITE
        return losses

    return change


@pytest.mark.parametrize("bad", [{2, 5}, {0, 3, 4}, {7, 8}], ids=str)
def test_rates_after_skipped_updates_are_those_without_them(tiny_run, monkeypatch, bad):
    """The device chooses the rate of an update before the host knows whether the one before was skipped."""
    options = ["model.dropout=0.0", "training.max_updates=8", "training.checkpoint_every=1000", "training.log_every=50"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "updates", without(bad))
        expected = tiny_run.train(*options, f"training.output_dir={tiny_run.folder / 'without'}")
    after_backward(monkeypatch, nan_loss(bad))
    run = tiny_run.train(*options)
    torch.testing.assert_close(state_of(run), state_of(expected), rtol=0, atol=0)
    assert run.state.progress.skipped_updates == len(bad)


def test_a_stop_request_beside_a_skipped_update_resumes_to_the_bit(tiny_run, monkeypatch):
    """It comes while the host does not know yet that an update before, or the same one, is skipped."""
    bad = {3, 5, 8}
    with monkeypatch.context() as patch:
        after_backward(patch, nan_loss(bad))
        whole = tiny_run.train("training.max_updates=9", f"training.output_dir={tiny_run.folder / 'whole'}")

    def spoil(state, position, losses):
        if position in (4, 5, 8):
            os.kill(os.getpid(), signal.SIGTERM)
        return nan_loss(bad)(state, position, losses)

    after_backward(monkeypatch, spoil)
    for _ in range(3):
        with pytest.raises(SystemExit):
            tiny_run.train("training.max_updates=9")
    resumed = tiny_run.train("training.max_updates=9")
    assert resumed.state.progress.skipped_updates == whole.state.progress.skipped_updates == 3
    torch.testing.assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)


@pytest.mark.parametrize("clipping", ["null", "0.5"])
@pytest.mark.parametrize("fault", [nan_loss, infinite_gradient])
def test_a_skipped_update_changes_no_state(tiny_run, monkeypatch, fault, clipping):
    options = ["model.dropout=0.0", "training.max_updates=7", f"optimizer.max_grad_norm={clipping}"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "updates", without({2, 5}))
        expected = tiny_run.train(*options, f"training.output_dir={tiny_run.folder / 'without'}")
    after_backward(monkeypatch, fault({2, 5}))
    run = tiny_run.train(*options)
    torch.testing.assert_close(state_of(run), state_of(expected), rtol=0, atol=0)
    assert run.state.progress.skipped_updates == 2
    for name in ("updates", "epoch", "batches", "target_tokens"):
        assert getattr(run.state.progress, name) == getattr(expected.state.progress, name)


def test_a_run_of_skipped_updates_ends_by_its_epochs(tiny_run, monkeypatch):
    after_backward(monkeypatch, nan_loss(set(range(1000))))
    run = tiny_run.train("training.max_updates=null", "training.max_epochs=2", "training.max_skipped_in_a_row=1000")
    assert (run.state.progress.epoch, run.state.progress.updates, run.state.progress.target_tokens) == (2, 0, 0)
    assert run.state.progress.skipped_updates == 2 * len(run.sampler)


def test_too_many_skipped_updates_in_a_row_end_the_run(tiny_run, monkeypatch):
    options = ["model.dropout=0.0", "training.checkpoint_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "updates", without({0, 1}))
        expected = tiny_run.train(*options, "training.max_updates=4", f"training.output_dir={tiny_run.folder / 'four'}")
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self: saved.append(self.state.progress.updates) or save(self))
    bad, seen = nan_loss({0, 1, *range(6, 16)}), []  # two, then four good ones, then ten
    after_backward(monkeypatch, lambda state, position, losses: seen.append(position) or bad(state, position, losses))
    with pytest.raises(ValueError, match="10 updates in a row were skipped after update 4") as caught:
        tiny_run.train(*options, "training.max_updates=50")
    assert (saved, len(seen)) == ([2, 4], 16)
    latest = list_checkpoints(tiny_run.output_dir / "checkpoints")[-1]
    for words in (str(latest), "optimizer.learning_rate_scale", "max_grad_norm", "mixed_precision=no"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    good = load_file(expected.output_dir / "checkpoints" / "update-00000004" / "model.safetensors")
    torch.testing.assert_close(load_file(latest / "model.safetensors"), good, rtol=0, atol=0)


def test_a_resumed_run_with_skipped_updates_equals_an_uninterrupted_one(tiny_run, monkeypatch):
    with monkeypatch.context() as patch:
        after_backward(patch, nan_loss({1, 5, 9}))
        whole = tiny_run.train("training.max_updates=9", f"training.output_dir={tiny_run.folder / 'whole'}")
    after_backward(monkeypatch, nan_loss({1, 5, 9}))  # which counts on from one part to the next
    for updates in (3, 8, 9):
        resumed = tiny_run.train(f"training.max_updates={updates}")
    assert resumed.state.progress.skipped_updates == whole.state.progress.skipped_updates == 3
    torch.testing.assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)


def test_a_run_that_never_made_an_update_has_no_checkpoint_to_name(tiny_run, monkeypatch):
    after_backward(monkeypatch, nan_loss(set(range(1000))))
    with pytest.raises(ValueError, match="3 updates in a row .* there is no checkpoint yet"):
        tiny_run.train("training.max_skipped_in_a_row=3")
    assert not list_checkpoints(tiny_run.output_dir / "checkpoints")


def test_a_skipped_update_is_reported_once_and_counted(tiny_run, monkeypatch):
    said, figures = [], []
    monkeypatch.setattr(loop.ProgressReport, "write", lambda self, text: said.append(text))
    after_backward(monkeypatch, nan_loss({2}))

    class Report(loop.ProgressReport):
        def __exit__(self, *error):
            figures.append(self.bar.postfix)
            super().__exit__(*error)

    monkeypatch.setattr(loop, "ProgressReport", Report)
    tiny_run.train()
    assert len(said) == 1
    assert said[0].startswith("after update 2: an update is skipped")
    assert figures[0].endswith("1 updates skipped")


def prepared(tiny_run, *options: str):
    AcceleratorState._reset_state(reset_partial_state=True)
    run = set_up(tiny_run.load("model.dropout=0.0", *options))
    run.state.model.double().train()
    return run


def gradients(run) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in run.state.bare_model().named_parameters()}


def no_memory(*_):
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8 bytes. Error code 12 (Cannot allocate memory)"
    )


def limit_pairs(run, most: int, where: str) -> None:
    """Make batches of more than `most` pairs fail, in the forward pass or in the middle of the backward pass."""

    def limit(module, arguments, output):
        if len(output) <= most:
            return
        if where == "forward":
            no_memory()
        output.register_hook(no_memory)  # the decoder's gradients are there by then, the encoder's are not

    run.state.bare_model().get_input_embeddings().register_forward_hook(limit)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_gradients_of_a_halved_batch_equal_those_of_the_whole(tiny_run, where):
    run = prepared(tiny_run, "model.tie_word_embeddings=false")
    micro_batches = list(run.batches)[:3]
    micro_batches[0] = micro_batches[0].split(4)[0]
    micro_batches[2] = micro_batches[2].split(7)[0]
    assert len(micro_batches[1]["labels"]) > 4
    whole = backward(run.state, micro_batches, run.config.training)
    expected = gradients(run)
    run.state.optimizer.zero_grad()
    limit_pairs(run, 4, where)
    parts = backward(run.state, micro_batches, run.config.training)
    torch.testing.assert_close(gradients(run), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert run.state.progress.halved_batches >= 2


def test_a_batch_of_seven_is_halved_down_to_single_pairs(tiny_run):
    """7 = 3 + 4 = (1 + 2) + (2 + 2), and three twos: six cuts make seven single pairs."""
    run = prepared(tiny_run)
    batch = next(iter(run.batches))
    limit_pairs(run, 1, "forward")
    backward(run.state, [batch.split(7)[0]], run.config.training)
    assert run.state.progress.halved_batches == 6


def test_out_of_memory_batches_train_to_the_same_weights(tiny_run, monkeypatch):
    options = ["model.dropout=0.0", "training.max_updates=6", "training.gradient_accumulation_steps=2"]
    expected = tiny_run.train(*options, f"training.output_dir={tiny_run.folder / 'enough'}")
    prepare = loop.set_up

    def short_of_memory(config):
        run = prepare(config)
        limit_pairs(run, 15, "backward")
        return run

    monkeypatch.setattr(loop, "set_up", short_of_memory)
    run = tiny_run.train(*options)
    assert run.state.progress.halved_batches > 0
    assert run.state.progress.target_tokens == expected.state.progress.target_tokens
    # Adam's eps is 1e-9: it magnifies rounding
    torch.testing.assert_close(state_of(run), state_of(expected), rtol=1e-3, atol=1e-5)


def test_the_size_that_fits_is_kept_said_once_and_resumed(tiny_run, monkeypatch):
    said, failures, prepare = [], [], loop.set_up
    monkeypatch.setattr(loop.ProgressReport, "write", lambda self, text: said.append(text))

    def short_of_memory(config):
        run = prepare(config)
        limit_pairs(run, 15, "forward")
        return run

    monkeypatch.setattr(loop, "set_up", short_of_memory)
    halve = gradients_module._halves
    monkeypatch.setattr(gradients_module, "_halves", lambda *a, **b: failures.append(0) or halve(*a, **b))
    run = tiny_run.train("training.max_updates=4")
    assert failures
    kept = run.state.progress.max_positions
    [line] = [text for text in said if "did not fit in memory" in text][-1:]
    assert f"more than {kept:,} source and target positions" in line
    failed = len(failures)
    resumed = tiny_run.train("training.max_updates=8")
    assert resumed.state.progress.max_positions <= kept
    # Sizes are in positions, and this memory in pairs: some batch of short pairs may still fail, but not each of them.
    assert len(failures) - failed < 4


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 8 GB)",
        "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8",
        "std::bad_alloc",
    ],
)
def test_messages_of_a_full_memory_are_recognised(tiny_run, words):
    run, calls = prepared(tiny_run), []

    def fail_once(*_):
        calls.append(0)
        if len(calls) == 1:
            raise RuntimeError(words)

    run.state.bare_model().get_input_embeddings().register_forward_hook(fail_once)
    backward(run.state, [next(iter(run.batches))], run.config.training)
    assert run.state.progress.halved_batches == 1


def test_out_of_memory_for_a_single_pair_names_its_lengths(tiny_run):
    run = prepared(tiny_run)
    batch = next(iter(run.batches))
    first = [tensor[0].tolist() for tensor in (batch["input_ids"], batch["labels"])]
    source, target = sum(i != run.tokenizer.pad_token_id for i in first[0]), sum(i != -100 for i in first[1])
    limit_pairs(run, 0, "forward")
    with pytest.raises(ValueError, match=f"single pair of {source} source and {target} target tokens") as caught:
        backward(run.state, [batch], run.config.training)
    assert "training.max_source_tokens=100 and training.max_target_tokens=100" in str(caught.value)


def test_errors_other_than_out_of_memory_are_raised(tiny_run):
    run = prepared(tiny_run)

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    run.state.bare_model().get_input_embeddings().register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        backward(run.state, [next(iter(run.batches))], run.config.training)


def train_with_a_fault(config: Path, overrides: list[str]) -> None:
    """In each of several processes: the third loss of the second of them is not finite, and its loss alone, as
    gradients are one and the same in all processes anyway."""
    step, calls = loop.backward, []

    def faulty(state, *rest):
        losses = step(state, *rest)
        calls.append(0)
        is_faulty = len(calls) == 3 and state.accelerator.process_index == 1
        return losses._replace(loss=losses.loss * NAN) if is_faulty else losses

    loop.backward = faulty
    run = loop.train(load_run_config(config, overrides))
    found = {"skipped": run.state.progress.skipped_updates, "updates": run.state.progress.updates, "seen": len(calls)}
    path = config.parent / f"{run.state.accelerator.process_index}.json"
    path.write_text(json.dumps(found | {"rate": run.state.schedule.get_last_lr()}), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_all_processes_skip_an_update_that_is_not_finite_in_one(tiny_run, environment):
    start_together(train_with_a_fault, 2, tiny_run.config, ["training.max_updates=5"], **environment)
    first, second = (json.loads((tiny_run.folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first == second
    assert (first["skipped"], first["updates"], first["seen"]) == (1, 5, 6)


def train_short_of_memory(config: Path, overrides: list[str]) -> None:
    """In each of several processes: the second has memory for 15 pairs."""
    prepare = loop.set_up

    def short_of_memory(config):
        run = prepare(config)
        if run.state.accelerator.process_index == 1:
            limit_pairs(run, 15, "backward")
        return run

    loop.set_up = short_of_memory
    run = loop.train(load_run_config(config, overrides))
    progress = run.state.progress
    path = config.parent / f"{run.state.accelerator.process_index}.json"
    path.write_text(json.dumps([progress.max_positions, progress.halved_batches > 0]), encoding="utf-8")


@pytest.mark.slow
def test_processes_agree_on_the_size_that_fits_in_all(tiny_run):
    options = ["model.dropout=0.0", "training.max_updates=6"]
    start_together(train_short_of_memory, 2, tiny_run.config, options)
    first, second = (json.loads((tiny_run.folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first[0] == second[0] is not None
    assert (first[1], second[1]) == (False, True)
    short = load_file(tiny_run.output_dir / "model" / "model.safetensors")
    whole = f"training.output_dir={tiny_run.folder / 'whole'}"
    start_together(train_here, 2, tiny_run.config, [*options, whole])
    expected = load_file(tiny_run.folder / "whole" / "model" / "model.safetensors")
    # Adam's eps is 1e-9: it magnifies rounding
    torch.testing.assert_close(short, expected, rtol=1e-3, atol=1e-5)
