"""The audit's page in a browser: on a phone, on paper, and without a network."""

import html
import itertools
import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from captum_density.audit import AuditReport, Control, Measured
from tests.audit.reports import LONG, pictures, texts

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on PATH")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-default-apps --hide-scrollbars"
).split()


def browse(folder, *arguments):
    """What the browser prints."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=True, text=True).stdout


CONTROLS = tuple(
    Control(name, -0.123, 0.0123, -0.0234, 0.0345)
    for name in (
        "a constant map",
        "a blob in the centre",
        "an edge detector",
        "the input itself",
        "another example's map",
        "a random map of its spectrum",
        "its map at random weights",
    )
)


def figures(scale=1.0):
    return {
        "completeness_gap": Measured(0.00123 * scale, 0.000456),
        "infidelity": Measured(12.3 * scale, 4.56, reference=78.9),
        "sensitivity_max": Measured(0.123 * scale, 0.0456),
        "shift_sensitivity": Measured(0.0123 * scale, 0.00456),
        "pixel_perturbation": Measured(-0.123 * scale, 0.456, low=-0.234, high=-0.0123, controls=CONTROLS),
        "randomisation": Measured(0.123, 0.4, low=-0.0123, high=0.234, note="last layer 0.98, upper half 0.12"),
        "class_likeness": Measured(-0.123, 0.4, low=-0.234, high=-0.0123),
        "diff_roar": Measured(0.123 * scale, 0.0456, low=0.0123, high=0.0234),
        "seconds": Measured(0.00123 * scale, 0.000456),
    }


def report_of(names, images=True):
    methods = {name: figures(1 + i / 3) for i, name in enumerate(names)}
    note = "AssertionError: " + "module_with_a_long_dotted_path." * 8 + "Class is <not> a torch.nn.Module"
    methods["broken"] = {name: Measured(None, note=note, failed=True) for name in figures()}
    methods["partly"] = figures() | {"seconds": Measured(None, note=note, failed=True)}
    model = {
        "accuracy": Measured(0.123, 0.4, low=0.0123, high=0.234),
        "density_ratio": Measured(-12.34, 5.6, low=-23.4, high=-1.23),
        "gradient_norm": Measured(123456.7, 8.9, low=-123456.7, high=234567.8),
        "hessian_trace": Measured(None, note=note, failed=True),
    }
    words = ("the", "Donaudampfschifffahrtsgesellschaftskapitaensmuetze" * 3, *("plot" for _ in range(60)))
    maps = texts([words] * 2, {name: [[0.9, -0.4, *(0.3 for _ in range(60))]] * 2 for name in names})
    if images:
        torch.manual_seed(0)
        maps = pictures(names, images=3)
    settings = {
        "model": "a_package_with_a_long_name.and_a_submodule.of_models:build_the_classifier_of_the_second_experiment",
        **{"examples": 12, "shape": [1, 8, 8], "classes": 10, "seed": 0, "device": "cpu", "torch": "2.0"},
        **{"noise_std": 0.1, "perturb_radius": 0.02},
    }
    return AuditReport(methods, model, settings, ("a/" + "long" * 40 + ".png (OSError: truncated)",), maps)


PAGES = {
    "one method": lambda: report_of(["Saliency"]),
    "many methods": lambda: report_of([LONG, "NoSpaces" * 10, *(f"method {i}" for i in range(10))]),
    "no images": lambda: report_of(["Saliency", "FullGrad, complete"], images=False),
}


# A4 and Letter are 794 and 816 pixels wide; Chromium's margins take 38 on either side.
SCREENS, PAPERS = (320, 500, 768, 1200), (794 - 76, 816 - 76)


# Runs beside the page, not in it, as the page allows no scripts: what leaves the window, and what can be scrolled.
MEASURE = """
<script>
addEventListener("load", () => {
  const windows = [...document.querySelectorAll("iframe")].map(frame => {
    const root = frame.contentDocument.documentElement, width = root.clientWidth;
    const leaving = [...root.querySelectorAll("body *")].filter(each => {
      const box = each.getBoundingClientRect();
      const held = each.parentElement.closest(".scroll");
      const scrolls = held && frame.contentWindow.getComputedStyle(held).overflowX == "auto";
      return box.width && !scrolls && (box.right > width + 1 || box.left < -1) && !each.closest("thead");
    });
    const images = [...root.querySelectorAll("img")];
    const texts = [...root.querySelectorAll("td, th, li, dd, p")].filter(each => !each.closest("thead"));
    return {
      width, scrollWidth: root.scrollWidth, leaving: leaving.map(each => each.outerHTML.slice(0, 150)),
      broken: images.filter(each => !each.complete || !each.naturalWidth).length, images: images.length,
      stretched: images.filter(each => each.width * each.naturalHeight > 1.02 * each.height * each.naturalWidth ||
                                       1.02 * each.width * each.naturalHeight < each.height * each.naturalWidth).length,
      enlarged: images.filter(each => each.width > each.naturalWidth / 2 + 1).length,
      smallest: Math.min(...texts.map(each => parseFloat(frame.contentWindow.getComputedStyle(each).fontSize))),
      heads: root.querySelectorAll("thead th").length,
    };
  });
  document.body.textContent = JSON.stringify(windows);
});
</script>
"""


def measured(folder, windows):
    """What `MEASURE` finds of pages in windows of some widths, each a pair."""
    frames = [
        f'<iframe srcdoc="{html.escape(page)}" style="width: {width}px; height: 800px; border: 0"></iframe>'
        for page, width in windows
    ]
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html><html><body>{''.join(frames)}{MEASURE}</body></html>", encoding="utf-8")
    dom = browse(folder, "--dump-dom", wrapper.as_uri())
    return json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, flags=re.S).group(1)))


WIDE = (
    '<!DOCTYPE html><html><body><div style="width: 900px">wide</div><img src="data:image/png;base64,AA"></body></html>'
)


@pytest.fixture(scope="module")
def pages():
    return {name: make().to_html() for name, make in PAGES.items()}


@pytest.fixture(scope="module")
def windows(pages, tmp_path_factory):
    """What each page measures on screens and on papers; in one browser, as its start takes longest."""
    on_paper = {name: page.replace("@media print", "@media all") for name, page in pages.items()}
    assert all(on_paper[name] != page for name, page in pages.items())
    pairs = [(page, width) for page in pages.values() for width in SCREENS]
    pairs += [(page, width) for page in on_paper.values() for width in PAPERS]
    pairs += [(WIDE, 375), (WIDE, 1000)]
    results = iter(measured(tmp_path_factory.mktemp("windows"), pairs))
    screens = {name: list(itertools.islice(results, len(SCREENS))) for name in pages}
    papers = {name: list(itertools.islice(results, len(PAPERS))) for name in pages}
    return screens, papers, list(results)


@pytest.mark.parametrize("name", PAGES)
def test_it_fits_a_window_of_any_width(name, pages, windows):
    screens = windows[0][name]
    assert [each["width"] for each in screens] == list(SCREENS)
    for each in screens:
        assert each["scrollWidth"] == each["width"] and each["leaving"] == [], each
        assert each["broken"] == each["stretched"] == each["enlarged"] == 0
        assert each["images"] == pages[name].count("<img")
        assert each["smallest"] >= 14


def test_the_measurement_finds_what_leaves_the_window(windows):
    narrow, wider = windows[2]
    assert narrow["scrollWidth"] > narrow["width"] and len(narrow["leaving"]) == 1
    assert wider["scrollWidth"] == wider["width"] and wider["leaving"] == []
    assert narrow["broken"] == 1


@pytest.mark.parametrize("name", PAGES)
def test_paper_cuts_nothing(name, windows):
    papers = windows[1][name]
    assert [each["width"] for each in papers] == list(PAPERS)
    for each in papers:
        assert each["scrollWidth"] == each["width"] and each["leaving"] == [], each
        assert each["smallest"] >= 9.3  # 7 points


@pytest.mark.parametrize("name", [pytest.param("many methods", marks=pytest.mark.slow), "no images"])
def test_it_is_printed_with_its_images(name, pages, tmp_path):
    source = tmp_path / "report.html"
    source.write_text(pages[name], encoding="utf-8")
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}", source.as_uri())
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    assert len(re.findall(rb"/Subtype\s*/Image\b", pdf)) >= pages[name].count("<img")


class _Listening(BaseHTTPRequestHandler):
    """A proxy that answers for hosts with a page each, and for any other with nothing."""

    def do_GET(self):
        self.server.requests.append(self.path)
        body = self.server.pages.get(self.path, "").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self):
        self.server.requests.append(self.path)
        self.send_error(502)

    def log_message(self, *arguments):
        pass


def requests_of(pages, folder):
    """What a browser asks the network for when it opens pages, by their URLs, in frames; its own affairs apart."""
    start = "http://start.test/"
    frames = "".join(f'<iframe src="{url}"></iframe>' for url in pages)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Listening)
    server.pages, server.requests = {start: f"<!DOCTYPE html><html><body>{frames}</body></html>", **pages}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        proxy = f"--proxy-server=http://127.0.0.1:{server.server_port}"
        browse(folder, proxy, "--proxy-bypass-list=<-loopback>", "--dump-dom", start)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    requests = {path for path in server.requests if ".test/" in path and not path.endswith("favicon.ico")}
    assert {start, *pages} <= requests, "a page was not opened"
    return requests - {start, *pages}


def test_nothing_is_asked_of_the_network(tmp_path):
    page = PAGES["one method"]().to_html()

    def slipped(host):
        url = f"http://{host}.test/x"
        strange = f'<img src="{url}.png"><script src="{url}.js"></script>'
        strange += f'<link rel="stylesheet" href="{url}.css"><iframe src="{url}.html"></iframe>'
        return page.replace("<main>", f"<main>{strange}")

    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", slipped("open"))
    pages = {
        "http://report.test/page.html": page,
        # Nor would it be if something had slipped through: the page's policy forbids it.
        "http://slipped.test/page.html": slipped("forbidden"),
        "http://open.test/page.html": without_policy,
    }
    assert requests_of(pages, tmp_path) == {f"http://open.test/x.{kind}" for kind in ("png", "js", "css", "html")}
