"""The page in a real browser: Debian's Chromium, headless. Run with -m browser."""

from __future__ import annotations

import io
import shutil
import threading
import urllib.request
import zipfile

import pytest
from PIL import Image
from served import damaged, document, film, png

selenium = pytest.importorskip("selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def client(serving):
    return serving(hosts=("localhost",))


@pytest.fixture
def page(browser, client, tmp_path):
    """The page, freshly opened, at two times and fast; `add` gives it files."""
    browser.get(f"http://localhost:{client.port}/")
    wait(browser, lambda: len(Select(find(browser, "#scale")).options) == 3)
    Select(find(browser, "#scale")).select_by_value("2")
    Select(find(browser, "#quality")).select_by_value("fast")

    def add(**files: bytes) -> None:
        for name, data in files.items():
            (tmp_path / name.replace("_", ".")).write_bytes(data)
        paths = [str(tmp_path / name.replace("_", ".")) for name in files]
        find(browser, "#files").send_keys("\n".join(paths))

    browser.add = add
    yield browser
    log = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert [message for message in log if "status of 4" not in message] == []


def find(browser, selector: str):
    return browser.find_element(By.CSS_SELECTOR, selector)


def wait(browser, until, seconds: float = 60):
    return WebDriverWait(browser, seconds).until(lambda _: until())


def text(browser, selector: str) -> str:
    return find(browser, selector).text


def test_a_picture_is_planned_tried_enlarged_compared_and_downloaded(page):
    page.add(one_png=png(40, 30))
    wait(page, lambda: text(page, ".plan").startswith("becomes 80×60 in "))
    assert text(page, ".size").startswith("40×30, png, ")
    find(page, ".try").click()
    wait(page, lambda: find(page, "#viewer").get_attribute("open"))
    wait(page, lambda: page.execute_script("return document.getElementById('after').naturalWidth") == 80)
    stage = find(page, "#stage")
    assert stage.get_attribute("aria-valuenow") == "50"
    stage.send_keys(Keys.ARROW_LEFT)
    assert stage.get_attribute("aria-valuenow") == "52"
    scale = "return document.getElementById('{}').style.transform"
    before = page.execute_script(scale.format("after"))
    stage.send_keys("+")
    after = page.execute_script(scale.format("after"))
    assert after != before
    assert page.execute_script(scale.format("before")) == after  # both zoom together
    stage.send_keys(Keys.ESCAPE)
    wait(page, lambda: not find(page, "#viewer").get_attribute("open"))
    find(page, ".start").click()
    wait(page, lambda: find(page, ".download").is_displayed())
    link = find(page, ".download")
    assert link.get_attribute("download") == "one_x2.png"
    with urllib.request.urlopen(link.get_attribute("href")) as got, Image.open(io.BytesIO(got.read())) as made:
        assert made.size == (80, 60)
    find(page, ".remove").click()
    wait(page, lambda: not page.find_elements(By.CSS_SELECTOR, "#list > li"))


def test_a_film_is_planned_tried_enlarged_compared_and_cancelled(page, slow):
    pytest.importorskip("av", reason="av is not installed (the extra video)")
    slow.set()
    page.add(clip_mp4=film(10))
    wait(page, lambda: text(page, ".plan").startswith("becomes 64×48, 10 frames, in "))
    assert text(page, ".size").startswith("32×24, mp4, ")
    assert "films (mp4, " in text(page, "#accepts")
    Select(find(page, "#format")).select_by_value("jpeg")  # of pictures; the film stays one
    wait(page, lambda: text(page, ".plan").startswith("becomes 64×48, 10 frames, in "))
    find(page, ".try").click()
    wait(page, lambda: find(page, "#viewer").get_attribute("open"))
    wait(page, lambda: page.execute_script("return document.getElementById('after').naturalWidth") == 64)
    find(page, "#stage").send_keys(Keys.ESCAPE)
    slow.clear()
    find(page, ".start").click()
    wait(page, lambda: find(page, "progress").get_property("value") == 0.5)
    assert " left" in text(page, ".plan")
    find(page, ".cancel").click()
    wait(page, lambda: text(page, ".plan") == "cancelled")
    slow.set()
    find(page, ".start").click()
    wait(page, lambda: find(page, ".download").is_displayed())
    link = find(page, ".download")
    assert link.get_attribute("download") == "clip_x2.mp4"
    with urllib.request.urlopen(link.get_attribute("href")) as got:
        assert got.read()[4:8] == b"ftyp"
    find(page, ".look").click()
    wait(page, lambda: page.execute_script("return document.getElementById('before').naturalWidth") == 64)
    assert find(page, "#stage").get_attribute("aria-valuenow") == "50"
    find(page, "#stage").send_keys(Keys.ESCAPE)


def test_many_pictures_with_a_bad_one_and_a_zip(page):
    page.add(a_png=png(16, 16), b_png=png(20, 10, seed=1), bad_png=b"no picture")
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".error:not([hidden])")) == 1)
    assert "bad.png: " in text(page, "#list > li:nth-child(3) .error")
    find(page, "#start-all").click()
    wait(page, lambda: "3 pictures, 2 done" in text(page, "#sum"))
    script = """
        const done = arguments[0], ids = items.filter((item) => item.finished).map((item) => "job=" + item.job.id);
        fetch("/api/v1/zip?" + ids.join("&")).then((r) => r.arrayBuffer()).then((b) => done([...new Uint8Array(b)]));
    """
    with zipfile.ZipFile(io.BytesIO(bytes(page.execute_async_script(script)))) as archive:
        assert archive.namelist() == ["a_x2.png", "b_x2.png"]
    assert find(page, "#zip").is_enabled()


def restoring(page) -> None:
    Select(find(page, "#do")).select_by_value("restore")


def notes(page) -> str:
    return text(page, ".notes")


def test_a_picture_is_looked_at_tried_restored_and_compared(page, slow):
    slow.set()
    restoring(page)
    assert not find(page, "#scale").is_displayed()
    assert text(page, "#start-all") in ("", "Restore all")
    page.add(old_jpg=damaged())
    wait(page, lambda: text(page, ".plan").startswith("stays 96×72 in "))
    assert "JPEG of quality 20: cleaned at strength" in notes(page)
    assert text(page, ".start") == "Restore"
    find(page, ".try").click()
    wait(page, lambda: find(page, "#viewer").get_attribute("open"))
    wait(page, lambda: page.execute_script("return document.getElementById('after').naturalWidth") == 96)
    assert find(page, "#after").get_attribute("alt") == "restored by foveal"
    find(page, "#stage").send_keys(Keys.ARROW_LEFT)
    assert find(page, "#stage").get_attribute("aria-valuenow") == "52"
    find(page, "#stage").send_keys(Keys.ESCAPE)
    slow.clear()
    find(page, ".start").click()
    wait(page, lambda: find(page, "progress").get_property("value") == 0.5)
    assert " left" in text(page, ".plan")
    find(page, ".cancel").click()
    wait(page, lambda: text(page, ".plan") == "cancelled")
    slow.set()
    find(page, ".start").click()
    wait(page, lambda: find(page, ".download").is_displayed())
    assert find(page, ".download").get_attribute("download") == "old_restored.jpg"
    assert notes(page).count("JPEG of quality 20") == 1
    assert text(page, "#sum").startswith("1 picture, 1 done")
    Select(find(page, "#do")).select_by_value("upscale")  # the result of another wish is no longer offered
    wait(page, lambda: text(page, ".plan").startswith("becomes 192×144 in "))
    assert not find(page, ".download").is_displayed()
    assert not find(page, ".look").is_displayed()
    assert "0 done" in text(page, "#sum")


def test_repairs_are_chosen(page):
    restoring(page)
    page.add(old_jpg=damaged())
    wait(page, lambda: "JPEG of quality 20" in notes(page))
    assert not find(page, "#fixes").is_displayed()
    Select(find(page, "#fix")).select_by_value("")
    boxes = {box.get_attribute("value"): box for box in page.find_elements(By.CSS_SELECTOR, "#fixes input")}
    assert list(boxes) == ["jpeg", "noise", "rain", "snow", "light"]
    assert [name for name, box in boxes.items() if box.is_selected()] == ["jpeg", "noise"]
    boxes["jpeg"].click()
    wait(page, lambda: notes(page) == "nothing found to repair")
    boxes["rain"].click()
    wait(page, lambda: notes(page) == "rain and snow removed")
    boxes["rain"].click()
    boxes["noise"].click()
    wait(page, lambda: text(page, ".error") == "choose at least one repair")
    assert not find(page, ".start").is_enabled()
    boxes["jpeg"].click()
    wait(page, lambda: "JPEG of quality 20" in notes(page))
    assert not find(page, ".error").is_displayed()
    assert find(page, ".start").is_enabled()


def test_a_film_is_restored_beside_the_others(page):
    pytest.importorskip("av", reason="av is not installed (the extra video)")
    restoring(page)
    page.add(clip_mp4=film(), old_jpg=damaged())
    wait(page, lambda: find(page, "#list > li:nth-child(1) .start").is_enabled())
    assert not find(page, "#list > li:nth-child(1) .error").is_displayed()
    find(page, "#start-all").click()
    wait(page, lambda: "2 pictures, 2 done" in text(page, "#sum"))
    Select(find(page, "#do")).select_by_value("upscale")
    wait(page, lambda: text(page, ".plan").startswith("becomes 64×48, 4 frames, in "))
    assert not find(page, ".error").is_displayed()


def test_a_document_becomes_a_file_for_each_page(page):
    page.add(scan_tif=document((12, 9), (8, 14)))
    wait(page, lambda: text(page, ".plan").startswith("becomes 24×18, 2 pages, in "))
    Select(find(page, "#pages")).select_by_value("split")
    wait(page, lambda: text(page, ".plan").startswith("becomes 24×18, 2 files, in "))
    find(page, ".start").click()
    wait(page, lambda: find(page, ".download").is_displayed())
    assert text(page, ".plan").startswith("24×18, 2 files, in ")
    link = find(page, ".download")
    assert link.get_attribute("download") == "scan_x2.zip"
    with urllib.request.urlopen(link.get_attribute("href")) as got:
        archive = zipfile.ZipFile(io.BytesIO(got.read()))
    assert archive.namelist() == ["scan_x2-001.tif", "scan_x2-002.tif"]


def press(page, *keys: str) -> None:
    webdriver.ActionChains(page).send_keys(*keys).perform()


def tab_to(page, name: str):
    for _ in range(40):
        now = page.switch_to.active_element
        if name in (now.get_attribute("id"), now.get_attribute("class"), now.get_attribute("value")):
            return now
        press(page, Keys.TAB)
    raise AssertionError(f"{name} is not reached by Tab")


def test_restoring_by_keyboard_alone(page):
    page.add(old_jpg=damaged(dark=0.2))
    wait(page, lambda: find(page, ".start").is_enabled())
    find(page, "body").click()
    tab_to(page, "do")
    press(page, "r")
    wait(page, lambda: "JPEG of quality 20" in notes(page))
    tab_to(page, "fix")
    press(page, "o")
    tab_to(page, "light")
    press(page, Keys.SPACE)
    wait(page, lambda: "dark, median" in notes(page))
    tab_to(page, "try")
    press(page, Keys.ENTER)
    wait(page, lambda: find(page, "#viewer").get_attribute("open"))
    press(page, Keys.ARROW_RIGHT)
    assert find(page, "#stage").get_attribute("aria-valuenow") == "48"
    press(page, Keys.ESCAPE)
    wait(page, lambda: not find(page, "#viewer").get_attribute("open"))
    tab_to(page, "start")
    press(page, Keys.ENTER)
    wait(page, lambda: find(page, ".download").is_displayed())
    assert page.switch_to.active_element.get_attribute("class") == "look"


def test_enlarge_all_waits_for_what_is_still_sent(page, client, monkeypatch):
    go, real = threading.Event(), client.store.room
    monkeypatch.setattr(client.store, "room", lambda: (go.wait(20), real())[1])
    page.add(one_png=png(16, 16))
    wait(page, lambda: text(page, ".plan") == "being sent …")
    find(page, "#start-all").click()
    go.set()
    wait(page, lambda: find(page, ".download").is_displayed())


def test_what_is_removed_while_it_runs_frees_its_turn(page, slow):
    for round_ in range(3):  # more than run at a time
        page.add(one_png=png(16, 16, seed=round_))
        wait(page, lambda: find(page, ".start").is_enabled())
        find(page, ".start").click()
        wait(page, lambda: find(page, "progress").get_property("value") == 0.5)
        find(page, ".remove").click()
        wait(page, lambda: not page.find_elements(By.CSS_SELECTOR, "#list > li"))


def test_work_can_be_cancelled(page, slow):
    page.add(one_png=png(16, 16))
    wait(page, lambda: find(page, ".start").is_enabled())
    find(page, ".start").click()
    wait(page, lambda: find(page, "progress").get_property("value") == 0.5)
    find(page, ".cancel").click()
    wait(page, lambda: text(page, ".plan") == "cancelled")
    assert find(page, ".start").is_enabled()


def test_the_keyboard_reaches_everything(page):
    page.add(one_png=png(16, 16))
    wait(page, lambda: find(page, ".start").is_enabled())
    find(page, "body").click()
    reached = set()
    for _ in range(16):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        now = page.switch_to.active_element
        reached.add(now.get_attribute("id") or now.get_attribute("class"))
    assert {"files", "folder", "do", "scale", "quality", "format", "start-all", "try", "start", "remove"} <= reached
    find(page, ".start").send_keys(Keys.ENTER)
    wait(page, lambda: find(page, ".download").is_displayed())


CONTRAST = """
    const shade = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (node) => {
      const colour = getComputedStyle(node).backgroundColor;
      return colour === "rgba(0, 0, 0, 0)" && node.parentElement ? behind(node.parentElement) : colour;
    };
    const seen = [...document.querySelectorAll("h1, p, label, select, button, a, li, span, strong")]
      .filter((node) => node.checkVisibility() && node.textContent.trim() && !node.disabled);
    return seen.map((node) => {
      const [low, high] = [shade(getComputedStyle(node).color), shade(behind(node))].sort((a, b) => a - b);
      return [(high + 0.05) / (low + 0.05), node.outerHTML.slice(0, 80)];
    });
"""


@pytest.mark.parametrize("width", [320, 360])
def test_on_a_phone_and_in_the_dark(page, width):
    phone = {"width": width, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.add(a_long_name_that_would_not_fit_jpg=damaged())
        wait(page, lambda: find(page, ".start").is_enabled())
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        restoring(page)
        Select(find(page, "#fix")).select_by_value("")
        wait(page, lambda: "JPEG of quality 20" in notes(page))
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        for control in page.find_elements(By.CSS_SELECTOR, "select, #fixes label, button, .button"):
            if control.is_displayed():
                assert control.rect["x"] >= 0
                assert control.rect["x"] + control.rect["width"] <= width
                assert control.rect["height"] >= 24  # what a finger can hit, by WCAG 2.2
        shades = []
        for value in ("light", "dark"):
            wanted = {"features": [{"name": "prefers-color-scheme", "value": value}]}
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
            shades.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
            measured = page.execute_script(CONTRAST)
            assert len(measured) > 20
            assert [one for one in measured if one[0] < 4.5] == []  # WCAG AA
        assert shades[0] != shades[1]
        find(page, ".try").click()
        wait(page, lambda: page.execute_script("return document.getElementById('after').naturalWidth") == 96)
        bar = find(page, "#close").rect
        assert bar["x"] + bar["width"] <= width
        find(page, "#close").click()
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_is_fetched_from_elsewhere(page, client):
    fetched = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert fetched
    assert all(name.startswith(f"http://localhost:{client.port}/") for name in fetched)
