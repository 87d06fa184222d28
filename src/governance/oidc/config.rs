//! What an operator says about one identity provider.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jsonwebtoken::Algorithm;

use crate::governance::login::Voucher;
use crate::governance::tiers::is_group_name;

/// An algorithm that a provider may sign with: asymmetric ones only, never `none` and never a shared secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenAlgorithm(pub(super) Algorithm);

const KNOWN: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

impl TokenAlgorithm {
    /// The name in a token's header.
    pub fn name(self) -> &'static str {
        KNOWN.iter().find(|(_, known)| *known == self.0).map_or("none", |(name, _)| name)
    }
}

impl FromStr for TokenAlgorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = KNOWN.iter().find(|(name, _)| *name == text);
        known.map(|(_, algorithm)| Self(*algorithm)).ok_or_else(|| {
            let names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
            format!("`{text}` is none of {}", names.join(", "))
        })
    }
}

impl fmt::Debug for TokenAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One identity provider whose tokens are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcIssuer {
    /// A short name: users of this provider are called `name:user` here, so none can be taken for a user made here.
    pub name: String,
    /// The issuer, exactly as in its tokens and in its discovery document.
    pub issuer: String,
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// A token must have been given to one of these clients (`azp`, else `client_id`); empty: to any.
    pub clients: Vec<String>,
    /// What its tokens may be signed with.
    pub algorithms: Vec<TokenAlgorithm>,
    /// The claim that names the user for people.
    pub user_claim: String,
    /// The claim that lists the groups; `None`: groups are given here only.
    pub groups_claim: Option<String>,
    /// Words of that claim and the group here each stands for. Only through it does a claim give `system:` groups or administration.
    pub group_map: BTreeMap<String, String>,
    /// Whether its tokens may be used for inference; otherwise for account and administration, where one makes a key.
    pub allow_inference: bool,
    /// How far its clock and ours may be apart.
    pub leeway: Duration,
    /// After this its keys are fetched again, and a token that was checked before is checked again.
    pub keys_refresh: Duration,
    /// How long fetched keys are used while the provider cannot be reached.
    pub keys_max_age: Duration,
}

impl OidcIssuer {
    /// A provider with the usual settings.
    pub fn new(name: &str, issuer: &str, audiences: Vec<String>) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            audiences,
            clients: Vec::new(),
            algorithms: vec![TokenAlgorithm(Algorithm::RS256), TokenAlgorithm(Algorithm::ES256)],
            user_claim: "preferred_username".into(),
            groups_claim: None,
            group_map: BTreeMap::new(),
            allow_inference: false,
            leeway: Duration::from_secs(30),
            keys_refresh: Duration::from_secs(15 * 60),
            keys_max_age: Duration::from_secs(24 * 3600),
        }
    }

    /// Checks what a file may get wrong.
    ///
    /// # Errors
    /// The key and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(is_plain) {
            return Err(("name", "1 to 32 lower-case letters, digits and `-`, such as \"corp\"".into()));
        }
        if !is_safe_address(&self.issuer) || self.issuer.contains(['?', '#']) {
            return Err(("issuer", "an https address without query, or http on this machine".into()));
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(("audiences", "at least one, or tokens made for other programs would be accepted here".into()));
        }
        if self.algorithms.is_empty() {
            return Err(("algorithms", "at least one".into()));
        }
        if self.user_claim.is_empty() {
            return Err(("user_claim", "the name of a claim".into()));
        }
        if let Some(wrong) = self.group_map.values().find(|group| !is_group_name(group)) {
            return Err(("group_map", format!("`{wrong}` is not a group name")));
        }
        if self.leeway > Duration::from_secs(300) {
            return Err(("leeway", "at most 5m: it lengthens the life of every token".into()));
        }
        if !(Duration::from_secs(60)..=Duration::from_secs(86_400)).contains(&self.keys_refresh) {
            return Err(("keys_refresh", "1m to 24h".into()));
        }
        if self.keys_max_age < self.keys_refresh || self.keys_max_age > Duration::from_secs(7 * 86_400) {
            return Err(("keys_max_age", "at least `keys_refresh` and at most 7d".into()));
        }
        Ok(())
    }

    /// How its users are known here.
    pub(in crate::governance) fn voucher(&self) -> Voucher<'_> {
        Voucher { issuer: &self.issuer, name: &self.name }
    }

    /// Where its discovery document is.
    pub(super) fn discovery(&self) -> String {
        format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'))
    }
}

/// An `https` address, or an `http` one of this machine.
pub(in crate::governance) fn is_safe_address(url: &str) -> bool {
    let has_host =
        |rest: &str| !rest.is_empty() && !rest.starts_with(['/', ':', '?', '#']) && !rest.contains([' ', '@']);
    if let Some(rest) = url.strip_prefix("https://") {
        return has_host(rest);
    }
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    has_host(rest) && matches!(host, "localhost" | "127.0.0.1" | "::1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_asymmetric_algorithms_are_known() {
        for name in ["none", "None", "HS256", "HS384", "HS512", "ES256K", "RS1", "dir", ""] {
            assert!(name.parse::<TokenAlgorithm>().is_err(), "{name}");
        }
        for (name, _) in KNOWN {
            assert_eq!(name.parse::<TokenAlgorithm>().expect("known").name(), name);
        }
    }

    #[test]
    fn an_address_is_https_or_on_this_machine() {
        for url in ["https://id.example.com/realms/a", "http://127.0.0.1:1/x", "http://localhost", "http://[::1]:9/x"] {
            assert!(is_safe_address(url), "{url}");
        }
        for url in [
            "http://id.example.com",
            "http://127.0.0.1.evil.example",
            "http://localhost@evil.example/",
            "http://localhost:1@evil.example/",
            "https://",
            "https:///x",
            "ftp://x",
            "file:///etc/passwd",
            "https://user@evil.example",
            "",
        ] {
            assert!(!is_safe_address(url), "{url}");
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        let good = OidcIssuer::new("corp", "https://id.example.com", vec!["millgate".into()]);
        assert_eq!(good.check(), Ok(()));
        let wrong = |change: &dyn Fn(&mut OidcIssuer)| {
            let mut issuer = good.clone();
            change(&mut issuer);
            issuer.check().expect_err("wrong").0
        };
        assert_eq!(wrong(&|issuer| issuer.name = "a:b".into()), "name");
        assert_eq!(wrong(&|issuer| issuer.issuer = "http://id.example.com".into()), "issuer");
        assert_eq!(wrong(&|issuer| issuer.audiences.clear()), "audiences");
        assert_eq!(wrong(&|issuer| issuer.algorithms.clear()), "algorithms");
        assert_eq!(wrong(&|issuer| issuer.leeway = Duration::from_secs(301)), "leeway");
        assert_eq!(wrong(&|issuer| issuer.keys_max_age = Duration::from_secs(1)), "keys_max_age");
    }
}
