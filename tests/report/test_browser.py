"""The report in a browser: it runs, nothing leaves the page, what is clicked is shown."""

import contextlib
import shutil

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("PIL")
pytest.importorskip("playwright")

from playwright import sync_api

from tests.report.pages import scores_of

EVIL = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
NAMES = ["chromium", "chromium-browser", "google-chrome"]


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(sync_api.sync_playwright())
            found = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def report(rng, tmp_path):
    """Twelve test and five training images, with labels of two classes."""
    values = rng.normal(size=(12, 5))
    values[4] = [0.5, -0.25, 0.125, -0.0625, 0.0]
    x, y = rng.random((17, 8, 8)), np.arange(17) % 2
    data = (x[:12], y[:12]), (x[12:], y[12:])
    path = scores_of(values).report(
        tmp_path / "report.html", *data, class_names=[EVIL, "dog"],
        self_influence=[3.0, 1.0, 2.0, 5.0, 4.0],
    )  # fmt: skip
    return path, values


@pytest.fixture
def page(browser, report):
    """The open page; at its end nothing was asked for elsewhere, and nothing went wrong."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    opened = context.new_page()
    asked, wrong = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text))
    opened.goto(report[0].as_uri())
    yield opened
    own = report[0].as_uri()
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {own}
    assert not wrong
    assert opened.title() == "Influence report"
    context.close()


def shows(page, title):
    """Wait until an example is shown."""
    page.wait_for_function(
        "title => document.querySelector('#detail h2').textContent === title", arg=title
    )
    return True


def test_a_test_example_leads_to_a_training_example_and_back(page, report):
    page.click("#item-4")
    assert shows(page, "Test example 4")
    assert page.inner_text("#detail .facts dd") == EVIL
    cards = page.locator("#detail .cards")
    assert cards.nth(0).locator(".value").all_inner_texts() == ["+0.500", "+0.125"]
    assert cards.nth(1).locator(".value").all_inner_texts() == ["−0.250", "−0.0625"]
    cards.nth(0).locator("a").nth(1).click()
    assert shows(page, "Training example 2")
    assert page.evaluate("document.activeElement.textContent") == "Training example 2"
    column = report[1][:, 2]
    listed = page.locator("#detail .tests-of").nth(0).locator(".number").all_inner_texts()
    assert len(listed) == (column > 0).sum()
    assert float(listed[0]) == pytest.approx(column.max(), rel=6e-3)
    assert page.locator("#detail .tests-of").nth(1).locator("li").count() == (column < 0).sum()
    page.locator("#detail .tests-of a").first.click()
    assert shows(page, f"Test example {column.argmax()}")
    page.go_back()
    assert shows(page, "Training example 2")


def test_pictures_are_drawn(page):
    drawn = "image => image.complete && image.naturalWidth === 8"
    for image in page.locator("#view-tests img").all():
        assert image.evaluate(drawn)


def test_filter_and_sort(page, report):
    def listed():
        return [
            int(item.split("-")[1])
            for item in page.eval_on_selector_all("#tests a", "l => l.map(a => a.id)")
        ]

    page.select_option("#by-class", label="dog")
    assert listed() == [1, 3, 5, 7, 9, 11]
    assert page.inner_text("#count") == "6 of 12 test examples"
    page.select_option("#by-class", "")
    page.select_option("#sort", "bottom")
    assert listed() == np.argsort(report[1].min(1)).tolist()


def test_the_keyboard_is_enough(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#item-0")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert shows(page, "Test example 1")
    assert page.evaluate("document.activeElement.id") == "item-1"
    assert page.get_attribute("#item-1", "aria-current") == "true"
    assert page.locator("#tests a[tabindex='0']").count() == 1
    page.keyboard.press("End")
    assert shows(page, "Test example 11")
    assert "Test example 11" in page.inner_text("#shown")


def test_what_was_ticked_off_is_exported(page, tmp_path):
    page.click("nav >> text=Suspicious labels")
    assert page.is_visible("#view-suspicious")
    assert not page.is_visible("#view-tests")
    rows = page.locator(".suspicious tbody th a").all_inner_texts()
    assert rows == ["3", "4", "0", "2", "1"]
    assert page.is_disabled("#export")
    page.check("[data-tick='4']")
    page.check("[data-tick='0']")
    assert page.inner_text("#ticked") == "2 of 5 are ticked off."
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "checked.csv")
    lines = (tmp_path / "checked.csv").read_text().splitlines()
    quoted = '"' + EVIL.replace('"', '""') + '"'
    assert lines[0] == "index,given,predicted,self_influence"
    assert sorted(lines[1:]) == [f'0,{quoted},"",3', f'4,{quoted},"",4']
    page.reload()
    assert page.is_checked("[data-tick='4']")


def test_light_dark_and_a_phone(browser, report):
    colours = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, viewport={"width": 375, "height": 700})
        page.goto(report[0].as_uri())
        for view in ("test-0", "train-3", "suspicious", "computed"):
            page.evaluate(f"location.hash = '{view}'")
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 375, view
        colour = "getComputedStyle(document.body).backgroundColor"
        colours.append(page.evaluate(colour))
        page.click("#theme")
        assert page.evaluate(colour) != colours[-1]
        page.close()
    light, dark = (int(colour.split("(")[1].split(",")[0]) for colour in colours)
    assert light > 200
    assert dark < 60
