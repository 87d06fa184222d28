//! Counters against brute force: an oracle that remembers every charge, and random histories played on both.

mod calendar;
mod differential;
mod history;
mod model;
mod random;
mod world;
