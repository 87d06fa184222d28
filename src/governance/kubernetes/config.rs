//! What an operator says about the cluster whose tokens are believed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::governance::oidc::is_safe_address;
use crate::governance::tiers::is_group_name;

/// One cluster whose API server vouches for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesCluster {
    /// The address of its API server.
    pub server: String,
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// Holds the token by which the API server knows this server.
    pub token_file: PathBuf,
    /// Holds the certificates by which this server knows the API server.
    pub ca_file: PathBuf,
    /// Whether its tokens may be used for inference; otherwise for account and administration, where one makes a key.
    pub allow_inference: bool,
    /// Groups of the cluster and the group here each stands for. Only through it does one give administration, or a `system:`
    /// group other than those of a service account's own namespace.
    pub group_map: BTreeMap<String, String>,
}

impl KubernetesCluster {
    /// The cluster that a pod runs in.
    pub fn new(audiences: Vec<String>) -> Self {
        Self {
            server: "https://kubernetes.default.svc".into(),
            audiences,
            token_file: "/var/run/secrets/kubernetes.io/serviceaccount/token".into(),
            ca_file: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt".into(),
            allow_inference: false,
            group_map: BTreeMap::new(),
        }
    }

    /// Checks what a file may get wrong.
    ///
    /// # Errors
    /// The key and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !is_safe_address(&self.server) || self.server.contains(['?', '#']) {
            return Err(("server", "an https address without query, or http on this machine".into()));
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(("audiences", "at least one, or tokens made for other programs would be accepted here".into()));
        }
        if let Some(wrong) = self.group_map.values().find(|group| !is_group_name(group)) {
            return Err(("group_map", format!("`{wrong}` is not a group name")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        let good = KubernetesCluster::new(vec!["millgate".into()]);
        assert_eq!(good.check(), Ok(()));
        let wrong = |change: &dyn Fn(&mut KubernetesCluster)| {
            let mut cluster = good.clone();
            change(&mut cluster);
            cluster.check().expect_err("wrong").0
        };
        assert_eq!(wrong(&|cluster| cluster.server = "http://10.96.0.1".into()), "server");
        assert_eq!(wrong(&|cluster| cluster.server = "https://api?x".into()), "server");
        assert_eq!(wrong(&|cluster| cluster.audiences.clear()), "audiences");
        assert_eq!(wrong(&|cluster| cluster.audiences.push(String::new())), "audiences");
        assert_eq!(wrong(&|cluster| drop(cluster.group_map.insert("a".into(), String::new()))), "group_map");
    }
}
