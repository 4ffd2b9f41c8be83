# SPDX-License-Identifier: Apache-2.0
"""The page without a browser: what its functions give to Gradio, and in which order."""

from html.parser import HTMLParser

import gradio as gr
import pytest

from tests.demo.conftest import HOSTILE
from vanilla_transformer.demo.page import Panel, build_page
from vanilla_transformer.demo.shown_model import ShownModel

OUR_TAGS = {"div", "h3", "p", "table", "tr", "th", "td"}


class Text(HTMLParser):
    """Tags and text of a piece of HTML, as the parser of Python reads it."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"class", "aria-live"}

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def panel(transformer) -> Panel:
    with gr.Blocks(analytics_enabled=False):
        return Panel(transformer)


@pytest.fixture
def choices(transformer) -> tuple[str, str]:
    return next(iter(transformer.views)), next(iter(transformer.heads))


def ask(page: gr.Blocks, sentence: str, models: list[str]):
    """What the page's own function yields for a sentence, by the kind of component."""
    function = next(item for item in page.fns.values() if item.api_name == "translate")
    choices = [component.value for component in function.inputs[2:]]
    return function, list(function.fn(sentence, models, *choices))


def test_the_translations_come_before_the_picture(panel, choices):
    steps = list(panel.translate("a b c", *choices))
    assert steps[0][panel.picture] is None  # that of the sentence before
    assert [panel.picture in step for step in steps] == [True, False, True]
    shown = Text(steps[1][panel.answer]).texts
    expected = panel.model.answer("a b c").translations
    assert shown.count(expected[0].text) == 2  # large, and in the table
    assert all(item.text in shown and f"{item.score:.3f}".replace("-", "−") in shown for item in expected)
    assert steps[-1][panel.picture].size > (100, 100)


def test_another_view_is_another_picture_of_the_same_sentence(panel, choices, transformer):
    view, heads = choices
    attention = transformer.attention("a b c")
    first = panel.redraw(view, heads, attention)
    assert first.tobytes() == panel.redraw(view, heads, attention).tobytes()
    others = [(list(transformer.views)[1], heads), (view, "every head"), (view, "head 2")]
    pictures = [first, *(panel.redraw(*other, attention) for other in others)]
    assert len({(picture.size, picture.tobytes()) for picture in pictures}) == 4
    assert panel.redraw(view, heads, None) is None  # nothing was translated yet


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_is_text(panel, choices, text):
    sentence = f"{text} {text}x"  # known, and unknown, which is quoted
    for step in panel.translate(sentence, *choices):
        html = Text(step.get(panel.answer, ""))
        assert html.tags <= OUR_TAGS
    assert any(f"{text}x" in item for item in html.texts) or step.keys() == {panel.picture, panel.attention}
    best = panel.model.answer(sentence).translations[0].text
    assert set(best.split()) <= set(HOSTILE)  # the answer was hostile too


def test_a_long_sentence_is_translated_without_a_picture(panel, choices):
    *_, last = panel.translate("a " * 150, *choices)
    texts = Text(last[panel.answer]).texts
    assert any("No picture: the sentence has 151 tokens" in text for text in texts)
    assert last[panel.attention] is None


def test_a_model_without_attention_says_so(mute_folder):
    with gr.Blocks(analytics_enabled=False):
        panel = Panel(ShownModel(mute_folder))
    *_, last = panel.translate("a b", None, None)
    assert any("No picture: this model" in text for text in Text(last[panel.answer]).texts)


@pytest.mark.parametrize(
    ("sentence", "ticked", "message"),
    [("  ", True, "nothing to translate"), ("a " * 20_000, True, "40,000 characters"), ("a", False, "No model")],
)
def test_an_impossible_request_is_explained_and_clears_the_answers(transformer, rnn, sentence, ticked, message):
    page = build_page([transformer, rnn])
    names = [transformer.name, rnn.name] if ticked else []
    function, (only,) = ask(page, sentence, names)
    assert message in only[function.outputs[0]]["value"]
    assert only.keys() == set(function.outputs)
    assert all(only[part] is None for part in function.outputs if isinstance(part, gr.Image | gr.State))


def test_only_the_chosen_models_answer(transformer, rnn):
    function, steps = ask(build_page([transformer, rnn]), "a b", [rnn.name])
    answered = {part for step in steps for part in step}
    assert answered == {function.outputs[0], *function.outputs[4:]}


def test_analytics_are_disabled(transformer):
    page = build_page([transformer])
    assert not page.analytics_enabled
    head = page.get_config_file()
    assert head["analytics_enabled"] is False
