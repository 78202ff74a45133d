"""Leases: rows that keep an image from being handed out to a second annotator. Called on the commit thread.

A lease ends when the image gets a final label, or some time after the last activity on the image.
"""

from __future__ import annotations

import sqlite3

from rayapp.datastore import steady_clock
from rayapp.datastore.index import QUARANTINE

LEASE_S = 1800.0
"""Duration of a lease in seconds, from the last activity on the image."""
MAX_LEASES = 2
"""Maximum number of leases per annotator: the image in progress and the prefetched one."""
QUARANTINE_S = 3600.0
"""Duration of the quarantine of an unreadable image, in seconds."""
OF_OTHERS = "FROM lease WHERE until > :now AND holder <> :holder"
"""Leases that keep an image from `:holder` at the time `:now`."""


def start(db: sqlite3.Connection) -> None:
    """On opening, shorten leases that end too late because the clock was set back while the store was closed."""
    longest = "CASE holder WHEN :nobody THEN :quarantine ELSE :lease END"
    db.execute(
        f"UPDATE lease SET until = :now + {longest} WHERE until > :now + {longest}",
        {"nobody": QUARANTINE, "quarantine": QUARANTINE_S, "lease": LEASE_S, "now": steady_clock.steady_time()},
    )


def renew(db: sqlite3.Connection, image_id: str) -> None:
    """Extend the image's lease, if it has one, after activity on the image."""
    db.execute("UPDATE lease SET until = ? WHERE image_id = ?", (steady_clock.steady_time() + LEASE_S, image_id))


def grant(db: sqlite3.Connection, image_id: str, holder: str) -> bool:
    """Lease the image to the holder; False if another holder has it. The holder's oldest surplus lease is released."""
    now = steady_clock.steady_time()
    leased = db.execute(
        "SELECT 1 FROM lease WHERE image_id = ? AND until > ? AND holder <> ?", (image_id, now, holder)
    ).fetchone()
    if leased:
        return False
    db.execute("INSERT OR REPLACE INTO lease VALUES(?, ?, ?)", (image_id, holder, now + LEASE_S))
    db.execute("DELETE FROM lease WHERE until <= ?", (now,))
    db.execute(
        "DELETE FROM lease WHERE holder = ? AND image_id NOT IN"
        " (SELECT image_id FROM lease WHERE holder = ? ORDER BY until DESC LIMIT ?)",
        (holder, holder, MAX_LEASES),
    )
    return True


def quarantine(db: sqlite3.Connection, image_id: str) -> None:
    """Lease an unreadable image to the placeholder holder, so that nobody gets it."""
    db.execute(
        "INSERT OR REPLACE INTO lease VALUES(?, ?, ?)",
        (image_id, QUARANTINE, steady_clock.steady_time() + QUARANTINE_S),
    )
