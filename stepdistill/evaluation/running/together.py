"""Several processes that leave together: what stops one is said once, and none waits for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from ...errors import StepDistillError

T = TypeVar("T")


@dataclass(frozen=True)
class Together:
    """The processes of one command, each of which does every step."""

    state: PartialState

    def do(self, work: Callable[[], T]) -> T:
        """``work``, then wait for the others'.

        The first StepDistillError of any of them, in their order, ends all with its exit code: the
        main process raises it, the others leave in silence. ``work`` itself must not wait.
        """
        own: StepDistillError | None = None
        try:
            done = work()
        except StepDistillError as error:
            own = error
        told = [None if own is None else (str(own), own.exit_code)]
        failed = [one for one in gather_object(told) if one is not None]
        if not failed:
            return done
        message, code = failed[0]
        if not self.state.is_main_process:
            sys.exit(code)
        if own is not None:
            raise own
        theirs = StepDistillError(message)
        theirs.exit_code = code
        raise theirs
