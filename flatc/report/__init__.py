"""Reports: what a schedule costs and why, as records, as text and as JSON.

report = build_report(module)           # from any schedule that holds its accelerator
print(to_text(report))
data = to_dict(report)                  # what `flatc compile --json` prints
"""

from flatc.report.build import build_report
from flatc.report.json import SCHEMA_VERSION, to_dict, to_json
from flatc.report.model import Report
from flatc.report.text import to_text

__all__ = ["SCHEMA_VERSION", "Report", "build_report", "to_dict", "to_json", "to_text"]
