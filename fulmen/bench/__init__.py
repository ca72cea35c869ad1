"""Speed of operations and models, beside what the machine allows."""

from fulmen.bench.account import Account, Work, check_account, measure_account
from fulmen.bench.machine import (
    READ_BYTES,
    Limits,
    Spread,
    device_name,
    measure_limits,
    measure_read_rates,
    use_threads,
)
from fulmen.bench.model import check_workloads, tokens_per_s_limit
from fulmen.bench.op import Clock, Op, Prepared, Shapes, describe_op
from fulmen.bench.ops import list_ops
from fulmen.bench.report import (
    Report,
    limits_table,
    report_account,
    report_model,
    report_ops,
    time_text,
)
from fulmen.bench.timer import ModelTimer, Timing
from fulmen.bench.workload import Workload, until_steady

__all__ = [
    "READ_BYTES",
    "Account",
    "Clock",
    "Limits",
    "ModelTimer",
    "Op",
    "Prepared",
    "Report",
    "Shapes",
    "Spread",
    "Timing",
    "Work",
    "Workload",
    "check_account",
    "check_workloads",
    "describe_op",
    "device_name",
    "limits_table",
    "list_ops",
    "measure_account",
    "measure_limits",
    "measure_read_rates",
    "report_account",
    "report_model",
    "report_ops",
    "time_text",
    "tokens_per_s_limit",
    "until_steady",
    "use_threads",
]
