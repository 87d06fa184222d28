-- Money: prices with versions, the cost of each ledger row, what usage is reported by, and who was refused.

-- Versions of prices, in pico-dollars a token; never changed, because ledger rows refer to them.
CREATE TABLE prices (
    version BIGINT PRIMARY KEY NOT NULL,
    model TEXT NOT NULL,
    prompt_pico_usd BIGINT NOT NULL,
    cached_pico_usd BIGINT NOT NULL,
    completion_pico_usd BIGINT NOT NULL,
    effective_from_us BIGINT NOT NULL,
    created_at_us BIGINT NOT NULL
);

-- Groups of the user and labels of the key when a request came; each different content once, named by its hash.
CREATE TABLE attributions (
    id TEXT PRIMARY KEY NOT NULL,
    member_groups TEXT NOT NULL,
    labels TEXT NOT NULL
);

ALTER TABLE reservations ADD COLUMN price_version BIGINT;
ALTER TABLE reservations ADD COLUMN attribution_id TEXT NOT NULL DEFAULT '';
ALTER TABLE ledger ADD COLUMN price_version BIGINT;
ALTER TABLE ledger ADD COLUMN attribution_id TEXT NOT NULL DEFAULT '';
ALTER TABLE ledger ADD COLUMN cost_nano_usd BIGINT NOT NULL DEFAULT 0;

-- Who was refused by which limit, by minute (UTC); added up in memory and written now and then.
CREATE TABLE refusals (
    start_us BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    tier TEXT NOT NULL,
    model TEXT NOT NULL,
    limit_name TEXT NOT NULL,
    reason TEXT NOT NULL,
    refusals BIGINT NOT NULL,
    PRIMARY KEY (start_us, user_id, key_id, tier, model, limit_name)
);

-- The roll-ups again, with money, failures and refusals; filled from the ledger.
DROP TABLE usage_rollups;
CREATE TABLE usage_rollups (
    bucket TEXT NOT NULL,
    start_us BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    key_id TEXT NOT NULL,
    tier TEXT NOT NULL,
    model TEXT NOT NULL,
    attribution_id TEXT NOT NULL,
    requests BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    refusals BIGINT NOT NULL,
    PRIMARY KEY (bucket, start_us, user_id, key_id, tier, model, attribution_id)
);
CREATE INDEX usage_rollups_by_user ON usage_rollups (bucket, user_id, start_us);

INSERT INTO usage_rollups
SELECT '1m', admitted_at_us / 60000000 * 60000000, user_id, MAX(user_name), COALESCE(key_id, ''), tier, model, '',
    SUM(CASE WHEN status = 'failed' THEN 0 ELSE 1 END), SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END),
    SUM(prompt_tokens), SUM(cached_tokens), SUM(completion_tokens), 0, 0
FROM ledger GROUP BY admitted_at_us / 60000000 * 60000000, user_id, COALESCE(key_id, ''), tier, model;
INSERT INTO usage_rollups
SELECT '1h', start_us / 3600000000 * 3600000000, user_id, MAX(user_name), key_id, tier, model, '',
    SUM(requests), SUM(failures), SUM(prompt_tokens), SUM(cached_tokens), SUM(completion_tokens), 0, 0
FROM usage_rollups WHERE bucket = '1m' GROUP BY start_us / 3600000000 * 3600000000, user_id, key_id, tier, model;
INSERT INTO usage_rollups
SELECT '1d', start_us / 86400000000 * 86400000000, user_id, MAX(user_name), key_id, tier, model, '',
    SUM(requests), SUM(failures), SUM(prompt_tokens), SUM(cached_tokens), SUM(completion_tokens), 0, 0
FROM usage_rollups WHERE bucket = '1h' GROUP BY start_us / 86400000000 * 86400000000, user_id, key_id, tier, model;
