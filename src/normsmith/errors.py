"""What can go wrong, as a tree; every message says what was expected, what was got, and how to fix it.

NormsmithError
├── OptionError (ValueError)          a constructor or function was given an option it cannot work with
│   └── UnknownMethodError            no such name in the catalog; names the nearest ones
├── InputError (ValueError)           a tensor of the wrong shape, type or size
│   └── TooFewValuesError             a statistic of a single element: the message names the cures
├── ModelError (ValueError)           a model that cannot be edited as it is: wrapped, without normalizers, changed since
├── DependencyError (ImportError)      an optional package is not installed, or too old
├── ResultsError (OSError)             results cannot be written, or read
├── CaptureError (RuntimeError)       a `mix` used a tensor it was not given, which would silently get no gradient
├── BackendError (RuntimeError)       a backend was asked for by name and cannot do the work
└── SynchronizationError (RuntimeError)  a collective of synchronised statistics failed: a rank died, or did not take part
"""


class NormsmithError(Exception):
    """The root: catches everything this package raises on purpose."""


class OptionError(NormsmithError, ValueError):
    """An option that cannot work."""


class UnknownMethodError(OptionError):
    """A name that is not in the catalog."""


class InputError(NormsmithError, ValueError):
    """A tensor that cannot be normalized."""


class TooFewValuesError(InputError):
    """A statistic of a single element, whose variance is zero whatever the data."""


class ModelError(NormsmithError, ValueError):
    """A model that cannot be edited as it is."""


class DependencyError(NormsmithError, ImportError):
    """An optional package that is not there, or does not have what is needed of it."""


class ResultsError(NormsmithError, OSError):
    """A folder of results that cannot be written or read."""


class CaptureError(NormsmithError, RuntimeError):
    """A `mix` depends on a tensor that was not passed to it."""


class BackendError(NormsmithError, RuntimeError):
    """A backend that was asked for by name cannot do the work."""


class SynchronizationError(NormsmithError, RuntimeError):
    """Ranks that did not all take part in a collective."""
