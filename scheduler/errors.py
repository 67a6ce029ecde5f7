"""Errors a step can raise.

Exception
└── FatalStepError   the device cannot run another step; the loop fails every request and ends
Anything else raised by a runner fails the requests of that step alone.
"""


class FatalStepError(Exception):
    """The device is lost (a sticky CUDA error, say): no further step can run in this process."""
