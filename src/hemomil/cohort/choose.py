"""Restrict a cohort to samples with a value of their metadata, or leave these out."""

from collections.abc import Collection
from dataclasses import replace

from hemomil.cohort.table import resembling
from hemomil.errors import SettingsError
from hemomil.types import Cohort, Notice, Sample


def select(cohort: Cohort, condition: str) -> Cohort:
    """The samples for which `column=value` holds; a column of metadata, or label, site, patient, sample.

    Raises SettingsError if there is no such column or no sample matches.
    """
    matching = _matching(cohort, condition)
    return replace(cohort, samples=tuple(s for s in cohort.samples if s.sample in matching))


def exclude(cohort: Cohort, condition: str) -> Cohort:
    """The samples for which `column=value` does not hold.

    Raises SettingsError as `select` does, and if no sample is left.
    """
    matching = _matching(cohort, condition)
    if len(matching) == len(cohort.samples):
        raise SettingsError(f"{condition!r} leaves out every sample", hint="leave out fewer")
    return replace(cohort, samples=tuple(s for s in cohort.samples if s.sample not in matching))


def without_images(cohort: Cohort, images: Collection[str]) -> tuple[Cohort, tuple[Notice, ...]]:
    """The cohort without some images (unreadable ones, say) and without samples that lose all of theirs.

    `images` are named as in the manifest. Each image and each sample left out has a Notice.
    """
    gone = set(images)
    kept = [
        replace(s, images=tuple(row for row in s.images if row.image not in gone)) for s in cohort.samples
    ]
    notices = [
        Notice(
            kind="image-skipped", subject=row.image, text=f"image {row.image!r} (row {row.row}) was left out"
        )
        for s in cohort.samples
        for row in s.images
        if row.image in gone
    ]
    emptied = [
        s.sample for before, s in zip(cohort.samples, kept, strict=True) if before.images and not s.images
    ]
    notices += [
        Notice(
            kind="sample-skipped",
            subject=sample,
            text=f"sample {sample!r} was left out: no image of it is left",
        )
        for sample in emptied
    ]
    return replace(cohort, samples=tuple(s for s in kept if s.sample not in emptied)), tuple(notices)


def sample_value(sample: Sample, column: str) -> str | None:
    """The value of a sample in a column: metadata, or label, patient, sample; None if it has none."""
    own = {"label": sample.label, "patient": sample.patient, "sample": sample.sample}
    return own[column] if column in own else sample.metadata.get(column)


def known_column(cohort: Cohort, column: str) -> str:
    """The column under its own name, whatever the case it was asked for in. Raises SettingsError."""
    columns = ["label", "patient", "sample", *dict.fromkeys(c for s in cohort.samples for c in s.metadata)]
    named = {name.casefold(): name for name in columns}
    if column in columns or column.casefold() in named:
        return column if column in columns else named[column.casefold()]
    if any(column in row.metadata for s in cohort.samples for row in s.images):
        raise SettingsError(
            f"column {column!r} differs between the images of every sample",
            hint=f"choose whole samples by one of: {', '.join(columns)}",
        )
    meant = resembling(columns, (column,))
    raise SettingsError(
        f"there is no column {column!r} in the manifest; samples have {', '.join(columns)}",
        hint=f"did you mean {meant!r}?" if meant else "use one of these",
    )


def _matching(cohort: Cohort, condition: str) -> set[str]:
    """Names of the samples for which `column=value` holds: at least one."""
    column, equals, value = (part.strip() for part in condition.partition("="))
    if not (column and equals and value):
        raise SettingsError(
            f"{condition!r} is not a condition", hint="write COLUMN=VALUE, for example site=A"
        )
    column = known_column(cohort, column)
    matching = {s.sample for s in cohort.samples if sample_value(s, column) == value}
    if not matching:
        values = sorted({v for s in cohort.samples if (v := sample_value(s, column)) is not None})
        shown = ", ".join(values[:20]) + (f", ... ({len(values)} in all)" if len(values) > 20 else "")
        raise SettingsError(f"no sample has {column}={value}", hint=f"values of {column}: {shown or 'none'}")
    return matching
