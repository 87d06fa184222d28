-- The audit log: who changed what. Append-only, each row's hash covers the row before.

CREATE TABLE audit (
    sequence BIGINT PRIMARY KEY NOT NULL,
    at_us BIGINT NOT NULL,
    actor_id TEXT,
    actor TEXT NOT NULL,
    key_id TEXT,
    source TEXT,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    state_before TEXT,
    state_after TEXT,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX audit_by_time ON audit (at_us);
CREATE INDEX audit_by_target ON audit (target, sequence);

CREATE TRIGGER audit_is_never_updated BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
-- Also against INSERT OR REPLACE, which deletes without a trigger.
CREATE TRIGGER audit_only_grows BEFORE INSERT ON audit
WHEN NEW.sequence <> (SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit)
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
