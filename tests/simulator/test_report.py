"""What a simulation counts: lateness, the busiest second, memory that stays flat or does not."""

from limeguard.simulator.report import Memory, Report, Rounds


def test_rounds_are_counted_by_lateness_and_by_second() -> None:
    rounds = Rounds()
    for now, lateness in ((10.0, 0.0), (10.2, 0.2), (10.9, 0.0), (13.0, 3.0)):
        rounds.add(now, lateness)
    late = rounds.lateness()
    assert (rounds.count, rounds.busiest_second) == (4, 3)
    assert late["p50"] < 0.002  # two were not late
    assert 3.0 <= late["max"] < 3.002


def test_memory_grows_by_what_came_after_the_warm_up() -> None:
    memory = Memory.of(50, [100, 90, 140, 110])
    assert Report(nodes=6, memory=memory).figures()["bytes_per_machine"] == 10
    assert (memory.start, memory.end, memory.mean, memory.peak, memory.growth) == (100, 110, 110, 140, 10)
    assert Memory.of(0, []) == Memory()


def test_costs_are_given_for_one_round() -> None:
    report = Report(rounds=200, seconds=4.0, verifier_cpu=1.0, simulator_cpu=0.5, bytes_asked=400, bytes_answered=600)
    figures = report.figures()
    assert figures["rounds_per_second"] == 50
    assert (figures["verifier_cpu_per_round"], figures["simulator_cpu_per_round"]) == (0.005, 0.0025)
    assert figures["bytes_per_round"] == 5
