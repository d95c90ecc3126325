#!/usr/bin/env python3
"""Makes docker-seccomp.json from docker-seccomp.rules beside it, which says what the rules mean.

Needs the kernel's headers (Debian's linux-libc-dev) for the names of system calls. Only for a
change of the rules: the result is kept, so that tests don't depend on the headers.
"""

import errno
import json
import re
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")
OPERATORS = {"=": "EQ", "<": "LT", ">": "GT", "&": "MASKED_EQ"}  # & VALUE: none of these bits


def rule(names, action="SCMP_ACT_ALLOW", **rest):
    return {"names": sorted(names), "action": action, **rest}


def without(capability):
    return {"excludes": {"caps": [capability]}} if capability else {}


allowed = set()
for header in ("unistd_64.h", "unistd_32.h", "unistd_x32.h"):
    allowed |= set(re.findall(r"#define __NR_(\w+)", (HEADERS / header).read_text()))

special, by_capability = [], {}
for line in (HERE / "docker-seccomp.rules").read_text().splitlines():
    line, _, capability = line.partition("#")[0].strip().partition(" unless ")
    if not line:
        continue
    if match := re.fullmatch(r"with (\w+): (.+)", line):
        names = set(match[2].split())
        by_capability.setdefault(match[1], set()).update(names)
        allowed -= names
    elif match := re.fullmatch(r"when (\w+): argument (\d) (.) (\w+)", line):
        number = int(match[4], 0)
        argument = {"index": int(match[2]), "value": number, "op": "SCMP_CMP_" + OPERATORS[match[3]]}
        special.append(rule([match[1]], args=[argument], **without(capability)))
        allowed.discard(match[1])
    elif match := re.fullmatch(r"refuse (.+) = (\w+)", line):
        number = getattr(errno, match[2])
        special.append(
            rule(match[1].split(), "SCMP_ACT_ERRNO", errnoRet=number, **without(capability))
        )
    elif match := re.fullmatch(r"refuse (.+)", line):
        allowed -= set(match[1].split())
    elif match := re.fullmatch(r"also (.+)", line):
        allowed |= set(match[1].split())
    else:
        raise SystemExit(f"docker-seccomp.rules: cannot read: {line}")

profile = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": errno.EPERM,
    "archMap": [
        {
            "architecture": "SCMP_ARCH_X86_64",
            "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        }
    ],
    "syscalls": [rule(allowed), *special]
    + [rule(names, includes={"caps": [cap]}) for cap, names in sorted(by_capability.items())],
}
(HERE / "docker-seccomp.json").write_text(json.dumps(profile, indent=1) + "\n")
