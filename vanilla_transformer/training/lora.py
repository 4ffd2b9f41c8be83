# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (Hu et al. 2021) by PEFT: W + alpha / r * B A, where A and B alone are trained."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

from huggingface_hub.dataclasses import strict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.training.bounds import at_least, finite, probability
from vanilla_transformer.training.vocabulary import extend_vocabulary

ADAPTER_WEIGHTS = "adapter_model.safetensors"  # PEFT's and transformers' name
PREFIX = "base_model.model."  # before a weight's name in that file


@strict
@dataclass(kw_only=True)
class LoRASectionConfig:
    """The section `lora`.

    Args:
        r: rank.
        alpha: scale of the adapter's output, before it is divided by r.
        dropout: rate on the adapter's input.
        target_modules: names of the linear layers that get one, such as q_proj and v_proj; for an RNN k_proj and
            linear.
    """

    r: int = at_least(1, default=8)
    alpha: float = finite(default=16.0)
    dropout: float = probability(default=0.0)
    target_modules: list[str]

    def __post_init__(self):
        if not self.target_modules:
            raise ValueError("lora.target_modules=[] must name at least one linear layer, such as q_proj")


def add_adapter(model: PreTrainedModel, config: LoRASectionConfig) -> None:
    """Add a new adapter, whose weights alone are trained from then on.

    Raises:
        ValueError: peft is not installed; the model has no such modules.
    """
    if find_spec("peft") is None:
        raise ValueError("lora needs peft: pip install 'vanilla-transformer[finetuning]'")
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    adapter = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        base_model_name_or_path=model.name_or_path,
        r=config.r,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] -- peft divides any number
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
    )
    inject_adapter_in_model(adapter, model)


def save_weights(model: PreTrainedModel, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Save the model, or of a model with an adapter the adapter alone, which PEFT opens.

    Args:
        weights: in place of the model's own, which are sharded, or change meanwhile.
    """
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        model.save_pretrained(folder, state_dict=weights)
        return
    from peft import get_peft_model_state_dict

    adapted: Any = model
    [config] = adapted.peft_config.values()
    config.save_pretrained(str(folder))
    # Beside the adapter: embeddings with new rows, as PEFT stores them after a vocabulary was resized.
    state = get_peft_model_state_dict(adapted, weights, save_embedding_layers=False)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            state[name] = parameter.detach() if weights is None else weights[name]
    adapter = {PREFIX + name: weight.contiguous() for name, weight in state.items()}
    save_file(adapter, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights that `save_weights` of a model with an adapter wrote."""
    from peft import set_peft_model_state_dict

    weights = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    result = set_peft_model_state_dict(model, weights)
    assert not result.unexpected_keys


def merge_adapter(base: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of the folder or Hub id `base` with the weights of the adapter in `folder` added to its own.

    Args:
        tokenizer: the adapted model's, which may have more tokens.
    """
    from peft import PeftModel

    model: Any = load_model_folder(base)
    extend_vocabulary(model, tokenizer)
    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    with catch_warnings():
        filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = adapted.merge_and_unload()
    # PEFT compares the projection with the source's embedding, which may be of another vocabulary.
    if merged.lm_head.weight is merged.model.decoder.embed_tokens.weight:
        merged.config.tie_word_embeddings = True
    return merged
