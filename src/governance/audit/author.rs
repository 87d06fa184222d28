//! The author that every change of the policy carries.

use std::net::IpAddr;

use crate::governance::records::{KeyId, UserId};

/// Who makes a change, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// The user; `None` for the server itself and for the operator of the data directory.
    pub user: Option<UserId>,
    /// Their name at that time.
    pub name: String,
    /// The key they came with.
    pub key: Option<KeyId>,
    /// The address they came from; `None` where nothing came over the network.
    pub address: Option<IpAddr>,
}

impl Author {
    /// The server itself, at its start or following its files.
    pub fn server() -> Self {
        Self { user: None, name: "server".into(), key: None, address: None }
    }
}
