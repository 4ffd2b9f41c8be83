# SPDX-License-Identifier: Apache-2.0
"""What `import vanilla_transformer` does to transformers: once, cheaply, and beside a copy from a model folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.pipelines import PIPELINE_REGISTRY

import vanilla_transformer as package
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.pipeline_translation import TranslationPipeline

CONFIGS = {"vanilla_transformer": package.VanillaTransformerConfig, "rnn_seq2seq": package.RNNSeq2SeqConfig}


def run(code: str, *arguments: str) -> list[str]:
    """The lines that `code` prints in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines()


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_auto_classes_know_both_models(model_type):
    config = AutoConfig.for_model(model_type)
    assert type(config) is CONFIGS[model_type]
    prefix = type(config).__name__.removesuffix("Config")
    small = CONFIGS[model_type](vocab_size=9, num_layers=1)
    assert type(AutoModel.from_config(small)).__name__ == f"{prefix}Model"
    assert type(AutoModelForSeq2SeqLM.from_config(small)).__name__ == f"{prefix}ForConditionalGeneration"


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_tokenizer_is_found_by_the_configuration_alone(model_type, tmp_path):
    """As where tokenizer_config.json names no class."""
    CONFIGS[model_type]().save_pretrained(tmp_path)
    train_tokenizer(["a b c"], TokenizerConfig(kind="symbols")).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast)


def test_both_names_of_the_task_have_the_pipeline():
    for task in ("translation", "vanilla-translation"):
        assert PIPELINE_REGISTRY.check_task(task)[1]["impl"] is TranslationPipeline


def test_importing_is_cheap_and_happens_once():
    code = """
import sys
import vanilla_transformer
print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
del sys.modules["vanilla_transformer"]
import vanilla_transformer
from transformers import AutoModelForSeq2SeqLM, pipeline
print(vanilla_transformer.VanillaTransformerConfig in AutoModelForSeq2SeqLM._model_mapping)
"""
    assert run(code) == ["[]", "True"]


@pytest.mark.parametrize(
    "modules",
    [
        # It imports the auto classes in its midst, and our models import it.
        ["vanilla_transformer", "transformers.modeling_layers"],
        ["vanilla_transformer", "transformers.models.auto.configuration_auto"],
        ["transformers.pipelines", "vanilla_transformer"],
        ["vanilla_transformer.modeling_rnn_seq2seq"],
    ],
    ids=" ".join,
)
def test_registration_whichever_module_is_imported_first(modules: list[str]):
    code = """
import sys
from importlib import import_module
for module in sys.argv[1:]:
    import_module(module)
import vanilla_transformer
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
for config in vanilla_transformer.VanillaTransformerConfig, vanilla_transformer.RNNSeq2SeqConfig:
    assert type(AutoConfig.for_model(config.model_type)) is config
    assert all(config in mapping for mapping in (AutoModel._model_mapping, AutoModelForSeq2SeqLM._model_mapping))
    assert config in TOKENIZER_MAPPING
assert "translation" in PIPELINE_REGISTRY.supported_tasks
"""
    assert run(code, *modules) == []


def test_modules_keep_the_loaders_of_python():
    """For tools that read a module's source or run it."""
    code = """
import inspect
from importlib.util import find_spec
import vanilla_transformer.console.extras as extras
print(type(extras.__loader__).__name__, extras.__spec__.loader is extras.__loader__)
print(inspect.getsource(extras).startswith("# SPDX"))
print(find_spec("vanilla_transformer.loss").loader.is_package("vanilla_transformer.loss"))
"""
    assert run(code) == ["SourceFileLoader True", "True", "False"]


def test_a_copy_from_a_folder_and_the_package_live_side_by_side(tmp_path):
    config = package.VanillaTransformerConfig(vocab_size=9, d_model=8, d_ff=8, num_layers=1, num_heads=2)
    package.VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path)
    code = """
import sys, torch
from transformers import AutoModelForSeq2SeqLM
copy = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)
import vanilla_transformer
ours = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
again = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)
source = torch.tensor([[3, 4, 5, 2]])
for model in (copy, ours, again):
    print(type(model).__module__.split(".")[0], model.generate(source, max_new_tokens=5, num_beams=2).tolist())
"""
    copy, ours, again = (line.split(maxsplit=1) for line in run(code, str(tmp_path)))
    assert (copy[0], ours[0], again[0]) == ("transformers_modules", "vanilla_transformer", "vanilla_transformer")
    assert copy[1] == ours[1] == again[1]
