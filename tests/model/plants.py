"""Mistakes that could be made with the rules, each of which a search must find.

A plant is `Rules` with an entry changed, and the bounds within which it is found soonest. Most
are mistakes that the rules were written against; five are holes that this model found in an
earlier form of the rules, and are kept since an implementation may well have them again:
`a_claimer_still_answers`, `a_claim_outlives_its_process`, `the_tail_comes_in_pieces`,
`a_restart_forgets_the_ballot` and `orders_to_learn_are_believed`.

Two rules are no plants, since nothing breaks without them (`NOT_NEEDED`): the empty mutation,
once the tail is re-proposed in one piece, and draining before a hand-over, once the new primary
re-proposes what was not committed. They are kept for other reasons: a ballot in which nothing was
written leaves a trace in every log, and clients do not wait for a tail.
"""

from collections.abc import Mapping
from random import Random
from typing import Final, NamedTuple

from tests.model.model import Bounds, Rules
from tests.model.search import Found, search, walk

__all__ = ["NOT_NEEDED", "PLANTS", "Plant", "find"]

RULES: Final = Rules()
# Claims, and nothing else that changes a configuration.
CLAIMS: Final = Bounds(writes=1, ballots=2, kills=0, removal=False, learning=False, hand_over=False)
RESTARTS: Final = CLAIMS._replace(writes=2, ballots=5, kills=1)
WIDE: Final = Bounds(writes=4, ballots=6, kills=3)

WALKS: Final = 3_000
WALK_STEPS: Final = 80


class Plant(NamedTuple):
    """A mistake, where it is found, and whether clients can see it there."""

    rules: Rules
    bounds: Bounds
    seed: int | None = None  # of random walks; None: by a search
    inside: bool = False  # found by an invariant that clients do not see


PLANTS: Final[Mapping[str, Plant]] = {
    # L1: nobody goes on in an old role.
    "an_old_ballot_is_kept_after_a_restart": Plant(
        RULES._replace(ballot_after_restart=False), CLAIMS._replace(kills=1)
    ),
    "a_restart_forgets_the_ballot": Plant(
        RULES._replace(told_by_store_after_restart=False), CLAIMS._replace(kills=1)
    ),
    "a_claim_outlives_its_process": Plant(
        RULES._replace(claims_end_with_process=False), CLAIMS._replace(kills=1)
    ),
    "commit_without_own_sync": Plant(
        RULES._replace(synced_before_commit=False), CLAIMS._replace(kills=1)
    ),
    "acknowledge_before_the_sync": Plant(
        RULES._replace(synced_before_acknowledged=False), CLAIMS._replace(kills=1)
    ),
    # L2: barrier and history.
    "no_barrier": Plant(
        RULES._replace(tail_reproposed=False, empty_mutation=False), RESTARTS, seed=2
    ),
    "the_tail_keeps_its_ballot": Plant(RULES._replace(tail_reproposed=False), RESTARTS, seed=2),
    "the_tail_comes_in_pieces": Plant(
        RULES._replace(tail_in_one_piece=False), CLAIMS._replace(writes=2, ballots=3)
    ),
    "served_before_the_barrier": Plant(RULES._replace(served_after_barrier=False), CLAIMS),
    "a_history_without_an_end": Plant(
        RULES._replace(history_cut=False), CLAIMS._replace(writes=2, ballots=3)
    ),
    "prepares_of_lower_ballots_taken": Plant(RULES._replace(lower_ballots_refused=False), CLAIMS),
    "commit_by_a_majority": Plant(RULES._replace(commit_by_all=False), CLAIMS),
    # S1, L20: leases.
    "served_without_a_lease": Plant(RULES._replace(lease_needed=False), CLAIMS),
    "a_lease_from_its_acknowledgement": Plant(RULES._replace(lease_from_sending=False), CLAIMS),
    "a_grace_shorter_than_the_lease": Plant(RULES._replace(lease=2), CLAIMS),
    "a_claimer_still_answers": Plant(RULES._replace(claimer_is_silent=False), CLAIMS),
    # L4, L5: configurations.
    "members_change_before_the_store_does": Plant(
        RULES._replace(stored_before_acted_on=False), CLAIMS._replace(removal=True)
    ),
    "a_set_without_a_compare": Plant(RULES._replace(compared_before_set=False), WIDE, seed=0),
    "an_upgrade_window_for_commits": Plant(
        RULES._replace(both_configurations_commit=False), WIDE, seed=0
    ),
    "an_upgrade_window_for_leases": Plant(
        RULES._replace(both_configurations_lease=False), WIDE, seed=0
    ),
    "a_learner_without_the_newest": Plant(RULES._replace(learner_has_all=False), WIDE, seed=0),
    # L3, L5: old records and empty disks.
    "a_learner_keeps_its_old_records": Plant(
        RULES._replace(learner_begins_anew=False), WIDE, seed=0
    ),
    "orders_to_learn_are_believed": Plant(
        RULES._replace(learning_is_fenced=False), WIDE, seed=0, inside=True
    ),
    "a_wiped_disk_is_a_member": Plant(
        RULES._replace(wiped_is_gone=False), CLAIMS._replace(wipes=1)
    ),
    "no_stop_before_a_hand_over": Plant(
        RULES._replace(stopped_before_hand_over=False),
        CLAIMS._replace(writes=0, ballots=3, removal=True, hand_over=True),
    ),
    # L13, L14: answers.
    "answers_from_what_is_pending": Plant(
        RULES._replace(answers_wait_for_commit=False), WIDE, seed=0
    ),
    "a_logged_write_is_tried_again": Plant(
        RULES._replace(logged_is_never_retryable=False), WIDE, seed=0
    ),
}

NOT_NEEDED: Final[Mapping[str, Rules]] = {
    "empty_mutation": RULES._replace(empty_mutation=False),
    "drained_before_hand_over": RULES._replace(drained_before_hand_over=False),
}


def find(plant: Plant) -> Found:
    """Look for what breaks with this mistake."""
    if plant.seed is None:
        return search(plant.rules, plant.bounds, inside=plant.inside)
    return walk(
        plant.rules,
        plant.bounds,
        Random(plant.seed),
        steps_max=WALK_STEPS,
        walks=WALKS,
        inside=plant.inside,
    )
