"""How a verb ends that cannot do what it was asked, besides the errors of `greenthread.kube.errors`."""

from __future__ import annotations


class Failure(Exception):
    """Exit code 1; the message says what happened and what to do."""

    exit_code = 1


class TimedOut(Failure):
    """Exit code 3: what was waited for did not come in time; it may still come."""

    exit_code = 3


class NoSuchModel(Failure):
    """Exit code 4."""

    exit_code = 4


class NotAllowed(Failure):
    """Exit code 5: the cluster, or --readonly, does not allow it."""

    exit_code = 5


class Interrupted(Failure):
    """Exit code 130: the person has stopped waiting; what was asked for goes on."""

    exit_code = 130
