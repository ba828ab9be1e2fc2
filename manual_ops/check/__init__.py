"""A gradient checker that says what is right, what is wrong, where, and what to do."""

from manual_ops.check.report import CheckError as CheckError
from manual_ops.check.report import Report as Report
from manual_ops.check.report import Row as Row
from manual_ops.check.run import CHECKS as CHECKS
from manual_ops.check.run import check as check
