//! What a provider's token says about a user: claims checked one by one, names restricted, groups only as mapped.

use serde_json::Value;

use super::config::OidcIssuer;
use crate::governance::clock::micros;
use crate::governance::foreign_groups;
use crate::governance::login::Login;
use crate::governance::tokens::{Jws, Refused};

/// Kinds of tokens that say who somebody is; a logout or proof token signed by the same key does not.
const KINDS: [&str; 2] = ["jwt", "at+jwt"];

/// Checks the claims of a token whose signature is the provider's.
///
/// # Errors
/// [`Refused`], with the first claim that is wrong.
pub(super) fn read(jws: &Jws<'_>, issuer: &OidcIssuer, now_us: i64) -> Result<Login, Refused> {
    if jws.kind.as_deref().is_some_and(|kind| !KINDS.contains(&kind)) {
        return Err(Refused::Header("it is a token of another kind".into()));
    }
    if jws.text("iss")? != issuer.issuer {
        return Err(Refused::claim("iss", "is another issuer"));
    }
    check_audience(jws, issuer)?;
    let leeway_us = micros(issuer.leeway);
    let until_us = jws.moment("exp")?.ok_or_else(|| Refused::claim("exp", "is missing"))?.saturating_add(leeway_us);
    if now_us >= until_us {
        return Err(Refused::claim("exp", "is over"));
    }
    let latest_us = now_us.saturating_add(leeway_us);
    if jws.moment("nbf")?.is_some_and(|begins_us| begins_us > latest_us) {
        return Err(Refused::claim("nbf", "lies in the future"));
    }
    let issued_us = jws.moment("iat")?;
    if issued_us.is_some_and(|issued_us| issued_us > latest_us) {
        return Err(Refused::claim("iat", "lies in the future"));
    }
    let subject = jws.text("sub")?;
    if subject.is_empty() || subject.len() > 255 || subject.chars().any(char::is_control) {
        return Err(Refused::claim("sub", "is empty, longer than 255 bytes or has control characters"));
    }
    let name = match lookup(jws, &issuer.user_claim) {
        Some(Value::String(name)) if is_safe_name(name) => name.clone(),
        Some(Value::String(_)) => {
            return Err(Refused::claim(&issuer.user_claim, "has other characters than letters, digits and `._@+-`"));
        }
        Some(_) => return Err(Refused::claim(&issuer.user_claim, "is not text")),
        None => return Err(Refused::claim(&issuer.user_claim, "is missing")),
    };
    Ok(Login {
        subject: subject.to_owned(),
        name,
        groups: groups(jws, issuer)?,
        told_at_us: issued_us.map_or(now_us, |issued_us| issued_us.min(now_us)),
        until_us,
    })
}

fn check_audience(jws: &Jws<'_>, issuer: &OidcIssuer) -> Result<(), Refused> {
    let is_ours = |value: &Value| value.as_str().is_some_and(|text| issuer.audiences.iter().any(|own| own == text));
    let is_meant_for_us = match jws.claims.get("aud") {
        Some(Value::Array(list)) => list.iter().any(is_ours),
        Some(value) => is_ours(value),
        None => return Err(Refused::claim("aud", "is missing")),
    };
    if !is_meant_for_us {
        return Err(Refused::claim("aud", "names none of our audiences"));
    }
    if issuer.clients.is_empty() {
        return Ok(());
    }
    let client = jws.claims.get("azp").or_else(|| jws.claims.get("client_id")).and_then(Value::as_str);
    if client.is_none_or(|client| !issuer.clients.iter().any(|known| known == client)) {
        return Err(Refused::claim("azp", "is not a client whose tokens are accepted"));
    }
    Ok(())
}

/// A claim by its name, or by its path through objects when no claim has the whole name.
fn lookup<'a>(jws: &'a Jws<'_>, path: &str) -> Option<&'a Value> {
    if let Some(value) = jws.claims.get(path) {
        return Some(value);
    }
    let mut parts = path.split('.');
    let mut value = jws.claims.get(parts.next()?)?;
    for part in parts {
        value = value.as_object()?.get(part)?;
    }
    Some(value)
}

fn groups(jws: &Jws<'_>, issuer: &OidcIssuer) -> Result<Vec<String>, Refused> {
    let Some(claim) = &issuer.groups_claim else { return Ok(Vec::new()) };
    let listed: Vec<&str> = match lookup(jws, claim) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) if list.len() <= foreign_groups::MOST => {
            let names: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            names.ok_or_else(|| Refused::claim(claim, "has entries that are not text"))?
        }
        Some(Value::Array(_)) => return Err(Refused::claim(claim, "lists more than 500 groups")),
        Some(_) => return Err(Refused::claim(claim, "is no list of groups")),
    };
    Ok(foreign_groups::given(listed, &issuer.group_map))
}

fn is_safe_name(name: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    !name.is_empty() && name.len() <= 100 && name.chars().all(is_safe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::policy::ADMINS;
    use crate::governance::tokens::encode;
    use serde_json::json;

    const NOW_S: i64 = 1_700_000_000;

    fn issuer() -> OidcIssuer {
        OidcIssuer {
            groups_claim: Some("groups".into()),
            group_map: [("Domain Admins".to_owned(), ADMINS.to_owned()), ("ops".to_owned(), "system:ops".to_owned())]
                .into(),
            clients: vec!["web".into()],
            ..OidcIssuer::new("corp", "https://id.example.com", vec!["millgate".into(), "other-name".into()])
        }
    }

    fn good() -> Value {
        json!({
            "iss": "https://id.example.com", "aud": "millgate", "azp": "web", "sub": "u-1", "preferred_username": "ann",
            "exp": NOW_S + 300, "iat": NOW_S - 10, "groups": ["staff"],
        })
    }

    fn read_with(header: Value, claims: &Value, issuer: &OidcIssuer) -> Result<Login, Refused> {
        let text = format!("{}.{}.", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        read(&Jws::parse(&text)?, issuer, NOW_S * 1_000_000)
    }

    fn read_claims(change: impl FnOnce(&mut Value)) -> Result<Login, Refused> {
        let mut claims = good();
        change(&mut claims);
        read_with(json!({"alg": "RS256"}), &claims, &issuer())
    }

    #[test]
    fn a_good_token_says_who_and_in_which_groups() {
        let login = read_claims(|_| {}).expect("good");
        assert_eq!((login.subject.as_str(), login.name.as_str()), ("u-1", "ann"));
        assert_eq!((login.groups.as_slice(), login.told_at_us), (&["staff".to_owned()][..], (NOW_S - 10) * 1_000_000));
        assert_eq!(login.until_us, (NOW_S + 330) * 1_000_000);
    }

    #[test]
    fn every_claim_that_is_wrong_is_named() {
        let cases: &[(&str, Value)] = &[
            ("iss", json!("https://id.example.com/")),
            ("iss", json!("https://evil.example")),
            ("iss", json!(["https://id.example.com"])),
            ("aud", json!("millgate2")),
            ("aud", json!(["a", "b"])),
            ("aud", json!({"millgate": true})),
            ("azp", json!("other")),
            ("azp", json!(["web"])),
            ("exp", json!(NOW_S - 30)),
            ("exp", json!("1800000000")),
            ("exp", json!(-1)),
            ("exp", json!(1e300)),
            ("exp", json!(null)),
            ("nbf", json!(NOW_S + 31)),
            ("iat", json!(NOW_S + 31)),
            ("sub", json!("")),
            ("sub", json!("a\u{0}b")),
            ("sub", json!(7)),
            ("preferred_username", json!("ann smith")),
            ("preferred_username", json!("corp:ann")),
            ("preferred_username", json!("аnn")),
            ("preferred_username", json!("")),
            ("preferred_username", json!("a".repeat(101))),
            ("preferred_username", json!(["ann"])),
            ("groups", json!([1])),
            ("groups", json!({"a": 1})),
            ("groups", json!(vec!["g"; 501])),
        ];
        for (name, value) in cases {
            let refused = read_claims(|claims| claims[*name] = value.clone()).expect_err(name);
            assert!(matches!(&refused, Refused::Claim { claim, .. } if claim == name), "{name} {value}: {refused}");
        }
        for name in ["iss", "aud", "azp", "exp", "sub", "preferred_username"] {
            let refused = read_claims(|claims| drop(claims.as_object_mut().expect("an object").remove(name)));
            assert!(refused.is_err(), "without {name}");
        }
    }

    #[test]
    fn what_is_allowed_passes() {
        let cases: &[(&str, Value)] = &[
            ("aud", json!(["x", "other-name"])),
            ("exp", json!(NOW_S - 29)),
            ("exp", json!(NOW_S as f64 + 0.5)),
            ("nbf", json!(NOW_S + 30)),
            ("iat", json!(NOW_S + 30)),
            ("groups", json!("staff")),
            ("groups", json!([])),
            ("preferred_username", json!("ann.o'x".replace("'", "-"))),
        ];
        for (name, value) in cases {
            let read = read_claims(|claims| claims[*name] = value.clone());
            assert!(read.is_ok(), "{name} {value}: {read:?}");
        }
        let future = read_claims(|claims| claims["iat"] = json!(NOW_S + 30)).expect("within the leeway");
        assert_eq!(future.told_at_us, NOW_S * 1_000_000, "nobody is told something in the future");
    }

    #[test]
    fn tokens_of_other_kinds_say_nothing_about_who_somebody_is() {
        for (kind, passes) in [
            ("JWT", true),
            ("at+jwt", true),
            ("application/at+JWT", true),
            ("logout+jwt", false),
            ("dpop+jwt", false),
            ("secevent+jwt", false),
            ("", false),
        ] {
            let read = read_with(json!({"alg": "RS256", "typ": kind}), &good(), &issuer());
            assert_eq!(read.is_ok(), passes, "{kind}");
        }
    }

    #[test]
    fn groups_give_administration_and_system_groups_only_through_the_map() {
        let groups = |names: Value| read_claims(|claims| claims["groups"] = names).expect("the token stands").groups;
        assert!(groups(json!(["millgate-admins", "Millgate-Admins", "system:masters", "SYSTEM:x"])).is_empty());
        assert_eq!(groups(json!(["Domain Admins", "ops"])), [ADMINS, "system:ops"]);
        assert!(groups(json!(["a b", "a\nb", "a\"b", "<script>", "", "gr\u{fc}n", "a,b"])).is_empty(), "unsafe names");
        assert_eq!(groups(json!(["/org/team", "a:b", "x", "x"])), ["/org/team", "a:b", "x"]);
    }

    #[test]
    fn a_claim_is_found_by_its_whole_name_or_by_its_path() {
        let rules = OidcIssuer { groups_claim: Some("realm_access.roles".into()), ..issuer() };
        let mut claims = good();
        claims["realm_access"] = json!({"roles": ["deep"]});
        let header = json!({"alg": "RS256"});
        assert_eq!(read_with(header.clone(), &claims, &rules).expect("good").groups, ["deep"]);
        claims["realm_access.roles"] = json!(["flat"]);
        assert_eq!(read_with(header, &claims, &rules).expect("good").groups, ["flat"]);
    }
}
