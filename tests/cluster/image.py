#!/usr/bin/env python3
"""Makes a container image of a few files, without a builder, a base image or root.

    image.py NAME:TAG ENTRYPOINT OUT.tar FILE=PATH-IN-IMAGE…

The archive is what `docker save` writes, which `ctr images import` and `docker load` read. Dates and
owners are fixed: the same files make the same bytes.
"""

import hashlib
import io
import json
import os
import sys
import tarfile


def entry(name: str, size: int, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = size, mode, kind
    return info


def layer(files: list[tuple[str, str]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        folders: set[str] = set()
        for source, target in files:
            target = target.lstrip("/")
            parents = target.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                folder = "/".join(parents[:depth])
                if folder not in folders:
                    folders.add(folder)
                    tar.addfile(entry(folder, 0, 0o755, tarfile.DIRTYPE))
            with open(source, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                mode = 0o755 if os.access(source, os.X_OK) else 0o644
                tar.addfile(entry(target, size, mode), file)
        # Programs expect to be able to write here.
        tar.addfile(entry("tmp", 0, 0o1777, tarfile.DIRTYPE))
    return out.getvalue()


def main() -> None:
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    tag, entrypoint, out = sys.argv[1:4]
    files = [tuple(pair.split("=", 1)) for pair in sys.argv[4:]]
    content = layer(files)
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": [entrypoint], "Env": ["PATH=/usr/local/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(content).hexdigest()]},
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
    fresh = out + ".new"
    with tarfile.open(fresh, "w") as tar:
        for name, data in [("layer.tar", content), (config_name, config), ("manifest.json", manifest)]:
            tar.addfile(entry(name, len(data), 0o644), io.BytesIO(data))
    os.replace(fresh, out)


if __name__ == "__main__":
    main()
