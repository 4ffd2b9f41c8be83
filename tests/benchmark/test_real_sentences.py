# SPDX-License-Identifier: Apache-2.0
import gzip

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import write_reversals
from vanilla_transformer.benchmark.configuration import RealConfig, TimingConfig
from vanilla_transformer.benchmark.real_sentences import measure_real
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, MARIAN
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.model_folder import load_model_folder

TIMING = TimingConfig(repeats=5, pause=0.0, fill=0.0)
NAMES = [MARIAN, CTRANSLATE2["float32"], FAST["float32"]]


@pytest.fixture
def real(model_folder, tmp_path):
    """Settings for a model of letters in reverse and a test set of 12 lines."""
    files = write_reversals(tmp_path, "test", 12)
    settings = {
        "batch_sizes": [1, 8],
        "repeats": 2,
        "beams": 4,
        "alpha": 0.6,
        "length_penalty": 0.6,
        "early_stopping": True,
    }
    files = {"source": files["source"], "reference": files["target"], "model": str(model_folder)}
    return lambda **changes: RealConfig(**(settings | files | {"max_tokens_beyond_source": 3} | changes))


def measure(settings: RealConfig, names: list[str] = NAMES):
    lines = []
    return measure_real(settings, TIMING, names, torch.device("cpu"), lines.append), lines


def test_every_system_is_reported_at_its_fastest_batch_size(real):
    result, lines = measure(real())
    assert (result["sentences"], len(lines)) == (12, 2)
    for system in result["results"].values():
        assert system["sentences_per_second"] == max(system["by_batch_size"].values())
        assert system["by_batch_size"][system["batch_size"]] == system["sentences_per_second"]
        assert len(system["seconds"]) == 2  # the section's own rounds


def test_bleu_is_that_of_the_models_translations_in_the_order_of_the_file(real, tmp_path, model_folder):
    settings = real(batch_sizes=[1])  # a batch has one limit of length
    result, _ = measure(settings, [FAST["float32"]])
    model, tokenizer = load_model_folder(model_folder), AutoTokenizer.from_pretrained(model_folder)
    sources, references = (
        (tmp_path / f"test.{side}").read_text(encoding="utf-8").splitlines() for side in ("source", "target")
    )
    texts = []
    for source in sources:  # one by one, as in the README
        ids = tokenizer(source, return_tensors="pt")
        max_new_tokens = ids["input_ids"].shape[1] + 3
        found = model.generate(
            **ids, custom_generate=beam_search, num_beams=4, alpha=0.6, max_new_tokens=max_new_tokens
        )
        texts.append(tokenizer.decode(found[0], skip_special_tokens=True))
    expected = score_translations(texts, references)["bleu"]
    assert result["results"][FAST["float32"]]["bleu"] == pytest.approx(expected)


def test_files_may_be_compressed(real, tmp_path):
    compressed = tmp_path / "test.source.gz"
    compressed.write_bytes(gzip.compress((tmp_path / "test.source").read_bytes()))
    result, _ = measure(real(source=str(compressed), batch_sizes=[12], repeats=1), [FAST["float32"]])
    assert result["sentences"] == 12


def test_files_of_different_length_are_an_error(real, tmp_path):
    (tmp_path / "short").write_text("a b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="test.source has 12 lines, .*short has 1"):
        measure(real(reference=str(tmp_path / "short")))
