"""Errors that only HTTP knows."""

from domain.errors import CandleryError


class FeatureNotSupportedError(CandleryError):
    """This version does not offer that."""


class UnsupportedMediaTypeError(CandleryError):
    """The body is of a kind that is not understood."""
