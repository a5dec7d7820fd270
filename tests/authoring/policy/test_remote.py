"""Digests from repositories on a server: real HTTP on loopback, ways in which a server or a mirror may lie."""

import asyncio
import gzip
import hashlib
import http.server
import json
import lzma
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.authoring.policy.test_packages import REPOSITORIES, ar, data_tar
from tests.fakes.shared import shared_path

from limeguard.authoring.policy import deb_remote, rpm_remote
from limeguard.authoring.policy.build import Request, build
from limeguard.authoring.policy.collected import Digests, SourceError
from limeguard.authoring.policy.deb_remote import DebSource

pytestmark = pytest.mark.services

NOW = datetime(2026, 11, 1, tzinfo=UTC)
TOOL = hashlib.sha256(b"tool").hexdigest()


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; answers ranges from the start of a file, as the servers of repositories do."""

    ranges = True
    asked: list[tuple[str, str]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append((self.path, wanted))
        path = Path(self.translate_path(self.path))
        if not (self.ranges and wanted and path.is_file()):
            super().do_GET()
            return
        data = path.read_bytes()[: int(wanted.removeprefix("bytes=0-")) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server:
    """A folder on a port of this machine."""

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.asked: list[tuple[str, str]] = []
        kind = type("Kind", (Files,), {"asked": self.asked, "ranges": ranges})
        self._server = socketserver.ThreadingTCPServer(
            ("127.0.0.1", 0), lambda *arguments: kind(*arguments, directory=str(folder))
        )
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "served"
    path.mkdir()
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()


def rpm(url: str) -> Digests:
    return asyncio.run(rpm_remote.remote_repository(url, 4))


def copied(name: str, folder: Path) -> Path:
    source = shared_path("fixtures/upstream/rpm-repos") / name
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


def with_gpg() -> None:
    if shutil.which("gpgv") is None or shutil.which("gpg") is None:
        pytest.skip("needs gpg and gpgv")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", REPOSITORIES)
def test_repositories_of_the_reference_give_its_digests(folder: Path, name: str, *, ranges: bool) -> None:
    if name == "signed-rsa":
        with_gpg()
    expected = json.loads((shared_path("fixtures/upstream") / "expected.json").read_text())["rpm_repos"][name]
    copied(name, folder)
    server = Server(folder, ranges=ranges)
    try:
        # Keylime reads gzip only; what it finds in the same repository as a folder is what is in it.
        assert rpm(server.url) == (expected["remote"]["digests"] or expected["local"]["digests"])
    finally:
        server.stop()


def test_a_folder_may_be_named_as_a_url(folder: Path) -> None:
    assert rpm(copied("unsigned", folder).as_uri()) != {}


def test_only_the_header_of_a_package_is_asked_for(folder: Path, server: Server) -> None:
    copied("unsigned", folder)
    rpm(server.url)
    ranges = {path.rpartition("/")[2]: wanted for path, wanted in server.asked if path.endswith(".rpm")}
    assert ranges["DUMMY-bar-42.0.0-el42.noarch.rpm"] == "bytes=0-6224"


def test_a_header_of_unknown_length_is_fetched_in_growing_pieces(folder: Path, server: Server) -> None:
    copied("unsigned", folder)
    (primary,) = (folder / "repodata").glob("*primary.xml.gz")
    text = gzip.decompress(primary.read_bytes()).decode().replace("rpm:header-range", "rpm:other")
    repomd = folder / "repodata/repomd.xml"
    digest = hashlib.sha256(primary.read_bytes()).hexdigest()
    primary.write_bytes(text.encode())  # not packed either
    repomd.write_text(repomd.read_text().replace(f">{digest}<", f">{hashlib.sha256(text.encode()).hexdigest()}<"))
    assert set(rpm(server.url)) == {"/etc/dummy-foobar.conf", "/usr/bin/dummy-foobar"}


# trust: fail-closed
def test_metadata_that_is_not_what_repomd_announces_is_refused(folder: Path, server: Server) -> None:
    copied("unsigned", folder)
    (primary,) = (folder / "repodata").glob("*primary.xml.gz")
    primary.write_bytes(gzip.compress(gzip.decompress(primary.read_bytes()).replace(b"DUMMY-bar", b"DUMMY-baz")))
    with pytest.raises(SourceError, match="is not what the repository announces"):
        rpm(server.url)


# trust: fail-closed
def test_a_signature_that_is_not_the_key_s_is_refused(folder: Path, server: Server) -> None:
    with_gpg()
    copied("signed-rsa", folder)
    repomd = folder / "repodata/repomd.xml"
    repomd.write_text(repomd.read_text() + "<!-- -->")
    with pytest.raises(SourceError, match=r"Error\. Invalid signature\. Untrusted repository"):
        rpm(server.url)
    (folder / "repodata/repomd.xml.key").unlink()
    with pytest.raises(SourceError, match=r"Error\. Key file .* missing"):
        rpm(server.url)


def test_a_package_that_the_server_does_not_give_is_passed_over(folder: Path, server: Server) -> None:
    copied("unsigned", folder)
    for package in folder.glob("DUMMY-foo*.rpm"):
        package.unlink()
    assert set(rpm(server.url)) <= {"/etc/dummy-foobar.conf", "/usr/bin/dummy-foobar"}


@pytest.mark.parametrize(
    ("url", "said"),
    [("repos.example.org/x", "is no address of a repository"), ("http://127.0.0.1:9/", "cannot be fetched")],
)
def test_an_address_that_leads_nowhere_is_one_sentence(url: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        rpm(url)


def test_a_server_without_a_repository_is_named(server: Server) -> None:
    with pytest.raises(SourceError, match=r"is no RPM repository.*404"):
        rpm(server.url)


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><repomd>&b;</repomd>'


@pytest.mark.parametrize("text", ["", "<repomd", "no xml", BOMB])
def test_an_index_that_is_none_is_one_sentence(folder: Path, server: Server, text: str) -> None:
    # trust: bounded
    (folder / "repodata").mkdir()
    (folder / "repodata/repomd.xml").write_text(text)
    with pytest.raises(SourceError, match=r"repomd\.xml cannot be read"):
        rpm(server.url)


class DebRepository:
    """A small Debian repository, signed with a fresh key."""

    def __init__(self, folder: Path, home: Path) -> None:
        with_gpg()
        self.folder = folder
        self.home = home
        home.mkdir(mode=0o700)
        self.gpg("--quick-gen-key", "--passphrase", "", "test@example.org", "ed25519", "sign", "never")
        self.keyring = home / "keyring.gpg"
        self.gpg("--output", str(self.keyring), "--export")
        self.package = ar((b"debian-binary", b"2.0\n"), (b"data.tar.xz", lzma.compress(data_tar())))
        self.add("tool", "1.0", self.package)
        self.publish()

    def gpg(self, *arguments: str) -> None:
        command = ["gpg", "--batch", "--yes", "--homedir", str(self.home), *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def stop(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)

    def add(self, name: str, version: str, package: bytes) -> None:
        path = f"pool/{name}_{version}_amd64.deb"
        (self.folder / "pool").mkdir(exist_ok=True)
        (self.folder / path).write_bytes(package)
        listing = self.folder / "dists/stable/main/binary-amd64/Packages.xz"
        listing.parent.mkdir(parents=True, exist_ok=True)
        before = lzma.decompress(listing.read_bytes()).decode() if listing.exists() else ""
        stanza = (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nDescription: a tool\n that does\n nothing\n"
            f"Filename: {path}\nSize: {len(package)}\nSHA256: {hashlib.sha256(package).hexdigest()}\n\n"
        )
        listing.write_bytes(lzma.compress((before + stanza).encode()))

    def publish(self, *fields: str, clear: bool = True) -> None:
        """Write and sign the Release file; `clear` puts the signature into the same file."""
        root = self.folder / "dists/stable"
        listing = root / "main/binary-amd64/Packages.xz"
        digest = hashlib.sha256(listing.read_bytes()).hexdigest()
        row = f" {digest} {listing.stat().st_size} {listing.relative_to(root)}"
        text = "\n".join(["Suite: stable", *fields, "SHA256:", row, ""])
        (root / "Release").write_text(text)
        for old in ("InRelease", "Release.gpg"):
            (root / old).unlink(missing_ok=True)
        if clear:
            self.gpg("--output", str(root / "InRelease"), "--clear-sign", str(root / "Release"))
        else:
            self.gpg("--output", str(root / "Release.gpg"), "--armor", "--detach-sign", str(root / "Release"))


@pytest.fixture
def repository(folder: Path, tmp_path: Path) -> Iterator[DebRepository]:
    repository = DebRepository(folder, tmp_path / "home")
    yield repository
    repository.stop()


def deb(server: Server, repository: DebRepository, **changes: Any) -> Digests:
    options: dict[str, Any] = {"url": server.url, "suite": "stable", "keyring": str(repository.keyring), **changes}
    return asyncio.run(deb_remote.remote_packages(DebSource(**options), "sha256", NOW, 2))


@pytest.mark.parametrize("clear", [True, False])
def test_files_of_a_signed_suite_are_hashed(server: Server, repository: DebRepository, *, clear: bool) -> None:
    repository.publish(clear=clear)
    digests = deb(server, repository)
    assert digests["/usr/bin/tool"] == [TOOL]
    assert set(digests) == {"/usr/bin/tool", "/usr/share/a_b"}


# trust: fail-closed
def test_a_suite_that_another_key_signed_is_refused(server: Server, repository: DebRepository, tmp_path: Path) -> None:
    other = tmp_path / "other.gpg"
    repository.gpg("--quick-gen-key", "--passphrase", "", "other@example.org", "ed25519", "sign", "never")
    repository.gpg("--output", str(other), "--export", "other@example.org")
    with pytest.raises(SourceError, match="Invalid signature"):
        deb(server, repository, keyring=str(other))


# trust: fail-closed
@pytest.mark.parametrize("part", ["text", "list", "package"])
def test_what_the_signature_does_not_cover_is_refused(server: Server, repository: DebRepository, part: str) -> None:
    root = repository.folder / "dists/stable"
    if part == "text":
        path = root / "InRelease"
        path.write_text(path.read_text().replace("Suite: stable", "Suite: other"))
    elif part == "list":
        repository.add("more", "1.0", repository.package)  # and not published
    else:
        (repository.folder / "pool/tool_1.0_amd64.deb").write_bytes(repository.package.replace(b"2.0", b"2.1"))
    with pytest.raises(SourceError, match=r"Invalid signature|not what the repository announces|is larger"):
        deb(server, repository)


def test_text_outside_the_signature_has_no_say(server: Server, repository: DebRepository) -> None:
    path = repository.folder / "dists/stable/InRelease"
    path.write_text("SHA256:\n 00 1 main/binary-amd64/Packages.xz\n\n" + path.read_text())
    assert deb(server, repository)["/usr/bin/tool"] == [TOOL]


def test_an_expired_suite_is_refused(server: Server, repository: DebRepository) -> None:
    # trust: freshness
    repository.publish("Valid-Until: Sat, 31 Oct 2026 12:00:00 UTC")
    with pytest.raises(SourceError, match="was valid until Sat, 31 Oct 2026"):
        deb(server, repository)
    repository.publish("Valid-Until: Sat, 07 Nov 2026 12:00:00 UTC")
    assert deb(server, repository)


def test_packages_may_be_narrowed_to_what_is_installed(
    server: Server, repository: DebRepository, tmp_path: Path
) -> None:
    odd = ar((b"data.tar.xz", b"no"))
    repository.add("tool", "2.0", odd)
    repository.add("other", "1.0", odd)
    repository.publish()
    status = tmp_path / "status"
    status.write_text(
        "Package: tool\nStatus: install ok installed\nVersion: 1.0\n\n"
        "Package: other\nStatus: deinstall ok config-files\nVersion: 1.0\n\n"
        "Package: gone\nStatus: install ok installed\nVersion: 3\n"
    )
    assert set(deb(server, repository, status=str(status))) == {"/usr/bin/tool", "/usr/share/a_b"}
    with pytest.raises(SourceError, match=r"other_1\.0_amd64\.deb cannot be read"):
        deb(server, repository, only=("other",))
    with pytest.raises(SourceError, match="has no package missing"):
        deb(server, repository, only=("missing",))
    status.write_text("nothing\n")
    with pytest.raises(SourceError, match="names no installed package"):
        deb(server, repository, status=str(status))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"suite": "other"}, "There is no signed suite other"),
        ({"components": ("contrib",)}, r"no packages for component contrib .*components: main"),
        ({"architecture": "arm64"}, "architecture arm64"),
        ({"keyring": "/nonexistent"}, "There is no keyring /nonexistent"),
    ],
)
def test_what_is_not_there_is_named(
    server: Server, repository: DebRepository, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        deb(server, repository, **changes)


def test_repositories_of_both_kinds_go_into_one_policy(
    server: Server, repository: DebRepository, tmp_path: Path
) -> None:
    rpms = copied("unsigned", tmp_path / "rpms").as_uri()
    source = DebSource(url=server.url, suite="stable", keyring=str(repository.keyring))
    policy = build(Request(rpm_url=rpms, deb_repository=source), NOW)
    assert {"/usr/bin/dummy-foobar", "/usr/bin/tool"} <= set(policy["digests"])


def test_files_of_merged_folders_are_known_by_both_names(server: Server, repository: DebRepository) -> None:
    plain = data_tar().replace(b"./usr/bin/tool", b"./bin/tool\0\0\0\0")
    head = plain[:512]
    total = sum(head[:148]) + 8 * 32 + sum(head[156:])
    plain = head[:148] + b"%06o\0 " % total + plain[156:]
    repository.add("tool", "2.0", ar((b"data.tar", plain)))
    repository.publish()
    digests = deb(server, repository)
    assert digests["/bin/tool"] == digests["/usr/bin/tool"] == [TOOL]
