"""Reads cargo's messages, prints name and path of every test or bench program."""

import json
import sys

for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") != "compiler-artifact" or not message.get("executable"):
        continue
    kind = message["target"]["kind"][0]
    if message["profile"]["test"] or kind == "bench":
        folder, _, version = message["package_id"].rpartition("#")
        package = version.split("@")[0] if "@" in version else folder.rsplit("/", 1)[-1]
        print(f"{package}-{kind}-{message['target']['name']}", message["executable"])
