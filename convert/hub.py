"""Checkpoints of the Hugging Face hub, fetched and sent by its own client.

    hf:ORG/NAME    hf:ORG/NAME@REVISION    hf:ORG/NAME/FILE.pth

Token, cache, endpoint and offline mode are the client's: HF_TOKEN or a login, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE. The
first file fetched pins the commit; all others are of it. Sizes are bounded before anything is fetched. What the files
mean is `containers.py`'s.
"""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxprune.cli.console import notice

from .containers import LARGEST_FILE, LARGEST_JSON, WEIGHT_FILES, Container, open_container, read_json
from .errors import CheckpointError, first_sentence

PREFIX = "hf:"
CONFIG = "config.json"
BESIDE = ("preprocessor_config.json", "processor_config.json")  # read where they are there
_NAME = re.compile(r"hf:/{0,2}(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/\s]+))?(/(?P<file>[^\s]+))?")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def is_name(source: Path | str) -> bool:
    """True for `hf:...`, unless a file of the disk is called so."""
    return str(source).startswith(PREFIX) and not Path(source).exists()


def open_source(source: Path | str, *, key: str | None = None) -> Container:
    """The container of a path, as `open_container` reads it, or of a name on the hub. Raises `CheckpointError`."""
    if not is_name(source):
        return open_container(source, key=key)
    fetched = fetch(str(source))
    container = open_container(fetched.path, key=key)
    return dataclasses.replace(container, name=fetched.name, checked=container.checked or fetched.checked)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """A checkpoint in the client's cache: a file, or the folder of the commit that `name` ends with.

    `checked` is true if the hub told a SHA-256 of all weights, and they have it.
    """

    path: Path
    name: str
    checked: bool


def fetch(name: str) -> Fetched:
    """Fetches what a name asks for, or finds it in the client's cache. Raises `CheckpointError`, one sentence."""
    match = _NAME.fullmatch(name)
    if not match:
        raise CheckpointError(name, "is no name on the hub; they look like hf:ORG/NAME, hf:ORG/NAME@REVISION")
    repository = _Repository(name, match["repo"], revision=match["revision"])
    with _in_a_sentence(name):
        if match["file"]:
            path = repository.get(match["file"], largest=LARGEST_FILE)
            if path is None:
                raise CheckpointError(name, "is not a file on the hub")
            repository.get(str(Path(match["file"]).with_name(CONFIG)), largest=LARGEST_JSON)
            weights = [path]
        else:
            weights = list(repository.weights())
            path = weights[0].parent
    pinned = f"{PREFIX}{match['repo']}@{repository.revision}" + (f"/{match['file']}" if match["file"] else "")
    told = [_has_its_digest(file) for file in weights]
    return Fetched(path=path, name=pinned, checked=all(told))


class _Repository:
    """One repository. The first file that is asked for pins `revision` to a commit."""

    def __init__(self, name: str, repo: str, *, revision: str | None):
        import huggingface_hub.constants
        import huggingface_hub.errors

        self._hub, self._name, self._repo, self.revision = huggingface_hub, name, repo, revision

    def get(self, file: str, *, largest: int) -> Path | None:
        """A file in the cache, fetched if need be. None where the repository has no such file."""
        try:
            found = self._hub.hf_hub_download(self._repo, file, revision=self.revision, dry_run=True)
            if (found.file_size or 0) > largest:
                raise CheckpointError(
                    self._name, f"has {file} of {found.file_size:,} bytes; at most {largest:,} are fetched"
                )
            # By the name that was asked for, so that the cache knows its commit when the hub is off.
            path = Path(self._hub.hf_hub_download(self._repo, file, revision=self.revision))
            self.revision = path.parents[file.count("/")].name  # the cache has a folder for each commit
            return path
        except self._hub.errors.RemoteEntryNotFoundError:
            return None
        except self._hub.errors.LocalEntryNotFoundError:
            if self._is_cached() and self._hub.constants.is_offline_mode():
                return None
            raise

    def _is_cached(self) -> bool:
        """True where the commit is known and has its configuration in the cache."""
        found = self._hub.try_to_load_from_cache(self._repo, CONFIG, revision=self.revision)
        return isinstance(found, str)

    def weights(self) -> Iterator[Path]:
        """The files of weights that `containers.open_container` looks for first, with the configuration beside them."""
        if self.get(CONFIG, largest=LARGEST_JSON) is None:
            raise CheckpointError(
                self._name, f"has no {CONFIG} on the hub, so no file to begin with; name one: {self._name}/FILE.pth"
            )
        for file in BESIDE:
            self.get(file, largest=LARGEST_JSON)
        for file in WEIGHT_FILES:
            is_index = file.endswith(".index.json")
            path = self.get(file, largest=LARGEST_JSON if is_index else LARGEST_FILE)
            if path is not None:
                yield path
                yield from self._shards(path) if is_index else ()
                return
        raise CheckpointError(self._name, f"holds no weights; looked for {', '.join(WEIGHT_FILES)}")

    def _shards(self, index: Path) -> Iterator[Path]:
        """The files that an index names. Those that do not lie beside it are left for the reader to refuse."""
        named = read_json(index).get("weight_map")
        files = {file for file in named.values() if isinstance(file, str)} if isinstance(named, dict) else set()
        for file in sorted(file for file in files if Path(file).name == file):
            path = self.get(file, largest=LARGEST_FILE)
            if path is not None:
                yield path


def _has_its_digest(file: Path) -> bool:
    """Compares a large file with the SHA-256 that the cache calls it by. False where it goes by another name.

    Raises `CheckpointError` where the two differ.
    """
    blob = file.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return False
    with blob.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != blob.name:
            raise CheckpointError(blob, "was damaged on its way or in the cache; delete it and fetch it again")
    return True


def check_repository(repo: str) -> None:
    """Raises `ValueError` unless this is a name for a repository, and `ModuleNotFoundError` without the client."""
    import huggingface_hub  # noqa: F401 (before long work, not after it)

    if not _REPO.fullmatch(repo):
        raise ValueError(f"{repo!r} is no name of a repository; it looks like ORG/NAME")


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Sends a folder to a repository of the hub, which is made if it is not there, and returns the commit's address.

    Raises `ValueError`, one sentence, where the hub refuses or cannot be reached.
    """
    import huggingface_hub

    with _in_a_sentence(f"{PREFIX}{repo}"):
        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Written by jaxprune export")
    return done.commit_url


@contextmanager
def _in_a_sentence(name: str) -> Iterator[None]:
    """Turns the client's errors into `CheckpointError`s about a name on the hub."""
    import huggingface_hub.constants
    import huggingface_hub.errors

    known = huggingface_hub.errors
    try:
        with _warnings_told_once():
            yield
    except CheckpointError:
        raise
    except known.GatedRepoError as error:
        raise CheckpointError(name, "is gated: accept its terms on its page, and log in (hf auth login)") from error
    except known.RepositoryNotFoundError as error:
        why = "does not exist on the hub, or is private: check the name, or log in (hf auth login)"
        raise CheckpointError(name, why) from error
    except known.RevisionNotFoundError as error:
        raise CheckpointError(name, "does not exist on the hub in this revision") from error
    except (known.LocalEntryNotFoundError, known.OfflineModeIsEnabled) as error:
        if huggingface_hub.constants.is_offline_mode():
            why = "is not whole in the cache, and HF_HUB_OFFLINE keeps the hub off; unset it to fetch"
        else:
            cause = f" ({first_sentence(error.__cause__)})" if error.__cause__ else ""
            why = f"is not in the cache, and cannot be had from {huggingface_hub.constants.ENDPOINT}{cause}"
        raise CheckpointError(name, why) from error
    except known.HfHubHTTPError as error:
        status = error.response.status_code
        login = "; log in (hf auth login) or set HF_TOKEN" if status in (401, 403) else ""
        raise CheckpointError(name, f"was refused by the hub with status {status}{login}") from error
    except (known.HTTPError, OSError, known.HFValidationError) as error:
        raise CheckpointError(name, f"cannot be fetched or sent: {first_sentence(error)}") from error


@contextmanager
def _warnings_told_once() -> Iterator[None]:
    """Makes a note of each kind of warning that the client logs, once: it asks five times and warns each time."""
    from huggingface_hub.utils.logging import get_logger

    client, told = get_logger("huggingface_hub"), set()

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kind = (record.pathname, record.lineno)
            if kind not in told:
                told.add(kind)
                notice(record.getMessage().partition("\n")[0])

    handlers, propagate = client.handlers, client.propagate
    client.handlers, client.propagate = [Notes()], False
    try:
        yield
    finally:
        client.handlers, client.propagate = handlers, propagate
