"""Which slide goes to which worker, and what becomes of those whose worker died: no Dask, no clock."""

import random

import pytest

from wsi_mil.parallel.board import RETRIES, Board, Seat


def seats(board, count, *, slots=1, hosts=1):
    for i in range(count):
        board.seats[f"w{i}"] = Seat(f"w{i}", f"h{i % hosts}", slots)


def handed_out(board):
    given = []
    while (each := board.next()) is not None:
        given.append((each[0], each[1].address))
    return given


def test_slides_are_taken_in_their_order_and_workers_fill_up_evenly():
    board = Board("abcdef")
    seats(board, 2, slots=2)
    assert handed_out(board) == [("a", "w0"), ("b", "w1"), ("c", "w0"), ("d", "w1")]
    board.ended("b")
    assert handed_out(board) == [("e", "w1")]
    assert board.left == 5


def test_no_more_than_a_slot_each_and_nothing_to_closed_workers():
    board = Board("abc")
    seats(board, 2)
    board.seats["w0"].open = False
    assert handed_out(board) == [("a", "w1")]
    board.seats["w0"].open = True
    assert handed_out(board) == [("b", "w0")]


def test_a_slide_that_is_taken_back_is_next_and_no_death_of_anybody():
    board = Board("abcd")
    seats(board, 2)
    assert handed_out(board) == [("a", "w0"), ("b", "w1")]
    board.seats["w0"].open = False
    board.taken_back("a")
    board.ended("b")
    assert handed_out(board) == [("a", "w1")]
    assert board.left == 3
    assert not board.was_lost("a")


def test_a_slide_whose_worker_died_is_next_and_on_another_machine():
    board = Board("abcd")
    seats(board, 3, hosts=2)  # w0 and w2 are one machine
    assert [each for each, _ in handed_out(board)] == ["a", "b", "c"]
    assert board.lost("w0") == (["a"], [])
    board.ended("b"), board.ended("c")
    assert handed_out(board) == [("a", "w1"), ("d", "w2")], "not where it was lost"


def test_what_was_with_a_dead_worker_runs_alone():
    board = Board("abcde")
    seats(board, 2, slots=2)
    assert len(handed_out(board)) == 4
    assert board.lost("w0") == (["a", "c"], [])
    assert handed_out(board) == [], "w1 has other slides still"
    board.ended("b")
    assert handed_out(board) == [], "it is kept free for a suspect"
    board.ended("d")
    assert handed_out(board) == [("a", "w1")]
    board.ended("a")
    assert handed_out(board) == [("c", "w1")]
    board.ended("c")
    assert handed_out(board) == [("e", "w1")]


def test_a_slide_that_kills_its_workers_is_named_and_the_others_come_first():
    board = Board(["poison", "a", "b"])
    seats(board, 1)
    assert handed_out(board) == [("poison", "w0")]
    assert board.lost("w0") == (["poison"], [])
    board.seats["w1"] = Seat("w1", "h0", 1)
    assert handed_out(board) == [("poison", "w1")]
    assert board.lost("w1") == (["poison"], [])
    board.seats["w2"] = Seat("w2", "h0", 1)
    for each in "ab":
        assert handed_out(board) == [(each, "w2")]
        board.ended(each)
    assert handed_out(board) == [("poison", "w2")], "last of all"
    again, (failed,) = board.lost("w2")
    assert (again, board.left) == ([], 0)
    assert failed.slide_id == "poison"
    assert failed.reason.startswith("3 workers died while they worked on it (w0, w1, w2)")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_dies_every_slide_ends_once_and_only_poison_fails(seed):
    rng = random.Random(seed)
    slides = [f"s{i}" for i in range(30)]
    poison = set(rng.sample(slides, 2))
    board, ended, tries, born = Board(slides), [], dict.fromkeys(slides, 0), 0
    while board.left:
        while len(board.seats) < 3:
            board.seats[f"w{born}"] = Seat(f"w{born}", f"h{rng.randrange(3)}", rng.choice([1, 2, 3]))
            born += 1
        for slide_id, _ in handed_out(board):
            tries[slide_id] += 1
        assert all(len(seat.running) <= seat.slots for seat in board.seats.values())
        busy = [seat for seat in board.seats.values() if seat.running]
        assert busy, "somebody has work as long as there is any"
        seat = rng.choice(busy)
        if poison & seat.running:
            ended += [each.slide_id for each in board.lost(seat.address)[1]]
        else:
            board.ended(done := rng.choice(sorted(seat.running)))
            ended.append(done)
    assert sorted(ended) == sorted(slides)
    assert all(tries[each] == RETRIES + 1 for each in poison)
    assert all(tries[each] <= 2 for each in set(slides) - poison), "alone after the first death"
