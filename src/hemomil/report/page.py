"""Write report.html: one file that opens from disk, needs no network, and is the same every time."""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from hemomil.files import write_text
from hemomil.report import words
from hemomil.report.card import model_card
from hemomil.report.choose import how_chosen, in_class_order
from hemomil.report.class_marks import EXPLANATION, class_marks
from hemomil.report.evidence import read_deletion
from hemomil.report.figures import headline_metrics, write_figures
from hemomil.report.pictures import Pictures, ReadImage, data_uri
from hemomil.report.plane import bokeh_js
from hemomil.report.ranks import COUNTED, counted_key
from hemomil.report.reasons import reasons
from hemomil.report.scales import scales
from hemomil.report.settings import ReportSettings
from hemomil.report.tables import RunTables, read_run, records
from hemomil.report.views import Views, cells_with_reasons

HERE = Path(__file__).parent
MEGABYTE = 1_000_000
SCRIPTS = ("report.js", "threshold.js", "plane.js", "table.js")


def write_report(
    run: Path,
    *,
    read_image: ReadImage,
    about: Mapping[str, Any] | None = None,
    settings: ReportSettings | None = None,
) -> Path:
    """Write `report.html` and `figures/` into the run folder, from its tables and the images they name.

    `read_image` gives an image of shape H W 3, uint8. Images that cannot be read are named on the page.
    `about` is what run.json says, where that is not written yet.
    Raises RunFolderError where a table is missing.
    """
    settings = settings or ReportSettings()
    tables = read_run(run, settings.method, about)
    context = _context(tables, read_image, settings)
    index, own = (_environment().get_template(f"{name}.html.jinja") for name in ("report", "sample_page"))
    page, pages = index.render(context, split=False), {}
    if len(page.encode()) > settings.max_megabytes * MEGABYTE:
        pages = {view.page: own.render(context, view=view) for view in context["samples"]}
        links = {view.sample: f"report/{view.page}" for view in context["samples"]}
        apart = {"rows": _sample_rows(tables, links), "scripts": _scripts(with_planes=False)}
        page = index.render(context | apart, split=True)
    _write_pages(run / "report", pages)
    target = run / "report.html"
    write_text(target, page)
    return target


def write_figures_only(
    run: Path,
    *,
    read_image: ReadImage,
    about: Mapping[str, Any] | None = None,
    settings: ReportSettings | None = None,
) -> Path:
    """Write `figures/` of a run, as SVG and PNG in print size, and no page; returns the folder."""
    tables = read_run(run, (settings or ReportSettings()).method, about)
    write_figures(tables, Pictures(tables.manifest, read_image))
    return run / "figures"


def _write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Write the pages of single samples; those of an earlier report are not left lying about."""
    for name, page in pages.items():
        write_text(folder / name, page)
    for path in sorted(folder.glob("*.html")):
        if path.name not in pages:
            path.unlink()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["p"] = words.p_text
    environment.globals["part"] = lambda name: Markup((HERE / name).read_text(encoding="utf-8"))
    return environment


def _context(tables: RunTables, read_image: ReadImage, settings: ReportSettings) -> dict[str, Any]:
    pictures = Pictures(tables.manifest, read_image)
    why, compared = reasons(tables, cells_with_reasons(tables, settings))
    colours = scales(tables.cells)
    views = Views(tables, pictures, colours, why, read_deletion(tables), settings)
    figures = {name: data_uri("image/svg+xml", svg) for name, svg in write_figures(tables, pictures).items()}
    samples = list(views.samples())
    marks = class_marks(tables.classes) if views.has_classes else ()
    key = counted_key(tables.cells)
    return {
        "about": tables.about,
        "title": _title(tables),
        "tables": tables,
        "caveat": words.CAVEATS.get(str(tables.about.get("command")), ""),
        "counts": _counts(tables),
        "notices": _notices(tables.about.get("notices") or []),
        "headline": list(_metric_rows(tables.estimates, headline=True)),
        "headline_names": headline_metrics(tables.estimates),
        "details": list(_metric_rows(tables.estimates, headline=False)),
        "instances": list(_instance_rows(tables.instances)),
        "instance_scores": list(dict.fromkeys(tables.instances["score"])),
        "others": [row for part in tables.others.values() for row in _metric_rows(part, headline=False)],
        "figures": figures,
        "scales": colours,
        "marks": marks,
        "class_explanation": EXPLANATION,
        "letters": [scale.letter for scale in colours] + ["k"] * bool(marks),
        "counted": COUNTED[key] if key else "",
        "scripts": _scripts(with_planes=any(view.plane for view in samples)),
        "samples": samples,
        "chosen": how_chosen(tables, settings),
        "gallery": views.gallery(),
        "typical": views.typical(),
        "compared": compared,
        "has_reasons": bool(why),
        "rows": _sample_rows(tables, {view.sample: f"#{view.anchor}" for view in samples}),
        "problems": sorted(pictures.problems.items()),
        "settings_rows": sorted(_flat(tables.about.get("settings") or {}, "")),
        "timing_rows": sorted(_flat(tables.about.get("timings") or {}, "")),
        "card": model_card(tables),
        "words": words,
        "shown": settings,
    }


def _scripts(*, with_planes: bool) -> list[dict[str, Markup]]:
    """The scripts of a page; only what hashes to one of these is run."""
    own = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    texts = [bokeh_js(), own] if with_planes else [own]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return [
        {"text": Markup(text), "hash": Markup(f"sha256-{digest}")}
        for text, digest in zip(texts, digests, strict=True)
    ]


def _title(tables: RunTables) -> str:
    return tables.manifest.parent.name if tables.manifest else tables.folder.resolve().name


def _counts(tables: RunTables) -> dict[str, int]:
    return {
        "samples": len(tables.samples),
        "patients": int(tables.samples.loc[tables.samples["patient"] != "", "patient"].nunique()),
        "cells": len(tables.cells),
    }


def _notices(notices: list[Mapping[str, str]]) -> list[tuple[str, list[Mapping[str, str]]]]:
    """Notices by kind, in the order in which the kinds first came."""
    kinds = dict.fromkeys(str(notice.get("kind", "")) for notice in notices)
    return [
        (kind.replace("-", " "), [n for n in notices if str(n.get("kind", "")) == kind]) for kind in kinds
    ]


def _metric_rows(estimates: pd.DataFrame, *, headline: bool) -> Iterator[dict[str, Any]]:
    """A row per method (headline) or per method, score and metric."""
    if not headline:
        for row in records(estimates):
            yield {**row, "text": words.estimate_text(row), "title": words.metric_title(str(row["metric"]))}
        return
    names = headline_metrics(estimates)
    for method, part in estimates[estimates["score"] == ""].groupby("method", sort=False):
        by_metric = part.drop_duplicates("metric").set_index("metric").reindex(names)
        cells = [{**row, "text": words.estimate_text(row)} for row in records(by_metric)]
        yield {"method": method, "cells": cells}


def _instance_rows(instances: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row per method: how well each score ranks the abnormal cells; blank where it has no such score."""
    scores = list(dict.fromkeys(instances["score"]))
    for method, part in instances[instances["value"].notna()].groupby("method", sort=False):
        texts = {(row["score"], row["metric"]): words.estimate_text(row) for row in records(part)}
        cells = [[texts.get((score, metric), "") for metric in ("auroc", "ap")] for score in scores]
        yield {"method": method, "cells": cells, "n": int(part["n"].max())}


def _sample_rows(tables: RunTables, links: Mapping[str, str]) -> list[dict[str, Any]]:
    ordered = in_class_order(tables.samples, tables.classes)
    return [{**row, "link": links.get(row["sample"], "")} for row in records(ordered)]


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Nested settings as `mil.epochs`, value."""
    if isinstance(value, Mapping):
        for key, branch in value.items():
            yield from _flat(branch, f"{name}.{key}" if name else str(key))
    else:
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)
