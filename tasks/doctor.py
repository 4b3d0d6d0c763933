"""`make doctor`: says of every configured target whether it can answer, and what to do where it cannot."""

import sys
from datetime import UTC, datetime

from config import load_settings
from routing.catalogue import load_catalogue
from tasks.target import TargetReport, report_targets

COLUMNS = "{:<8} {:<9} {:<45} {:<13} {}\n"


def advise(report: TargetReport) -> str:
    """One phrase on one target."""
    if not report.is_configured:
        how = "LOCAL_MODEL=on" if report.provider == "local" else f"{report.provider.upper()}_API_KEY"
        return f"not used: set {how}"
    if report.is_replaced:
        return f"retired on {report.retired_on}: {report.model} answers instead"
    if report.retired_on:
        return f"retired on {report.retired_on}, no successor in use: set another model"
    if not report.is_known:
        return "unknown to the catalogue: its cost is the tier's flat price; check the spelling"
    return f"ok, price of {report.price_checked_on}"


def price(report: TargetReport) -> str:
    if report.input_price is None or report.output_price is None:
        return "flat"
    return f"${report.input_price:g}/${report.output_price:g}"


def main() -> int:
    settings = load_settings()
    reports = report_targets(settings, load_catalogue(), datetime.now(UTC).date())
    write = sys.stdout.write
    write(COLUMNS.format("tier", "provider", "model", "per 1M in/out", ""))
    for report in reports:
        row = (report.tier, report.provider, report.configured_model, price(report), advise(report))
        write(COLUMNS.format(*row))
    if not any(report.is_configured for report in reports):
        write("No provider is configured: set GROQ_API_KEY or TOGETHER_API_KEY, or LOCAL_MODEL=on.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
