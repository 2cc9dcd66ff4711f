"""What a person sees: figures and the offline page."""

from hemomil.report.page import write_figures_only, write_report
from hemomil.report.settings import ReportSettings

__all__ = ["ReportSettings", "write_figures_only", "write_report"]
