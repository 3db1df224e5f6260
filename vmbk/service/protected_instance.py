"""Protected instances: their size, how many a machine counts, and what that costs.

The size is what the disks hold, not what they could hold: 17 + 30 + 0 GB are 47 GB, and the 5 GB of
the temporary disk do not count (S0, S1, S2: backup costs).

How many instances that is, documents say in four ways (`Readings.instance`):

=========  ======  =======  =======  =======  ========
reading    50 GB   51 GB    500 GB   501 GB   2,000 GB
=========  ======  =======  =======  =======  ========
``steps``  $5      $10      $10      $20      $40
``half``   0.5     1        1        2        4
``whole``  1       1        1        2        4
``flat``   1       1        1        1        1
=========  ======  =======  =======  =======  ========

``steps`` is the list of the launch (2015), taken from the price list; the others count instances,
at the price of one.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Final

from vmbk.errors import InputError
from vmbk.service.cost_items import CostVM
from vmbk.service.cost_rules import Readings, billing_facts
from vmbk.service.prices import GB, InstancePrices, Prices, money
from vmbk.units import quoted

SMALL: Final = int(billing_facts().rule("small_instance").value) * GB
"""Bytes up to which an instance is small."""
STEP: Final = int(billing_facts().rule("instance_step").value) * GB
"""Bytes that one instance covers."""
AGENTLESS: Final = billing_facts().rule("agentless_instances").value


def protected_size(vm: CostVM) -> int:
    """Bytes of a machine's protected instance on the first day: used, of the disks that count."""
    return sum(disk.used for disk in vm.instance_disks)


def _by_size(size: int, instance: str) -> Fraction:
    if instance == "flat":
        return Fraction(1)
    if size <= SMALL and instance != "whole":
        return Fraction(1, 2)
    return Fraction(max(-(-size // STEP), 1))


def instances(size: int, readings: Readings | None = None, wish: str = "application") -> Decimal:
    """How many protected instances a machine counts.

    Parameters
    ----------
    size : int
        Bytes, as `protected_size` has them; 0 counts as the smallest there is.
    readings : Readings, optional
    wish : str
        ``"crash"`` is agentless crash-consistent backup, which counts half an instance.

    Returns
    -------
    Decimal
        A multiple of 0.25. Under ``steps``, which has prices and no counts, as under ``half``.

    Raises
    ------
    InputError
        If the size is negative.
    """
    readings = readings or Readings()
    _check(size)
    count = _by_size(size, readings.instance)
    if wish == "crash":
        count = AGENTLESS if readings.agentless == "vm" else AGENTLESS * count
    return Decimal(count.numerator) / Decimal(count.denominator)


def _check(size: int) -> None:
    if size < 0:
        raise InputError(f"size of a protected instance {quoted(size)} is negative")


def instance_price(
    size: int, prices: Prices, readings: Readings | None = None, wish: str = "application"
) -> Decimal:
    """What a machine's protected instances cost for a whole month, in the list's currency.

    Raises
    ------
    InputError
        If the size is negative.
    """
    readings = readings or Readings()
    _check(size)
    listed = prices.instance
    if readings.instance != "steps" or (wish == "crash" and readings.agentless == "vm"):
        return instances(size, readings, wish) * listed.one.value
    price = _by_steps(size, listed)
    if wish == "crash":
        price *= Decimal(AGENTLESS.numerator) / Decimal(AGENTLESS.denominator)
    return price


def _by_steps(size: int, listed: InstancePrices) -> Decimal:
    for step in listed.steps:
        if size <= step.up_to:
            return step.price
    further = -(-(size - listed.steps[-1].up_to) // listed.further_size)
    return listed.steps[-1].price + further * listed.further_price


def prorated(a_month: Decimal, days: int, of_days: int) -> Decimal:
    """The part of a month's price that `days` of its `of_days` cost, to a millionth.

    Raises
    ------
    InputError
        If there are not from 0 to `of_days` of them.
    """
    if not 0 <= days <= of_days or of_days <= 0:
        raise InputError(f"{quoted(days)} days are not a part of a month of {quoted(of_days)}")
    return money(Fraction(a_month) * days / of_days)
