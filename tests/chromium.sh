#!/bin/sh
# Prints the path of a Chromium that starts: the one installed, else one from apt (as root), else Playwright's.
# The argument is the Python that has Playwright.
python=$1
found() {
  for browser in "$CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable \
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
    "$("$python" -c 'from playwright.sync_api import sync_playwright as s
with s() as p: print(p.chromium.executable_path)' 2>/dev/null)"; do
    if [ -n "$browser" ] && "$browser" --version >/dev/null 2>&1; then
      command -v "$browser"
      return 0
    fi
  done
  return 1
}

found && exit
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Chromium with apt" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
    >/dev/null 2>&1
  found && exit
fi
echo "Installing Chromium with Playwright" >&2
"$python" -m playwright install chromium >/dev/null 2>&1
found && exit
echo "No Chromium. Install one (Debian: apt install chromium), or name one: CHROMIUM=/path/to/chrome make test" >&2
exit 1
