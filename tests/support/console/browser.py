"""A real browser at a real server of the console."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from axe_selenium_python import Axe
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.system_packages import program
from worker.localstack.processes import LOOPBACK, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from fastapi import FastAPI
    from selenium.webdriver.remote.webelement import WebElement

WAIT_S = 30


@contextmanager
def serving(console: FastAPI) -> Iterator[str]:
    """Serve the application in a thread; yields its address."""
    port = free_port()
    config = uvicorn.Config(
        console, host=LOOPBACK, port=port, proxy_headers=False, log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert wait_until(lambda: server.started, timeout_s=WAIT_S)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Browser:
    """One Chromium with a profile of its own."""

    def __init__(self, address: str) -> None:
        options = Options()
        options.binary_location = program("chromium")
        for option in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1440,900"):
            options.add_argument(f"--{option}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.address = address
        self.driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
        self.logged: list[str] = []

    def close(self) -> None:
        """End the browser."""
        self.driver.quit()

    def open(self, path: str) -> None:
        """Go to a page."""
        self.driver.get(self.address + path)

    def sign_in(self, name: str, password: str) -> None:
        """Sign in with the keyboard alone."""
        self.open("/login")
        self.press(name, Keys.TAB, password)
        self.leaving(lambda: self.press(Keys.ENTER))

    def find(self, selector: str) -> WebElement:
        """Return the first element that a selector finds."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def has(self, selector: str) -> bool:
        """Say whether a selector finds anything."""
        return bool(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def press(self, *keys: str) -> None:
        """Type into whatever has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    @contextmanager
    def holding(self, key: str) -> Iterator[None]:
        """Keep a key of the keyboard down meanwhile."""
        ActionChains(self.driver).key_down(key).perform()
        yield
        ActionChains(self.driver).key_up(key).perform()

    @contextmanager
    def pressing(self, selector: str) -> Iterator[None]:
        """Keep the mouse's button down on an element meanwhile."""
        ActionChains(self.driver).click_and_hold(self.find(selector)).perform()
        yield
        ActionChains(self.driver).release().perform()

    def leaving(self, act: Callable[[], object]) -> None:
        """Do what leads to another page, and wait for it."""
        before = self.find("html")
        act()

        def arrived(driver: Any) -> bool:
            ready = driver.execute_script("return document.readyState") == "complete"
            return ready and self.find("html") != before

        WebDriverWait(self.driver, WAIT_S).until(arrived)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds in the page."""
        WebDriverWait(self.driver, WAIT_S).until(lambda _: condition())

    def style(self, selector: str, name: str) -> str:
        """Return a computed style."""
        return str(self.find(selector).value_of_css_property(name))

    def check(self) -> None:
        """Assert that axe finds nothing, and that the browser complains of nothing."""
        axe = Axe(self.driver)
        axe.inject()
        found = axe.run()["violations"]
        assert not found, axe.report(found)
        complaints = [entry["message"] for entry in self.driver.get_log("browser")]
        assert complaints == []
