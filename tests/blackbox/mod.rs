//! What a user of the server we replace could check from outside, and what no such server promises yet; each test bears its id.

mod access;
mod burst;
mod fairness;
mod holds;
mod ids;
mod keys;
mod kubernetes;
mod limits;
mod notices;
mod oidc;
mod smoke;
mod tiers;
mod truth;
mod unwritable;
mod usage;
