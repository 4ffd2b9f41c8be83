# SPDX-License-Identifier: Apache-2.0
"""A saved model carries its code, so that it opens where this package is not installed."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

# transformers runs a folder's own code from a package of this name.
IS_CODE_OF_A_FOLDER = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
CUSTOM_GENERATE = {"generation.py": "generate.py", "search.py": "search.py", "decoder.py": "decoder.py"}
PIPELINE = {"impl": "pipeline_translation.TranslationPipeline", "pt": ["AutoModelForSeq2SeqLM"], "type": "text"}


class PublishedConfig(PreTrainedConfig):
    """The base of a configuration whose folder names the code that belongs to it.

    transformers by itself would write the entry of the class that is saved and no other, so that a folder written by
    the model for translation could not be opened by `AutoModel`.
    """

    # auto class → module and class within the folder
    published_classes: ClassVar[dict[str, str]]
    _auto_class: ClassVar[str | None] = "AutoConfig"  # so that transformers saves the code
    # What transformers' Trainer must not gather as a prediction: no row for each sentence.
    keys_to_ignore_at_inference = ["cache", "negative_log_likelihood"]

    def __post_init__(self, **kwargs):
        if not IS_CODE_OF_A_FOLDER:  # this package is the code; with it, pipelines need no trust_remote_code
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers; also the code of model, pipeline and the paper's decoding, and where it is.

        Args:
            save_directory: gets config.json, files of code, and custom_generate/generate.py, which is generation.py,
                with search.py and decoder.py beside it.
        """
        complete = copy.copy(self)
        # Plain names: what was pulled from the Hub names its own repository in them.
        complete.auto_map = dict(self.published_classes)
        complete.custom_pipelines = {task: dict(PIPELINE) for task in ("translation", "vanilla-translation")}
        decoding = Path(save_directory) / "custom_generate"
        decoding.mkdir(parents=True, exist_ok=True)
        for name, published in CUSTOM_GENERATE.items():
            shutil.copyfile(Path(__file__).with_name(name), decoding / published)
        super(PublishedConfig, complete).save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
