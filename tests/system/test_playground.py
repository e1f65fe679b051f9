"""The page at / in a real Chromium: a chat is streamed, priced and shown; nothing that a model says becomes markup."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nonet.server.playground import PAGE_PATHS
from tests.browser import Browser
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, start_server

KEY = "sk-page"
ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b>"
LAST = "return document.querySelector('.assistant:last-of-type .figures')?.textContent"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("page")
    prices = folder / "prices.json"
    prices.write_text('{"fake": {"input_cost_per_token": 1e-3, "output_cost_per_token": 2e-3}}')
    gateway = {
        "gateway": ["exact_cache", "ledger"], "data_dir": str(folder / "data"), "price_table": str(prices),
    }  # fmt: skip
    running = start_server(
        folder, FakeConfig(step_s=0.01), gateway=gateway, api_keys=[KEY], reasoning_parser="think"
    )
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def page(browser: Browser, served: RunningServer) -> Browser:
    """The page with the key given and the models listed."""
    browser.open(served.url + "/")
    browser.log()
    browser.type("#key", f"{KEY}\t")
    browser.wait("return document.querySelector('#model').value === 'fake'")
    return browser


def ask(page: Browser, text: str) -> str:
    """Say it and wait for the answer's end; the figures of the turn."""
    count = page.run("return document.querySelectorAll('.figures').length")
    page.type("#prompt", text)
    page.click("#send")
    page.wait("return document.querySelectorAll('.figures').length > arguments[0]", count)
    return str(page.run(LAST))


def answer(page: Browser) -> str:
    return str(
        page.run("return [...document.querySelectorAll('.assistant .said')].at(-1).textContent")
    )


def test_a_turn_is_streamed_counted_and_priced(page: Browser) -> None:
    page.run("document.querySelector('#temperature').value = '0'")
    first = ask(page, "SAY-THIS:Nine players.")
    assert answer(page) == "Nine players."
    found = re.fullmatch(
        r"first token \d+ ms · [\d.]+ tokens/s · (\d+) prompt tokens \((\d+) cached\) · (\d+) output tokens "
        r"· cache miss · cost ([\d.]+)",
        first,
    )
    assert found is not None, first
    prompt, cached, output = (int(found[number]) for number in (1, 2, 3))
    assert output == len("Nine players.") + 1
    assert float(found[4]) == pytest.approx((prompt - 0.9 * cached) * 1e-3 + output * 2e-3)
    page.click("#new")
    page.run("document.querySelector('#temperature').value = '0'")
    again = ask(page, "SAY-THIS:Nine players.")
    assert "cache exact" in again
    assert answer(page) == "Nine players."
    assert float(again.rpartition("cost ")[2]) < float(found[4])
    assert page.log() == []


def test_the_request_is_shown_as_json_and_as_curl(page: Browser, served: RunningServer) -> None:
    page.type("#system", "It's terse.")
    ask(page, "SAY-THIS:One.")
    ask(page, "SAY-THIS:It's two.")
    body = json.loads(page.run("return document.querySelector('#json').textContent"))
    said = [(one["role"], one["content"]) for one in body["messages"]]
    assert said == [
        ("system", "It's terse."), ("user", "SAY-THIS:One."), ("assistant", "One."),
        ("user", "SAY-THIS:It's two."),
    ]  # fmt: skip
    words = shlex.split(page.run("return document.querySelector('#curl').textContent"))
    assert words[:3] == ["curl", "-N", f"{served.url}/v1/chat/completions"]
    assert json.loads(words[-1]) == body
    assert KEY not in " ".join(words)
    sent = httpx.post(words[2], content=words[-1], headers={"authorization": f"Bearer {KEY}"})
    assert "It's two." in "".join(re.findall(r'"content":"([^"]*)"', sent.text))


def test_what_a_model_says_stays_text(page: Browser) -> None:
    ask(page, f"SAY-THIS:<think>{ATTACK}</think>{ATTACK}")
    assert answer(page) == ATTACK
    assert page.run("return document.querySelector('.thought').textContent") == ATTACK
    assert (
        page.run("return document.querySelectorAll('#turns img, #turns b, #turns script').length")
        == 0
    )
    assert page.run("return document.title") == "nonet"


def test_a_page_that_let_markup_in_would_be_caught(page: Browser) -> None:
    """The same attack with the door open: trusted types refuse the markup, and its script would not run either."""
    refused = page.run(
        "try { document.querySelector('#turns').innerHTML = arguments[0]; return false } catch { return true }",
        ATTACK,
    )
    assert refused
    page.run(
        "const made = document.createElement('script'); try { made.text = 'document.title = 1' } catch {};"
        "document.body.append(made)"
    )
    assert page.run("return document.title") == "nonet"
    assert any("rust" in line or "Content Security Policy" in line for line in page.log())


def test_a_wrong_key_and_a_refused_request_are_told(
    browser: Browser, served: RunningServer
) -> None:
    browser.open(served.url + "/")
    browser.type("#key", "wrong\t")
    browser.wait(
        "return document.querySelector('#problem').textContent.includes('API key is not known')"
    )
    browser.run("document.querySelector('#key').value = ''")
    browser.type("#key", f"{KEY}\t")
    browser.wait("return document.querySelector('#model').value === 'fake'")
    browser.run("document.querySelector('#max-tokens').value = '100000'")
    browser.type("#prompt", "hi\n")
    browser.wait("return document.querySelector('#problem').textContent.includes('max_tokens')")


def test_an_answer_can_be_stopped(page: Browser, served: RunningServer) -> None:
    page.run("document.querySelector('#max-tokens').value = '3000'")
    page.type("#prompt", "go on\n")
    page.wait(
        "return [...document.querySelectorAll('.assistant .said')].at(-1)?.textContent.length > 3"
    )
    page.click("#stop")
    page.wait("return !document.querySelector('#send').hidden")
    assert page.run("return document.querySelector('#problem').hidden")
    assert len(answer(page)) < 3000


def test_no_file_reaches_out_or_writes_markup(served: RunningServer) -> None:
    for path in sorted(PAGE_PATHS):
        got = served.get(path)
        policy = got.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"(https?:)?//[a-z]", got.text.replace("// Everything", "")), path
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=", got.text
        )
    html = served.get("/").text
    assert re.findall(r"<script([^>]*)>([^<]*)</script>", html) == [
        (' src="/playground.js" defer', "")
    ]
    assert "style=" not in html
