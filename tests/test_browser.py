"""What a person sees: headless Chromium drives JupyterLab over the notebook, and opens the page.

Needs the extra `browser` and a Chromium (`.ci/run` sees to both); is skipped, and says so, without
them. Screenshots go to build/browser/, for people to look at.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
import torch

from stn_cifar import Config, build_model, plots

pytestmark = pytest.mark.browser
INSTALL = 'missing: pip install -e ".[test,browser]"'
playwright = pytest.importorskip("playwright.sync_api", reason=f"playwright {INSTALL}")
pytest.importorskip("jupyterlab", reason=f"JupyterLab {INSTALL}")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = [os.environ.get("STN_CIFAR_CHROMIUM"), *map(shutil.which, NAMES)]
CHROMIUM = next(filter(None, FOUND), None)
if CHROMIUM is None:
    pytest.skip("no Chromium: install one, or name it in STN_CIFAR_CHROMIUM",
                allow_module_level=True)

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "build" / "browser"
EPOCHS = 6
# a tenth of the glyphs: enough to watch an epoch go by
SMALL_GLYPHS = """
from stn_cifar.data import glyphs
make_all = glyphs.make_glyphs
glyphs.make_glyphs = lambda count, seed: make_all(count // 10, seed)
"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, **options):
    """A page at `address`, onto which other machines are not let, and no script may fail."""
    context = browser.new_context(viewport=dict(width=1200, height=900), **options)
    page = context.new_page()
    page.set_default_timeout(300_000)  # a bound, not a measure: a loaded machine needs it
    page.failures = []
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.route(re.compile(r"^https?://(?!127\.0\.0\.1[:/])"), lambda route: route.abort())
    page.goto(address)
    yield page
    context.close()


# ---- the player alone


@pytest.fixture(scope="module")
def film(glyph_data):
    """Three epochs of a transformer that turns further each time, by a quarter."""
    model = build_model(Config(device="cpu", transform="rotation"))
    film = plots.Film(model, glyph_data)
    for epoch in (1, 2, 3):
        with torch.no_grad():
            model.transformer.localization.regressor[-1].bias.fill_(epoch * torch.pi / 2)
        film(model, [dict(train_accuracy=0.1 * k) for k in range(epoch)])
    return film


def page_of(folder, *parts):
    path = folder / "page.html"
    head = "<!doctype html><meta charset=utf-8><title>page</title>"
    path.write_text(head + "\n".join(parts), encoding="utf-8")
    return path.as_uri()


def shot(locator):
    """What is seen of `locator`, as PNG."""
    return locator.screenshot(animations="disabled")


# a list to which the texts that some elements get are added, however late this test looks
WATCH = """elements => {
  const told = [];
  for (const element of elements)
    new MutationObserver(() => told.push(element.textContent)).observe(element, {childList: true});
  return told;
}"""


def test_slider_keys_and_button_move_one_player_and_not_the_other(browser, film, tmp_path):
    player = film.player()._repr_html_()
    with opened(browser, page_of(tmp_path, player, player)) as page:
        first, second = page.locator(".stn-film").all()
        slider = first.get_by_role("slider", name="epoch")
        pictures, still = first.locator(".pictures"), shot(second)
        seen = {3: shot(pictures)}
        slider.focus()
        for epoch in (2, 1, 0):
            page.keyboard.press("ArrowLeft")
            playwright.expect(first.get_by_text(f"epoch {epoch} of 3")).to_be_visible()
            assert slider.get_attribute("aria-valuetext") == f"epoch {epoch} of 3"
            seen[epoch] = shot(pictures)
        assert len(set(seen.values())) == 4, "each epoch looks different"
        slider.fill("3")
        assert shot(pictures) == seen[3]
        button = first.get_by_role("button")
        assert button.inner_text() == "▶ Play"
        epoch = first.get_by_text("epoch 3 of 3").element_handle()
        told = page.evaluate_handle(WATCH, [epoch, button.element_handle()])
        button.press("Enter")  # from the end it begins anew, and stops at the end
        page.wait_for_function("told => told.at(-1) === '▶ Play'", arg=told)
        assert told.json_value() == ["epoch 0 of 3", "⏸ Pause", "epoch 1 of 3", "epoch 2 of 3",
                                     "epoch 3 of 3", "▶ Play"]
        assert shot(pictures) == seen[3] and shot(second) == still
        assert page.failures == []


def test_untrained_the_player_shows_each_image_twice_the_same_then_turned(browser, film, tmp_path):
    with opened(browser, page_of(tmp_path, film.player()._repr_html_())) as page:
        slider = page.get_by_role("slider")
        pair = page.locator(".pictures div").first.get_by_role("img").all()
        assert shot(pair[0]) != shot(pair[1])
        slider.fill("0")
        assert shot(pair[0]) == shot(pair[1])
        first = film.classes[film.labels[0]]
        assert page.get_by_role("img", name=f"{film.kind} image: {first}").count() == 1


def test_player_runs_in_a_closed_frame_as_in_colab(browser, film, tmp_path):
    content = film.player()._repr_html_().replace("&", "&amp;").replace('"', "&quot;")
    frame = f'<iframe sandbox="allow-scripts" width="900" height="500" srcdoc="{content}"></iframe>'
    with opened(browser, page_of(tmp_path, frame)) as page:
        inside = page.frame_locator("iframe")
        inside.get_by_role("slider").fill("1")
        playwright.expect(inside.get_by_text("epoch 1 of 3")).to_be_visible()
        assert page.failures == []


def test_without_scripts_the_last_frame_is_left(browser, film, tmp_path):
    address = page_of(tmp_path, film.player()._repr_html_())
    with opened(browser, address, java_script_enabled=False) as page:
        picture = page.locator(".stn-film img")
        assert picture.is_visible() and picture.bounding_box()["width"] == 800
        assert "epoch 3" in picture.get_attribute("alt")
        assert page.get_by_role("slider").count() == 0


# ---- the notebook


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a folder with the package and a short notebook: (address, folder)."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "stn_cifar", folder / "stn_cifar",
                    ignore=shutil.ignore_patterns("__pycache__"))
    notebook = nbformat.read(ROOT / "notebooks" / "stn_cifar10.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for name, value in dict(DATASET="glyphs", EPOCHS=EPOCHS).items():
        code[0].source, count = re.subn(rf"(?m)^{name} = .*?(?=  #|$)", f"{name} = {value!r}",
                                        code[0].source)
        assert count == 1, name
    config = next(cell for cell in code if "Config.preset" in cell.source)
    config.source = SMALL_GLYPHS + config.source
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / "short.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {name: str(folder / "home")
           for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
                        "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    environment = os.environ | own | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    news = folder / "home/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # or it asks whether to
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
               "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    address, log = f"http://127.0.0.1:{port}", folder / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=file,
                                  stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: server.poll() is not None or answers(f"{address}/api/status"), 300,
                 "JupyterLab to start")
        assert server.poll() is None, log.read_text()[-3000:]
        yield address, folder
    finally:
        server.terminate()
        server.wait(30)


def answers(address):
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as reply:
        return json.load(reply)


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def executed(browser, lab):
    """The short form, run and saved in JupyterLab; with checks along the way."""
    address, folder = lab
    with opened(browser, f"{address}/lab/tree/notebooks/short.ipynb") as page:
        page.get_by_role("heading", level=1).first.wait_for()
        page.keyboard.press("Control+b")  # without the list of files
        page.wait_for_timeout(1000)
        page.screenshot(path=SHOTS / "top.png")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.get_by_text("training on cpu").first.wait_for()
        page.get_by_text("epoch 2/").first.wait_for()
        training = page.locator(".jp-OutputArea", has=page.get_by_text("training on cpu")).first
        look(page, training, "training")
        path = folder / "notebooks" / "short.ipynb"
        wait_for(lambda: saved(page, path) and is_idle(address), 900, "all cells to be run")
        page.wait_for_timeout(1000)  # for the outputs that the last cell may still send
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
        headings = dict(setup="Setup", pairs="What the transformer does", film="over the epochs")
        for name, heading in headings.items():
            look(page, page.get_by_role("heading", name=heading).first, name)
        check_player_in_lab(page)
        assert page.failures == []
    return path


def saved(page, path):
    """Save the notebook; whether what lies on the disk has run to its end. An error ends the wait.

    The kernel alone does not tell: it is idle between two cells also.
    """
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1500)
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    errors = [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert errors == [], "\n".join(errors[0].traceback)
    return all(cell.execution_count for cell in code)


def is_idle(address):
    kernels = answers(f"{address}/api/kernels") or []
    return [kernel["execution_state"] for kernel in kernels] == ["idle"]


def look(page, locator, name):
    """Scroll to `locator`, in some tries while outputs above it come in, and take a picture."""
    for _ in range(4):
        locator.evaluate("element => element.scrollIntoView({block: 'center'})")
        page.wait_for_timeout(400)
    page.screenshot(path=SHOTS / f"{name}.png")


def check_player_in_lab(page):
    """The slider moves the film, and its keys do not move the notebook's cursor."""
    player = page.locator(".stn-film").first
    player.scroll_into_view_if_needed()
    before = shot(player.locator(".pictures"))
    player.get_by_role("slider").focus()
    active = page.locator(".jp-Cell.jp-mod-active").inner_text()
    page.keyboard.press("Home")
    playwright.expect(player.get_by_text(f"epoch 0 of {EPOCHS}")).to_be_visible()
    assert shot(player.locator(".pictures")) != before
    page.keyboard.press("ArrowUp")
    playwright.expect(player.get_by_text(f"epoch 1 of {EPOCHS}")).to_be_visible()
    after = page.locator(".jp-Cell.jp-mod-active").inner_text()
    assert after.splitlines()[0] == active.splitlines()[0]
    look(page, player, "film-epoch-1")


def test_all_cells_run_in_jupyterlab_without_an_error(executed):
    notebook = nbformat.read(executed, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds and kinds.count("display_data") + kinds.count("execute_result") > 5
    assert "widgets" not in notebook.metadata


def test_live_training_keeps_one_picture_drawn_in_place(executed):
    cells = nbformat.read(executed, as_version=4).cells
    cell = next(cell for cell in cells if "Live(" in cell.source)
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and f"epoch {EPOCHS}" in pictures[0].data["text/plain"]


def test_exported_page_has_a_player_that_moves_without_a_kernel(browser, executed, tmp_path):
    page_path = tmp_path / "page.html"
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output", str(page_path),
               str(executed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with opened(browser, page_path.as_uri()) as page:
        player = page.locator(".stn-film").first
        look(page, player, "page-film-end")
        before = shot(player.locator(".pictures"))
        player.get_by_role("slider").fill("0")
        playwright.expect(player.get_by_text(f"epoch 0 of {EPOCHS}")).to_be_visible()
        assert shot(player.locator(".pictures")) != before
        look(page, player, "page-film-start")


def test_a_notebook_not_trusted_shows_the_last_frame(browser, lab, executed):
    address, folder = lab
    notebook = nbformat.read(executed, as_version=4)
    # so its signature is not this server's
    notebook.cells[0].source += "\n\nChanged by somebody else."
    nbformat.write(notebook, folder / "notebooks" / "other.ipynb")
    with opened(browser, f"{address}/lab/tree/notebooks/other.ipynb") as page:
        page.get_by_role("paragraph").filter(has_text="Changed by somebody else.").wait_for()
        page.get_by_role("heading", name="over the epochs").first.scroll_into_view_if_needed()
        picture = page.locator(".stn-film img, .jp-RenderedHTML img[alt*='epoch']").first
        look(page, picture, "not-trusted")
        assert picture.bounding_box()["width"] > 600
        assert page.get_by_role("slider", name="epoch").count() == 0
