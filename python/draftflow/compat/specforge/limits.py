# SPDX-License-Identifier: Apache-2.0
"""What a caller gives, checked where it comes in: NaN would pass each comparison, or none; a str is a list of its letters.

All raise TypeError for what is no such number (a bool and a str are none) and ValueError for one that is out of range.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Hashable
from typing import Any, Iterable, List, Optional


def check_time(name: str, value: Any) -> float:
    """A time by somebody's clock: finite, 0 or more."""
    allowed = "a time in seconds, finite and 0 or more, is allowed"
    time = _not_negative(name, value, allowed)
    if math.isinf(time):
        raise ValueError(_found(name, value, allowed))
    return time


def check_limit(name: str, value: Any, unit: str) -> None:
    """None, which is no limit; 0 or more; or infinity, which is none either."""
    if value is not None:
        _not_negative(name, value, f"{unit}, 0 or more, or None for no limit, are allowed")


def check_timeout(name: str, value: Any) -> Optional[float]:
    """None; seconds, of which less than 0 are none; or infinity."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_found(name, value, "seconds, or None, are allowed"))
    if math.isnan(value):
        raise ValueError(_found(name, value, "seconds, or None, are allowed"))
    return float(value)


def check_count(name: str, value: Any, least: Optional[int] = 0) -> int:
    """A whole number, of any integer type."""
    allowed = "a whole number is allowed" if least is None else f"a whole number, {least} or more, is allowed"
    try:
        count = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise TypeError(_found(name, value, allowed)) from None
    if least is not None and count < least:
        raise ValueError(_found(name, value, allowed))
    return count


def check_step(value: Any) -> Optional[int]:
    """A step of the optimizer, or None."""
    return None if value is None else check_count("global_step", value)


def check_flag(name: str, value: Any) -> bool:
    """True or False, also numpy's: "no" would be true."""
    if isinstance(value, (str, bytes)) or value not in (True, False):
        raise TypeError(_found(name, value, "True or False is needed"))
    return bool(value)


def check_task_ids(name: str, values: Iterable[Any]) -> List[Any]:
    """A list of ids as the caller of ingest_prompts gave them: strings, or what else a dict takes for a key."""
    ids: List[Any] = [] if isinstance(values, (str, bytes)) else list(values)
    if isinstance(values, (str, bytes)) or not all(isinstance(each, Hashable) for each in ids):
        raise TypeError(_found(name, values, "a list of task ids, as ingest_prompts returned them, is needed"))
    return ids


def check_ids(name: str, values: Iterable[Any]) -> List[str]:
    """A list of ids that can be written. ValueError for one that is not UTF-8."""
    ids: List[str] = [] if isinstance(values, (str, bytes)) else list(values)
    if isinstance(values, (str, bytes)) or not all(isinstance(each, str) for each in ids):
        raise TypeError(_found(name, values, "a list of sample ids, which are strings, is needed"))
    for each in ids:
        try:
            each.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} holds {each!r}, which is not UTF-8 at character {error.start}") from None
    return ids


def one_of(call: str, **given: Any) -> Any:
    """An argument that goes by two names. TypeError unless it was given by one of them."""
    found = [value for value in given.values() if value is not None]
    if len(found) != 1:
        raise TypeError(f"{call} needs one of {' and '.join(given)}, which mean the same: {len(found)} were given")
    return found[0]


def check_clock(clock: Any) -> None:
    """TypeError for what cannot be called: at a put it would be too late."""
    if not callable(clock):
        raise TypeError(f"clock is {clock!r}, a {type(clock).__name__}: a function that returns seconds is needed")


def _not_negative(name: str, value: Any, allowed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_found(name, value, allowed))
    if not float(value) >= 0:  # NaN neither
        raise ValueError(_found(name, value, allowed))
    return float(value)


def _found(name: str, value: Any, allowed: str) -> str:
    return f"{name} is {value!r}, a {type(value).__name__}: {allowed}"


__all__ = [
    "check_clock",
    "check_count",
    "check_flag",
    "check_ids",
    "check_limit",
    "check_step",
    "check_task_ids",
    "check_time",
    "check_timeout",
    "one_of",
]
