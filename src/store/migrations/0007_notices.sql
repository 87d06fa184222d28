-- Thresholds of quotas that were reached, once each, and whether somebody was told.
CREATE TABLE notices (
    id TEXT PRIMARY KEY NOT NULL,
    at_us BIGINT NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_us BIGINT NOT NULL,
    last_error TEXT
);
CREATE INDEX notices_due ON notices (state, next_attempt_us);
CREATE INDEX notices_by_time ON notices (at_us, id);
