//! `[kubernetes]`: the cluster whose tokens are believed, from the raw file to checked settings and back.

use crate::governance::KubernetesCluster;

use super::environment::Environment;
use super::file::ConfigError;
use super::raw::RawKubernetes;
use super::resolve::Place;

/// Checks and completes the cluster; `None`: none is configured.
pub(super) fn cluster(
    raw: RawKubernetes,
    environment: &Environment,
    at: &Place<'_>,
) -> Result<Option<KubernetesCluster>, ConfigError> {
    let wrong = |key: &str, problem: String| at.wrong("kubernetes", 0, key, problem);
    let is_off = raw == RawKubernetes::default();
    let Some(audiences) = raw.audiences else {
        if is_off {
            return Ok(None);
        }
        return Err(wrong(
            "audiences",
            "is needed: write whom tokens must be meant for, such as [\"millgate\"]".into(),
        ));
    };
    let usual = KubernetesCluster::new(audiences);
    let cluster = KubernetesCluster {
        server: raw.server.or_else(|| server_of_pod(environment)).unwrap_or(usual.server),
        token_file: raw.token_file.unwrap_or(usual.token_file),
        ca_file: raw.ca_file.unwrap_or(usual.ca_file),
        allow_inference: raw.allow_inference.unwrap_or(usual.allow_inference),
        group_map: raw.group_map.unwrap_or_default(),
        audiences: usual.audiences,
    };
    cluster.check().map_err(|(key, problem)| wrong(key, problem))?;
    Ok(Some(cluster))
}

/// The address that Kubernetes writes into the environment of every pod.
fn server_of_pod(environment: &Environment) -> Option<String> {
    let host = environment.kubernetes_host.as_deref()?;
    let port = environment.kubernetes_port.as_deref().unwrap_or("443");
    // An IPv6 address stands in brackets.
    Some(if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") })
}

/// A cluster as the file would have it.
pub(super) fn effective_cluster(cluster: &KubernetesCluster) -> RawKubernetes {
    RawKubernetes {
        audiences: Some(cluster.audiences.clone()),
        server: Some(cluster.server.clone()),
        token_file: Some(cluster.token_file.clone()),
        ca_file: Some(cluster.ca_file.clone()),
        allow_inference: Some(cluster.allow_inference),
        group_map: Some(cluster.group_map.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, resolve};

    fn resolved(text: &str, environment: &Environment) -> Result<Option<KubernetesCluster>, String> {
        resolve(toml::from_str(text).unwrap(), text, environment, &Overrides::default())
            .map(|settings| settings.governance().kubernetes)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn without_audiences_no_token_is_believed_and_half_a_table_is_an_error() {
        let nowhere = Environment::default();
        assert_eq!(resolved("", &nowhere), Ok(None));
        assert_eq!(resolved("[kubernetes]\n", &nowhere), Ok(None));
        let error = resolved("[kubernetes]\nallow_inference = true\n", &nowhere).unwrap_err();
        assert!(error.contains("`kubernetes.audiences`"), "{error}");
        let text = "[kubernetes]\naudiences = [\"millgate\"]\n";
        assert_eq!(resolved(text, &nowhere), Ok(Some(KubernetesCluster::new(vec!["millgate".into()]))));
    }

    #[test]
    fn the_api_server_is_the_named_one_else_that_of_the_pod() {
        let text = "[kubernetes]\naudiences = [\"millgate\"]\n";
        let server = |text: &str, host: &str, port: Option<&str>| {
            let (host, port) = (Some(host.to_owned()), port.map(str::to_owned));
            let pod = Environment { kubernetes_host: host, kubernetes_port: port, ..Environment::default() };
            resolved(text, &pod).unwrap().unwrap().server
        };
        assert_eq!(server(text, "10.96.0.1", Some("6443")), "https://10.96.0.1:6443");
        assert_eq!(server(text, "fd00::1", None), "https://[fd00::1]:443");
        let named = format!("{text}server = \"https://api.example.com\"\n");
        assert_eq!(server(&named, "10.96.0.1", None), "https://api.example.com");
    }

    #[test]
    fn what_cannot_work_is_named_with_its_line() {
        for (text, named) in [
            ("[kubernetes]\naudiences = []\n", "`kubernetes.audiences` (line 2)"),
            ("[kubernetes]\naudiences = [\"a\"]\nserver = \"http://api\"\n", "`kubernetes.server` (line 3)"),
            ("[kubernetes]\naudiences = [\"a\"]\ngroup_map = { a = \"\" }\n", "`kubernetes.group_map` (line 3)"),
        ] {
            let error = resolved(text, &Environment::default()).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
