"""The exception tree. A class says what the caller can do; its docstring is its default message.

CandleryError
├── InvalidParameterError          give up: mend the request
├── UnsupportedTimeframeError      give up: ask for another timeframe
├── UnknownNameError               give up: no such thing
│   ├── UnknownMarketError
│   ├── UnknownProviderError
│   ├── UnknownSymbolError
│   └── NotFoundError
├── ConflictError                  give up: look at the thing's state first
├── IncompleteError                wait: the caller asked for complete data only
├── DatabaseUnavailableError       wait: nothing can be answered or kept now
└── PluginError                    see plugins.base: what a provider did
"""


class CandleryError(Exception):
    """Candlery could not do what was asked."""

    def __init__(self, detail: str | None = None) -> None:
        """Take the words for the caller; the class's own docstring where none are given."""
        super().__init__(detail or (self.__doc__ or "").strip())

    @property
    def detail(self) -> str:
        """The message, for people."""
        return str(self.args[0])


class InvalidParameterError(CandleryError):
    """A parameter is wrong."""

    def __init__(self, parameter: str, detail: str) -> None:
        """Name the parameter, and say what is wrong and what would be right."""
        super().__init__(detail)
        self.parameter = parameter


class UnsupportedTimeframeError(CandleryError):
    """The timeframe cannot be had for this series."""


class UnknownNameError(CandleryError):
    """There is nothing by that name."""


class UnknownMarketError(UnknownNameError):
    """There is no such market."""


class UnknownProviderError(UnknownNameError):
    """The market has no such provider."""


class UnknownSymbolError(UnknownNameError):
    """The provider has no such symbol."""


class NotFoundError(UnknownNameError):
    """There is no such thing, or it is no longer kept."""


class ConflictError(CandleryError):
    """The thing's present state does not allow that."""


class IncompleteError(CandleryError):
    """Not all of the range could be had, and only a complete answer was asked for."""

    retry_after_s: float = 5


class DatabaseUnavailableError(CandleryError):
    """The database cannot be reached."""

    retry_after_s: float = 2
