# SPDX-License-Identifier: MIT
"""The real huggingface_hub client, and transformers on top of it, over HTTP against a Hub on loopback."""

import hashlib
import http.client
import json
import textwrap
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image
from safetensors.torch import load
from support.golden_data import awaken, tiny_config
from support.loading import WITHOUT_THE_PACKAGE, run_python
from support.loopback_hub import LoopbackHub, loopback_hub  # noqa: F401
from transformers.core_model_loading import revert_weight_conversion

from hf_internimage import InternImageForImageClassification, InternImageImageProcessorPil

pytestmark = pytest.mark.slow

NAME = "hf-internimage-tests/tiny"
IMPORT = f"""
from pathlib import Path
import os
import huggingface_hub.errors as errors
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache

name = {NAME!r}
api = HfApi()

def raised(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return error

def read(*arguments, **options):
    return Path(hf_hub_download(*arguments, **options)).read_bytes()

"""


@pytest.fixture
def hub(loopback_hub):  # noqa: F811
    return loopback_hub


def run(hub, home, code, **environment):
    """The code in a client of this Hub, which must not want anything from elsewhere; its standard output."""
    printed = run_python(IMPORT + textwrap.dedent(code), **{**hub.environment(home), **environment})
    assert [path for _, path, _ in hub.log if not path.startswith("/")] == []
    return printed


def requests(hub, method, part):
    """The status of every such request."""
    return [status for verb, path, status in hub.log if verb == method and part in path]


def random_bytes(size, seed=0):
    return (
        torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)).numpy().tobytes()
    )


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def get(url, token=None, method="GET", **headers):
    """One request, no redirects: status, headers, body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc)
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, f"{parts.path}?{parts.query}", headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def test_create_upload_commit_list_info(hub, tmp_path):
    """The life of a repository; bytes come back as they were sent."""
    weights = random_bytes(3_000_001)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "notes.txt").write_text("ß\n")
    (tmp_path / "folder" / "empty.bin").touch()
    (tmp_path / "folder" / "model.safetensors").write_bytes(weights)
    (tmp_path / "folder" / "README.md").write_text("---\nlicense: mit\npipeline_tag: image-classification\n---\n# A\n")
    hub.page_size = 2
    run(
        hub,
        tmp_path / "home",
        f"""
        folder = Path({str(tmp_path / "folder")!r})
        assert api.whoami()["orgs"][0]["name"] == "hf-internimage-tests"
        url = api.create_repo(name)
        assert (url.repo_id, str(url)) == (name, os.environ["HF_ENDPOINT"] + "/" + name)
        assert api.create_repo(name, exist_ok=True).repo_id == name
        assert raised(api.create_repo, name).response.status_code == 409
        assert raised(api.create_repo, "google/tiny").response.status_code == 403
        assert api.create_repo("alone").repo_id == "tester/alone"
        assert api.repo_exists(name) and not api.repo_exists(name + "-not")

        first = api.upload_file(repo_id=name, path_in_repo="config.json", path_or_fileobj=b"{{}}")
        second = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Weights")
        assert read(name, "config.json") == b"{{}}"
        for path in ("inner/notes.txt", "empty.bin", "model.safetensors", "README.md"):
            assert read(name, path) == (folder / path).read_bytes(), path
        copy = Path(snapshot_download(name, local_dir={str(tmp_path / "copy")!r}))
        assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()

        # what is there already makes no commit
        assert api.upload_folder(repo_id=name, folder_path=folder).oid == second.oid
        third = api.create_commit(
            name,
            [
                CommitOperationAdd("table.json", b"[1]"),
                CommitOperationCopy("model.safetensors", "copy.safetensors"),
                CommitOperationDelete("inner/"),
                CommitOperationDelete("config.json"),
            ],
            commit_message="Change",
            commit_description="More words",
            parent_commit=second.oid,
        )
        late = raised(
            api.create_commit, name, [CommitOperationAdd("a", b"b")], commit_message="Late", parent_commit=second.oid
        )
        assert late.response.status_code == 412
        assert isinstance(raised(api.delete_file, "config.json", name), errors.RemoteEntryNotFoundError)
        commits = api.list_repo_commits(name)
        assert [commit.commit_id for commit in commits[:-1]] == [third.oid, second.oid, first.oid]
        assert [commit.title for commit in commits[::3]] == ["Change", "initial commit"]
        assert commits[0].message == "More words"

        names = [".gitattributes", "README.md", "copy.safetensors", "empty.bin", "model.safetensors", "table.json"]
        assert sorted(api.list_repo_files(name)) == names
        assert api.file_exists(name, "table.json") and not api.file_exists(name, "inner/notes.txt")
        at_second = api.list_repo_tree(name, revision=second.oid)
        assert [entry.path for entry in at_second if hasattr(entry, "tree_id")] == ["inner"]
        assert [entry.path for entry in api.list_repo_tree(name, "inner", revision=second.oid)] == ["inner/notes.txt"]
        (entry,) = api.get_paths_info(name, ["model.safetensors", "absent"])
        assert (entry.size, entry.lfs.sha256) == (3_000_001, {sha256(weights)!r})

        info = api.model_info(name, files_metadata=True)
        assert (info.sha, info.author, info.private, info.gated) == (third.oid, "hf-internimage-tests", False, False)
        assert (info.pipeline_tag, info.card_data.license) == ("image-classification", "mit")
        sizes = {{sibling.rfilename: (sibling.size, sibling.lfs is not None) for sibling in info.siblings}}
        assert sorted(sizes) == names
        assert sizes["model.safetensors"] == (3_000_001, True) and sizes["table.json"] == (3, False)
        assert len(api.model_info(name, revision=first.oid).siblings) == 2
        assert {{model.id for model in api.list_models(author="hf-internimage-tests")}} == {{name}}
        assert {{model.id for model in api.list_models()}} == {{name, "tester/alone"}}

        api.delete_repo("tester/alone")
        assert isinstance(raised(api.model_info, "tester/alone"), errors.RepositoryNotFoundError)
        """,
    )
    files = hub.files(NAME)
    assert files["model.safetensors"] == files["copy.safetensors"] == weights
    assert files["table.json"] == b"[1]"
    # one upload of the weights, none of small files
    assert requests(hub, "PUT", "") == [200]


def test_metadata_of_cards(hub, tmp_path):
    """A README.md with broken metadata is refused before anything is sent."""
    run(
        hub,
        tmp_path,
        """
        api.create_repo(name)
        for text, reason in (("---\\ntags: [a\\n---\\n", "expected"), ("---\\nlicense: [mit]\\n---\\n", "license")):
            error = raised(api.upload_file, repo_id=name, path_in_repo="README.md", path_or_fileobj=text.encode())
            assert isinstance(error, ValueError) and reason in str(error), error
        error = raised(api.upload_file, repo_id=name, path_in_repo="README.md", path_or_fileobj=b"# No metadata")
        assert isinstance(error, UserWarning) and "empty or missing yaml metadata" in str(error)
        """,
    )
    assert list(hub.files(NAME)) == [".gitattributes"]


def test_etag_and_range(hub):
    """The headers that downloads rest on, byte by byte."""
    weights = random_bytes(1000)
    commit = hub.add(NAME, {"config.json": b'{"a": 1}', "model.safetensors": weights})

    status, headers, body = get(f"{hub.url}/{NAME}/resolve/main/config.json", method="HEAD")
    assert (status, headers["X-Repo-Commit"], body) == (307, commit, b"")
    status, headers, body = get(hub.url + headers["Location"])
    assert (status, body) == (200, b'{"a": 1}')
    assert headers["ETag"] == f'"{hashlib.sha1(b"blob 8" + bytes(1) + body).hexdigest()}"'  # git hash-object
    assert headers["X-Repo-Commit"] == commit

    status, headers, body = get(f"{hub.url}/{NAME}/resolve/main/model.safetensors", method="HEAD")
    assert (status, headers["X-Repo-Commit"]) == (302, commit)
    assert (headers["X-Linked-Etag"], headers["X-Linked-Size"]) == (f'"{sha256(weights)}"', "1000")
    link = headers["Location"]
    assert urlsplit(link).netloc != urlsplit(hub.url).netloc
    for wanted, status, part in (
        (None, 200, weights),
        ("bytes=0-0", 206, weights[:1]),
        ("bytes=100-299", 206, weights[100:300]),
        ("bytes=900-", 206, weights[900:]),
        ("bytes=990-2000", 206, weights[990:]),
        ("bytes=-30", 206, weights[-30:]),
        ("bytes=1000-", 416, None),
    ):
        got, headers, body = get(link, **({"Range": wanted} if wanted else {}))
        assert got == status, wanted
        if part is None:
            assert headers["Content-Range"] == "bytes */1000"
        else:
            assert body == part, wanted
        if got == 206:
            start = weights.index(part)
            assert headers["Content-Range"] == f"bytes {start}-{start + len(part) - 1}/1000"
    # a link is for one file, and a token has no business there
    assert get(link.replace(sha256(weights), "0" * 64))[0] == 403
    assert get(link, token=hub.token)[0] == 400


def test_private_and_gated(hub, tmp_path):
    """401, 403 and 404 as exceptions: anonymous, with somebody else's token, with the owner's."""
    for name in ("private", "gated", "open"):
        hub.add(f"hf-internimage-tests/{name}", {"config.json": b"{}", "model.safetensors": bytes(10)})
    hub.private("hf-internimage-tests/private")
    hub.gate("hf-internimage-tests/gated")
    run(
        hub,
        tmp_path,
        f"""
        private, gated, opened, absent = (
            "hf-internimage-tests/" + part for part in ("private", "gated", "open", "absent")
        )
        anonymous, visitor = False, {hub.visitor_token!r}
        assert api.whoami(token=visitor)["name"] == "visitor"

        def outcome(call, *arguments, **options):
            error = raised(call, *arguments, **options)
            return error and (type(error).__name__, error.response.status_code)

        for token, status in ((anonymous, 401), (visitor, 404)):
            for name in (private, absent):
                for call in (
                    lambda: api.model_info(name, token=token),
                    lambda: hf_hub_download(name, "config.json", token=token),
                    lambda: snapshot_download(name, token=token),
                    lambda: api.upload_file(repo_id=name, path_in_repo="a", path_or_fileobj=b"", token=token),
                    lambda: api.delete_repo(name, token=token),
                ):
                    assert outcome(call) == ("RepositoryNotFoundError", status), (name, status)
            assert not api.repo_exists(private, token=token)
            assert [model.id for model in api.list_models(token=token)] == [gated, opened]
        for token, status in ((anonymous, 401), (visitor, 403)):
            assert api.model_info(gated, token=token).gated == "auto"
            for call in (
                lambda: hf_hub_download(gated, "config.json", token=token),
                lambda: hf_hub_download(gated, "model.safetensors", token=token),
                lambda: api.auth_check(gated, token=token),
            ):
                assert outcome(call) == ("GatedRepoError", status)
            upload = outcome(api.upload_file, repo_id=opened, path_in_repo="a", path_or_fileobj=b"", token=token)
            assert upload[1] == status
            assert read(opened, "config.json", token=token) == b"{{}}"
        for name in (private, gated, opened):
            assert read(name, "model.safetensors") == bytes(10)
            api.auth_check(name, write=True)
        assert outcome(api.model_info, opened, token="hf_wrong") == ("HfHubHTTPError", 401)
        assert outcome(api.create_repo, absent, token=anonymous)[1] == 401

        api.update_repo_settings(private, private=False, gated="manual")
        assert api.model_info(private, token=anonymous).gated
        api.create_repo(absent, private=True)
        assert api.model_info(absent).private and outcome(api.model_info, absent, token=anonymous)
        """,
    )


def test_revisions(hub, tmp_path):
    """Branch, tag, commit hash; a missing revision, file or folder."""
    first = hub.add(NAME, {"a.txt": b"1"})
    second = hub.add(NAME, {"a.txt": b"2"})
    run(
        hub,
        tmp_path,
        f"""
        first, second = {first!r}, {second!r}
        api.create_branch(name, branch="try/it", revision=first)
        assert raised(api.create_branch, name, branch="try/it").response.status_code == 409
        api.create_branch(name, branch="try/it", exist_ok=True)
        third = api.upload_file(repo_id=name, path_in_repo="a.txt", path_or_fileobj=b"3", revision="try/it").oid
        api.create_tag(name, tag="v1", revision=first)
        api.create_tag(name, tag="v2")
        assert raised(api.create_tag, name, tag="v2").response.status_code == 409
        refs = api.list_repo_refs(name)
        assert {{ref.name: ref.target_commit for ref in refs.branches}} == {{"main": second, "try/it": third}}
        assert {{ref.name: ref.target_commit for ref in refs.tags}} == {{"v1": first, "v2": second}}
        for revision, content, commit in (
            (None, b"2", second), ("main", b"2", second), ("v2", b"2", second), (second, b"2", second),
            ("v1", b"1", first), (first, b"1", first), ("try/it", b"3", third), (third, b"3", third),
        ):
            path = Path(hf_hub_download(name, "a.txt", revision=revision))
            assert (path.read_bytes(), path.parent.name) == (content, commit), revision
            assert api.model_info(name, revision=revision).sha == commit
        assert [commit.commit_id for commit in api.list_repo_commits(name, revision="try/it")][:2] == [third, first]

        missing = errors.RevisionNotFoundError
        for call in (
            lambda: hf_hub_download(name, "a.txt", revision="v3"),
            lambda: hf_hub_download(name, "a.txt", revision="0" * 40),
            lambda: api.model_info(name, revision="v3"),
            lambda: snapshot_download(name, revision="v3"),
            lambda: api.upload_file(repo_id=name, path_in_repo="a", path_or_fileobj=b"", revision="v3"),
            lambda: api.create_branch(name, branch="new", revision="v3"),
            lambda: api.delete_tag(name, tag="v3"),
        ):
            error = raised(call)
            assert isinstance(error, missing) and error.response.status_code == 404, error
        for call in (
            lambda: hf_hub_download(name, "b.txt"),
            lambda: list(api.list_repo_tree(name, "folder")),
            lambda: api.delete_file("b.txt", name),
        ):
            error = raised(call)
            assert isinstance(error, errors.RemoteEntryNotFoundError) and error.response.status_code == 404, error

        api.delete_tag(name, tag="v2")
        api.delete_branch(name, branch="try/it")
        assert [ref.name for ref in api.list_repo_refs(name).branches] == ["main"]
        assert isinstance(raised(api.model_info, name, revision="v2"), missing)
        """,
    )
    assert hub.files(NAME, first) == {
        ".gitattributes": hub.files(NAME)[".gitattributes"],
        "a.txt": b"1",
    }


def test_cache_serves_without_the_hub(hub, tmp_path):
    """Nothing is fetched twice; offline mode and a Hub that is down are served from the cache."""
    content = random_bytes(5000)
    commit = hub.add(NAME, {"config.json": b"{}", "model.safetensors": content})
    download = f"""
        assert Path(snapshot_download(name)).name == {commit!r}
        assert len(read(name, "model.safetensors")) == 5000
        assert read(name, "config.json", revision={commit!r}) == b"{{}}"
    """
    run(hub, tmp_path, download)
    bodies = [entry for entry in hub.log if entry[0] == "GET" and "model.safetensors" in entry[1]]
    assert len(bodies) == 1
    hub.log.clear()
    run(hub, tmp_path, download)
    assert requests(hub, "GET", "model.safetensors") == []
    assert requests(hub, "HEAD", "model.safetensors") == [302]

    environment = hub.environment(tmp_path)
    hub.log.clear()
    hub.stop()
    run_python(IMPORT + textwrap.dedent(download), **environment)
    missing = """
        assert isinstance(raised(hf_hub_download, name, "other.txt"), errors.LocalEntryNotFoundError)
        assert isinstance(raised(api.model_info, name), errors.OfflineModeIsEnabled)
    """
    run_python(IMPORT + textwrap.dedent(download + missing), **{**environment, "HF_HUB_OFFLINE": "1"})
    assert hub.log == []


def test_interrupted_download_continues(hub, tmp_path):
    """Cut twice. The client keeps whole chunks of 10 MiB and asks for the rest; less than that it fetches again."""
    content = random_bytes(23_000_000)
    hub.add(NAME, {"model.safetensors": content, "small.bin": content[:50_000], "config.json": b"{}" + b" " * 900})
    for name, size in (("model.safetensors", 15_000_000), ("model.safetensors", 11_000_000), ("small.bin", 20_000)):
        hub.break_after(f"filename={name}", size)
    hub.break_after("resolve-cache", 500)
    run(
        hub,
        tmp_path,
        f"""
        import hashlib
        assert hashlib.sha256(read(name, "model.safetensors")).hexdigest() == {sha256(content)!r}
        assert hashlib.sha256(read(name, "small.bin")).hexdigest() == {sha256(content[:50_000])!r}
        assert len(read(name, "config.json")) == 902
        assert not list(Path(os.environ["HF_HUB_CACHE"]).rglob("*.incomplete"))
        """,
    )
    # 206: the rest
    assert requests(hub, "GET", "filename=model.safetensors") == [0, 0, 206]
    assert requests(hub, "GET", "filename=small.bin") == [0, 200]
    assert requests(hub, "GET", "resolve-cache") == [0, 200]


def test_interrupted_snapshot_continues(hub, tmp_path):
    """When the client gives up, the next download of the repository fetches what is missing."""
    contents = {f"{part}.safetensors": random_bytes(400_000, seed) for seed, part in enumerate("abc")}
    hub.add(NAME, contents)
    hub.break_after("filename=c.safetensors", 300_000, times=20)
    run(
        hub,
        tmp_path,
        """
        import time
        time.sleep = lambda seconds: None  # between the attempts
        assert raised(snapshot_download, name, max_workers=1)
        """,
    )
    assert [requests(hub, "GET", f"filename={name}") for name in contents] == [[200], [200], [0] * 6]
    hub.breaks.clear()
    hub.log.clear()
    run(
        hub,
        tmp_path,
        f"""
        import hashlib
        digests = [hashlib.sha256(read(name, f"{{part}}.safetensors")).hexdigest() for part in "abc"]
        assert digests == {[sha256(content) for content in contents.values()]!r}
        """,
    )
    assert [requests(hub, "GET", f"filename={name}") for name in contents] == [[], [], [200]]


def test_wrong_content_on_download(hub, tmp_path):
    """The client checks the size of what arrives. Content it checks only when told to, by `verify_repo_checksums`."""
    content = random_bytes(5000)
    hub.add(NAME, {"short.bin": content, "long.bin": content[:4000], "other.bin": content[:3000]})
    for right, wrong in ((content, content[:4999]), (content[:4000], content), (content[:3000], content[1000:4000])):
        (hub.blobs / sha256(right)).write_bytes(wrong)
    run(
        hub,
        tmp_path,
        f"""
        for path in ("short.bin", "long.bin"):
            error = raised(hf_hub_download, name, path)
            assert isinstance(error, OSError) and "Consistency check failed" in str(error), error
            assert not isinstance(try_to_load_from_cache(name, path), str)
        assert len(read(name, "other.bin")) == 3000
        found = api.verify_repo_checksums(name)
        assert [(entry["path"], entry["expected"]) for entry in found.mismatches] == [
            ("other.bin", {sha256(content[:3000])!r})
        ]
        """,
    )


def test_interrupted_upload_continues(hub, tmp_path):
    """A cut upload is sent again by itself; when the client gives up, the next one sends only what is missing."""
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = {f"{part}.safetensors": random_bytes(400_000, seed) for seed, part in enumerate("abc")}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text("{}")
    uploads = {name: f"upload={sha256(content)}" for name, content in contents.items()}

    hub.break_after(uploads["a.safetensors"], 100_000)
    hub.break_after(uploads["c.safetensors"], 300_000, times=6)
    upload = f"api.upload_folder(repo_id=name, folder_path={str(folder)!r})"
    run(
        hub,
        tmp_path / "home",
        f"""
        import time
        time.sleep = lambda seconds: None  # between the attempts
        api.create_repo(name)
        error = raised(lambda: {upload})
        assert isinstance(error, RuntimeError) and "c.safetensors" in str(error), error
        """,
    )
    statuses = [requests(hub, "PUT", part) for part in uploads.values()]
    assert statuses == [[0, 200], [200], [0] * 6]
    assert list(hub.files(NAME)) == [".gitattributes"]  # no commit of a part

    hub.log.clear()
    run(hub, tmp_path / "home", upload)
    assert [requests(hub, "PUT", part) for part in uploads.values()] == [[], [], [200]]
    files = hub.files(NAME)
    assert {name: files[name] for name in contents} == contents
    assert len(list(hub.repositories[NAME].history("main"))) == 2


def test_upload_in_parts(hub, tmp_path):
    """Large files go in parts; a part that is cut is sent again, the others are not."""
    content = random_bytes(1_050_000)
    hub.part_size = 500_000
    hub.break_after("part=2", 100_000)
    (tmp_path / "file").write_bytes(content)
    run(
        hub,
        tmp_path / "home",
        f"""
        api.create_repo(name)
        api.upload_file(repo_id=name, path_in_repo="model.bin", path_or_fileobj={str(tmp_path / "file")!r})
        """,
    )
    assert hub.files(NAME)["model.bin"] == content
    assert [requests(hub, "PUT", f"part={number}") for number in (1, 2, 3)] == [[200], [0, 200], [200]]


@pytest.mark.parametrize("part_size", [5_000_000_000, 4_000], ids=["whole", "parts"])
def test_wrong_checksum_on_upload(part_size, hub, tmp_path):
    """A file that changes after it was hashed: the storage refuses it, and there is no commit."""
    hub.part_size = part_size
    run(
        hub,
        tmp_path,
        f"""
        api.create_repo(name)
        file = Path({str(tmp_path / "model.safetensors")!r})
        file.write_bytes(bytes(10_000))
        addition = CommitOperationAdd("model.safetensors", file)
        addition.upload_info.sha256
        file.write_bytes(b"1" * 10_000)
        error = raised(api.create_commit, name, [addition], commit_message="Changed")
        assert isinstance(error, RuntimeError) and "BadDigest" in str(error.__cause__), error
        assert error.__cause__.response.status_code == 400

        # a commit can only point to what arrived
        addition = CommitOperationAdd("model.safetensors", b"never sent")
        addition._upload_mode, addition._is_uploaded, addition._should_ignore = "lfs", True, False
        error = raised(api.create_commit, name, [addition], commit_message="Nothing")
        assert isinstance(error, errors.BadRequestError) and "does not exist" in str(error), error
        """,
    )
    assert list(hub.files(NAME)) == [".gitattributes"]
    assert hub.repositories[NAME].uploaded == {}


def test_requests_elsewhere_are_noticed(hub, tmp_path):
    """The environment leads whatever is not for this Hub to its log."""
    code = """
        error = raised(HfApi(endpoint="https://huggingface.co").model_info, "google/vit")
        assert "403" in str(error), error
    """
    run_python(IMPORT + textwrap.dedent(code), **hub.environment(tmp_path))
    assert hub.log == [("CONNECT", "huggingface.co:443", 403)]


def test_errors_of_the_hub_itself_are_raised(tmp_path):
    """A test must not pass because the Hub broke."""
    hub = LoopbackHub(tmp_path)

    def use():
        with hub:
            hub.add(NAME, {"model.bin": b"1"})
            link = get(f"{hub.url}/{NAME}/resolve/main/model.bin")[1]["Location"]
            (hub.blobs / sha256(b"1")).unlink()
            with pytest.raises(http.client.RemoteDisconnected):
                get(link)

    with pytest.raises(AssertionError, match="FileNotFoundError"):
        use()


def save_model(folder):
    """A small model and an image processor in `folder`, a picture beside it; the model."""
    model = awaken(InternImageForImageClassification(tiny_config())).eval()
    model.save_pretrained(folder)
    InternImageImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
        folder
    )
    pixels = torch.randint(256, (80, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    Image.fromarray(pixels.numpy()).save(folder.parent / "picture.png")
    return model


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_same_weights(content, model):
    """The bytes of a safetensors file (or several) hold exactly the model's weights, in the official layout."""
    expected = revert_weight_conversion(model, model.state_dict())
    saved = {key: tensor for part in content for key, tensor in load(part).items()}
    assert saved.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(saved[key], tensor), key


def test_push_to_hub(hub, tmp_path):
    """`push_to_hub` of a model (whole and in shards), a configuration, an image processor, and of Trainer."""
    model = save_model(tmp_path / "saved")
    run(
        hub,
        tmp_path / "home",
        f"""
        import torch
        from transformers import AutoConfig, Trainer, TrainingArguments
        from hf_internimage import InternImageForImageClassification, InternImageImageProcessorPil

        saved = {str(tmp_path / "saved")!r}
        model = InternImageForImageClassification.from_pretrained(saved)
        model.push_to_hub(name)
        InternImageImageProcessorPil.from_pretrained(saved).push_to_hub(name)
        model.push_to_hub(name + "-sharded", max_shard_size="200KB", private=True, commit_message="In shards")
        model.config.push_to_hub(name + "-config", revision="other")
        assert AutoConfig.from_pretrained(name + "-config", revision="other").num_labels == 5

        pixels, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir={str(tmp_path / "output")!r},
                hub_model_id=name + "-trained",
                push_to_hub=True,
                max_steps=2,
                save_steps=1,
                per_device_train_batch_size=4,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=[{{"pixel_values": pixels[i], "labels": labels[i]}} for i in range(8)],
            processing_class=InternImageImageProcessorPil.from_pretrained(saved),
        )
        trainer.train()
        done = trainer.push_to_hub(commit_message="Trained")
        assert done.repo_url.repo_id == name + "-trained"
        """,
    )
    files = hub.files(NAME)
    assert {"README.md", "config.json", "modeling_internimage.py", "preprocessor_config.json"} <= files.keys()
    assert files["config.json"] == (tmp_path / "saved" / "config.json").read_bytes()
    assert_same_weights([files["model.safetensors"]], model)
    assert hub.repositories[NAME].commit("main").files["model.safetensors"].lfs

    sharded = hub.repositories[f"{NAME}-sharded"]
    assert sharded.private
    assert next(sharded.history("main")).title == "In shards"
    files = hub.files(f"{NAME}-sharded")
    index = json.loads(files["model.safetensors.index.json"])
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert "model.safetensors" not in files
    assert_same_weights([files[shard] for shard in shards], model)

    assert "config.json" not in hub.files(f"{NAME}-config")
    assert "config.json" in hub.files(f"{NAME}-config", "other")

    files = hub.files(f"{NAME}-trained")
    output = files_of(tmp_path / "output")
    for path in ("config.json", "model.safetensors", "preprocessor_config.json", "training_args.bin", "README.md"):
        assert files[path] == output[path], path
    trained = InternImageForImageClassification.from_pretrained(tmp_path / "output")
    assert_same_weights([files["model.safetensors"]], trained)
    assert not torch.equal(trained.head.weight, model.head.weight)
    titles = [commit.title for commit in hub.repositories[f"{NAME}-trained"].history("main")]
    assert titles[0] == "Trained"
    assert titles[-1] == "initial commit"
    assert any("step 1" in title for title in titles)


def test_from_pretrained_and_pipeline(hub, tmp_path):
    """Every Auto class and the pipeline take "organization/name", online and then from the cache alone."""
    model = save_model(tmp_path / "saved")
    first = hub.add(NAME, {"config.json": tiny_config(num_labels=3).to_json_string().encode()})
    card = b"---\npipeline_tag: image-classification\n---\n"
    hub.add(NAME, {**files_of(tmp_path / "saved"), "README.md": card})
    hub.private(NAME)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    hub.add(f"{NAME}-sharded", files_of(tmp_path / "shards"))
    code = f"""
        import torch
        from PIL import Image
        from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel
        from transformers import AutoModelForImageClassification, pipeline
        import hf_internimage
        from huggingface_hub.constants import HF_HUB_OFFLINE

        def load(auto, name=name, **options):
            model, info = auto.from_pretrained(name, output_loading_info=True, **options)
            assert type(model).__module__ == "hf_internimage.models.modeling_internimage"
            assert not info["missing_keys"] and not info["unexpected_keys"]
            return model.eval()

        picture = Image.open({str(tmp_path / "picture.png")!r})
        processor = AutoImageProcessor.from_pretrained(name)
        assert processor.size.shortest_edge == 64
        pixel_values = processor(picture, return_tensors="pt").pixel_values
        assert AutoConfig.from_pretrained(name).num_labels == 5
        assert AutoConfig.from_pretrained(name, revision={first!r}).num_labels == 3
        with torch.no_grad():
            logits = load(AutoModelForImageClassification)(pixel_values).logits
            sharded = load(AutoModelForImageClassification, name + "-sharded")(pixel_values).logits
            torch.testing.assert_close(sharded, logits)
            last = load(AutoModel)(pixel_values).last_hidden_state
            options = dict(out_features=["stage2", "stage4"])
            maps = load(hf_internimage.InternImageBackbone, **options)(pixel_values).feature_maps
            torch.testing.assert_close(maps[1], last)
            if HF_HUB_OFFLINE:
                # transformers asks the Hub first, always
                assert isinstance(raised(AutoBackbone.from_pretrained, name), errors.OfflineModeIsEnabled)
            else:
                assert AutoBackbone.from_pretrained(name).out_features == ["stage4"]
                torch.testing.assert_close(load(AutoBackbone, **options)(pixel_values).feature_maps, maps)
                by_tag = pipeline(model=name)
                assert by_tag.task == "image-classification"
                error = raised(pipeline, model=name + "-sharded")
                assert "pipeline_tag" in str(error), error
                error = raised(AutoModel.from_pretrained, name, token=False, cache_dir={str(tmp_path / "anonymous")!r})
                assert "not a valid model identifier" in str(error), error
        scores = {{entry["label"]: entry["score"] for entry in pipeline("image-classification", model=name)(picture)}}
        torch.testing.assert_close(
            torch.tensor([scores[f"LABEL_{{index}}"] for index in range(5)]), logits[0].softmax(-1)
        )
        torch.save((pixel_values, logits), {str(tmp_path / "logits.pt")!r})
    """
    environment = hub.environment(tmp_path / "home")
    run(hub, tmp_path / "home", code)
    pixel_values, logits = torch.load(tmp_path / "logits.pt")
    with torch.no_grad():
        torch.testing.assert_close(logits, model(pixel_values).logits)
    # one download for all of them
    assert requests(hub, "GET", "filename=model.safetensors") == [200]

    hub.stop()
    run_python(IMPORT + textwrap.dedent(code), **{**environment, "HF_HUB_OFFLINE": "1"})


def test_code_from_the_hub(hub, tmp_path):
    """Where the package is absent, the repository's own code comes through HTTP and gives the same result."""
    model = save_model(tmp_path / "saved")
    commit = hub.add(NAME, files_of(tmp_path / "saved"))
    pixel_values = torch.randn(1, 3, 64, 64)
    torch.save(pixel_values, tmp_path / "pixel_values.pt")
    code = f"""
        import torch
        from transformers import AutoModelForImageClassification

        model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True, revision={commit!r})
        assert type(model).__module__.startswith("transformers_modules.")
        assert "hf_internimage" not in sys.modules
        with torch.no_grad():
            logits = model.eval()(torch.load({str(tmp_path / "pixel_values.pt")!r})).logits
        torch.save(logits, {str(tmp_path / "logits.pt")!r})
    """
    run(hub, tmp_path / "home", WITHOUT_THE_PACKAGE + textwrap.dedent(code))
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(pixel_values).logits)
    assert requests(hub, "GET", "modeling_internimage.py") == [200]
