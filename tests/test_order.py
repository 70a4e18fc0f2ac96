from itertools import pairwise

from order import shuffled

TESTS = [(file, number) for file in "abcde" for number in range(10)]


def file(test):
    return test[0]


def test_every_test_runs_once_and_files_stay_together():
    mixed = shuffled(TESTS, 3, file=file)
    assert sorted(mixed) == TESTS
    assert len([1 for before, after in pairwise(mixed) if file(before) != file(after)]) == 4


def test_files_and_their_tests_change_places():
    mixed = shuffled(TESTS, 3, file=file)
    assert list(dict.fromkeys(map(file, mixed))) != list("abcde")
    assert [test for test in mixed if file(test) == "a"] != TESTS[:10]


def test_a_seed_gives_one_order():
    assert shuffled(TESTS, 3, file=file) == shuffled(TESTS, 3, file=file) != shuffled(TESTS, 4, file=file)


def test_the_option_shuffles(pytestconfig):
    assert pytestconfig.getoption("shuffle", default="missing") != "missing"
