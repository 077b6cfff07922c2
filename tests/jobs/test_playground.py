"""The page in a real browser: choose, type, see, save; and what it says of a mistake."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from jobs.cli import main, parse
from jobs.playground import run
from pipeline.errors import UserError
from pipeline.serving.config import PlaygroundConfig, address
from pipeline.serving.gate import KEY
from tests.pipeline.serving.conftest import png
from tests.support.browser import DESK, PHONE, browser, by_id
from tests.support.tiny_checkpoint import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "checkpoint"),
        (["--checkpoint", " "], "checkpoint: is empty"),
        (["--checkpoint", "x", "--port", "70000"], "port=70000: must be 1 to 65535"),
        (["--checkpoint", "x", "--device", "tpu"], "device=tpu: must be auto, cpu or cuda"),
        (["--checkpoint", "x", "--max_image_mib", "0"], "max_image_mib=0.0: must be above 0"),
        (["--checkpoint", "x", "--max_waiting", "0"], "max_waiting=0: must be 1"),
        (["--checkpoint", "x", "--follow_s", "-1"], "follow_s=-1.0: must be at least 0"),
        (["--checkpoint", "x", "--prot", "1"], "prot"),
    ],
)
def test_wrong_settings_are_refused(words, said):
    with pytest.raises(UserError) as error:
        parse(PlaygroundConfig, words)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, f"others can reach it, so {KEY} must hold a key"),
        ({"host": "no.such.host.invalid", KEY: "k" * 20}, "host=no.such.host.invalid, port=0"),
        ({"host": "203.0.113.9", KEY: "k" * 20}, "cannot be listened at"),
        ({KEY: "short"}, f"{KEY}: must be at least 16"),
        ({"checkpoint": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(settings, said, monkeypatch, capsys):
    monkeypatch.delenv(KEY, raising=False)
    if KEY in settings:
        monkeypatch.setenv(KEY, settings.pop(KEY))
    settings = {"checkpoint": "/nowhere", "port": 0, **settings}
    assert main(PlaygroundConfig, run, [f"--{key}={value}" for key, value in settings.items()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    assert said in told


def test_the_address_is_one_that_a_browser_opens():
    assert address("0.0.0.0", 7860) == "http://127.0.0.1:7860/"
    assert address("::1", 1) == "http://[::1]:1/"
    assert address("box", 80) == "http://box:80/"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[str]:
    """The address of the page of a tiny network, served by the job."""
    with served(tmp_path_factory.mktemp("page")) as found:
        yield found


@contextmanager
def served(folder: Path, key: str = "") -> Iterator[str]:
    checkpoint = tiny_checkpoint(folder / "step_00000003")
    words = [sys.executable, "jobs/playground.py", "--checkpoint", str(checkpoint), "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != KEY}
    if key:
        environment[KEY] = key
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          env=environment) as job:  # fmt: skip
        try:
            assert job.stdout is not None
            line = job.stdout.readline()
            (found,) = re.findall(r"step_00000003 answers at (http://127\.0\.0\.1:\d+/)", line)
            yield found
        finally:
            job.terminate()


def wait_until(is_so: Callable[[], object], what: str, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < ends, what
        time.sleep(0.1)


def done(driver) -> None:
    """Waits until the page has answered or complains."""
    wait_until(
        lambda: "Done" in by_id(driver, "status").text or by_id(driver, "error").is_displayed(),
        "the page answers",
    )


def picture(path: Path) -> Path:
    path.write_bytes(png(3, 96, 128))
    return path


def type_words(driver, *words: str) -> None:
    for word in words:
        by_id(driver, "word").send_keys(word, Keys.ENTER)


def chips(driver) -> list[str]:
    return [each.text for each in driver.find_elements(By.CSS_SELECTOR, "#chips span")]


def colours(driver) -> str:
    """The canvas above the picture, as it is painted."""
    return driver.execute_script("return document.getElementById('labels').toDataURL()")


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))


@pytest.mark.slow
def test_choose_type_see_save(page, tmp_path):
    with browser(tmp_path) as driver:
        driver.get(page)
        wait_until(lambda: "28" not in by_id(driver, "model").text and
                   by_id(driver, "model").text == "step_00000003", "the model's name")  # fmt: skip
        # The suggestions are the labels of the training; arrows and Enter choose one.
        by_id(driver, "word").send_keys("tra")
        options = driver.find_elements(By.CSS_SELECTOR, "#found li")
        assert [each.text for each in options] == ["traffic light"]
        by_id(driver, "word").send_keys(Keys.ARROW_DOWN, Keys.ENTER)
        assert chips(driver) == ["traffic light"]
        type_words(driver, "sky, red car", "dog")
        assert chips(driver) == ["traffic light", "sky", "red car", "dog"]
        by_id(driver, "file").send_keys(str(picture(tmp_path / "mine.png")))
        done(driver)
        assert not by_id(driver, "error").is_displayed()
        first = colours(driver)
        assert len(np.unique(pixels(first)[..., :3].reshape(-1, 3), axis=0)) > 1
        # Other words, other colours; and a link that carries them.
        driver.find_element(By.CSS_SELECTOR, "[aria-label='Remove traffic light']").click()
        wait_until(lambda: colours(driver) != first, "the colours change")
        done(driver)
        second = colours(driver)
        driver.find_element(By.CSS_SELECTOR, "input[value=words]").click()
        wait_until(lambda: "none of these" in by_id(driver, "shares").text, "grey for none")
        assert driver.current_url.endswith("#words=sky,red%20car,dog&other=other")
        driver.find_element(By.CSS_SELECTOR, "input[value=none]").click()
        wait_until(lambda: colours(driver) == second, "the colours of before")
        done(driver)

        # The table says what the colours show.
        rows = driver.find_elements(By.CSS_SELECTOR, "#shares tbody tr")
        shares = {row.find_element(By.TAG_NAME, "th").text: row.text for row in rows}
        assert set(shares) <= {"sky", "red car", "dog"}
        total = sum(float(re.findall(r"([\d.]+) %", text)[0]) for text in shares.values())
        assert abs(total - 100) <= 2

        # The name under the pointer is that of the mask.
        for button in ("save-mask", "save-overlay", "save-json"):
            by_id(driver, button).click()
        saved = [tmp_path / f"mine.{end}" for end in ("mask.png", "overlay.png", "json")]
        wait_until(lambda: all(path.is_file() for path in saved), "the files are saved")
        mask = np.asarray(Image.open(saved[0]))
        answer = json.loads(saved[2].read_text())
        runs = np.array(answer["runs"]).reshape(-1, 2)
        np.testing.assert_array_equal(np.repeat(runs[:, 0], runs[:, 1]).reshape(96, 128), mask)
        assert (answer["image"], answer["model"]) == ("mine", "step_00000003")
        driver.execute_script("window.scrollTo(0, 0)")
        stage = by_id(driver, "stage")
        for x, y in ((-0.3, -0.3), (0.2, 0.35)):
            size = stage.size
            move = ActionChains(driver)
            move.move_to_element_with_offset(stage, int(x * size["width"]), int(y * size["height"]))
            move.perform()
            here = mask[int((y + 0.5) * 96), int((x + 0.5) * 128)]
            wait_until(
                lambda here=here: by_id(driver, "under").text == answer["labels"][here],
                "the name under the pointer",
            )

        # The overlay is the picture under the colours, as opaque as the slider says.
        overlay = np.asarray(Image.open(saved[1]).convert("RGB")).astype(int)
        image = np.asarray(Image.open(tmp_path / "mine.png").convert("RGB")).astype(int)
        colour = np.array(answer["colours"])[mask]
        assert abs(overlay - (0.4 * image + 0.6 * colour)).max() <= 2
        by_id(driver, "opacity").send_keys(Keys.HOME)
        assert driver.execute_script("return getComputedStyle(labels).opacity") == "0"
        events = [json.loads(each["message"])["message"] for each in driver.get_log("performance")]
        asked = [each["params"]["request"]["url"] for each in events
                 if each["method"] == "Network.requestWillBeSent"]  # fmt: skip
        elsewhere = [url for url in asked if not url.startswith((page, "blob:", "data:"))]
        assert len(asked) > 8
        assert elsewhere == []
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_mistakes_are_said_and_the_page_goes_on(page, tmp_path):
    with browser(tmp_path) as driver:
        driver.get(page)
        (tmp_path / "bad.jpg").write_bytes(b"no picture")
        by_id(driver, "file").send_keys(str(tmp_path / "bad.jpg"))
        done(driver)
        assert "bad.jpg is not a picture" in by_id(driver, "error").text
        type_words(driver, "Road", "road")
        by_id(driver, "file").send_keys(str(picture(tmp_path / "mine.png")))
        done(driver)
        assert "are the same to the text encoder" in by_id(driver, "error").text
        assert not by_id(driver, "result").is_displayed()
        driver.find_element(By.CSS_SELECTOR, "[aria-label='Remove road']").click()
        wait_until(lambda: by_id(driver, "result").is_displayed(), "the page goes on")
        assert not by_id(driver, "error").is_displayed()


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_link_with_words_and_an_example_on_every_screen(page, tmp_path, size):
    with browser(tmp_path, size) as driver:
        driver.get(f"{page}#words=wet%20grass,a%2C%20b,%3Cb%3Ex&other=0.3")
        assert chips(driver) == ["wet grass", "a", "b", "<b>x"]
        assert by_id(driver, "sure").get_attribute("value") == "30"
        wait_until(lambda: driver.find_elements(By.CSS_SELECTOR, "#row img"), "the examples")
        examples = driver.find_elements(By.CSS_SELECTOR, "#row button")
        assert len(examples) == 6
        examples[1].click()
        done(driver)
        assert chips(driver) == examples[1].get_attribute("title").split(", ")
        width = driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= size[0]
        small = driver.execute_script(
            "return [...document.querySelectorAll('button, .button, fieldset label')]"
            ".filter(e => e.offsetParent && e.offsetHeight < 32).map(e => e.textContent)"
        )
        assert small == []


@pytest.mark.slow
def test_the_key_is_asked_for_until_it_is_right_or_nobody_gives_it(tmp_path):
    key = "k" * 20 + "~!"
    with served(tmp_path, key) as address, browser(tmp_path) as driver:

        def is_open() -> bool:
            return by_id(driver, "ask-key").get_attribute("open") is not None

        def kept() -> str | None:
            return driver.execute_script("return sessionStorage.getItem('lseg-key')")

        def give(text: str) -> None:
            by_id(driver, "key").send_keys(text, Keys.ENTER)

        driver.get(address)
        wait_until(is_open, "the page asks for the key")
        assert by_id(driver, "key-error").text == ""
        by_id(driver, "key").send_keys(Keys.ESCAPE)
        wait_until(lambda: "with its key only" in by_id(driver, "error").text, "it is told once")
        time.sleep(0.5)
        assert not is_open()

        driver.refresh()
        wait_until(is_open, "the page asks for the key")
        give("Schlüssel☃ of mine")
        assert "no spaces" in by_id(driver, "key-error").text
        assert is_open()
        by_id(driver, "key").clear()
        give("wrong")
        wait_until(lambda: by_id(driver, "key-error").text == "The key is wrong.", "it says so")
        assert by_id(driver, "key-error").get_attribute("role") == "alert"
        assert is_open()
        assert kept() is None
        give(key)
        wait_until(lambda: by_id(driver, "model").text == "step_00000003", "the model's name")
        assert not is_open()
        assert kept() == key
        # The examples come with the key too.
        loaded = (
            "return [...document.querySelectorAll('#row img')].filter(e => e.naturalWidth).length"
        )
        wait_until(lambda: driver.execute_script(loaded) == 6, "the examples")
        driver.find_element(By.CSS_SELECTOR, "#row button").click()
        done(driver)
        assert not by_id(driver, "error").is_displayed()
        driver.refresh()
        wait_until(lambda: by_id(driver, "model").text == "step_00000003", "the key is kept")
        assert not is_open()


@pytest.mark.slow
def test_dark_where_the_user_likes_it_dark(page, tmp_path):
    found = {}
    for is_dark in (False, True):
        with browser(tmp_path, is_dark=is_dark) as driver:
            driver.get(page)
            shown = driver.execute_script(
                "return ['body', '#words', '#clear', '#model'].map(name => {"
                "const style = getComputedStyle(document.querySelector(name));"
                "return [style.color, style.backgroundColor]; })"
            )
            below = luminance(shown[0][1])
            for text, ground in shown:
                behind = below if ground == "rgba(0, 0, 0, 0)" else luminance(ground)
                low, high = sorted((luminance(text), behind))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (is_dark, shown)
            found[is_dark] = below
    assert found[True] < 0.1 < 0.7 < found[False]


def luminance(colour: str) -> float:
    """The relative luminance of `rgb(...)` as WCAG has it."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.slow
def test_a_link_sets_the_policy_and_the_newest_picture_stays(page, tmp_path):
    with browser(tmp_path) as driver:
        driver.get(f"{page}#words=dog&other=0.3")
        chosen = "return document.querySelector('input[name=other]:checked').value"
        assert driver.execute_script(chosen) == "sure"
        driver.execute_script("location.hash = '#words=sky'")
        wait_until(lambda: chips(driver) == ["sky"], "the link is followed")
        assert driver.execute_script(chosen) == "none"
        # The first picture is ready last.
        driver.execute_script(
            "const real = createImageBitmap; let number = 0;"
            "window.createImageBitmap = async (file) => {"
            " const late = number++ === 0; const made = await real(file);"
            " if (late) await new Promise((done) => setTimeout(done, 1500));"
            " if (late) window.late = true; return made; };"
        )
        first, second = (tmp_path / f"{name}.png" for name in ("first", "second"))
        first.write_bytes(png(3, 96, 128))
        second.write_bytes(png(4, 64, 64))
        for path in (first, second):
            by_id(driver, "file").send_keys(str(path))
        wait_until(lambda: driver.execute_script("return window.late"), "both are ready")
        done(driver)
        time.sleep(0.5)
        done(driver)
        by_id(driver, "save-json").click()
        wait_until((tmp_path / "second.json").is_file, "the second picture's answer")
        assert driver.execute_script("return document.getElementById('shown').width") == 64
