-- The first schema. Portable: TEXT ids and JSON, BIGINT microseconds UTC, 0/1 booleans, no now(), no serial.

CREATE TABLE policy_version (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL
);
INSERT INTO policy_version (id, version) VALUES (1, 0);

CREATE TABLE users (
    id TEXT PRIMARY KEY NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    name TEXT NOT NULL,
    active INTEGER NOT NULL,
    created_at_us BIGINT NOT NULL,
    UNIQUE (issuer, subject)
);
CREATE INDEX users_by_name ON users (name);

CREATE TABLE user_groups (
    user_id TEXT NOT NULL,
    group_name TEXT NOT NULL,
    source TEXT NOT NULL,
    PRIMARY KEY (user_id, group_name, source)
);

CREATE TABLE known_groups (
    name TEXT PRIMARY KEY NOT NULL
);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY NOT NULL,
    digest TEXT NOT NULL,
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    labels TEXT NOT NULL,
    models TEXT,
    limits TEXT NOT NULL,
    parent TEXT,
    is_bootstrap INTEGER NOT NULL,
    created_at_us BIGINT NOT NULL,
    expires_at_us BIGINT,
    revoked_at_us BIGINT,
    last_used_at_us BIGINT
);
CREATE INDEX api_keys_by_user ON api_keys (user_id, created_at_us);
CREATE INDEX api_keys_by_age ON api_keys (created_at_us, id);

CREATE TABLE tiers (
    name TEXT PRIMARY KEY NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    level BIGINT NOT NULL,
    member_groups TEXT NOT NULL,
    limits TEXT NOT NULL,
    weight BIGINT NOT NULL,
    origin TEXT NOT NULL,
    position BIGINT NOT NULL
);

CREATE TABLE models (
    name TEXT PRIMARY KEY NOT NULL,
    display_name TEXT NOT NULL,
    source TEXT NOT NULL,
    published TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_at_us BIGINT NOT NULL
);

-- The journal: requests admitted and not settled.
CREATE TABLE reservations (
    id TEXT PRIMARY KEY NOT NULL,
    client_request_id TEXT,
    user_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    key_id TEXT,
    tier TEXT NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    admitted_at_us BIGINT NOT NULL,
    extents TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL
);

-- Append only, one row a request.
CREATE TABLE ledger (
    id TEXT PRIMARY KEY NOT NULL,
    client_request_id TEXT,
    user_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    key_id TEXT,
    tier TEXT NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    admitted_at_us BIGINT NOT NULL,
    settled_at_us BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    status TEXT NOT NULL,
    charged TEXT NOT NULL
);
CREATE INDEX ledger_by_admission ON ledger (admitted_at_us);
CREATE INDEX ledger_by_settlement ON ledger (settled_at_us);
CREATE INDEX ledger_by_user ON ledger (user_id, admitted_at_us);

-- Sums of the ledger by minute, hour and day of admission (UTC), kept in the transaction that writes the rows.
CREATE TABLE usage_rollups (
    bucket TEXT NOT NULL,
    start_us BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    tier TEXT NOT NULL,
    model TEXT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    PRIMARY KEY (bucket, start_us, user_id, key_id, tier, model)
);
