# SPDX-License-Identifier: Apache-2.0
"""Two vocabularies in training, and new tokens in fine-tuning, for the Transformer and the RNN."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.conftest import TinyRun, write_reversals
from tests.hub.test_without_the_package import WITHOUT, in_a_fresh_process
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.data.tokenizer_class import target_tokenizer
from vanilla_transformer.evaluation.attention_weights import explain
from vanilla_transformer.exporting.marian import check_marian_supports
from vanilla_transformer.hub.published_folder import check_folder
from vanilla_transformer.hub.run_facts import write_card_of_run
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.configuration import run_config_of
from vanilla_transformer.training.corpora import all_tags
from vanilla_transformer.training.finetuning import load_finetuning_config
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.setup import set_up
from vanilla_transformer.training.vocabulary import extend_vocabulary

RNN = ["model={model_type: rnn_seq2seq, embedding_size: 16, hidden_size: 12}", "training.attention=eager"]
MODELS = {"transformer": [], "rnn": RNN}
TARGETS = {"transformer": "[q_proj]", "rnn": "[k_proj]"}
SOURCE, TARGET, PROJECTION = "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"


@pytest.fixture(scope="module", params=MODELS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def two(kind, tmp_path_factory) -> TinyRun:
    """A finished run with two vocabularies: letters, and the same letters as capitals; not to be written to."""
    run = TinyRun(tmp_path_factory.mktemp("two"))
    target = run.folder / "train.target"
    target.write_text(target.read_text("utf-8").upper() + "X Y\n", encoding="utf-8")
    with (run.folder / "train.source").open("a", encoding="utf-8") as file:
        file.write("a b\n")
    run.train("tokenizer.shared=false", *MODELS[kind], "training.max_updates=3", "training.checkpoint_every=1")
    return run


@pytest.fixture
def folder(two) -> Path:
    return two.output_dir / "model"


def test_source_and_target_have_each_their_own_vocabulary(folder, kind):
    tokenizer, model = load_tokenizer(folder), load_model_folder(folder)
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    assert set(tokenizer.get_vocab()) == {*special, *"abcdefgh"}
    assert set(tokenizer.target_tokenizer.get_vocab()) == {*special, *"ABCDEFGHXY"}
    for side in (tokenizer, tokenizer.target_tokenizer):
        assert {name: side.get_vocab()[name] for name in special} == special
    shapes = {name: len(model.get_submodule(name).weight) for name in (SOURCE, TARGET, PROJECTION)}
    assert shapes == {SOURCE: 12, TARGET: 14, PROJECTION: 14}
    is_tied = model.get_submodule(TARGET).weight is model.get_submodule(PROJECTION).weight
    assert is_tied == (kind == "transformer")  # as with one vocabulary


def test_text_target_is_encoded_and_translations_are_decoded_by_the_targets_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a b"], text_target=["B X"])
    assert batch["labels"][0][:-1] == tokenizer.target_tokenizer.convert_tokens_to_ids(["B", "X"])
    assert batch["input_ids"][0][:-1] == tokenizer.convert_tokens_to_ids(["a", "b"])
    assert tokenizer.decode(batch["labels"][0], skip_special_tokens=True) == "B X"
    plain = AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer")
    assert plain("B X")["input_ids"] == batch["labels"][0]


def test_every_engine_gives_the_same_translations(folder):
    lines = ["a b c", "h g", "d"]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = [tokenizer(line, return_tensors="pt") for line in lines]  # each has its own limit of length
    by_generate = [model.generate(**each, num_beams=1)[0] for each in inputs]
    expected = tokenizer.batch_decode(by_generate, skip_special_tokens=True)
    for engine in ("torch", "auto"):
        assert Translator.from_pretrained(folder, engine=engine).translate(lines, num_beams=1) == expected
    assert any(expected)
    assert all(set(text.split()) <= set("ABCDEFGHXY") | {"<unk>"} for text in expected)


def test_the_code_in_the_folder_translates_without_the_package(folder, tmp_path):
    lines = ["a b c", "h g", "d"]
    code = (
        "import json; from transformers import pipeline; "
        "found = pipeline('translation', sys.argv[1], trust_remote_code=True)(json.loads(sys.argv[2]), num_beams=1); "
        "print(json.dumps([best['translation_text'] for [best] in found]))"
    )
    result = in_a_fresh_process(WITHOUT + code, tmp_path / "process", str(folder), json.dumps(lines))
    assert result.returncode == 0, result.stderr[-3000:]
    expected = Translator.from_pretrained(folder, engine="torch").translate(lines, num_beams=1)
    assert json.loads(result.stdout.splitlines()[-1]) == expected


def test_it_resumes_to_the_bit(two, kind):
    options = ["tokenizer.shared=false", *MODELS[kind], "training.checkpoint_every=1"]
    options.append(f"training.output_dir={two.folder / 'parts'}")
    two.train(*options, "training.max_updates=1")
    two.train(*options, "training.max_updates=3")
    file = "model/model.safetensors"
    assert (two.folder / "parts" / file).read_bytes() == (two.output_dir / file).read_bytes()


def test_labels_of_attention_are_of_each_side(folder, kind):
    text, weights = explain(Translator.from_pretrained(folder), "a b", num_beams=1)
    assert weights.source_tokens == ["a", "b", "</s>"]
    assert set(text.split()) <= set(weights.target_tokens)


def test_the_card_has_both_vocabularies_and_the_folder_can_be_published(two, folder, tmp_path):
    card = write_card_of_run(two.output_dir).read_text("utf-8")
    assert re.search(r"model\.vocab\\?_size \| 12 ", card)
    assert re.search(r"model\.decoder\\?_vocab\\?_size \| 14 ", card)
    assert 'subfolder="target_tokenizer"' in card
    assert "Source and target have a vocabulary each." in card
    assert check_folder(folder) == []
    partial = shutil.copytree(folder, tmp_path / "partial")
    shutil.rmtree(partial / "target_tokenizer")
    missing = [f"target_tokenizer/{name} is missing" for name in ("tokenizer.json", "tokenizer_config.json")]
    assert check_folder(partial) == missing


def test_marian_and_its_kin_are_refused_in_one_line(folder, kind):
    if kind == "transformer":
        with pytest.raises(ValueError, match="decoder_vocab_size=14.*holds one vocabulary"):
            check_marian_supports(load_model_folder(folder).config)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["tokenizer.shared=false", "model.share_encoder_decoder_embeddings=true"],
            "embeddings=true is one matrix for",
        ),
        (["tokenizer.target_path=x"], r"tokenizer\.target_path=x is the target's .*: give tokenizer\.path too, and"),
        (["tokenizer.path=x", "tokenizer.target_path=y"], r"target_path=y .*tokenizer\.shared=false"),
        (["tokenizer.shared=null"], r"tokenizer\.shared=null is as tokenizer\.path has it"),
        (["tokenizer.shared=2"], r"tokenizer\.shared=2: expected bool or null, got int"),
        (["tokenizer.add_tokens=[a b]"], r"tokenizer\.add_tokens=\['a b'\] must be different tokens, without white"),
        (["tokenizer.add_tokens=[a, a]"], r"tokenizer\.add_tokens=\['a', 'a'\] must be different"),
        (["tokenizer.kind=word"], r"tokenizer\.kind='word': expected 'bpe' or 'unigram' or 'char' or 'symbols'"),
    ],
)
def test_a_bad_tokenizer_section_is_refused(tiny_run, overrides, said):
    with pytest.raises(ValueError, match=said) as error:
        tiny_run.load(*overrides)
    assert "\n" not in str(error.value)


def test_two_existing_tokenizers(tiny_run, folder, model_folder):
    shared, pair = str(model_folder), str(folder)
    for options, said in (
        ([f"tokenizer.path={pair}"], "one for each side, or set tokenizer.shared=false"),
        ([f"tokenizer.path={shared}", "tokenizer.shared=false"], "one tokenizer; give tokenizer.target_path, or set"),
        ([f"tokenizer.path={pair}", "tokenizer.shared=false", f"tokenizer.target_path={shared}"], "has a target's"),
        ([f"tokenizer.path={shared}", "tokenizer.add_tokens=[a]"], "the tokenizer has 'a' already; leave it out"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            tiny_run.train(*options)
        assert "\n" not in str(error.value)
    target = folder / "target_tokenizer"
    once = ["training.max_updates=1", "tokenizer.shared=false", f"tokenizer.path={shared}"]
    run = tiny_run.train(*once, f"tokenizer.target_path={target}")
    assert run.state.bare_model().config.decoder_vocab_size == 14
    assert run.tokenizer.target_tokenizer.get_vocab() == load_tokenizer(target).get_vocab()


def test_added_tokens_are_part_of_a_new_vocabulary(tiny_run):
    run = tiny_run.train("tokenizer.add_tokens=[<2de>]", "training.max_updates=1")
    assert run.state.bare_model().config.vocab_size == len(run.tokenizer) == 13
    assert run.tokenizer("<2de> a")["input_ids"][0] == 12


# Fine-tuning with new tokens


@pytest.fixture(scope="module")
def one(kind, tmp_path_factory) -> TinyRun:
    """A finished run with one vocabulary; not to be written to."""
    run = TinyRun(tmp_path_factory.mktemp("one"))
    run.train(*MODELS[kind], "training.max_updates=2", "training.checkpoint_every=1")
    return run


@pytest.fixture(params=["one", "two"])
def base(request, kind) -> TinyRun:
    return request.getfixturevalue(request.param)


def tuning(folder: Path, model: Path, *overrides: str) -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)
    files = write_reversals(folder, "train", 60)
    source = Path(files["source"])
    lines = source.read_text("utf-8").splitlines()
    source.write_text("".join(f"<2fr> {line}\n" for line in lines), encoding="utf-8")
    target = Path(files["target"])
    target.write_text(target.read_text("utf-8").upper() if "two" in str(model) else target.read_text("utf-8"), "utf-8")
    values = {
        "model": str(model),
        "data": {"train": files},
        "tokenizer": {"add_tokens": ["<2fr>", "<bt>"]},
        "training": {"output_dir": str(folder / "tuned"), "max_updates": 2, "max_source_tokens": 100},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
    }
    (folder / "tune.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_finetuning_config(folder / "tune.yaml", list(overrides))


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in (SOURCE, TARGET, PROJECTION)}


def test_new_tokens_get_rows_and_all_old_weights_stay_as_they_are(base, tmp_path):
    run = set_up(tuning(tmp_path, base.output_dir / "model"))
    before, after = load_model_folder(base.output_dir / "model"), run.state.bare_model()
    old = dict(before.named_parameters())
    for name, weight in after.named_parameters():
        rows = len(old[name])
        assert torch.equal(weight[:rows], old[name]), name
        assert len(weight) == rows + 2 * (name.removesuffix(".weight") in (SOURCE, TARGET, PROJECTION)), name
    ids = run.tokenizer("<2fr> a", text_target="<bt>")
    size, target_size = len(old[f"{SOURCE}.weight"]), len(before.get_submodule(TARGET).weight)
    assert ids["input_ids"][0] == size
    assert ids["labels"] == [target_size + 1, 2]


def test_new_rows_lie_at_the_mean_of_the_old_ones(one, tmp_path):
    model = set_up(tuning(tmp_path, one.output_dir / "model")).state.bare_model()
    rows = matrices(model)[SOURCE]
    torch.testing.assert_close(rows[-2:], rows[:-2].mean(dim=0).expand(2, -1), rtol=0, atol=1e-3)


def test_a_model_with_new_tokens_is_tuned_saved_and_resumed(base, tmp_path):
    train(tuning(tmp_path, base.output_dir / "model", "training.checkpoint_every=1"))
    whole = load_file(tmp_path / "tuned" / "model" / "model.safetensors")
    for path in list_checkpoints(tmp_path / "tuned" / "checkpoints")[1:]:
        for file in path.iterdir():
            file.unlink() if file.is_file() else None
    train(tuning(tmp_path, base.output_dir / "model", "training.checkpoint_every=1"))
    resumed = load_file(tmp_path / "tuned" / "model" / "model.safetensors")
    assert all(torch.equal(weight, whole[name]) for name, weight in resumed.items())
    tuned = Translator.from_pretrained(tmp_path / "tuned" / "model")
    assert "<2fr>" in tuned.tokenizer.get_vocab()
    tuned.translate(["<2fr> a b"])


def test_beside_an_adapter_the_new_rows_alone_are_trained(base, kind, tmp_path):
    config = tuning(tmp_path, base.output_dir / "model", f"lora={{target_modules: {TARGETS[kind]}}}")
    run = set_up(config)
    start = matrices(run.state.bare_model())
    old: Any = load_model_folder(base.output_dir / "model")
    sizes = {name: len(old.get_submodule(name).weight) for name in start}
    train(config)
    tuned = load_model_folder(tmp_path / "tuned" / "model")
    for name, weight in matrices(tuned).items():
        assert torch.equal(weight[: sizes[name]], start[name][: sizes[name]]), name
    new = matrices(tuned)[SOURCE][sizes[SOURCE] :]
    assert not torch.equal(new[0], start[SOURCE][sizes[SOURCE]])  # <2fr>, which is in every source
    # PEFT opens the adapter on the base with as many rows.
    extend_vocabulary(old, load_tokenizer(tmp_path / "tuned" / "model"))
    adapted: Any = PeftModel.from_pretrained(old, str(tmp_path / "tuned" / "adapter"))
    merged = adapted.merge_and_unload()
    for name, weight in merged.state_dict().items():
        assert torch.equal(weight, tuned.state_dict()[name]), name


def check_moments(checkpoint: Path, folder: Path, optimizer: str) -> None:
    config = tuning(folder, checkpoint, "optimizer.keep_state=true", f"optimizer.name={optimizer}")
    run = set_up(config)
    saved, names = load_file(checkpoint / "optimizer.safetensors"), run.state._names()
    states = run.state._bare_optimizer().state
    found = {f"{names[weight]}.{key}": tensor for weight, state in states.items() for key, tensor in state.items()}
    assert found.keys() == saved.keys()
    for name, tensor in found.items():
        if name.endswith(".step"):
            assert tensor == saved[name] > 0
        else:
            assert torch.equal(tensor[: len(saved[name])], saved[name]), name
            assert not tensor[len(saved[name]) :].any(), name
    assert len(found["model.encoder.embed_tokens.weight.exp_avg"]) == run.state.bare_model().config.vocab_size
    assert run.state.optimizer.param_groups[0]["lr"] == 1e-2  # the settings are this run's
    train(config)


def test_moments_of_a_checkpoint_are_kept_and_those_of_new_rows_are_zero(base, tmp_path):
    check_moments(list_checkpoints(base.output_dir / "checkpoints")[-1], tmp_path, "adam")


def test_moments_of_muon_are_kept(kind, one, tmp_path):
    (tmp_path / "base").mkdir()
    run = TinyRun(tmp_path / "base")
    options = ["training.max_updates=2", "training.checkpoint_every=1", "optimizer.name=muon"]
    run.train(*MODELS[kind], *options)
    [*_, checkpoint] = list_checkpoints(run.output_dir / "checkpoints")
    check_moments(checkpoint, tmp_path, "muon")
    for folder, trained, name in ((checkpoint, "Muon", "adam"), (one.output_dir, "Adam", "muon")):
        [*_, other] = [folder] if folder is checkpoint else list_checkpoints(folder / "checkpoints")
        overrides = [
            "optimizer.keep_state=true",
            f"optimizer.name={name}",
            "training.output_dir=" + str(tmp_path / name),
        ]
        with pytest.raises(ValueError, match=rf"was trained by {trained}; change optimizer\.name={name}"):
            set_up(tuning(tmp_path, other, *overrides))


def test_a_new_tag_of_a_corpus_is_added_to_its_side_and_no_text_gives_it(base, tmp_path):
    listed = json.dumps([write_reversals(tmp_path, "fr", 9) | {"name": "fr", "tag": "<2fr>"}])
    run = set_up(tuning(tmp_path, base.output_dir / "model", f"data.train={listed}"))
    tokenizer = run.tokenizer
    tag = tokenizer.convert_tokens_to_ids("<2fr>")
    assert {row["input_ids"][0] for row in run.corpora.train} == {tag}
    assert tag not in tokenizer("<2fr> a")["input_ids"]
    is_shared = target_tokenizer(tokenizer) is tokenizer
    assert ("<2fr>" in target_tokenizer(tokenizer).get_vocab()) == is_shared
    assert tokenizer("<bt>", text_target="<bt>")["labels"][0] == target_tokenizer(tokenizer).get_vocab()["<bt>"]
    with pytest.raises(ValueError, match=r"tokenizer\.path=.*: the tokenizer has no tag '<2fr>'") as error:
        set_up(tuning(tmp_path, base.output_dir / "model", f"data.train={listed}", "tokenizer.add_tokens=null"))
    assert "\n" not in str(error.value)


def test_moments_that_cannot_be_kept(one, kind, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"keep_state=true: .*model has no optimizer\.safetensors; give model="):
        set_up(tuning(tmp_path, one.output_dir / "model", "optimizer.keep_state=true"))
    for overrides, said in (
        (["optimizer.keep_state=true", "lora={target_modules: [q_proj]}"], "keep_state=true is for all weights"),
        (["optimizer.name=muon", "lora={target_modules: [q_proj]}"], "name='muon' is for all weights"),
        (["optimizer.name=muon", "optimizer.weight_decay=0.1"], r"weight_decay=0\.1 is AdamW's; leave it out"),
        (
            ["optimizer.weight_decay=0.1", "lora={target_modules: [q_proj]}"],
            r"weight_decay=0\.1 would change",
        ),
        (["tokenizer.kind=bpe"], r"unknown key tokenizer\.kind; known keys are add_tokens"),
        (["tokenizer.add_tokens=[a b]"], r"tokenizer\.add_tokens=\['a b'\] must be different tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            tuning(tmp_path, one.output_dir / "model", *overrides)


def test_a_token_that_the_model_has_is_not_added(one, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.add_tokens=\['a'\]: the tokenizer has 'a' already; leave it out"):
        set_up(tuning(tmp_path, one.output_dir / "model", "tokenizer.add_tokens=[a]"))


def test_a_run_of_an_earlier_version_resumes(one, tmp_path):
    """Its config.yaml has no section `tokenizer` of fine-tuning."""
    train(tuning(tmp_path, one.output_dir / "model", "training.max_updates=1", "tokenizer.add_tokens=null"))
    resolved = tmp_path / "tuned" / "config.yaml"
    values = yaml.safe_load(resolved.read_text("utf-8"))
    del values["tokenizer"], values["optimizer"]["keep_state"]
    resolved.write_text(yaml.safe_dump(values), encoding="utf-8")
    train(tuning(tmp_path, one.output_dir / "model", "tokenizer.add_tokens=null"))
    assert json.loads((tmp_path / "tuned" / "results.json").read_text("utf-8"))["updates"] == 2


def test_the_examples_of_the_documents_are_configurations(tmp_path):
    text = Path(__file__).parents[2].joinpath("docs", "reference.md").read_text("utf-8")
    section = text[text.index("\n## Tokenizers\n") : text.index("\n## How a comparison judges\n")]
    new, tuned = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL))
    end = {"training": {"output_dir": "x", "max_updates": 1}}
    assert run_config_of(new | end).tokenizer.target_path == "models/en.model"
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(tuned | end), encoding="utf-8")
    config = load_finetuning_config(tmp_path / "tune.yaml")
    assert config.tokenizer.add_tokens == all_tags(config.data)["input_ids"] == ["<2fr>"]
