"""What a primary finds out counts while it leads: a former one may not know what has come."""

import pytest

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_duplication import ProgressReport
from pegaskv.codec.wire_meta import progress_report_from_wire, progress_report_to_wire
from tests.meta.sides import connected, progress


@pytest.mark.parametrize("by", [-1, 1])
def test_only_the_present_primary_breaks_a_duplication(by: int) -> None:
    alpha, beta = connected()
    alpha.create("t")
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.ship(entry)
    alpha.restart()
    ballot = alpha.server.replicas[Gpid(1, 2)]
    assert ballot > 1
    alpha.report(entry, progress(2), failure="the source lost decrees 4 to 7", ballot=ballot + by)
    assert alpha.entry(1, entry.dupid).failure == ""
    alpha.report(entry, progress(2), failure="the source lost decrees 4 to 7", ballot=ballot)
    assert "lost decrees" in alpha.entry(1, entry.dupid).failure


def test_a_report_carries_its_ballot_over_the_wire() -> None:
    report = ProgressReport(Gpid(1, 2), 3, b"u" * 16, progress(2), "why", 7)
    assert progress_report_from_wire(progress_report_to_wire(report)) == report
