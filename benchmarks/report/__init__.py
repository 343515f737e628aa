"""How benchmarks print: a report and a table of figures, and few logs."""

from report.logs import quiet_logs
from report.tables import Cell, print_report, print_table

__all__ = ["Cell", "print_report", "print_table", "quiet_logs"]
