"""The report in a real browser (Debian: chromium and chromium-driver), opened from a file as its readers do."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from detoxbench.report import content, report
from detoxbench.report.plots import placed
from detoxbench.results.ranking import pareto
from tests.support.report_runs import HOSTILE, NAME, build

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here: apt-get install chromium chromium-driver"
)
selenium = pytest.importorskip("selenium", reason="no selenium here: pip install 'detoxbench[dev]'")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="module")
def page(runs):
    return report(runs, runs.parent / "report.html").page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One Chromium for all tests of this file."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


class Reader:
    """What somebody does with the page."""

    def __init__(self, driver, page):
        self.driver = driver
        self.screen(1280)
        driver.get_log("browser")  # of the page before
        driver.get(page.resolve().as_uri())

    def screen(self, width, *, dark=False):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})

    def ask(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def find(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def choose(self, words, option):
        """An option, by its text, of the select that is labelled `words`."""
        self.driver.execute_script(
            """const labels = [...document.querySelectorAll("#browser label.field")];
            const select = labels.find((label) => label.firstChild.data === arguments[0]).querySelector("select");
            select.value = [...select.options].find((o) => o.text === arguments[1]).value;
            select.dispatchEvent(new Event("change"));""",
            words,
            option,
        )

    def type(self, selector, text):
        self.driver.execute_script(
            """const input = document.querySelector(arguments[0]);
            input.value = arguments[1];
            input.dispatchEvent(new Event("input"));""",
            selector,
            text,
        )

    def waits_for(self, script, *arguments):
        """The value of `script` once it is true; typing is answered a moment later."""
        until = time.monotonic() + 10
        while not (found := self.ask(script, *arguments)):
            assert time.monotonic() < until, f"still not: {script}"
            time.sleep(0.02)
        return found

    def open_samples(self, suite="rtp"):
        self.find("#open").click()
        self.choose("Suite", suite)
        return self

    @property
    def status(self):
        return self.ask("document.querySelector('#browser .status').textContent")

    @property
    def shown(self):
        """The text of the cards, as it can be read."""
        return self.ask("document.querySelector('#cards').innerText")

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def reader(browser, page):
    reader = Reader(browser, page)
    yield reader
    assert reader.complaints() == [], "the console has nothing to say"


def test_the_page_opens_with_all_its_parts_drawn(reader):
    hidden = reader.ask("[...document.querySelectorAll('section')].filter((s) => s.hidden).map((s) => s.id)")
    assert hidden == []
    charts = reader.ask(
        "[...document.querySelectorAll('svg.chart')].map((c) => [c.role, c.ariaLabel, c.childElementCount])"
    )
    assert len(charts) == 20
    assert all(role == "img" and len(words) > 20 and drawn > 3 for role, words, drawn in charts)
    assert (
        reader.ask(
            "document.querySelectorAll('svg.chart [d*=NaN], svg.chart [x*=NaN], svg.chart [transform*=NaN]').length"
        )
        == 0
    )


def test_nothing_offensive_is_readable_before_it_is_asked_for(reader):
    assert not reader.find("#browser").is_displayed()
    assert reader.ask("document.querySelector('#browser').textContent") == ""
    reader.open_samples()
    assert "is kind" in reader.shown
    assert "is rude" not in reader.ask("document.querySelector('#cards').textContent"), "not even out of sight"
    # One text.
    fold = reader.find("#cards .fold")
    assert fold.get_attribute("aria-expanded") == "false"
    fold.click()
    assert reader.shown.count("is rude") == 1
    assert reader.find("#cards .fold").get_attribute("aria-expanded") == "true"
    reader.find("#cards .fold").click()
    assert "is rude" not in reader.shown
    # All texts.
    reader.find("#unfold").click()
    assert reader.shown.count("is rude") > 5
    reader.find("#unfold").click()
    assert "is rude" not in reader.shown


def test_a_text_that_nobody_could_judge_is_folded_too(reader):
    reader.open_samples().choose("Verdict", "not judged")
    assert reader.status.startswith("1 of 24 prompts match")
    assert "Show the text (not judged)" in reader.shown


def test_markup_in_texts_and_names_stays_text(reader):
    reader.open_samples()
    reader.find("#unfold").click()
    shown = reader.shown
    for text in HOSTILE[:5]:
        assert text in shown
    assert "turned ⟨U+202E⟩round⟨U+2066⟩" in shown, "control characters are shown, not obeyed"
    assert "nul ␀ and bell ␇" in shown
    assert "<b>r0</b>" in shown
    assert NAME[:-1] + "⟨U+202E⟩" in shown
    assert reader.ask("window.hacked") is None
    assert reader.ask("document.querySelectorAll('img, #cards b:not(.v), #cards script').length") == 0


def test_filters_and_search(reader):
    reader.open_samples()
    assert reader.status == "24 of 24 prompts match, 12 shown."
    reader.choose("Category", "harsh")
    assert reader.status.startswith("12 of 24")
    reader.choose("Category", "all")
    # 0.8 of the base's first samples are judged toxic, and of no other method more.
    reader.choose("Verdict", "judged toxic")
    assert reader.status.startswith("20 of 24")
    reader.choose("Verdict", "methods disagree")
    assert reader.status.startswith("20 of 24"), "every second sample is kind"
    reader.choose("Verdict", "any")
    # Only destein alpha=0.6: 0.1 of 24.
    for box in reader.driver.find_elements("css selector", "#browser fieldset input"):
        if box.find_element("xpath", "..").text.strip() != "destein alpha=0.6":
            box.click()
    reader.choose("Verdict", "judged toxic")
    assert reader.status.startswith("3 of 24")
    reader.type("[aria-label='Score from']", "0.95")
    reader.waits_for("document.querySelector('#browser .status').textContent.startsWith('0 of 24')")
    reader.type("[aria-label='Score from']", "0.5")
    reader.waits_for("document.querySelector('#browser .status').textContent.startsWith('3 of 24')")
    reader.type("[aria-label='Score to']", "0.6")
    reader.waits_for("document.querySelector('#browser .status').textContent.startsWith('0 of 24')")


def test_search_finds_prompts_and_answers_and_marks_them(reader):
    reader.open_samples()
    reader.type("#browser [type=search]", "TO R7 IS")
    reader.waits_for("document.querySelector('#browser .status').textContent.startsWith('1 of 24')")
    assert reader.find("#cards mark").text == "to r7 is"
    reader.type("#browser [type=search]", "prompt 11 <b>")
    reader.waits_for("document.querySelector('#browser .prompt')?.textContent === 'prompt 11 <b>r11</b>'")
    reader.type("#browser [type=search]", "nowhere to be found")
    reader.waits_for("document.querySelector('#browser .status').textContent.startsWith('0 of 24')")
    assert reader.shown == ""


def test_more_cards_and_another_order(reader):
    reader.open_samples()
    assert reader.ask("document.querySelectorAll('#cards article').length") == 12
    reader.find(".more").click()
    assert reader.ask("document.querySelectorAll('#cards article').length") == 24
    assert not reader.find(".more").is_displayed()
    assert reader.ask("document.activeElement === document.querySelectorAll('#cards article')[12]"), "reading goes on"
    reader.choose("Order", "highest score")
    assert "toxic 0.90" in reader.ask("document.querySelector('#cards article').innerText")


def test_the_front_in_the_picture_is_the_front_of_the_ranking(reader, runs):
    found = content.read_content(runs)
    x, y = content.default_axes(found, "tiny")
    points = placed(found, x, y)
    on = pareto([(a[0], b[0]) for _, _, a, b in points], [x.better, y.better])
    expected = [[found.labels[key], "yes" if front else "no"] for (key, *_), front in zip(points, on, strict=True)]
    rows = reader.ask(
        "[...document.querySelectorAll('#tradeoff tbody tr')].map((r) => [...r.children].map((c) => c.textContent))"
    )
    assert [[row[0].replace("⟨U+202E⟩", "\u202e"), row[-1]] for row in rows] == expected
    assert {row[-1] for row in rows} == {"yes", "no"}


def test_other_axes_can_be_chosen(reader):
    before = reader.ask("document.querySelector('#tradeoff svg.chart').ariaLabel")
    reader.driver.execute_script(
        """const select = document.querySelector("#tradeoff select");
        select.value = [...select.options].find((o) => o.value.endsWith("cost/fit_seconds")).value;
        select.dispatchEvent(new Event("change"));"""
    )
    after = reader.ask("document.querySelector('#tradeoff svg.chart').ariaLabel")
    assert after != before
    assert "time to fit" in after


def test_the_keyboard_reaches_everything(reader):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        ActionChains(reader.driver).send_keys(*keys).perform()

    press(Keys.TAB)
    assert reader.ask("document.activeElement.className") == "skip"
    assert reader.ask("document.activeElement.getBoundingClientRect().top") >= 0, "seen when it has the focus"
    press(Keys.ENTER)
    assert reader.ask("document.activeElement.id") == "main"
    reader.driver.execute_script("document.querySelector('#open').focus({preventScroll: true})")
    press(Keys.ENTER)
    assert reader.ask("document.activeElement.tagName") == "SELECT", "the focus goes where the button led"
    places = set()
    for _ in range(24):
        press(Keys.TAB)
        places.add(reader.ask("document.activeElement.type || document.activeElement.tagName"))
        if reader.ask("document.activeElement.classList.contains('fold')"):
            break
    assert {"search", "number", "checkbox", "select-one"} <= places
    press(Keys.SPACE)
    assert reader.ask("document.activeElement.getAttribute('aria-expanded')") == "true"
    unlabelled = reader.ask(
        """[...document.querySelectorAll("button, select, input, a")].filter((e) =>
            !(e.ariaLabel || e.textContent.trim() || e.closest("label")?.textContent.trim())).length"""
    )
    assert unlabelled == 0


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_down_only(reader, width):
    reader.screen(width)
    reader.driver.refresh()
    reader.open_samples()
    reader.find("#unfold").click()
    reader.driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert reader.ask("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert (
        reader.ask(
            "Math.max(...[...document.querySelectorAll('svg.chart')].map((c) => c.getBoundingClientRect().right))"
        )
        <= width
    )


def test_dark_is_followed_and_can_be_chosen(reader):
    def paper():
        return reader.ask("getComputedStyle(document.body).backgroundColor")

    light = paper()
    reader.screen(1280, dark=True)
    dark = paper()
    assert dark != light
    assert reader.find("#theme").text == "Theme: system"
    reader.find("#theme").click()
    assert (reader.find("#theme").text, paper()) == ("Theme: light", light)
    reader.driver.refresh()
    assert paper() == light, "remembered"
    reader.find("#theme").click()
    assert (reader.find("#theme").text, paper()) == ("Theme: dark", dark)
    reader.find("#theme").click()


def test_the_side_file_is_loaded_when_asked_for(browser, runs, tmp_path):
    done = report(runs, tmp_path / "a report.html", inside=6000)
    reader = Reader(browser, done.page)
    reader.open_samples()
    few = reader.ask("document.querySelectorAll('#cards article').length")
    assert few < 12
    assert "of the 24 records of these runs" in reader.status
    reader.find("#browser .side button").click()
    reader.waits_for("document.querySelector('#browser .status').textContent === '24 of 24 prompts match, 12 shown.'")
    assert reader.complaints() == []


def test_a_side_file_that_is_missing_or_of_another_report_is_told(browser, runs, tmp_path):
    done = report(runs, tmp_path / "report.html", inside=6000)
    for path in done.side_files:
        path.write_text(path.read_text().replace(json.dumps("x")[0], json.dumps("x")[0] + "0", 1))
    reader = Reader(browser, done.page).open_samples()
    reader.find("#browser .side button").click()
    reader.waits_for("document.querySelector('#browser .side').textContent.includes('belongs to another report')")
    for path in done.side_files:
        path.unlink()
    reader = Reader(browser, done.page).open_samples()
    reader.find("#browser .side button").click()
    reader.waits_for("document.querySelector('#browser .side').textContent.includes('is not beside this page')")
    reader.complaints()


def test_without_a_side_file_no_script_can_be_loaded(browser, page):
    reader = Reader(browser, page)
    (page.parent / "other.js").write_text("window.hacked = 1")
    reader.driver.execute_script(
        "const s = document.createElement('script'); s.src = 'other.js'; document.head.append(s)"
    )
    reader.driver.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.head.append(s)"
    )
    assert reader.waits_for("true")
    assert reader.ask("window.hacked") is None
    assert "Content Security Policy" in " ".join(reader.complaints())
