-- What keys and reports of somebody call them after they were deleted.

CREATE TABLE former_users (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL
);
