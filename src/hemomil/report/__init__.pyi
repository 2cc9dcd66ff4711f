from .page import write_figures_only as write_figures_only
from .page import write_report as write_report
from .settings import ReportSettings as ReportSettings
