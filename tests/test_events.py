"""The events of an asynchronous run on a virtual clock, against lists made by hand."""

import numpy as np
import pytest

from genfl_mpi.config.sections.time import Time
from genfl_mpi.edge.events import UPDATE, Clock, read_trace, simulate, staleness_weight
from genfl_mpi.util.errors import UserError


def in_turn(version, draw, idle, count):
    """Choose the idle clients with the lowest ids."""
    return idle[:count]


def events(driver, cohort, rounds, seconds, serve=None, clients=4, **settings):
    """The events with fixed durations: seconds of each client."""
    clock = Clock(clients, lambda version, ids: np.array(seconds, float)[ids], in_turn, serve)
    return simulate(Time(driver=driver, **settings), cohort, rounds, clock)


def rows(table, last=99):
    """The rows of the rounds until `last`."""
    return [tuple(row) for row in table.tolist() if row[4] <= last]


def test_fedbuff_aggregates_the_first_to_arrive():
    """Two of four clients train, of 1, 2, 3 and 4 s; a buffer of two.

    0 arrives at 1 and 1 at 2, round 1. At 1 the idle client that was not asked starts, 2, until 4. At 2
    client 0 starts from version 1, until 3, then 1, until 5; 2 and 0 fill the buffer at 4, 2 stale by 1.
    """
    found = events("fedbuff", 2, 3, [1, 2, 3, 4], concurrency=2)
    assert found.seconds[:3].tolist() == [2, 4, 5]
    assert rows(found.updates, 3) == [
        (0, 0, 0, 1, 1),
        (1, 0, 0, 2, 1),
        (2, 0, 1, 4, 2),
        (0, 1, 2, 3, 2),
        (1, 1, 3, 5, 3),
        (0, 2, 4, 5, 3),
    ]
    assert found.of_round(2)["client"].tolist() == [0, 2]
    assert found.live_versions(1) == {0, 1} and found.live_versions(2) == {1, 2}


def test_fedasync_makes_a_round_of_every_update():
    found = events("fedasync", 1, 5, [1, 2.5], clients=2, concurrency=2)
    assert found.seconds[:5].tolist() == [1, 2, 2.5, 3, 4]
    assert [(row[0], row[4] - 1 - row[1]) for row in rows(found.updates, 5)] == [
        (0, 0),
        (1, 2),
        (0, 0),
        (0, 1),
        (0, 0),
    ]


def test_semi_synchronous_rounds_take_what_arrived():
    """Rounds of 2 s; the client of 3 s arrives in the second round, stale by 1, and a round may be empty."""
    found = events("semi_synchronous", 2, 3, [1, 3], clients=2, period_s=2.0)
    assert found.seconds[:3].tolist() == [2, 4, 6]
    assert rows(found.updates, 3) == [(0, 0, 0, 1, 1), (1, 0, 0, 3, 2), (0, 1, 2, 3, 2), (0, 2, 4, 5, 3)]
    empty = events("semi_synchronous", 1, 3, [5.0], clients=1, period_s=2.0)
    assert [len(empty.of_round(round)) for round in (1, 2, 3)] == [0, 0, 1]


def test_equal_times_make_synchronous_rounds():
    found = events("fedbuff", 3, 4, [1] * 6, clients=6)
    assert (found.updates["round"] - 1 == found.updates["begun"]).all()
    assert len(rows(found.updates, 4)) == 12


def test_one_client_at_a_time_is_never_stale():
    found = events("fedbuff", 1, 3, [1, 2], clients=2, concurrency=1)
    assert found.seconds[:3].tolist() == [1, 2, 3] and (found.updates["client"] == 0).all()
    assert (found.updates["round"] - 1 == found.updates["begun"]).all()


def test_too_stale_updates_are_discarded():
    found = events("fedasync", 1, 9, [1, 2.5], clients=2, concurrency=2, max_staleness=1)
    assert set(found.updates["client"].tolist()) == {0} and found.seconds[2] == 3


def test_the_augmented_model_enters_the_first_round_after_it_is_ready():
    """Rounds of 1 s, 1.5 s for the augmented model: it enters every second round, stale by 1."""
    found = events("fedbuff", 1, 6, [1], serve=lambda version: 1.5, clients=1)
    assert [(row[1], row[4]) for row in rows(found.augmentations, 6)] == [(0, 2), (2, 4), (4, 6)]
    assert found.augmented(1) is None and found.augmented(2)["begun"] == 0
    quick = events("fedbuff", 1, 3, [1], serve=lambda version: 0.5, clients=1)
    assert (quick.augmentations["round"] - 1 == quick.augmentations["begun"]).all()


def test_more_rounds_do_not_change_earlier_ones():
    short, long = (events("fedbuff", 2, rounds, [1, 2, 3, 4], concurrency=3) for rounds in (4, 8))
    assert rows(short.updates, 4) == rows(long.updates, 4)


def test_staleness_weights():
    assert staleness_weight(np.array([0, 3]), 0.5).tolist() == [1, 0.5]
    assert staleness_weight(3, 0.0) == 1


def traced(path, text, rounds=2, cohort=1, **settings):
    path.write_text(text)
    clock = Clock(3, None, None, None, read_trace(str(path), 3))
    return simulate(Time(driver="fedbuff", trace=str(path), **settings), cohort, rounds, clock)


def test_a_trace_replaces_selection_and_durations(tmp_path):
    text = "client,start,seconds\n1,0,2\n0,0.5,1\nserver,0,1\n2,1.5,3\n"
    found = traced(tmp_path / "trace.csv", text, 3)
    assert rows(found.updates) == [(1, 0, 0, 2, 2), (0, 0, 0.5, 1.5, 1), (2, 1, 1.5, 4.5, 3)]
    assert rows(found.augmentations) == [(-1, 0, 0, 1, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,start,seconds\n0,0,1\n", "end after 1 rounds"),
        ("client,start\n0,0\n", "has the columns"),
        ("client,start,seconds\n7,0,1\n", "line 2: needs a client from 0 to 2"),
        ("client,start,seconds\n0,0,x\n", "not a table of numbers"),
        ("client,start,seconds\n0,0,2\n0,1,2\n", "client 0 starts before its previous row ends"),
    ],
)
def test_a_bad_trace_is_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        traced(tmp_path / "trace.csv", text)
    assert UPDATE.names[0] == "client"
