"""Everything that can go wrong for a user, in one tree.

HemomilError           the user can put it right: exit code 2, message and hint, no traceback
├── ManifestError      manifest.csv: columns, rows, labels, patients
├── CellsError         known cells of a file or folder: boxes, columns, outlines, images
├── ImageError         one image file cannot be read as it should
├── FeaturesError      vectors brought along: shape, names, NaN
├── SettingsError      a flag or settings key that cannot be obeyed
├── ModelError         a saved model or detector that cannot be used here
└── RunFolderError     the output folder is taken, incomplete, or another run's

Anything else that escapes is our bug: exit code 1.
"""


class HemomilError(Exception):
    """A problem that the user can put right.

    `message` names the thing and the value found; `hint` says what to do.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:  # joblib sends errors between processes
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[HemomilError], message: str, hint: str) -> HemomilError:
    return kind(message, hint=hint)


class ManifestError(HemomilError):
    """The manifest cannot be used; the message lists every problem with its row."""


class CellsError(HemomilError):
    """A file of known cells cannot be used."""


class ImageError(HemomilError):
    """An image file cannot be read."""


class FeaturesError(HemomilError):
    """Features cannot be used: wrong shape, other names than the model's, NaN."""


class SettingsError(HemomilError):
    """A setting cannot be obeyed."""


class ModelError(HemomilError):
    """A saved model cannot be used here."""


class RunFolderError(HemomilError):
    """The output folder is taken, incomplete, or belongs to another run."""
