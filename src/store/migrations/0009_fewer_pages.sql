-- Fewer pages for each request: a commit writes and syncs every page it touched, and an index costs one.

-- Rows in the order in which they were settled, found by admission only: nothing else asked for them by id, and reports
-- of one user read roll-ups but for the parts of a minute at their ends.
CREATE TABLE ledger_in_order (
    id TEXT NOT NULL,
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
    charged TEXT NOT NULL,
    price_version BIGINT,
    attribution_id TEXT NOT NULL DEFAULT '',
    cost_nano_usd BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (admitted_at_us, id)
);
INSERT INTO ledger_in_order (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us,
    settled_at_us, prompt_tokens, cached_tokens, completion_tokens, status, charged, price_version, attribution_id, cost_nano_usd)
SELECT id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us,
    settled_at_us, prompt_tokens, cached_tokens, completion_tokens, status, charged, price_version, attribution_id, cost_nano_usd
FROM ledger;
DROP TABLE ledger;
ALTER TABLE ledger_in_order RENAME TO ledger;
-- Settled a minute or more after admission: these alone are not found by admission when one asks what was settled since.
CREATE INDEX ledger_settled_late ON ledger (settled_at_us) WHERE settled_at_us - admitted_at_us >= 60000000;

-- The journal lies in its key: few rows, each there for as long as its request.
CREATE TABLE reservations_in_key (
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
    completion_tokens BIGINT NOT NULL,
    price_version BIGINT,
    attribution_id TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
INSERT INTO reservations_in_key (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us,
    extents, prompt_tokens, cached_tokens, completion_tokens, price_version, attribution_id)
SELECT id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us,
    extents, prompt_tokens, cached_tokens, completion_tokens, price_version, attribution_id
FROM reservations;
DROP TABLE reservations;
ALTER TABLE reservations_in_key RENAME TO reservations;
