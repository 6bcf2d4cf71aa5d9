"""The page in a real browser: nothing goes wrong, text fits, and what axe-core knows of WCAG AA holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compiler.artifact.report import read_build, write_report
from tests.unit.compiler.artifact.report.conftest import layer, manifest, saliency, searched, write_dist

WIDTHS = (390, 1440)


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Long names, many layers, a previous build, and devices that failed early and late."""
    long = "a-device-class-with-a-name-that-nobody-would-like-to-read-on-a-phone-0123456789"
    layers = [layer(f"/backbone/stage{index}/conv{'x' * 40}", share=1 / 40) for index in range(40)]
    refused = {"status": "failed", "error": {"error": "GateFailed", "exit_code": 5, "what": "no\n" + "gate" * 40}}
    dist = write_dist(
        tmp_path_factory.mktemp("page"),
        {"kiosk": manifest("kiosk", layers=layers, saliency=saliency()), long: manifest(long)},
        {"gate": {**refused, "report": searched()}, "early": refused},
    )
    build = read_build(dist)
    return write_report(build, previous=build).as_uri()


# colours do not depend on the width, nor sizes on the scheme: two pages show both
@pytest.mark.parametrize(("scheme", "width"), [("light", WIDTHS[0]), ("dark", WIDTHS[1])])
def test_the_page_opens_without_errors_fits_and_is_accessible(
    browser: Any, page_url: str, scheme: str, width: int, tmp_path: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(page_url)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert not said
    assert _plots_seen(page) == page.locator("svg").count() == 14
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not _cut_off(page)
    options = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}
    found = axe.Axe().run(page, options=options).response
    assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found["violations"]] == []
    assert any(one["id"] == "color-contrast" for one in found["passes"])
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_links_lead_to_their_devices(browser: Any, page_url: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(page_url)
    page.get_by_role("link", name="kiosk").click()
    assert page.evaluate("document.getElementById(location.hash.slice(1)).textContent") == "kiosk"
    page.close()


def test_print_shows_what_is_folded_away(browser: Any, page_url: str) -> None:
    page = browser.new_page()
    page.goto(page_url)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.get_by_text("2" * 64).first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.close()


def _plots_seen(page: Any) -> int:
    """Drawings with a size and with shapes in them."""
    return int(
        page.evaluate(
            "[...document.querySelectorAll('svg')].filter(one => one.getBoundingClientRect().width > 200 &&"
            " one.getBoundingClientRect().height > 80 && one.querySelectorAll('path').length > 5).length"
        )
    )


def _cut_off(page: Any) -> list[str]:
    """Elements outside the regions that scroll whose right edge is outside the window."""
    found = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll') && !one.closest('svg') &&"
        " !one.closest('thead') && one.getBoundingClientRect().right > innerWidth + 1)"
        ".map(one => one.outerHTML.slice(0, 120))"
    )
    return [str(one) for one in found]
