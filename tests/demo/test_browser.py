# SPDX-License-Identifier: Apache-2.0
"""The page in Chromium: what a person sees, and where the browser sends requests."""

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.conftest import PATIENCE
from tests.demo.conftest import HOSTILE
from vanilla_transformer.demo.page import build_page, launch
from vanilla_transformer.demo.shown_model import ShownModel

pytestmark = pytest.mark.slow

OWNED = "return [typeof window.owned, document.querySelectorAll('.answer img, .answer script, .answer h1').length]"
ENTER = "\ue007"
PASTE = (
    "const box = document.querySelector('#sentence textarea'); box.value = 'a '.repeat(2500);"
    "box.dispatchEvent(new Event('input', {bubbles: true}))"
)


@pytest.fixture
def address(transformer: ShownModel, rnn: ShownModel) -> Iterator[str]:
    page = build_page([transformer, rnn])
    _, url, _ = launch(page, server_name="127.0.0.1", prevent_thread_lock=True)
    yield url
    page.close(verbose=False)


class Visitor:
    """A person with the page in a tab of their own."""

    def __init__(self, browser, address: str, is_first: bool = True):
        self.browser = browser
        if not is_first:
            browser.switch_to.new_window("tab")
        self.tab = browser.current_window_handle
        browser.get(address)
        self.until(lambda: self.all("#sentence textarea"))

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def until(self, condition):
        from selenium.common import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.browser, PATIENCE, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def look(self) -> None:
        self.browser.switch_to.window(self.tab)

    def ask(self, sentence: str) -> None:
        (box,) = self.all("#sentence textarea")
        box.clear()
        box.send_keys(sentence, ENTER)

    def texts(self, selector: str) -> list[str]:
        return [" ".join(element.text.split()) for element in self.all(selector)]

    def pictures(self) -> list[str]:
        """Addresses of the pictures that are shown; Gradio names them by their content."""
        shown = [image for image in self.all(".model img") if image.get_property("naturalWidth")]
        return [str(image.get_property("src")) for image in shown]

    def until_answered(self, *best: str) -> list[str]:
        """Wait for these translations and their pictures."""
        self.until(lambda: self.texts(".best") == list(best))
        self.until(lambda: len(self.pictures()) == len(best))
        return self.pictures()


@pytest.fixture
def best(transformer: ShownModel, rnn: ShownModel):
    return lambda sentence: [model.answer(sentence).translations[0].text for model in (transformer, rnn)]


def test_a_visitor_translates_and_sees_the_attention(browser, address, best):
    visitor = Visitor(browser, address)
    visitor.ask("a b c")
    first = visitor.until_answered(*best("a b c"))
    assert len(visitor.texts(".answer tr")) == 2 * (1 + 3)  # a head, and three beams, of each model
    assert all("s: beam search, 3 beams" in text for text in visitor.texts(".time"))

    visitor.ask("h g f e d")
    second = visitor.until_answered(*best("h g f e d"))
    assert not set(first) & set(second)

    visitor.all("input[aria-label='Heads']")[0].click()
    visitor.until(lambda: [item for item in visitor.all("[role=option]") if "head 2" in item.text])[0].click()
    visitor.until(lambda: len(visitor.pictures()) == 2 and visitor.pictures()[0] != second[0])
    assert visitor.pictures()[1] == second[1]  # the other model's


def test_markup_is_shown_and_not_executed(browser, address, best):
    visitor = Visitor(browser, address)
    for text in HOSTILE:
        sentence = f"{text} {text}x"
        visitor.ask(sentence)
        visitor.until_answered(*best(sentence))
        assert all(set(item.split()) <= set(HOSTILE) for item in visitor.texts(".best"))
        assert sum(f"“{text}x”" in item for item in visitor.texts(".note")) == 2
        assert browser.execute_script(OWNED) == ["undefined", 0]


def test_empty_and_too_long_sentences_are_explained(browser, address):
    visitor = Visitor(browser, address)
    visitor.ask("")
    visitor.until(lambda: any("nothing to translate" in text for text in visitor.texts(".notice")))
    browser.execute_script(PASTE)
    visitor.all("#sentence textarea")[0].send_keys(ENTER)
    visitor.until(lambda: sum("2,501 tokens" in text for text in visitor.texts(".note")) == 2)


def test_two_visitors_at_once_see_their_own_answers(browser, address, best):
    people = {"a b c d e f g h": Visitor(browser, address), "h": Visitor(browser, address, is_first=False)}
    answers = {sentence: best(sentence) for sentence in people}
    assert len({tuple(answer) for answer in answers.values()}) == 2
    for sentence, visitor in people.items():
        visitor.look()
        visitor.ask(sentence)
    for sentence, visitor in people.items():
        visitor.look()
        visitor.until_answered(*answers[sentence])


def test_the_browser_sends_no_request_to_other_hosts(browser, address, best):
    visitor = Visitor(browser, address)
    visitor.ask("a b c")
    visitor.until_answered(*best("a b c"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    asked = [urlsplit(item["request"]["url"]) for item in sent]
    assert {url.netloc for url in asked if url.scheme not in ("data", "blob")} == {urlsplit(address).netloc}
    assert {item["type"] for item in sent} >= {"Document", "Script", "Stylesheet", "Image"}  # each kind was watched
