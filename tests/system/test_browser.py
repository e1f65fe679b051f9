"""The browser that other tests use: it runs scripts, types, clicks, and tells what a page complains of."""

from __future__ import annotations

from urllib.parse import quote

from tests.browser import Browser

PAGE = """<meta http-equiv="content-security-policy" content="script-src 'none'">
<title>a page</title><input id="name"><p id="said">a &lt;b&gt;</p><script>document.title = "no"</script>"""


def test_a_page_is_read_typed_into_and_heard(browser: Browser) -> None:
    browser.open("data:text/html," + quote(PAGE))
    assert browser.run("return document.title") == "a page"
    browser.type("#name", "né 3")
    assert browser.run("return document.querySelector(arguments[0]).value", "#name") == "né 3"
    assert browser.text("#said") == "a <b>"
    assert any("Content Security Policy" in line for line in browser.log())
    assert browser.screenshot().startswith(b"\x89PNG")
