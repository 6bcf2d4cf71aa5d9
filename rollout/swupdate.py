"""A build as an image of SWUpdate (`.swu`), which hawkBit's and goosebit's devices install.

An image is a cpio archive with checksums: `sw-description` first, which names the other files with their digests; then
our archive, and a script that SWUpdate runs once the archive is in its place (sbabic.github.io/swupdate).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from rollout.bundle import Bundle

MAGIC = b"070702"
"""Of cpio's format `crc`."""

FIELDS = 13
HEADER_BYTES = len(MAGIC) + FIELDS * 8
ALIGNMENT = 4

FILE_MODE = 0o100644
END = "TRAILER!!!"

REVISION = "1"
"""Hardware revision that an image asks for: the board is the device class, and has one."""

ARCHIVE, SCRIPT = "fleetc-build.tar", "fleetc-install.sh"
PLACE = f"/var/lib/fleetc/{ARCHIVE}"


def swupdate_image(bundle: Bundle) -> bytes:
    """The image; a device whose board is another one refuses it."""
    return cpio(image_files(bundle))


def image_files(bundle: Bundle) -> dict[str, bytes]:
    """The files of an image, in their order. A signature, where a device asks for one, goes behind the first."""
    files = {ARCHIVE: bundle.archive, SCRIPT: _script(bundle.archive)}
    return {"sw-description": _description(bundle, files), **files}


def _description(bundle: Bundle, files: Mapping[str, bytes]) -> bytes:
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    # the letter: a number with leading zeros would be no version
    version = f"0.0.0-b{bundle.manifest_sha256[:16]}"
    return f"""software = {{
  version = "{version}";
  description = "fleetc {bundle.manifest_sha256} {bundle.precision}";
  {bundle.device_class} = {{
    hardware-compatibility = [ "{REVISION}" ];
    files = ( {{
      filename = "{ARCHIVE}";
      path = "{PLACE}";
      sha256 = "{digests[ARCHIVE]}";
      properties = {{ create-destination = "true"; }};
    }} );
    scripts = ( {{
      filename = "{SCRIPT}";
      type = "postinstall";
      sha256 = "{digests[SCRIPT]}";
    }} );
  }};
}};
""".encode()


def _script(archive: bytes) -> bytes:
    """Installs the archive as a board without Python does: verified, run, and switched to in one step."""
    digest = hashlib.sha256(archive).hexdigest()
    lines = [
        "#!/bin/sh",
        "set -eu",
        "folder=${FLEETC_FOLDER:-/var/lib/fleetc} archive=${FLEETC_ARCHIVE:-" + PLACE + "}",
        'mkdir -p "$folder"',
        'tar -xOf "$archive" install.sh >"$folder/install.sh"',
        f'sh "$folder/install.sh" "$archive" "$folder" {digest}',
        'rm -f "$archive"',
    ]
    return "\n".join([*lines, ""]).encode()


def cpio(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive (format `crc`) of plain files, in their order; the same files give the same bytes."""
    entries = [*((number, name, raw) for number, (name, raw) in enumerate(files.items(), start=1)), (0, END, b"")]
    return b"".join(part for entry in entries for part in _entry(*entry))


def _entry(number: int, name: str, raw: bytes) -> Iterator[bytes]:
    mode, checksum = (FILE_MODE if number else 0), sum(raw) & 0xFFFFFFFF
    named = name.encode() + b"\0"
    # inode, mode, user, group, links, time, size, four numbers of devices, length of the name, checksum
    fields = [number, mode, 0, 0, 1, 0, len(raw), 0, 0, 0, 0, len(named), checksum]
    yield MAGIC + b"".join(b"%08X" % field for field in fields)
    yield named + bytes(-(HEADER_BYTES + len(named)) % ALIGNMENT)
    yield raw + bytes(-len(raw) % ALIGNMENT)
