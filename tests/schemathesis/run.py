"""Runs schemathesis against a server made for it, as administrator, member and nobody, and ends with one table.

Usage: run.py MILLGATE. Environment: MAX_EXAMPLES, random requests an operation (10); RUNS=quick for boundaries alone, as
administrator and as nobody. The exit status is 0 only without findings.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
ADMIN_KEY = "bootstrap-secret-only-for-schemathesis"
START_SECONDS = 120
# These end the very keys that the run is made with: they come last.
ENDS_KEYS = ["bulk_revoke", "bulk_revoke_any"]


class Server:
    """A server with an empty data folder, stopped at the end."""

    def __init__(self, binary, folder):
        self.log = open(folder / "server.log", "w+", encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MILLGATE_", "HF_"))}
        # No model is fetched from anywhere: the hub is this machine's closed port.
        environment |= {"MILLGATE_ADMIN_KEY": ADMIN_KEY, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder)}
        command = [binary, "serve", "--config", HERE / "server.toml", "--data-dir", folder / "data"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment, cwd=folder)
        try:
            self.url = self.wait_for_address()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def text(self):
        return pathlib.Path(self.log.name).read_text(encoding="utf-8", errors="replace")

    def wait_for_address(self):
        for _ in self.patience():
            for word in self.text().split():
                if word.startswith("http://127.0.0.1:"):
                    return word.rstrip("/,.")
        sys.exit(f"the server did not say where it listens:\n{self.text()}")

    def wait_until_ready(self):
        for _ in self.patience():
            try:
                return self.ask("GET", "/readyz")
            except urllib.error.HTTPError:
                pass
        sys.exit(f"the server was not ready after {START_SECONDS} seconds:\n{self.text()}")

    def patience(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            yield
            time.sleep(0.05)

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as reply:
            return json.loads(reply.read())

    def key_of(self, user, groups):
        self.ask("POST", "/admin/v1/users", {"name": user, "groups": groups})
        return self.ask("POST", "/admin/v1/api-keys", {"user": user, "name": "schemathesis"})["key"]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# One run for each: who asks, which phases, and what is picked. Nobody has no credential.
EVERYTHING_BUT = [f"--exclude-operation-id={operation}" for operation in ENDS_KEYS]
ONLY = [f"--include-operation-id={operation}" for operation in ENDS_KEYS]
BOUNDARIES = "examples,coverage"
RUNS = [
    ("administrator", BOUNDARIES, EVERYTHING_BUT),
    ("administrator", "fuzzing", EVERYTHING_BUT),
    ("member", BOUNDARIES, EVERYTHING_BUT),
    ("member", "fuzzing", EVERYTHING_BUT),
    ("nobody", BOUNDARIES, []),
    ("nobody", "fuzzing", []),
    ("member", BOUNDARIES, ONLY),
    ("administrator", BOUNDARIES, ONLY),
]


QUICK = [("administrator", BOUNDARIES, EVERYTHING_BUT), ("nobody", BOUNDARIES, [])]


def run(server, folder, key, phases, selection):
    """One run of schemathesis: its report."""
    report = folder / "report.json"
    command = [HERE / ".venv/bin/schemathesis", "--config-file", HERE / "schemathesis.toml", "--no-color", "run"]
    command += [f"{server.url}/openapi.json", "--phases", phases, "--exclude-path-regex", "^/docs", *selection]
    command += ["--max-examples", os.environ.get("MAX_EXAMPLES", "10"), "--report-json-path", report]
    if phases == "fuzzing":
        # Random values that keep to the document may still contradict each other; at the boundaries hooks.py sees to it.
        command += ["--exclude-checks", "positive_data_acceptance"]
    if key is not None:
        command += ["--header", f"Authorization: Bearer {key}"]
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    result = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {"operations": None}
    if result["operations"] is None:
        sys.exit(f"schemathesis did not run:\n{done.stdout}\n{done.stderr}")
    report.unlink()
    if findings(result):
        print(done.stdout)
    return result


def findings(report):
    return report["test_cases"]["unique_failures"] + report["test_cases"]["errored"] + len(report["errors"])


def main(binary):
    with tempfile.TemporaryDirectory(prefix="millgate-schemathesis-") as folder:
        folder = pathlib.Path(folder)
        server = Server(binary, folder)
        try:
            keys = {"administrator": ADMIN_KEY, "member": server.key_of("schemathesis", ["schemathesis"]), "nobody": None}
            lines = []
            for actor, phases, selection in QUICK if os.environ.get("RUNS") == "quick" else RUNS:
                report = run(server, folder, keys[actor], phases, selection)
                lines.append((actor, phases, report))
                if server.process.poll() is not None:
                    sys.exit(f"the server died:\n{server.text()[-5000:]}")
        finally:
            server.stop()
    print(f"{'who':<14} {'phases':<18} {'operations':>10} {'requests':>8} {'seconds':>7} {'findings':>8}")
    for actor, phases, report in lines:
        tested, cases = report["operations"]["tested"], report["test_cases"]["generated"]
        print(f"{actor:<14} {phases:<18} {tested:>10} {cases:>8} {report['running_time']:>7.1f} {findings(report):>8}")
    total = sum(findings(report) for _, _, report in lines)
    unfinished = sum(not report["complete"] for _, _, report in lines)
    print(f"{total} findings" + (f", {unfinished} runs did not come to their end" if unfinished else ""))
    return 1 if total or unfinished else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: run.py MILLGATE")
    sys.exit(main(pathlib.Path(sys.argv[1]).resolve()))
