"""Look at every page of the built site in headless Chromium: ``python docs/check_widths.py build/site``.

At desktop and phone width, in the light and the dark theme, no page may be wider than its window; every
picture must load and every formula be set. Nothing but Chromium is needed, and no network.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]

LOOK = """
<!doctype html><meta charset="utf-8"><title>looking</title><body>
<script>
const pages = PAGES, found = [];
const frame = document.createElement("iframe");
frame.style.height = "900px";
frame.style.border = "0";

async function open(page) {
  await new Promise(loaded => { frame.onload = loaded; frame.src = "/" + page; });
  const view = frame.contentWindow;
  if (view.MathJax && view.MathJax.startup) await view.MathJax.startup.promise;
  return view.document;
}

async function look() {
  document.body.append(frame);
  for (const width of [1280, 390]) {
    frame.style.width = width + "px";
    for (const page of pages) {
      const at = await open(page), say = what => found.push(`${page} at ${width}: ${what}`);
      for (const image of at.images) {
        image.loading = "eager";
        await image.decode().catch(() => say("no picture " + image.src));
      }
      for (const formula of at.querySelectorAll(".math"))
        if (!formula.querySelector("mjx-container") || formula.querySelector("mjx-merror"))
          say("not set: " + formula.textContent);
      for (const theme of ["light", "dark"]) {
        at.body.dataset.theme = theme;
        const wide = at.documentElement.scrollWidth;
        if (wide > width) say(`${wide} wide, ${theme}`);
      }
    }
  }
}

look().catch(error => found.push(String(error))).then(
  () => fetch("/found", {method: "POST", body: JSON.stringify(found)}));
</script>
"""


def browser() -> str | None:
    """Return the first Chromium that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def look(site: Path, chromium: str, timeout: float = 300.0) -> list[str]:
    """Return what is wrong with the pages of ``site``, one sentence each.

    Raises:
        TimeoutError: Chromium has not looked at all of them in ``timeout`` seconds.
    """
    pages = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    found: list[str] = []
    done = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/look":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(LOOK.replace("PAGES", json.dumps(pages)).encode())

        def do_POST(self) -> None:
            found.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(site))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = [*QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0"]  # a port keeps it open
        address = f"http://127.0.0.1:{server.server_port}/look"
        with subprocess.Popen([chromium, *options, address], stderr=subprocess.DEVNULL) as process:
            in_time = done.wait(timeout)
            process.terminate()
        server.shutdown()
    if not in_time:
        raise TimeoutError(f"Chromium had not looked at {len(pages)} pages after {timeout:.0f} s")
    return found


def main() -> int:
    """Print what is wrong; 1 if anything is, 2 without Chromium."""
    chromium = browser()
    if chromium is None:
        print(f"none of {', '.join(BROWSERS)} is installed", file=sys.stderr)
        return 2
    found = look(Path(sys.argv[1]).resolve(), chromium)
    print("\n".join(found) or "every page fits")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
