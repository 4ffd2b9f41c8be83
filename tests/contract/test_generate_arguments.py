# SPDX-License-Identifier: Apache-2.0
"""No argument of `generate()` is misapplied or ignored by the paper's search, whatever decodes."""

import inspect

import pytest
from transformers import GenerationConfig, GenerationMixin
from transformers.utils.generic import TransformersKwargs

from tests.contract.generate_arguments import (
    BEAMS,
    CASES,
    FIELDS,
    GREEDY,
    MODELS,
    OF_GENERATE,
    OF_THE_MODEL,
    combinations,
    expected,
    model_of,
    outcome,
)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"{CASES[case].argument}-{case}")
@pytest.mark.parametrize("name", MODELS)
def test_an_argument_has_the_effect_that_it_has_in_generate_or_is_refused_by_name(name, case):
    found = {
        combination[1:]: outcome(*combination)
        for combination in combinations()
        if (combination[0], combination[2]) == (name, case)
    }
    assert set(found.values()) <= {"equal", "refused"}, found


def test_tried_values_change_the_output_of_transformers_where_they_say_so():
    wrong = []
    for number, case in enumerate(CASES):
        modes = [(GREEDY, BEAMS).index(mode) for mode in case.modes]
        pairs = [(expected(name, number, mode), expected(name, None, mode)) for name in MODELS for mode in modes]
        answers = [theirs != plain for theirs, plain in pairs if not isinstance(theirs, Exception)]
        if answers and any(answers) != case.changes:
            wrong.append(f"{case.argument} ({number})")
    assert not wrong


def test_every_field_of_a_generation_config_is_tried_or_has_a_reason():
    assert set(vars(GenerationConfig())) <= FIELDS.keys()


def test_every_argument_of_generate_and_of_the_model_is_tried_or_has_a_reason():
    signature = set(inspect.signature(GenerationMixin.generate).parameters) - {"self"}
    assert signature <= OF_GENERATE.keys()
    of_forward = {name for model in MODELS for name in inspect.signature(model_of(model).forward).parameters}
    assert of_forward | TransformersKwargs.__optional_keys__ <= OF_THE_MODEL.keys() | FIELDS.keys()
