"""Weights and references: the places they are looked for, their hashes, and what is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from stepdistill.assets import Asset, find, find_repo, locate
from stepdistill.errors import UserError

CONTENT = b"the published weights"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BARE = Asset("test weights", "net.pt", "TEST_NET", "https://example.org/net.pt")
HUB = Asset("hub weights", "model.safetensors", "TEST_HUB", "owner/net", option="--clip")
PUBLISHED = sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, no variables, and no network."""
    place = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for asset in (BARE, HUB):
        monkeypatch.delenv(asset.variable, raising=False)
    return place


def cached(cache: Path, asset: Asset, *files: str) -> Path:
    """What an earlier download leaves in the hub's cache."""
    repo = cache / f"models--{asset.source.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder = repo / "snapshots" / COMMIT
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(CONTENT)
    return folder


def written(file: Path, content: bytes = CONTENT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("asset", [BARE, HUB], ids=["address", "hub"])
def test_the_option_goes_before_the_environment_before_the_rest(
    asset: Asset, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, variable = written(tmp_path / "option.pt"), written(tmp_path / "variable.pt")
    place = written(tmp_path / "place.pt")
    assert locate(asset, None, [tmp_path / "absent.pt", place]) == place
    monkeypatch.setenv(asset.variable, str(variable))
    cached(cache, HUB, "model.safetensors")
    assert find(asset) == variable
    assert locate(asset, None, [place]) == variable
    assert find(asset, option) == option
    assert find(asset, str(option)) == option


@pytest.mark.parametrize("asset", [BARE, HUB], ids=["address", "hub"])
def test_what_is_named_and_missing_is_not_looked_for_elsewhere(
    asset: Asset, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(cache, HUB, "model.safetensors")
    good = written(tmp_path / "good.pt")
    monkeypatch.setenv(asset.variable, str(good))
    with pytest.raises(UserError, match=r"there is no file absent\.pt: fetch"):
        find(asset, "absent.pt")
    monkeypatch.setenv(asset.variable, "gone.pt")
    with pytest.raises(UserError, match=r"there is no file gone\.pt: fetch"):
        locate(asset, None, [good])


@pytest.mark.parametrize("looked", [find, find_repo])
def test_offline_and_missing_is_one_sentence_with_the_mend(looked: object) -> None:
    """What to fetch, from where, and the two ways to name it."""
    assert callable(looked)
    with pytest.raises(UserError) as error:
        looked(HUB)
    said, where = str(error.value), "https://huggingface.co/owner/net"
    for part in ("found no hub weights", HUB.file, where, "--clip", "TEST_HUB"):
        assert part in said
    assert "\n" not in said


def test_an_address_is_never_fetched() -> None:
    with pytest.raises(UserError) as error:
        find(BARE)
    for part in ("net.pt", BARE.source, "--weights", "TEST_NET", "nothing is downloaded"):
        assert part in str(error.value)


def test_another_file_under_the_published_name(tmp_path: Path, cache: Path) -> None:
    """A truncated download is refused wherever it lies; a file of another name is one's own."""
    asset = replace(BARE, sha256=PUBLISHED)
    assert find(asset, written(tmp_path / "net.pt")) == tmp_path / "net.pt"
    cut = written(tmp_path / "cut" / "net.pt", CONTENT[:-1])
    with pytest.raises(UserError, match=r"cut/net\.pt is truncated, or not net\.pt.*example\.org"):
        find(asset, cut)
    own = written(tmp_path / "own.pt", b"another network")
    assert find(asset, own) == own
    hub = replace(HUB, sha256=PUBLISHED)
    folder = cached(cache, hub, "model.safetensors", "config.json")
    assert find(hub) == folder / "model.safetensors"
    assert find_repo(hub) == str(folder)
    written(folder / "model.safetensors", b"")
    for looked in (find, find_repo):
        with pytest.raises(UserError, match=r"is truncated, or not model\.safetensors"):
            looked(hub)


def test_a_repository_as_a_folder_or_by_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option and the variable name a folder or another repository; a cached folder in which
    the weights are missing does not do."""
    asset = replace(HUB, sha256=PUBLISHED)
    own = written(tmp_path / "own" / "model.safetensors", b"tiny").parent
    assert find_repo(asset, own) == str(own)
    monkeypatch.setenv(asset.variable, str(own))
    assert find_repo(asset) == str(own)
    other = cached(cache, replace(asset, source="some/one"), "model.safetensors")
    written(other / "model.safetensors", b"fine-tuned")
    assert find_repo(asset, "some/one") == str(other)
    monkeypatch.chdir(own.parent)
    for named in ("absent", "./absent/folder", "/absent", "a/b/c", "own/model.safetensors"):
        with pytest.raises(UserError, match=f"there is no folder {named}: fetch model.safetensors"):
            find_repo(asset, named)
    monkeypatch.delenv(asset.variable)
    cached(cache, asset, "config.json")
    with pytest.raises(UserError, match="did not come from the hub"):
        find_repo(asset)


HELD = {"model.safetensors": CONTENT, "config.json": b"{}", "model.bin": b"the same again"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/owner/net/tree"):
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": file}
                for file, content in HELD.items()
            ]
            content = json.dumps(listed).encode()
        elif path.startswith("/api/models/owner/net"):
            siblings = [{"rfilename": file} for file in HELD]
            whole = {"id": "owner/net", "sha": COMMIT, "siblings": siblings}
            content = json.dumps(whole).encode()
        elif name in HELD and path.startswith("/owner/net/resolve"):
            content = HELD[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield
    server.shutdown()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("looked", [find, find_repo])
def test_a_download_goes_to_the_hubs_own_cache_and_is_said_once(
    looked: object, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time it comes from the cache, and the network is not asked; of a repository the
    weights are taken in one form."""
    assert callable(looked)
    asset = replace(HUB, sha256=PUBLISHED)
    place = Path(looked(asset))
    file = place if place.is_file() else place / "model.safetensors"
    assert file.read_bytes() == CONTENT
    assert cache in file.parents
    assert not list(cache.rglob("model.bin"))
    said = capsys.readouterr().err
    assert "downloading model.safetensors of owner/net (0 MB) into the hub's cache" in said
    assert str(cache) in said
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", pytest.fail)
    assert looked(asset) == looked(asset)
    assert "downloading" not in capsys.readouterr().err


@pytest.mark.usefixtures("hub")
def test_a_file_the_hub_does_not_have() -> None:
    with pytest.raises(UserError, match=r"owner/net did not come from the hub \(.*404"):
        find(replace(HUB, file="absent.bin"))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("Cannot reach https://x.org/a: offline mode. Please unset it", "x.org/a: offline mode)"),
        ("No files found.\nFor more check out the root cause", "(No files found)"),
        ("", "(RuntimeError)"),
    ],
)
def test_the_librarys_advice_is_left_out(
    raised: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first sentence says what happened; the rest sends one to a traceback not shown."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(raised)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UserError) as error:
        find(HUB)
    assert said in str(error.value)
    assert "root cause" not in str(error.value)
    assert "Please" not in str(error.value)
