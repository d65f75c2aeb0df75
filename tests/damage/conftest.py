"""The engines that run in no time."""

from tests.runtime.conftest import stand_in_engines as stand_in_engines
