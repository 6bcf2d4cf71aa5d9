"""The page in a real browser: sign in, watch a job, read its report, cancel another; with scripts off as well."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import PATIENCE_S, Server

VIEWS = [(390, "light"), (1440, "dark")]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def fleet(running: Server) -> Server:
    running.place.write_fleet({"one": running.place.profile("one")})
    return running


@pytest.fixture(scope="module")
def watched(fleet: Server, browser: Any) -> str:
    """A job that was watched on its page from its beginning to its end; its id."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(fleet.url)
    assert page.url.endswith("/login")
    sign_in(page, fleet.key)
    waiting = fleet.submit("--label", "board:rpi5")["id"]
    job = fleet.submit()["id"]
    page.get_by_role("link", name=job).first.wait_for()  # without loading the page again
    page.get_by_role("link", name=job).first.click()
    page.locator("[role=status] .succeeded").wait_for()
    assert "trial 1: fp32 passed" in page.get_by_role("region", name="Log of the job").inner_text()
    page.get_by_role("link", name="Report of this build").click()
    assert page.locator("h2#device-1").inner_text() == "one"
    page.goto(f"{fleet.url}/jobs/{waiting}")
    assert "no worker has board:rpi5" in page.locator("#devices").inner_text()
    page.get_by_role("button", name="Cancel this job").click()
    page.locator("[role=status] .cancelled").wait_for()
    assert said == []
    page.close()
    return str(job)


def sign_in(page: Any, key: str) -> None:
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Jobs").wait_for()


def test_a_job_is_watched_live_its_report_read_and_another_cancelled(fleet: Server, watched: str) -> None:
    assert fleet.job(watched)["state"] == "succeeded"


def test_a_wrong_key_opens_nothing_and_keys_stay_out_of_the_page(fleet: Server, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{fleet.url}/login")
    page.get_by_label("Key").fill("fleetc_000000000000_x")
    page.get_by_role("button", name="Sign in").click()
    assert "not valid" in page.get_by_role("alert").inner_text()
    page.goto(f"{fleet.url}/jobs/000000000000")
    assert page.url.endswith("/login")
    sign_in(page, fleet.key)
    assert fleet.key not in page.content() and page.evaluate("document.cookie") == ""
    page.close()


def test_everything_is_readable_with_scripts_off(fleet: Server, browser: Any, watched: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(fleet.url)
    sign_in(page, fleet.key)
    page.get_by_role("link", name=watched).first.click()
    assert "succeeded" in page.get_by_role("status").inner_text()
    assert page.get_by_role("link", name="one.tar").is_visible()
    context.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_pages_fit_and_are_accessible(fleet: Server, browser: Any, watched: str, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(fleet.url)
    sign_in(page, fleet.key)
    for path in ("/", f"/jobs/{watched}", "/login"):
        page.goto(fleet.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        options = {"runOnly": {"type": "tag", "values": RULES}}
        found = axe.Axe().run(page, options=options).response
        assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found["violations"]] == [], path
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    context.close()
