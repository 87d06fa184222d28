-- Keys: the secret before the last rotation while its grace lasts, who set limits and models, keys that clean themselves up.

ALTER TABLE api_keys ADD COLUMN previous_digest TEXT;
ALTER TABLE api_keys ADD COLUMN previous_until_us BIGINT;
ALTER TABLE api_keys ADD COLUMN terms_by TEXT NOT NULL DEFAULT 'owner';
ALTER TABLE api_keys ADD COLUMN is_ephemeral INTEGER NOT NULL DEFAULT 0;
CREATE INDEX api_keys_ephemeral ON api_keys (is_ephemeral, expires_at_us);
CREATE INDEX api_keys_by_parent ON api_keys (parent);
