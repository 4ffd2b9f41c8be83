# SPDX-License-Identifier: Apache-2.0
"""The folder for a browser; the slow tests open its page in Chromium, served as by `python -m http.server`."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from onnx import ModelProto, TensorProto, helper, save
from transformers import AutoTokenizer, GenerationConfig

from tests.conftest import PATIENCE, write_reversals
from tests.exporting.node_modules import write_node_modules
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.exporting import web
from vanilla_transformer.exporting.browser_library import FILES, node_modules
from vanilla_transformer.exporting.marian import write_marian
from vanilla_transformer.exporting.onnx import ENCODER, FIRST_STEP, LATER_STEPS, quantize_graphs, write_onnx
from vanilla_transformer.exporting.plain_tokenizer import write_plain_tokenizer
from vanilla_transformer.exporting.web import write_web
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.model_folder import load_model_folder


def empty_step() -> ModelProto:
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in ("input_ids", "logits")]
    graph = helper.make_graph([helper.make_node("Neg", ["input_ids"], ["logits"])], "step", *values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_empty_graphs(model, tokenizer, folder: Path, quantization: str) -> None:
    """In the place of `write_onnx`, which takes seconds for each graph."""
    write_marian(model, tokenizer, folder)
    (folder / "model.safetensors").unlink()
    for name in (ENCODER, FIRST_STEP, LATER_STEPS):
        save(empty_step(), folder / name)


@pytest.mark.parametrize(("quantization", "dtype", "suffix"), [("float32", "fp32", ""), ("int8", "q8", "_quantized")])
def test_the_layout_is_that_of_transformers_js(model_folder, tmp_path, monkeypatch, quantization, dtype, suffix):
    monkeypatch.setattr(web, "write_onnx", write_empty_graphs)
    modules, folder = write_node_modules(tmp_path / "modules"), tmp_path / "out"
    folder.mkdir()
    write_web(load_model_folder(model_folder), load_tokenizer(model_folder), folder, modules, quantization)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    graphs = {f"model/onnx/{name}{suffix}.onnx" for name in ("encoder_model", "decoder_model_merged")}
    settings = {f"model/{name}.json" for name in ("config", "generation_config", "tokenizer", "tokenizer_config")}
    assert files == {"index.html", "translate.js"} | {f"library/{name}" for name in FILES.values()} | graphs | settings
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["transformers.js_config"]) == ("marian", {"dtype": dtype})
    generation = GenerationConfig.from_pretrained(folder / "model")
    assert generation.num_beams in (None, 1)
    assert generation.max_tokens_beyond_source == 3


@pytest.mark.parametrize("kind", ["bpe", "symbols"])
def test_reserved_tokens_in_text_are_text_for_transformers_js(tmp_path, kind):
    """It finds the added tokens of tokenizer.json in text, and skips additional special tokens."""
    lines = ["the quick brown fox", "jumps over the lazy dog"]
    ours = train_tokenizer(lines, TokenizerConfig(kind=kind, vocab_size=280))
    ours.add_special_tokens({"extra_special_tokens": ["<2de>"]})
    write_plain_tokenizer(ours, tmp_path)
    reserved = web._take_out_reserved(tmp_path / "tokenizer.json")
    assert reserved == sorted(ours.convert_ids_to_tokens(range(4 if kind == "symbols" else 3)))
    backend = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert [each["content"] for each in backend["added_tokens"]] == ["<2de>"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("<2de> the </s> dog")["input_ids"] == ours("<2de> the </s> dog")["input_ids"]


def test_the_page_loads_nothing_from_other_hosts():
    texts = {path.name: path.read_text(encoding="utf-8") for path in web.PAGE.iterdir()}
    assert set(texts) == {"index.html", "translate.js"}
    assert not [name for name, text in texts.items() if "http:" in text or "https:" in text]
    assert "default-src 'self'" in texts["index.html"]  # the browser refuses what the library might ask for


# -- in Chromium

SENT = "Network.requestWillBeSent"


@pytest.fixture(scope="module")
def onnx_folder(model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_onnx(load_model_folder(model_folder), load_tokenizer(model_folder), folder)
    return folder


@pytest.fixture(params=["float32", "int8"])
def page_folder(request, model_folder, onnx_folder, tmp_path, monkeypatch) -> Path:
    """The page with the real library, which npm downloads."""

    def copy_graphs(model, tokenizer, folder: Path, quantization: str) -> None:
        shutil.copytree(onnx_folder, folder, dirs_exist_ok=True)
        if quantization == "int8":
            quantize_graphs(folder, (ENCODER, FIRST_STEP, LATER_STEPS))

    monkeypatch.setattr(web, "write_onnx", copy_graphs)
    if shutil.which("npm") is None:
        pytest.fail("this test needs npm, of Node.js; on Debian: apt-get install npm", pytrace=False)
    folder = tmp_path / request.param
    folder.mkdir()
    with node_modules(None) as modules:
        write_web(load_model_folder(model_folder), load_tokenizer(model_folder), folder, modules, request.param)
    return folder


@pytest.fixture
def address(page_folder) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=page_folder))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def greedy_translations(folder: Path, lines: list[str]) -> list[str]:
    model, tokenizer = load_model_folder(folder), load_tokenizer(folder)
    options = {"custom_generate": beam_search, "rule": "transformers", "num_beams": 1}
    options |= {"length_penalty": None, "early_stopping": None}
    targets = [model.generate(**tokenizer(line, return_tensors="pt"), **options)[0] for line in lines]
    return [tokenizer.decode(target, skip_special_tokens=True) for target in targets]


@pytest.mark.slow
def test_the_page_translates_as_our_search_and_asks_no_other_host(
    browser, address, page_folder, model_folder, tmp_path
):
    from selenium.webdriver.support.ui import WebDriverWait

    lines = Path(write_reversals(tmp_path, "lines", 18)["source"]).read_text(encoding="utf-8").splitlines()
    lines += ["a b </s> c", "h <unk> g"]
    wait = WebDriverWait(browser, PATIENCE)
    browser.get(address)
    status, text, translation, button = (
        browser.find_element("id", name) for name in ("status", "text", "translation", "translate")
    )
    wait.until(lambda _: status.text == "Ready")
    text.send_keys("\n".join(lines))
    button.click()
    wait.until(lambda _: "greedy decoding" in status.text)
    found, expected = translation.get_property("textContent").split("\n"), greedy_translations(model_folder, lines)
    assert len(set(expected)) > 10
    if page_folder.name == "float32":
        assert found == expected
    else:  # integers round otherwise, and these weights are not trained
        assert len(found) == len(lines)
        assert len(set(found)) > 10

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [urlsplit(each["params"]["request"]["url"]) for each in messages if each["method"] == SENT]
    assert {url.netloc for url in asked if url.scheme != "data"} == {urlsplit(address).netloc}
    suffix = "_quantized" if page_folder.name == "int8" else ""
    assert {f"/model/onnx/decoder_model_merged{suffix}.onnx", "/library/transformers.min.js"} <= {
        url.path for url in asked
    }
