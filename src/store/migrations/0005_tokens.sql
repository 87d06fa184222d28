-- Short-lived tokens: the keys that sign them, what ends all of a user's, and when a provider last told a user's groups.

ALTER TABLE users ADD COLUMN token_epoch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN groups_at_us BIGINT;

-- A retired key keeps no seed: it only verifies what it signed.
CREATE TABLE signing_keys (
    id TEXT PRIMARY KEY NOT NULL,
    public_key TEXT NOT NULL,
    seed TEXT,
    created_at_us BIGINT NOT NULL,
    retired_at_us BIGINT
);
