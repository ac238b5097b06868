"""Claims about how a run is told."""

from nodeserve.errors import InvariantError
from nodeserve.ids import Generation, LegId, RequestId
from nodeserve.lifecycle.messages import TellDispatcher
from nodeserve.router.messages import LegKind, StartLeg
from nodeserve.sim.story import RuleBrokenError, Story, in_words
from nodeserve.wire.control import DrainWorker


def test_messages_are_told_in_words_without_what_is_not_set() -> None:
    leg = StartLeg(RequestId("d1-1"), LegId("d1-1.1"), Generation(3), LegKind.WHOLE)
    assert in_words(leg) == "start leg: request id d1-1, leg id d1-1.1, generation 3, kind whole"
    drain = TellDispatcher(DrainWorker(generation=3))
    assert in_words(drain) == "tell dispatcher: message (drain worker: generation 3)"


def test_a_story_that_nobody_reads_is_not_written() -> None:
    story = Story(lambda: 1.5, is_told=False)
    story.tell("{} happens", "it")
    story.tell_of("router hears", DrainWorker(generation=3))
    assert story.lines == []


def test_a_story_has_the_time_of_each_event() -> None:
    story = Story(lambda: 1.5, is_told=True)
    story.tell("{} happens", "it")
    assert story.lines == ["   1.5000 s  it happens"]


def test_a_broken_rule_keeps_its_name_apart_from_the_details() -> None:
    error = RuleBrokenError("a request ends once", "request 3")
    assert isinstance(error, InvariantError)
    assert (error.rule, str(error)) == ("a request ends once", "a request ends once: request 3")
