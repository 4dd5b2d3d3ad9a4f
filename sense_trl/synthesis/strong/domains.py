"""`DomainLedger`: which domains a model has written about, and which it should leave alone."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from sense_trl.errors import InputError

OVERUSED_DOMAINS: Final = ("education", "healthcare", "travel", "entertainment")
"""Domains that models write about unless told otherwise (SENSE, arXiv 2408.03256)."""

_SUGGESTED: Final = """
    air quality measurement; amateur astronomy; amateur radio; animal shelters; antique
    clocks; aquariums; archery; archives of maps; auctions of wine; avalanche warnings;
    bakeries; ballet; balloon festivals; beach lifeguards; bell foundries; bicycle repair;
    birdwatching; blood donation; board games; boat rental; bonsai; bookbinding; botanical
    gardens; brass bands; bridges; butterfly houses; cable cars; camp sites; canoe races;
    car parks; carpentry; cave exploration; cemeteries; ceramics; cheese dairies; chess
    clubs; choirs; christmas markets; cider presses; circus; coffee roasting; coin
    collections; comics; crossword puzzles; dams; dance schools; dog training; dolls;
    drones; dry stone walls; elevators; falconry; fencing; ferries; film archives; fire
    brigades; fish farms; flea markets; flower shops; forestry; fossils; fountains;
    furniture moving; garden gnomes; geocaching; glaciers; glass blowing; goat herds; golf
    courses; greenhouses; hat makers; horse racing; hot springs; ice hockey; ice cream
    parlours; jigsaw puzzles; juggling; karaoke bars; kites; knitting; laundries; lichens;
    lost property; marathons; meteorites; mills; mines; model railways; mountain huts;
    mushrooms; observatories; opera houses; orchards; organ builders; paper mills; parrots;
    pawn shops; pearl diving; perfumes; pigeon racing; planetariums; playgrounds; porcelain;
    post offices; puppet theatres; quarries; rafting; rain gauges; recycling; reindeer; road
    signs; robot contests; rowing; saffron; sailing; salt works; sand sculptures; sculpture
    parks; seed banks; sheep shearing; shipwrecks; shoe repair; skateboards; ski lifts; snow
    clearing; soap makers; spice trade; stamps; steam engines; street art; street lamps;
    street markets; subtitles; sundials; surf schools; swimming pools; taxidermy; tea
    plantations; thermometers; tides; toy libraries; tree nurseries; truffles; tunnels;
    typewriters; umbrellas; vending machines; vineyards; violins; volcanoes; wallpapers;
    water towers; weather balloons; whale watching; wind farms; window cleaning; wool; yoga
    studios; zoos
    """
SUGGESTED_DOMAINS: Final = tuple(" ".join(name.split()) for name in _SUGGESTED.split(";"))
"""Domains that a prompt may name, for models that find none by themselves."""

_MAX_NAMED: Final = 60
_WORD: Final = re.compile(r"\w+")
# What models add to the name of a domain without making another one of it.
_EMPTY_WORDS: Final = frozenset(
    _WORD.findall(
        """
        a and application business company database domain for in industry management of operation
        operations organization platform program record records sector service services system
        systems the tracking
        """
    )
)


class DomainLedger:
    """Counts domains and closes those that have had their share.

    Case, order and such words as "management" or "system" do not make another domain.

    Args:
        max_per_domain: answers that a domain may have.
        closed: domains that are closed from the start, also as a part of a longer name.

    Raises:
        InputError: `max_per_domain` is below 1.

    Example:
        >>> ledger = DomainLedger(1)
        >>> ledger.admit("Beekeeping"), ledger.admit("beekeeping management"), ledger.closed[-1]
        (True, False, 'Beekeeping')
    """

    def __init__(self, max_per_domain: int, *, closed: tuple[str, ...] = OVERUSED_DOMAINS) -> None:
        if max_per_domain < 1:
            raise InputError(f"`max_per_domain` is {max_per_domain}; expected at least 1.")
        self._max_per_domain = max_per_domain
        self._overused = closed
        self._counts: Counter[str] = Counter()
        self._names: dict[str, str] = {}

    @property
    def closed(self) -> list[str]:
        """Names of closed domains: those from the start, then the full ones that came up last."""
        full = [self._names[key] for key, n in self._counts.items() if n >= self._max_per_domain]
        return [*self._overused, *full[-_MAX_NAMED:]]

    @property
    def counts(self) -> dict[str, int]:
        """Admitted answers by domain, the most frequent first."""
        return {self._names[key]: count for key, count in self._counts.most_common()}

    def admit(self, domain: str) -> bool:
        """Count an answer, unless its domain is closed; tells whether it was counted."""
        key = _key(domain)
        if any(_key(name) in key.split() for name in self._overused):
            return False
        if self._counts[key] >= self._max_per_domain:
            return False
        self._names.setdefault(key, domain)
        self._counts[key] += 1
        return True


def _key(domain: str) -> str:
    words = _WORD.findall(domain.casefold())
    telling = [word for word in words if word not in _EMPTY_WORDS]
    return " ".join(sorted(telling or words))
