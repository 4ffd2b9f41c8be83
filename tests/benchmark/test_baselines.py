# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.benchmark.conftest import VOCABULARY
from vanilla_transformer import (
    RNNSeq2SeqConfig,
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.benchmark.baselines import as_marian, check_baseline_supports, write_ctranslate2


@torch.no_grad()
def test_marian_computes_the_same_logits(model):
    sources, targets = torch.randint(5, VOCABULARY, (2, 6)), torch.randint(5, VOCABULARY, (2, 4))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    inputs = {"input_ids": sources, "attention_mask": mask, "decoder_input_ids": targets}
    torch.testing.assert_close(as_marian(model, max_length=8)(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("beams", [1, 4])
def test_ctranslate2_finds_the_targets_of_generate(model, tmp_path, beams, length_penalty):
    import ctranslate2

    write_ctranslate2(model, tmp_path / "model", max_length=16)
    threads = torch.get_num_threads()  # CTranslate2 sets OpenMP's number of threads, which is torch's too
    translator = ctranslate2.Translator(str(tmp_path / "model"), device="cpu", intra_threads=threads)
    sources = torch.randint(5, VOCABULARY, (8, 6))
    found = translator.translate_batch(
        [[str(token) for token in source] for source in sources.tolist()],
        beam_size=beams,
        length_penalty=length_penalty,
        min_decoding_length=10,
        max_decoding_length=10,
    )
    model.generation_config.eos_token_id = None
    penalty = {"length_penalty": length_penalty} if beams > 1 else {}
    expected = model.generate(sources, num_beams=beams, max_new_tokens=10, **penalty)
    assert [[int(token) for token in result.hypotheses[0]] for result in found] == expected[:, 1:].tolist()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VanillaTransformerConfig(norm_position="pre"), "norm_position='pre': the baselines support only 'post'"),
        (VanillaTransformerConfig(tie_word_embeddings=False), "tie_word_embeddings=False"),
        (VanillaTransformerConfig(d_k=16), "d_k=16: the baselines support only 64"),
        (RNNSeq2SeqConfig(), "model_type='rnn_seq2seq'"),
    ],
)
def test_an_architecture_that_the_baselines_lack_is_an_error(config, message):
    with pytest.raises(ValueError, match=message):
        check_baseline_supports(config)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"sinusoid_layout": "concatenated"}, {"attention_bias": True}])
def test_marian_takes_sinusoids_and_biases_from_the_model(changes):
    config = VanillaTransformerConfig(vocab_size=VOCABULARY, d_model=16, d_ff=32, num_layers=1, num_heads=2, **changes)
    model = VanillaTransformerForConditionalGeneration(config).eval()
    inputs = {name: torch.randint(5, VOCABULARY, (2, 6)) for name in ("input_ids", "decoder_input_ids")}
    torch.testing.assert_close(as_marian(model, max_length=8)(**inputs).logits, model(**inputs).logits)
