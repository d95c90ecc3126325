#!/usr/bin/env python3
"""Uses a shell in shellinabox as a person in the browser does, and prints what the terminal shows.

    shellinabox_client.py http://127.0.0.1:4200/ 'ls /' whoami

Waits for the server, opens a session, types each command when the prompt is there, and leaves with
`exit`. Status 1, and the reason on standard error, if the prompt or the end does not come in time.

The protocol, as seen from shellinabox 2.21: each request is a form, POSTed to the service's
address. One without `session` opens a session and answers with its name. One with `keys`, in
hexadecimal, types. One without is held back until there is output, and answers with that; status
400 says that the session has ended.
"""

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# Colours, cursor movements and modes; the window's title; the choice of a character set.
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()].|[=>78])")


class Terminal:
    def __init__(self, url, seconds):
        self.url, self.deadline = url, time.monotonic() + seconds
        # Not through a proxy that the environment may name: the address is this machine's own.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.raw, self.form = "", {"width": 200, "height": 50}
        while True:
            try:
                answer = self._post(rooturl=url)
                break
            except urllib.error.URLError as error:  # the server is not up yet
                if not isinstance(error.reason, ConnectionRefusedError):
                    raise
                time.sleep(0.02)
        self.form["session"] = json.loads(answer)["session"]

    def _post(self, **more):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        body = urllib.parse.urlencode({**self.form, **more}).encode()
        with self.opener.open(self.url + "?", body, timeout=left) as answer:
            return answer.read()

    def type(self, line):
        self._post(keys=(line + "\r").encode().hex())

    def read_until(self, pattern):
        """Reads until what comes from now on matches; without a pattern, to the session's end."""
        start = len(self.raw)
        while not (pattern and re.search(pattern, visible(self.raw[start:]))):
            try:
                self.raw += json.loads(self._post())["data"]
            except urllib.error.HTTPError as error:
                if error.code != 400:
                    raise
                if pattern:
                    raise EOFError("the session ended before a prompt came") from None
                return


def visible(raw):
    return ESCAPES.sub("", raw).replace("\r", "").replace("\x07", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("command", nargs="*")
    parser.add_argument("--prompt", default=r"[$#] \Z", help="a regular expression (%(default)s)")
    parser.add_argument("--timeout", type=float, default=20, help="seconds in all (%(default)s)")
    wanted = parser.parse_args()

    terminal, problem = None, None
    try:
        terminal = Terminal(wanted.url, wanted.timeout)
        for line in [*wanted.command, "exit"]:
            terminal.read_until(wanted.prompt)
            terminal.type(line)
        terminal.read_until(None)
    except (OSError, EOFError, ValueError, KeyError) as error:
        problem = error
    if terminal:
        print(visible(terminal.raw).rstrip("\n"))
    if problem:
        sys.exit(f"shellinabox_client: {problem!r}")


main()
