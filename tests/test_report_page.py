"""The report's page in a real browser; skipped where there is no Chromium."""

import shutil
from itertools import pairwise

import pytest

from args_helper import config_of
from tests.run_folders import make_run, make_trials
from trainers.reporting.report import make_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = 390


def browser_or_skip():
    """A headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    binary = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("there is no Chromium with its driver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report on some runs, one of whose names is markup, open in the browser."""
    root = tmp_path_factory.mktemp("report") / "results"
    browser = browser_or_skip()
    try:
        name = "<img src=x onerror=document.title=1>"
        make_trials(root, name, [91, 90, 92], algo="snip", target_sparsity=5, check_weight_reinit=[80, 82, 81])
        make_trials(root, "dense", [96, 97, 98], algo="training", target_sparsity=100)
        make_run(root / "running", None, algo="grasp", rows=4)
        make_report(config_of({"report": [str(root)]}, "a test"))
        browser.get((root / "report" / "report.html").as_uri())
        yield browser
    finally:
        browser.quit()


def at_width(page, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def each(page, selector, expression):
    """The value of a JavaScript expression for each element `e`."""
    return page.execute_script(f"return Array.from(document.querySelectorAll({selector!r}), e => {expression})")


def column(page, heading):
    """The texts of a heading's column, as they stand now."""
    script = (
        "const th = arguments[0]; return Array.from(th.closest('table').tBodies[0].rows, "
        "row => row.cells[th.cellIndex].textContent.trim())"
    )
    return page.execute_script(script, heading)


@pytest.mark.parametrize("width", [1280, PHONE])
def test_all_figures_are_drawn_and_nothing_scrolls_sideways_but_tables(page, width):
    at_width(page, width)
    images = page.execute_script(
        "return Promise.all(Array.from(document.images, async i => { await i.decode();"
        "return [i.naturalWidth, i.clientWidth, i.clientHeight, i.alt.length] }))"
    )
    assert len(images) == 5 and all(min(sizes) > 50 for sizes in images)
    wide, own = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= own == width
    boxes = each(page, ".box", "[e.scrollWidth > e.clientWidth, e.tabIndex]")
    assert all(tab == 0 for _, tab in boxes)  # a keyboard scrolls them
    assert any(scrolls for scrolls, _ in boxes) or width > PHONE


def test_a_click_and_the_enter_key_sort_a_table(page):
    at_width(page, 1280)
    heading = page.find_element("xpath", "//section[h3='Runs']//th[contains(., 'after fine-tuning')]")
    button = heading.find_element("tag name", "button")
    before = column(page, heading)
    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, heading) == ["90.00", "91.00", "92.00", "96.00", "97.00", "98.00", "–"] != before
    button.send_keys("\ue007")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, heading) == ["98.00", "97.00", "96.00", "92.00", "91.00", "90.00", "–"]
    words = page.find_element("xpath", "//section[h3='Runs']//th[contains(., 'series')]")
    words.find_element("tag name", "button").send_keys("\ue007")
    assert heading.get_attribute("aria-sort") is None
    assert column(page, words) == sorted(column(page, words), key=str.lower)


def test_headings_are_in_order_and_parts_have_names(page):
    levels = each(page, "h1,h2,h3,h4", "+e.tagName[1]")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.execute_script("return document.documentElement.lang") == "en-GB"
    labels = each(page, ".box", "e.ariaLabel")
    assert len(set(labels)) == len(labels)
    targets = each(page, "a[href^='#']", "!!document.getElementById(e.hash.slice(1))")
    assert targets and all(targets)


def test_what_is_downloaded_from_the_page_is_the_table(page):
    link = page.find_element("xpath", "//section[h3='Runs']//a[@download]")
    text = page.execute_script("return atob(arguments[0].href.split('base64,')[1])", link)
    assert text.splitlines()[0].startswith("series,trial,seed,state")
    assert len(text.splitlines()) == 8


def test_no_error_is_logged_and_no_name_is_markup(page):
    page.refresh()
    assert page.get_log("browser") == []
    assert page.title == "Lottery tickets side by side"
    assert "<img src=x" in page.find_element("tag name", "main").text
