"""Asks a model, and never the same twice: answers are kept under the hash of what was asked.

Around a backend stand the budget, the store of answers, and a bounded number of further tries where
an answer is malformed, cut off or refused. What stays so is set aside with its reason, alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from assets.endpoints.budget import Cost, Ledger
from assets.endpoints.json_answers import MalformedAnswerError, read_answer
from assets.endpoints.protocol import (
    AskOtherwiseError,
    Backend,
    Patience,
    Prompt,
    RefusedPromptError,
    Reply,
)
from assets.fetching.errors import TransferError
from assets.fetching.retry import backoff
from model.configuration import Section
from training.formats import layout
from training.formats.storage import Storage
from training.progress import Progress

T = TypeVar("T", bound=Section)
R = TypeVar("R")
NOT_COUNTED = ("rate_limited", "connection")  # no model has read anything then
REFUSED_TURN = 1000  # added to the turn of a prompt that is asked again after it was refused


class SetAsideError(Exception):
    """There is no usable answer to a prompt; the text is the reason, in one word."""


class Asker:
    """One model, with what it may cost and what it has said already. Many threads may ask.

    Args:
        attempts: answers to one prompt before it is set aside.

    Attributes:
        counts: answers that were `asked` for and `kept` ones, and faults of answers by reason.
    """

    def __init__(
        self,
        storage: Storage,
        backend: Backend,
        ledger: Ledger,
        attempts: int,
        log: Callable[[str], None],
    ) -> None:
        self.backend, self.ledger, self.attempts = backend, ledger, attempts
        self._storage, self._log = storage, log
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def ask(self, prompt: Prompt, kind: type[T], check: Callable[[T], None] | None = None) -> T:
        """The answer to a prompt.

        Args:
            check: raises MalformedAnswerError where an answer has the form and yet makes no sense.

        Raises:
            SetAsideError: none of the answers can be used.
            BudgetSpentError: asking could pass the budget.
            OperatorError, TransferError: as the backend.
        """
        return self.ask_with_key(prompt, kind, check)[0]

    def ask_with_key(
        self, prompt: Prompt, kind: type[T], check: Callable[[T], None] | None = None
    ) -> tuple[T, str]:
        """As `ask`, with the key under which the answer is kept: that of the try that gave it."""
        said, reason = prompt, "refused"
        for _ in range(self.attempts):
            reply = self._reply(said)
            if reply.ended == "refused" or (reply.ended == "stop" and not reply.text.strip()):
                reason, said = "refused", replace(said, turn=said.turn + REFUSED_TURN)
                self._count("answer refused")
                continue
            try:
                answer = read_answer(reply.text, kind)
                if check is not None:
                    check(answer)
                return answer, said.key(self.backend.identity)
            except MalformedAnswerError as error:
                cut = reply.ended == "length"
                reason = "cut_off" if cut else "malformed"
                fault = "it was cut off, so be shorter" if cut else str(error)
                self._count(f"answer {reason}")
                again = _again(fault, prompt)
                said = replace(prompt, text=f"{prompt.text}\n\n{again}", turn=said.turn + 1)
        raise SetAsideError(reason)

    def settled(self, prompt: Prompt, kind: type[Section]) -> bool:
        """Whether a prompt has a usable answer already, so that asking it sends nothing."""
        kept = self._kept(layout.model_answer(prompt.key(self.backend.identity)))
        if kept is None or kept.ended != "stop":
            return False
        try:
            read_answer(kept.text, kind)
        except MalformedAnswerError:
            return False
        return True

    def _reply(self, prompt: Prompt) -> Reply:
        rel = layout.model_answer(prompt.key(self.backend.identity))
        kept = self._kept(rel)
        if kept is not None:
            self._count("kept")
            return kept
        reply = self._answer(prompt)
        # What was asked stands beside the answer: a row leads back to the words of its prompt.
        asked = {"system": prompt.system, "text": prompt.text, "turn": prompt.turn}
        seen = {"pictures": prompt.pictures.identity} if prompt.pictures else {}
        record = {"model": self.backend.model, "shape": prompt.shape, **asked, **seen}
        self._storage.write_json(rel, {"prompt": record, **asdict(reply)})
        self._count("asked")
        return reply

    def _answer(self, prompt: Prompt) -> Reply:
        """An answer from the backend, after as many tries as it is worth."""

        def told(reason: str, line: str) -> None:
            self._count(reason)
            self._log(f"{self.backend.model}: {line}")

        patience, ask = self.backend.patience, partial(self._try, prompt)
        while True:
            try:
                return patiently(patience, prompt.shape, told, ask)
            except AskOtherwiseError:
                continue  # the endpoint is neither busy nor ill

    def _try(self, prompt: Prompt) -> Reply:
        most = Cost.of(self.backend.most_tokens(prompt), self.backend.prices)
        self.ledger.reserve(most)
        real = most  # of what failed in between nobody says what it cost
        try:
            reply = self.backend.answer(prompt)
            real = Cost.of((reply.tokens_in, reply.tokens_out), self.backend.prices)
        except RefusedPromptError as error:
            real = Cost(requests=1)
            raise SetAsideError(str(error)) from error
        except AskOtherwiseError:
            real = Cost(requests=1)
            raise
        except TransferError as error:
            if error.reason in NOT_COUNTED:
                real = Cost(requests=1)
            raise
        finally:
            self.ledger.settle(most, real)
        return reply

    def progress(self, what: str, total: int) -> Progress:
        """Of a number of jobs that ask, with what was spent so far."""
        return Progress(
            lambda line: self._log(f"{line}; {self.ledger.spent.sentence} in all"),
            total,
            what,
            30.0,
        )

    def _kept(self, rel: str) -> Reply | None:
        if not self._storage.exists(rel):
            return None
        try:
            raw = self._storage.read_json(rel)
            return Reply(raw["text"], raw["ended"], raw["tokens_in"], raw["tokens_out"])
        except (ValueError, KeyError, TypeError) as error:
            self._log(f"{self._storage.path(rel)}: not an answer ({error}); it is asked for again")
            return None

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def patiently(
    patience: Patience, name: str, told: Callable[[str, str], None], ask: Callable[[], R]
) -> R:
    """What `ask` returns, after as many tries as somebody who is busy, fails or hangs is worth.

    Args:
        name: of what is asked, which spreads the waits.
        told: is told of each wait: the reason in one word, and a line.

    Raises:
        TransferError: there is no answer in all tries, or a longer wait is asked for.
    """
    attempt = 1
    while True:
        try:
            return ask()
        except TransferError as error:
            pause = backoff(patience.backoff_s, attempt, name, error.retry_after)
            if attempt == patience.tries or pause > patience.longest_wait_s:
                raise
            line = f"{error.reason}, try {attempt} of {patience.tries}, next in {pause:.1f} s"
            told(error.reason, line)
            time.sleep(pause)
            attempt += 1


def in_parallel(
    jobs: Iterable[Callable[[], R]], workers: int, progress: Progress | None = None
) -> list[R]:
    """The results of jobs, in their order, several at a time. After an error no further job begins,
    and those that have begun end first: what they were answered is kept.
    """
    results: dict[Future[R], int] = {}
    done: dict[int, R] = {}
    with ThreadPoolExecutor(workers) as pool:
        for number, job in enumerate(jobs):
            results[pool.submit(job)] = number
            if len(results) >= 2 * workers:  # jobs hold pictures: few of them are made ahead
                _collect(results, done, pool, progress)
        while results:
            _collect(results, done, pool, progress)
    return [done[number] for number in sorted(done)]


def _collect(
    results: dict[Future[R], int],
    done: dict[int, R],
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> None:
    finished, _ = wait(results, return_when=FIRST_COMPLETED)
    for future in finished:
        number = results.pop(future)
        if (error := future.exception()) is not None:
            pool.shutdown(wait=True, cancel_futures=True)
            raise error
        done[number] = future.result()
        if progress is not None:
            progress.advance()


def _again(fault: str, prompt: Prompt) -> str:
    return f"Your last answer could not be used: {fault}. Answer again. {prompt.form_in_words}"


def tally(*counts: Counter[str]) -> dict[str, Any]:
    """The sum of what askers counted, by what."""
    return dict(sorted(sum(counts, Counter()).items()))
