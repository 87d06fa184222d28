//! `[[oidc]]`: identity providers, from the raw file to checked settings and back.

use crate::governance::{OidcIssuer, TokenAlgorithm};

use super::file::ConfigError;
use super::raw::RawOidc;
use super::resolve::Place;
use super::units::Span;

/// Checks and completes the providers.
pub(super) fn providers(raw: Vec<RawOidc>, at: &Place<'_>) -> Result<Vec<OidcIssuer>, ConfigError> {
    let mut providers: Vec<OidcIssuer> = Vec::new();
    for (nth, raw) in raw.into_iter().enumerate() {
        let wrong = |key: &str, problem: String| at.wrong("oidc", nth, key, problem);
        let provider = provider(raw).map_err(|problem| wrong("algorithms", problem))?;
        provider.check().map_err(|(key, problem)| wrong(key, problem))?;
        if providers.iter().any(|other| other.name == provider.name) {
            return Err(wrong("name", format!("there is already a provider `{}`", provider.name)));
        }
        if providers.iter().any(|other| other.issuer == provider.issuer) {
            return Err(wrong("issuer", "there is already a provider with this issuer".into()));
        }
        providers.push(provider);
    }
    Ok(providers)
}

fn provider(raw: RawOidc) -> Result<OidcIssuer, String> {
    let usual = OidcIssuer::new(&raw.name, &raw.issuer, raw.audiences);
    let algorithms = match raw.algorithms {
        Some(names) => names.iter().map(|name| name.parse()).collect::<Result<Vec<TokenAlgorithm>, _>>()?,
        None => usual.algorithms,
    };
    Ok(OidcIssuer {
        clients: raw.clients.unwrap_or_default(),
        algorithms,
        user_claim: raw.user_claim.unwrap_or(usual.user_claim),
        groups_claim: raw.groups_claim,
        group_map: raw.group_map.unwrap_or_default(),
        allow_inference: raw.allow_inference.unwrap_or(usual.allow_inference),
        leeway: raw.leeway.map_or(usual.leeway, |span| span.0),
        keys_refresh: raw.keys_refresh.map_or(usual.keys_refresh, |span| span.0),
        keys_max_age: raw.keys_max_age.map_or(usual.keys_max_age, |span| span.0),
        name: usual.name,
        issuer: usual.issuer,
        audiences: usual.audiences,
    })
}

/// A provider as the file would have it.
pub(super) fn effective_provider(provider: &OidcIssuer) -> RawOidc {
    RawOidc {
        name: provider.name.clone(),
        issuer: provider.issuer.clone(),
        audiences: provider.audiences.clone(),
        clients: Some(provider.clients.clone()),
        algorithms: Some(provider.algorithms.iter().map(|algorithm| algorithm.name().to_owned()).collect()),
        user_claim: Some(provider.user_claim.clone()),
        groups_claim: provider.groups_claim.clone(),
        group_map: Some(provider.group_map.clone()),
        allow_inference: Some(provider.allow_inference),
        leeway: Some(Span(provider.leeway)),
        keys_refresh: Some(Span(provider.keys_refresh)),
        keys_max_age: Some(Span(provider.keys_max_age)),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Environment, Overrides, Settings, resolve};

    fn resolved(text: &str) -> Result<Settings, String> {
        resolve(toml::from_str(text).unwrap(), text, &Environment::default(), &Overrides::default())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_provider_needs_a_name_an_issuer_and_an_audience() {
        let text = "[[oidc]]\nname = \"corp\"\nissuer = \"https://id.example.com\"\naudiences = [\"millgate\"]\n";
        let settings = resolved(text).unwrap();
        assert_eq!(settings.governance().oidc.len(), 1);
        for (wrong, named) in [
            (text.replace("https:", "http:"), "`oidc[0].issuer` (line 3)"),
            (text.replace("[\"millgate\"]", "[]"), "`oidc[0].audiences` (line 4)"),
            (text.replace("corp", "Corp"), "`oidc[0].name` (line 2)"),
            (format!("{text}algorithms = [\"HS256\"]\n"), "`oidc[0].algorithms` (line 5)"),
            (format!("{text}algorithms = [\"none\"]\n"), "`oidc[0].algorithms` (line 5)"),
            (format!("{text}leeway = \"6m\"\n"), "`oidc[0].leeway` (line 5)"),
            (format!("{text}{text}"), "`oidc[1].name` (line 6)"),
            (format!("[identity]\ngroups_max_age = \"1s\"\n{text}"), "`identity.groups_max_age` (line 2)"),
        ] {
            let error = resolved(&wrong).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
