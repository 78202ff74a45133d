"""Schema of the index: its tables, indexes and triggers, and the migrations from earlier versions."""

from __future__ import annotations

UNSENT = "tag = 'final' AND CASE WHEN json_valid(info) THEN json_extract(info, '$.archived') END IS NOT sha"
"""Condition of the final labels that an archive has neither stored nor refused; queries use the index on it."""
REFUSED = "tag = 'final' AND CASE WHEN json_valid(info) THEN json_extract(info, '$.archive_problem') END IS NOT NULL"
"""Condition of the final labels that an archive has refused."""
OF_REPLACED = "CASE WHEN json_valid(info) THEN json_extract(info, '$.image_replaced') END IS NOT NULL"
"""Condition of the labels whose image's file was replaced after they were saved."""
SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE image(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, ext TEXT NOT NULL, info TEXT NOT NULL,
  added INTEGER NOT NULL, served INTEGER NOT NULL DEFAULT 0, final INTEGER NOT NULL DEFAULT 0, staged TEXT);
CREATE INDEX image_final ON image(final, id);

-- The current labels; rowid is the order of first save.
CREATE TABLE label(
  image_id TEXT NOT NULL, tag TEXT NOT NULL, ext TEXT NOT NULL, info TEXT NOT NULL, number INTEGER NOT NULL,
  sha TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, session INTEGER NOT NULL,
  PRIMARY KEY(image_id, tag));
CREATE INDEX label_tag ON label(tag, image_id);
CREATE INDEX label_session ON label(session);

CREATE TABLE revision(
  image_id TEXT NOT NULL, tag TEXT NOT NULL, number INTEGER NOT NULL, sha TEXT NOT NULL, ext TEXT NOT NULL,
  size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, parent INTEGER, ts REAL NOT NULL, user TEXT NOT NULL,
  client_id TEXT, model_version TEXT, info TEXT NOT NULL, staged TEXT,
  PRIMARY KEY(image_id, tag, number)) WITHOUT ROWID;

CREATE TABLE event(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL,
  model TEXT, model_version TEXT, user TEXT NOT NULL, client_id TEXT, ts REAL NOT NULL);
CREATE INDEX event_image ON event(image_id, seq);

-- Document entries of images whose files disappeared: if they reappear (say, after a lost mount), so do their infos.
CREATE TABLE vanished(id TEXT PRIMARY KEY, entry TEXT NOT NULL) WITHOUT ROWID;

-- Removals whose files may still exist, and images whose files may not yet; tag '' is the image itself. A crash must
-- not bring the ones back, nor lose the others.
CREATE TABLE doomed(image_id TEXT NOT NULL, tag TEXT NOT NULL, ext TEXT NOT NULL);

CREATE TABLE count(kind TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(kind, name));
INSERT INTO count VALUES('image', '', 0), ('reopened', '', 0);
CREATE TRIGGER image_added AFTER INSERT ON image BEGIN
  UPDATE count SET n = n + 1 WHERE kind = 'image';
END;
CREATE TRIGGER image_removed AFTER DELETE ON image BEGIN
  UPDATE count SET n = n - 1 WHERE kind = 'image';
END;
CREATE TRIGGER label_added AFTER INSERT ON label BEGIN
  INSERT INTO count VALUES('tag', new.tag, 1) ON CONFLICT(kind, name) DO UPDATE SET n = n + 1;
  UPDATE image SET final = 1 WHERE id = new.image_id AND new.tag = 'final';
END;
CREATE TRIGGER label_removed AFTER DELETE ON label BEGIN
  UPDATE count SET n = n - 1 WHERE kind = 'tag' AND name = old.tag;
  UPDATE image SET final = 0 WHERE id = old.image_id AND old.tag = 'final';
  UPDATE count SET n = n + 1 WHERE kind = 'reopened' AND old.tag = 'final';
END;

PRAGMA user_version = 1;
"""
"""Schema of version 1, from which the migrations lead on."""
CHANGES = (
    """
CREATE TABLE job(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
PRAGMA user_version = 2;
""",
    """
-- Images handed out to an annotator, and until when nobody else gets them.
CREATE TABLE lease(image_id TEXT PRIMARY KEY, holder TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID;

-- Images scored by each run; `run` names the model version, method and settings.
CREATE TABLE scored(
  image_id TEXT NOT NULL, run TEXT NOT NULL, failed INTEGER NOT NULL, ts REAL NOT NULL,
  PRIMARY KEY(image_id, run)) WITHOUT ROWID;

-- The newest score of each name and image; seq grows with every insertion.
CREATE TABLE score(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
  UNIQUE(image_id, name));
CREATE INDEX score_name ON score(name, seq);
CREATE TRIGGER score_added AFTER INSERT ON score BEGIN
  INSERT INTO count VALUES('score', new.name, 1) ON CONFLICT(kind, name) DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER score_removed AFTER DELETE ON score BEGIN
  UPDATE count SET n = n - 1 WHERE kind = 'score' AND name = old.name;
END;

-- Feature vectors of images, float32.
CREATE TABLE feature(image_id TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;

CREATE TRIGGER lease_ended AFTER INSERT ON label WHEN new.tag = 'final' BEGIN
  DELETE FROM lease WHERE image_id = new.image_id;
END;
CREATE TRIGGER image_forgotten AFTER DELETE ON image BEGIN
  DELETE FROM lease WHERE image_id = old.id;
  DELETE FROM scored WHERE image_id = old.id;
  DELETE FROM score WHERE image_id = old.id;
  DELETE FROM feature WHERE image_id = old.id;
END;
PRAGMA user_version = 3;
""",
    """
-- Images whose final label was removed, in order, so that caches in memory can be corrected.
CREATE TABLE reopened(seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL);
DELETE FROM count WHERE kind = 'reopened';
DROP TRIGGER label_removed;
CREATE TRIGGER label_removed AFTER DELETE ON label BEGIN
  UPDATE count SET n = n - 1 WHERE kind = 'tag' AND name = old.tag;
  UPDATE image SET final = 0 WHERE id = old.image_id AND old.tag = 'final';
  INSERT INTO reopened(image_id) SELECT old.image_id WHERE old.tag = 'final';
END;
PRAGMA user_version = 4;
""",
    """
-- The series of an archive keep their scores, features and leases while they are missing from its list.
DROP TRIGGER image_forgotten;

-- Segmentations of the archive that were considered for an image's labels once, and are not again.
CREATE TABLE segmentation(
  image_id TEXT NOT NULL, series TEXT NOT NULL, PRIMARY KEY(image_id, series)) WITHOUT ROWID;

"""
    + f"""
CREATE INDEX label_unsent ON label(image_id) WHERE {UNSENT};
CREATE INDEX label_refused ON label(image_id) WHERE {REFUSED};
PRAGMA user_version = 5;
""",
    """
-- An event that is sent again is found by its own time, without the image's other events.
CREATE INDEX event_ts ON event(image_id, ts);
CREATE INDEX lease_until ON lease(until);
CREATE INDEX lease_holder ON lease(holder, until);

-- Bytes of all revisions, each counted once for every image and tag.
INSERT INTO count SELECT 'revision', '', count(*) FROM revision;
INSERT INTO count SELECT 'revision_bytes', '', coalesce(sum(size), 0) FROM revision;
CREATE TRIGGER revision_added AFTER INSERT ON revision BEGIN
  UPDATE count SET n = n + 1 WHERE kind = 'revision';
  UPDATE count SET n = n + new.size WHERE kind = 'revision_bytes';
END;
CREATE TRIGGER revision_removed AFTER DELETE ON revision BEGIN
  UPDATE count SET n = n - 1 WHERE kind = 'revision';
  UPDATE count SET n = n - old.size WHERE kind = 'revision_bytes';
END;
PRAGMA user_version = 6;
""",
    """
-- The files of images as they were seen last, so that another image under a name is told from the one before.
CREATE TABLE image_file(
  image_id TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
"""
    + f"""
CREATE INDEX label_replaced ON label(image_id) WHERE {OF_REPLACED};
PRAGMA user_version = 7;
""",
)
"""Migrations from each version of the schema to the next; a new index runs all of them."""
VERSION = 1 + len(CHANGES)
"""The version that the last migration leads to."""
