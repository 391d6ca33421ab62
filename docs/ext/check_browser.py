"""Opens every page of a built site in headless Chromium, if it is installed, as wide as a phone, tablet and desktop.

Reports errors of scripts, pictures that do not load, pages that scroll sideways, formulas that are not rendered, and a
search that does not find an operator.

    python docs/ext/check_browser.py docs/_build/html
"""

import functools
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WIDTHS = (390, 820, 1440)
SEARCHED = "cheb"
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
# Put into the head of every page: collects the errors of its scripts.
RECORD = '<script>window.errors = []; addEventListener("error", e => e.message && errors.push(e.message));</script>'
# One frame shows the pages in turn. The answer is the text of <pre>, as JSON; `--dump-dom` prints it.
FRAME = """<!doctype html><iframe id=frame height=900></iframe><pre id=answer></pre><script>
const frame = document.getElementById("frame"), found = [], say = text => found.push(text);
const pause = ms => new Promise(done => setTimeout(done, ms));
async function open(url, width) {
  frame.width = width;
  await new Promise(done => { frame.onload = done; frame.src = url; });
  return frame.contentDocument;
}
(async () => {
  for (const width of WIDTHS) for (const page of PAGES) {
    const name = `${page} at ${width} pixels: `;
    const site = await open(page, width);
    await pause(20);
    frame.contentWindow.errors.forEach(error => say(name + error));
    const root = site.documentElement;
    if (root.scrollWidth > width + 1) say(`${name}scrolls sideways, ${root.scrollWidth} pixels are used`);
    for (const image of site.images)
      if (image.complete && !image.naturalWidth) say(`${name}${image.getAttribute("src")} does not load`);
    if (site.querySelector(".MathJax_Error, mjx-merror, .katex-error")) say(`${name}a formula is not rendered`);
  }
  const site = await open("search.html?q=" + SEARCHED, 1440);
  let hits = [];
  for (let wait = 0; wait < 100 && !hits.length; wait++) {
    await pause(100);
    hits = [...site.querySelectorAll("#search-results a")].map(a => a.getAttribute("href"));
  }
  if (!hits.some(href => href.includes("operators/" + SEARCHED)))
    say(`the search for ${SEARCHED} finds ${hits.length} pages, but not its own`);
  document.getElementById("answer").textContent = JSON.stringify(found);
})();
</script>"""


def wrong(site: Path, browser: str, limit: float = 600.0) -> list[str]:
    """The mistakes that the browser finds, one message each. Raises: RuntimeError if it gives no answer."""
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "_static" not in path.parts)
    frame = FRAME.replace("WIDTHS", json.dumps(WIDTHS)).replace("PAGES", json.dumps(pages))
    frame = frame.replace("SEARCHED", json.dumps(SEARCHED))

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            """Serve the frame, a page that records its errors, or another file of the site."""
            name = self.path.partition("?")[0].lstrip("/")
            if name == "__frame":
                text = frame
            elif name in (*pages, "search.html"):
                head, begin, rest = (site / name).read_text(encoding="utf-8").partition("<head>")
                text = head + begin + RECORD + rest if begin else RECORD + head
            else:
                return super().do_GET()
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *ignored: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/__frame"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            budget = f"--virtual-time-budget={int(1000 * limit)}"
            command = [browser, *OPTIONS, f"--user-data-dir={profile}", budget, "--dump-dom", url]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{browser} did not finish within {limit:g} seconds") from None
            finally:
                server.shutdown()
    answer = re.search(r'<pre id="answer">(.+?)</pre>', done.stdout, re.DOTALL)
    if answer is None:
        raise RuntimeError(f"{browser} gave no answer: {done.stderr.strip()[-300:]}")
    found: list[str] = json.loads(html.unescape(answer[1]))
    return found


if __name__ == "__main__":
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        print("Chromium is not installed: the pages were not opened in a browser")
        sys.exit()
    mistakes = wrong(Path(sys.argv[1]), found)
    print("\n".join(mistakes) or "every page was opened in a browser: no mistakes")
    sys.exit(bool(mistakes))
