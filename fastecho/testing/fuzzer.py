"""Does a server survive every way of cutting its input?

The request is sent whole, and then cut in every way that `plans` has; an answer that is another one
is a `Finding`. It is tried again, the server is asked whether it still answers others, and the plan
is shrunk: to one cut, where one is enough.

What was found depends on the server and the seed alone; how far the search got, on the time.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from .. import dial, limits
from ..client import quoted
from ..errors import ConfigError, FastechoError
from . import exchange, plans
from .answers import LONGEST_ANSWER, Answers, Echoes, Recorded, explain
from .exchange import HALF_CLOSED, OPEN, RESET, Caller, Outcome, Plan, Untried
from .interruption import Interruption
from .masks import difference, suggest
from .plans import Kind

#: Seconds for an answer, and for a piece to be read.
TIMEOUT = 2.0
#: Seconds for all. On the same machine some are enough; a server that needs 100 ms for each answer
#: gets through the single cuts of a short request.
DURATION = 60.0
#: Pairs of cuts, and random plans.
PAIRS, EXAMPLES = 1_000, 100
#: Of either: nobody has the time for more, and they are drawn beforehand.
MOST = 1_000_000
#: Requests that are sent together: the second of two may be lost, and the third another way.
REQUESTS = 3
#: How often a request that ends in another way must get the same answer, to be compared with.
STEADY = 5
#: How often a plan that failed is tried in all.
TRIES = 3
#: Waits that a finding may take, to be tried again and shrunk.
PATIENCE = 10


class NoAnswer(FastechoError):
    """The server does not answer the request sent whole: there is nothing to compare with."""


class Unstable(ConfigError):
    """The server answers the same request in two ways: a mask is needed."""


@dataclass(frozen=True)
class Options:
    """How far to search; the names are the command's options."""

    timeout: float = TIMEOUT
    duration: float = DURATION
    pairs: int = PAIRS
    examples: int = EXAMPLES
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("timeout", "duration"):
            if not limits.seconds(name, getattr(self, name)):
                raise ConfigError(f"{name} must be more than 0 seconds")
        for name in ("pairs", "examples"):
            limits.within(name, getattr(self, name), 0, MOST)


@dataclass
class Finding:
    """A plan whose answer is wrong.

    Attributes:
        kind: of plans, among which it was found.
        first: as it was found.
        plan: the smallest that fails.
        outcome: what came of it.
        wrong: what is wrong with that, in words.
        failed, tries: how often it failed when it was tried so often.
        after: what became of the server, in words, where it did not go on as before.
        fatal: whether it never did; then nothing could be tried again.
        right_until: bytes of the longest message that was answered, if this one may be too long.
    """

    kind: str
    first: Plan
    plan: Plan
    outcome: Outcome
    wrong: str
    failed: int = 1
    tries: int = 1
    after: str = ""
    fatal: bool = False
    right_until: int = 0

    @property
    def flaky(self) -> bool:
        return self.failed < self.tries


@dataclass
class Report:
    """What came of a search.

    Attributes:
        target: the server's address, with its protocol.
        kinds: what was tried.
        finding: the first that is wrong, shrunk; or None.
        how: how it is known that a piece was read (`fastecho.delivery`).
        seconds: that it took.
        stopped: whether somebody ended it early.
    """

    target: str
    kinds: list[Kind] = field(default_factory=list)
    finding: Finding | None = None
    how: str = ""
    seconds: float = 0.0
    stopped: bool = False

    @property
    def tried(self) -> int:
        """Plans that were tried."""
        return sum(each.tried for each in self.kinds)


Progress = Callable[[Kind], None]


class Fuzzer:
    """A search; for one run.

    Args:
        target: the server.
        answers: what is sent, and what is right.
        options: how far to search.
        interruption: ends it early.
    """

    def __init__(
        self,
        target: dial.Target,
        answers: Answers,
        options: Options,
        interruption: Interruption | None = None,
    ) -> None:
        self.answers = answers
        self._options = options
        self._caller = Caller(target, options.timeout, interruption)
        self._closes: dict[Plan, bool] = {}
        # What the server is known to take; the others are not tried.
        self._half_closes = True
        self._hangs_up = False
        self._pipelines = True
        self._report = Report(target.name)

    def run(self, progress: Progress = lambda _: None) -> Report:
        """Search until something is found, all was tried, or the time is over; or it is ended.

        Args:
            progress: called before each plan.

        Raises:
            FastechoError: the server cannot be reached.
            NoAnswer: it can, and does not answer.
            Unstable: it answers in two ways.
        """
        started = time.monotonic()
        try:
            self._prepare()
            self._search(started + self._options.duration, progress)
        except Untried as reason:
            raise FastechoError(f"{self._report.target}: {reason}") from reason
        except KeyboardInterrupt:
            self._report.stopped = True
        finally:
            self._caller.close()
        self._report.how = self._caller.how
        self._report.seconds = time.monotonic() - started
        return self._report

    # -- the request sent whole

    def _prepare(self) -> None:
        """Learn what a right answer is, for each way of ending."""
        plan = self._control
        outcome = self._call(plan, awaits_close=True)
        if outcome.end == exchange.REFUSED:
            raise FastechoError(outcome.detail)
        self._closes[plan] = outcome.closed
        if isinstance(self.answers, Echoes):
            self._learn_echo(self.answers, plan, outcome)
        elif isinstance(self.answers, Recorded):
            self._learn_answer(self.answers, plan, outcome)

    def _learn_echo(self, answers: Echoes, plan: Plan, outcome: Outcome) -> None:
        if wrong := answers.learn(outcome):
            raise NoAnswer(self._no_echo(plan, outcome, wrong))
        self._ask_again(plan, outcome)
        for request in answers.requests[1:]:
            other = Plan((request,))
            answers.learn_end_of_line(other, self._call(other))
        half = replace(plan, ending=HALF_CLOSED)
        outcome = self._call(half, awaits_close=True)
        self._closes[half] = outcome.closed
        self._half_closes = not answers.judge(half, outcome) and self._is_steady(half)

    def _learn_answer(self, answers: Recorded, plan: Plan, outcome: Outcome) -> None:
        if outcome.end == exchange.FLOODED:
            words = f"the answer is too long to compare: more than {LONGEST_ANSWER:,} bytes came"
            raise NoAnswer(f"{self._report.target}: {words}")
        if not outcome.received:
            raise NoAnswer(f"{self._report.target}: no answer{explain(outcome)}")
        answers.learn(plan, outcome.received)
        self._ask_again(plan, outcome)
        self._hangs_up = outcome.end in (exchange.CLOSED, exchange.ABORTED)
        self._half_closes = self._learn_other(answers, replace(plan, ending=HALF_CLOSED))

    def _ask_again(self, plan: Plan, first: Outcome) -> None:
        """What is not the same twice cannot be compared."""
        again = self._call(plan)
        if not again.received:
            words = f"one answer, and then no other{explain(again)}"
            raise NoAnswer(f"{self._report.target}: {words}")
        if self.answers.judge(plan, again):
            raise self._unstable(first.received, again.received)

    def _learn_other(self, answers: Recorded, plan: Plan) -> bool:
        """Whether there is one answer when it ends so."""
        outcome = self._call(plan, awaits_close=True)
        self._closes[plan] = outcome.closed
        answers.learn(plan, outcome.received)
        return outcome.end != exchange.FLOODED and self._is_steady(plan)

    def _is_steady(self, plan: Plan) -> bool:
        """Whether the answer is the same each time; a proxy's may depend on what is faster."""
        return not any(self._try(plan)[1] for _ in range(STEADY))

    def _no_echo(self, plan: Plan, outcome: Outcome, wrong: str) -> str:
        name = self._report.target
        if outcome.received:
            came = quoted(outcome.received)
            return f"{name} is no echo server in this framing: {wrong} ({came} came)"
        hint = "(is it an echo server, and in this framing?)"
        return f"{name}: no answer to {quoted(plan.data)}{explain(outcome)} {hint}"

    def _unstable(self, first: bytes, second: bytes) -> Unstable:
        masks = suggest(first, second, self.answers.masks)
        at = difference(self.answers.blur(first), self.answers.blur(second))
        begin = max(0, at - 20)
        words = (
            f"the same request gets two answers: they differ at byte {at:,},"
            f" {quoted(first[begin : at + 20])} and {quoted(second[begin : at + 20])}"
        )
        if masks:
            flags = " ".join(f"--mask {shlex.quote(each.decode())}" for each in masks)
            return Unstable(f"{words}; this would hide it: {flags}")
        return Unstable(f"{words}; --mask REGEX hides what may differ")

    # -- the search

    def _search(self, end: float, progress: Progress) -> None:
        options = self._options
        for kind, made in plans.kinds(self.answers, options.pairs, options.seed):
            self._report.kinds.append(kind)
            try:
                self._caller.until = float("inf")
                if self._cannot(kind):
                    continue
                # None takes all the time of those after it.
                self._caller.until = time.monotonic() + (end - time.monotonic()) / 2
                found = self._first_wrong(kind, made(), progress)
            except Untried as reason:
                kind.note = str(reason)
                continue
            if found:
                self._examine(kind, *found)
                return
        self._caller.until = end
        self._search_randomly(progress)

    def _cannot(self, kind: Kind) -> bool:
        """Whether there is nothing to compare with, for this kind."""
        if kind.name == plans.HALF and not self._half_closes:
            kind.note = "the server has no steady answer for a client that half-closes"
        if kind.name == plans.TOGETHER and isinstance(self.answers, Recorded):
            if self._hangs_up:
                # A reset answers what comes after that, and may overtake the answer.
                kind.note = "the server closes the connection after one"
            elif not self._learn_other(self.answers, Plan(self.answers.batch)):
                kind.note = "the server has no steady answer to them"
            self._pipelines = not kind.note
        return bool(kind.note)

    def _first_wrong(
        self, kind: Kind, made: Iterator[Plan], progress: Progress
    ) -> tuple[Plan, Outcome, str] | None:
        for plan in made:
            progress(kind)
            outcome, wrong = self._try(plan)
            kind.tried += 1
            if wrong:
                return plan, outcome, wrong
        return None

    def _search_randomly(self, progress: Progress) -> None:
        options = self._options
        kind = Kind(plans.RANDOM, f"by Hypothesis, seed {options.seed}", options.examples, 0)
        self._report.kinds.append(kind)
        smallest: tuple[Plan, Outcome, str] | None = None
        over = False

        def fails(plan: Plan) -> bool:
            nonlocal over, smallest
            if over:
                return False
            try:
                if smallest and self._try(self._control)[1]:
                    over = True  # nothing can be shrunk with a server that answers nobody
                    return False
                if not smallest:
                    progress(kind)
                outcome, wrong = self._try(plan)
            except Untried as reason:
                over = True
                kind.note = "" if smallest else str(reason)
                return False
            if not smallest:
                kind.tried += 1
            if wrong:
                # One alone is kept: an answer may be long, and many plans fail.
                if not smallest or _size(plan) < _size(smallest[0]):
                    smallest = plan, outcome, wrong
                self._caller.until = min(self._caller.until, time.monotonic() + self._patience)
            return bool(wrong)

        try:
            if options.examples:
                kind.total = options.examples
                plans.search(self._uncut(), options.examples, options.seed, fails)
        except ModuleNotFoundError:
            kind.total = 0
            kind.note = "Hypothesis is not installed (pip install 'fastecho[testing]')"
            return
        except KeyboardInterrupt:
            if smallest:
                plan, outcome, wrong = smallest
                self._report.finding = Finding(kind.name, plan, plan, outcome, wrong)
            raise
        if smallest:
            self._examine(kind, *smallest)
        elif not over:  # there may be fewer plans than were asked for
            kind.of = kind.total = kind.tried

    def _uncut(self) -> list[Plan]:
        """All that there is a right answer to."""
        answers = self.answers
        alone = [Plan((each,)) for each in answers.requests]
        if self._half_closes:
            alone += [replace(each, ending=HALF_CLOSED) for each in alone]
        if isinstance(answers, Echoes):
            alone += [Plan(answers.sized(size)) for size in answers.sizes[-1:]]
        return [*alone, Plan(answers.batch)] if self._pipelines else alone

    # -- what was found

    def _examine(self, kind: Kind, plan: Plan, outcome: Outcome, wrong: str) -> None:
        """Whether it fails again, what of it is needed, what became of the server."""
        found = self._report.finding = Finding(kind.name, plan, plan, outcome, wrong)
        if isinstance(self.answers, Echoes) and kind.name == plans.LENGTHS and kind.tried > 1:
            found.right_until = self.answers.sizes[kind.tried - 2]
        self._caller.until = time.monotonic() + self._patience
        try:
            self._look_after(found)
            if not found.fatal:
                self._shrink(found)
                self._try_again(found)
        except Untried:
            pass

    def _look_after(self, found: Finding) -> None:
        """Whether the server answers others as before.

        Raises:
            Unstable: the answer to the request sent whole has changed on its own.
        """
        _, wrong = self._try(self._control)
        if not wrong:
            return
        again, still = self._try(self._control)
        if not still:
            found.after = f"the client after that was not answered either: {wrong}"
            return
        expected = self.answers.expected(self._control)
        if again.received and suggest(expected, again.received, self.answers.masks):
            self._report.finding = None
            raise self._unstable(expected, again.received)
        found.fatal = True
        found.after = f"since then the server answers nobody as before: {still}"

    def _try_again(self, found: Finding) -> None:
        for _ in range(TRIES - 1):
            _, wrong = self._try_after(found, found.plan)
            found.tries += 1
            found.failed += bool(wrong)

    def _shrink(self, found: Finding) -> None:
        """To fewer cuts, then to fewer requests."""
        smaller = True
        while smaller:
            smaller = False
            for plan in self._smaller(found.plan):
                outcome, wrong = self._try_after(found, plan)
                if outcome.end == exchange.REFUSED:
                    return
                if wrong:
                    found.plan, found.outcome, found.wrong = plan, outcome, wrong
                    smaller = True
                    break

    def _try_after(self, found: Finding, plan: Plan) -> tuple[Outcome, str]:
        """As `_try`, when others were tried before that may have left something behind."""
        if found.after:
            self._try(self._control)
        return self._try(plan)

    def _smaller(self, plan: Plan) -> Iterator[Plan]:
        """Plans with less in them, the least first."""
        if plan.ending == RESET:
            return
        if plan.ending != OPEN:
            yield replace(plan, ending=OPEN)
        if isinstance(self.answers, Echoes) and plan.cuts:
            yield replace(plan, cuts=())
        if len(plan.cuts) > 1:
            for at in plan.cuts:
                yield replace(plan, cuts=(at,))
        if len(plan.cuts) > 2:
            for at in plan.cuts:
                yield replace(plan, cuts=tuple(each for each in plan.cuts if each != at))
        for count in range(1, len(plan.requests)):
            fewer = replace(plan, requests=plan.requests[:count])
            if all(at < len(fewer.data) for at in plan.cuts) and self._is_known(fewer):
                yield fewer

    @property
    def _control(self) -> Plan:
        """What the server is known to answer."""
        return Plan(self.answers.requests[:1])

    @property
    def _patience(self) -> float:
        """Seconds for what is done with a finding."""
        return PATIENCE * max(1.0, self._options.timeout)

    def _is_known(self, plan: Plan) -> bool:
        """Whether there is a right answer to compare with, perhaps only now."""
        answers = self.answers
        if isinstance(answers, Recorded) and not answers.knows(plan):
            return self._learn_other(answers, plan.whole)
        return True

    def _try(self, plan: Plan) -> tuple[Outcome, str]:
        outcome = self._call(plan)
        wrong = self.answers.judge(plan, outcome)
        if not wrong and outcome.end == exchange.UNREAD:
            wrong = outcome.detail  # a right answer to what was not asked
        return outcome, wrong

    def _call(self, plan: Plan, awaits_close: bool | None = None) -> Outcome:
        if awaits_close is None:
            ending = HALF_CLOSED if plan.ending == HALF_CLOSED else OPEN
            alone = Plan(self.answers.requests[:1], (), ending)
            awaits_close = self._closes.get(plan.whole, self._closes.get(alone, False))
        return self._caller.call(
            plan,
            lambda received: self.answers.patience(plan, received),
            LONGEST_ANSWER,
            awaits_close,
        )


def _size(plan: Plan) -> tuple[int, int]:
    """By which the smallest of several is chosen."""
    return len(plan.cuts), len(plan.data)
