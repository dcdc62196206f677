"""Audit rules about columns of arrays, images among them, and what the other rules leave out because of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from forge_sweep.checks.evidence import Evidence, Seen, drop_fix, rule

SMALL = 10.0
"""Values beyond +-10 are too large for a network as they are."""

DARK = 64
"""Images none of whose pixels reaches a quarter of 255 were probably stored in another range, such as 0..16."""


@rule("warning", "blank-array", expected="arrays whose values differ, as those of an image with something on it")
def blank_arrays(evidence: Evidence) -> Iterator[Seen]:
    """Arrays with one value everywhere."""
    for name, by_role in evidence.arrays.facts.items() if evidence.arrays else ():
        for role, split in evidence.visible:
            blank = by_role[role].blank  # type: ignore[index]
            if blank.any():
                seen = f"one value everywhere in {blank.sum()} of {len(blank)} {role} rows"
                yield Seen(
                    name, seen, f"look at these rows, and remove what is broken; or {drop_fix(name)}", split.rows[blank]
                )


@rule("warning", "repeated-array", expected="no array in two splits")
def repeated_arrays(evidence: Evidence) -> Iterator[Seen]:
    """The same array, by its content, in two splits; blank ones are said by themselves."""
    if evidence.arrays is None or (
        len(evidence.arrays.facts) == len(evidence.arrays.prints) == 1 and not len(evidence.features)
    ):
        return  # such rows are equal as a whole: `duplicated-rows`
    fix = 'remove duplicates, or kind = "group" with group = "<column>" under [data.split]'
    for name, prints in evidence.arrays.prints.items():
        for fitted, scored in (("train", "valid"), ("train", "test"), ("valid", "test")):
            twins = np.isin(prints[scored], prints[fitted])  # type: ignore[index]
            if twins.any():
                share = f"{twins.sum()} of {len(twins)} {scored} rows ({twins.mean():.1%})"
                yield Seen(name, f"{share} have the array of a {fitted} row", fix)


@rule(
    "warning",
    "array-range",
    expected=f"-{SMALL:g}..{SMALL:g} in an array, which is fed as stored; 0..255 in an image, which is divided by 255",
)
def array_range(evidence: Evidence) -> Iterator[Seen]:
    """Arrays whose values reach the network as they are, and are large; images that use little of their range."""
    if evidence.arrays is None:
        return
    for name, by_role in evidence.arrays.facts.items():
        train = by_role["train"]
        high = train.high
        seen = f"train values range from {train.low:.6g} to {high:.6g}"
        scale = "by a Rescaling or Normalization layer in the builder"
        if name in evidence.arrays.images:
            if 0 < high < DARK:
                yield Seen(name, seen, f"stretch the images to 0..255 before they are stored, or {scale}")
        elif max(abs(train.low), abs(high)) > SMALL:
            as_image = train.dtype == np.uint8 and len(train.shape) == 3 and train.shape[-1] in (1, 3, 4)
            first = (
                f'take {name} as kind = "image" under [data.inputs]'
                if as_image
                else f"scale {name} before it is stored"
            )
            indices = "; leave indices of an Embedding as they are" if train.dtype.kind in "iu" and not as_image else ""
            yield Seen(name, seen, f"{first}, or {scale}{indices}")


@rule("info", "left-out", expected="columns of a table for the other checks, the baselines and drift")
def left_out(evidence: Evidence) -> Iterator[Seen]:
    """What holds arrays, of which only these rules and the network take note."""
    for name, by_role in evidence.arrays.facts.items() if evidence.arrays else ():
        seen = f"arrays of shape {by_role['train'].shape}: left out by the other checks, the baselines and drift"
        yield Seen(name, seen, "nothing to do")
