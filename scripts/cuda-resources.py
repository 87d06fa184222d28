"""Registers, spills and shared memory of every CUDA kernel, from what the assembler said when it was compiled.

cuda-resources.py check LOG...   fails when a kernel spills registers that may not
cuda-resources.py write LOG...   writes the table into docs/cuda-performance.md
"""

import pathlib
import re
import sys

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "cuda-performance.md"
BEGIN, END = "<!-- resources: begin -->", "<!-- resources: end -->"
# Kernels that run once, at load, and may spill: name and reason.
MAY_SPILL: dict[str, str] = {}


def read(logs):
    """{kernel: {arch: (registers, spilled bytes, shared bytes)}}"""
    found = {}
    for log in logs:
        kernel = arch = None
        spilled = 0
        for line in pathlib.Path(log).read_text().splitlines():
            if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
                kernel, arch = match.groups()
                spilled = 0
            elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                spilled = max(int(match[1]), int(match[2]))
            elif kernel and (match := re.search(r"Used (\d+) registers", line)):
                shared = re.search(r"(\d+) bytes smem", line)
                found.setdefault(kernel, {})[arch] = (int(match[1]), spilled, int(shared[1]) if shared else 0)
    return found


def table(found):
    archs = sorted({arch for kernel in found.values() for arch in kernel}, key=lambda a: int(re.match(r"\d+", a)[0]))
    lines = ["| kernel | " + " | ".join(f"sm_{arch}" for arch in archs) + " | static shared |", "|---|" + "---:|" * (len(archs) + 1)]
    for kernel in sorted(found):
        cells = []
        for arch in archs:
            registers, spilled, _ = found[kernel].get(arch, (0, 0, 0))
            cells.append(f"{registers}, {spilled} B spilled" if spilled else str(registers))
        shared = max(row[2] for row in found[kernel].values())
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + f" | {shared} B |")
    return "\n".join(lines)


def main():
    command, logs = sys.argv[1], sys.argv[2:]
    found = read(logs)
    if not found:
        sys.exit("no log of the assembler: the kernels were not compiled")
    if command == "write":
        text = DOCUMENT.read_text()
        start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        DOCUMENT.write_text(text[:start] + "\n" + table(found) + "\n" + text[end:])
        print(f"{len(found)} kernels written to {DOCUMENT}")
        return
    spilling = [
        f"{kernel} for sm_{arch}: {row[1]} bytes"
        for kernel, archs in sorted(found.items())
        for arch, row in archs.items()
        if row[1] and not any(kernel.startswith(name) for name in MAY_SPILL)
    ]
    if spilling:
        sys.exit("kernels that spill registers:\n  " + "\n  ".join(spilling))
    archs = sorted({arch for kernel in found.values() for arch in kernel})
    print(f"{len(found)} kernels for sm_{', sm_'.join(archs)}: no register is spilled")


main()
