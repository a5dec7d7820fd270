"""`keylime_userdata_encrypt FILE`: writes an encrypted payload and its split key into the current directory."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from limeguard.authoring.files import OWN_FILE, FilesError, open_folder
from limeguard.authoring.userdata import encrypt_userdata

KEY_FILE = "content_keys.txt"
PAYLOAD_FILE = "content_payload.txt"
USAGE_ERROR = 255


def main(
    argv: Sequence[str] | None = None,
    *,
    folder: Path | None = None,
    randomness: Callable[[int], bytes] = os.urandom,
) -> int:
    """Run the program and return its exit status; files go to `folder`, by default the current one."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        return _usage()
    path = Path(argv[0])
    try:
        plaintext = path.read_bytes()
    except FileNotFoundError:
        sys.stdout.write(f"ERROR: File {path} not found.\n")
        return _usage()
    except OSError as problem:
        sys.stdout.write(f"ERROR: File {path} cannot be read: {problem.strerror}\n")
        return _usage()
    made = encrypt_userdata(plaintext, randomness)
    try:
        with open_folder(folder or Path.cwd(), create=False, shared=True) as target:
            sys.stdout.write(f"Writing keys to {KEY_FILE}\n")
            target.write(KEY_FILE, made.key_file.encode(), OWN_FILE)
            sys.stdout.write(f"Writing encrypted data to {PAYLOAD_FILE}\n")
            target.write(PAYLOAD_FILE, made.payload_file.encode(), OWN_FILE)
    except (FilesError, OSError) as problem:
        sys.stdout.write(f"ERROR: {problem}\n")
        return 1
    return 0


def _usage() -> int:
    sys.stdout.write("Please pass in a file input file to encrypt\n")
    return USAGE_ERROR
