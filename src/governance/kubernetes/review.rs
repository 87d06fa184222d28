//! One TokenReview: what is asked, and what an answer says about a user.

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::KubernetesCluster;
use crate::governance::config::Secret;
use crate::governance::foreign_groups;
use crate::governance::login::{Login, Verdict, Voucher};
use crate::governance::tokens::{Refused, strict_object};

/// Who vouches for users of the cluster. Not its address: a cluster has several, and they change.
pub(in crate::governance) const VOUCHER: Voucher<'static> = Voucher { issuer: "kubernetes", name: "kubernetes" };
/// The longest user name; that of a service account has at most 339 characters.
const NAME_MAX: usize = 400;
/// So much of what the API server says goes into a log line, in characters.
const SAID_MAX: usize = 200;
/// The group of all service accounts; those of one namespace have a `:` and its name behind it.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// The parts of an answer that count. What is absent is false or empty: the API server leaves such fields out.
#[derive(Debug, Deserialize)]
struct TokenReview {
    kind: String,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
    error: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    uid: String,
    groups: Vec<String>,
}

/// What is sent to have a token reviewed.
pub(super) fn request(token: &Secret, audiences: &[String]) -> Secret {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token.reveal(), "audiences": audiences},
    });
    Secret::new(review.to_string())
}

/// What an answer says, told at `now_us` and good until `until_us`.
///
/// # Errors
/// In words: it is no TokenReview.
pub(super) fn read(answer: &[u8], rules: &KubernetesCluster, now_us: i64, until_us: i64) -> Result<Verdict, String> {
    let object = strict_object(answer).map_err(|problem| format!("its answer is {problem}"))?;
    // The parser's own words may quote the answer, and with it the token.
    let review = serde_json::from_value(Value::Object(object)).ok();
    let review: TokenReview = review.ok_or("it answers something else than a TokenReview")?;
    if review.kind != "TokenReview" {
        return Err("it answers something else than a TokenReview".into());
    }
    Ok(match login(review.status, rules, now_us, until_us) {
        Ok(login) => Verdict::Proven(login),
        Err(problem) => Verdict::Refused(Refused::Review(problem)),
    })
}

fn login(status: Status, rules: &KubernetesCluster, now_us: i64, until_us: i64) -> Result<Login, String> {
    if !status.authenticated {
        return Err(shortened(&status.error));
    }
    // Who says yes without naming an audience has not looked at them: the token may be meant for anybody.
    if !status.audiences.iter().any(|audience| rules.audiences.contains(audience)) {
        return Err("it confirms none of our audiences".into());
    }
    let User { username, uid, groups } = status.user;
    if !is_safe_name(&username) {
        return Err("the user name is empty, too long or has other characters than letters, digits and `._@+-:`".into());
    }
    if uid.len() > 255 || uid.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("the user's id is too long or has white space".into());
    }
    if groups.len() > foreign_groups::MOST {
        return Err("the user is in more than 500 groups".into());
    }
    Ok(Login {
        // A name that was deleted and made anew is somebody else, and so has another id; no part has a space in it.
        subject: if uid.is_empty() { username.clone() } else { format!("{username} {uid}") },
        groups: groups_here(&username, &groups, rules),
        name: username,
        told_at_us: now_us,
        until_us,
    })
}

/// The groups that count here.
///
/// Of the `system:` groups only those that a service account has by its namespace count unmapped: the API server itself
/// derives them from the name it has just proven, so they say no more than that. All others may come from a certificate, a
/// webhook or another provider behind the API server, and are treated as words of a stranger.
fn groups_here(username: &str, groups: &[String], rules: &KubernetesCluster) -> Vec<String> {
    let namespace = namespace_of(username);
    let is_derived = |group: &str| {
        let of_namespace = group.strip_prefix(SERVICE_ACCOUNTS).and_then(|rest| rest.strip_prefix(':'));
        namespace.is_some() && (group == SERVICE_ACCOUNTS || of_namespace == namespace)
    };
    let (derived, others): (Vec<&str>, Vec<&str>) =
        groups.iter().map(String::as_str).partition(|group| is_derived(group) && !rules.group_map.contains_key(*group));
    let mut here = foreign_groups::given(others, &rules.group_map);
    here.extend(derived.into_iter().map(str::to_owned));
    here.sort_unstable();
    here.dedup();
    here
}

/// The namespace of a service account: `system:serviceaccount:NAMESPACE:NAME`.
fn namespace_of(username: &str) -> Option<&str> {
    let (namespace, name) = username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some(namespace)
}

fn is_safe_name(name: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "._@+-:".contains(c);
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(is_safe)
}

/// One line of what somebody else wrote.
fn shortened(said: &str) -> String {
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SAID_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::policy::ADMINS;

    /// Answers of an API server 1.36, without `metadata` and `spec`.
    const GOOD: &str = r#"{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": {
        "authenticated": true,
        "user": {
          "username": "system:serviceaccount:default:caller",
          "uid": "bde41d77-e910-481f-badc-b17954aee33e",
          "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
          "extra": {"authentication.kubernetes.io/credential-id": ["JTI=66f24801-6154-4c64-9b5f-950879890565"]}
        },
        "audiences": ["llm-server"]}}"#;
    const GARBAGE: &str = r#"{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
        "status": {"user": {}, "error": "invalid bearer token"}}"#;
    const WRONG_AUDIENCE: &str = r#"{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": {"user": {},
        "error": "[invalid bearer token, token audiences [\"llm-server\"] is invalid for the target audiences [\"other\"]]"}}"#;

    fn rules() -> KubernetesCluster {
        KubernetesCluster {
            group_map: [("ops".to_owned(), ADMINS.to_owned()), ("system:masters".to_owned(), "root".to_owned())].into(),
            ..KubernetesCluster::new(vec!["llm-server".into()])
        }
    }

    fn verdict(answer: &str) -> Verdict {
        read(answer.as_bytes(), &rules(), 5, 9).expect("a TokenReview")
    }

    fn with(change: impl FnOnce(&mut Value)) -> Verdict {
        let mut answer: Value = serde_json::from_str(GOOD).expect("JSON");
        change(&mut answer["status"]);
        verdict(&answer.to_string())
    }

    fn groups_of(username: &str, groups: &[&str]) -> Vec<String> {
        match with(|status| (status["user"]["username"], status["user"]["groups"]) = (username.into(), groups.into())) {
            Verdict::Proven(login) => login.groups,
            Verdict::Refused(refused) => panic!("{refused}"),
        }
    }

    #[test]
    fn a_service_account_is_its_name_and_id_in_the_groups_of_its_namespace() {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:default"].map(str::to_owned).to_vec();
        assert_eq!(
            verdict(GOOD),
            Verdict::Proven(Login {
                subject: "system:serviceaccount:default:caller bde41d77-e910-481f-badc-b17954aee33e".into(),
                name: "system:serviceaccount:default:caller".into(),
                groups,
                told_at_us: 5,
                until_us: 9,
            })
        );
    }

    #[test]
    fn what_the_api_server_does_not_call_authenticated_is_refused_with_its_words() {
        for (answer, said) in [(GARBAGE, "invalid bearer token"), (WRONG_AUDIENCE, "target audiences")] {
            let Verdict::Refused(refused) = verdict(answer) else { panic!("{answer}") };
            assert!(refused.to_string().contains(said), "{refused}");
        }
        let Verdict::Refused(_) = verdict(r#"{"kind": "TokenReview"}"#) else { panic!("no status is no yes") };
    }

    #[test]
    fn a_yes_that_names_no_audience_of_ours_or_no_usable_user_is_no_yes() {
        for (field, value) in [
            ("audiences", json!([])),
            ("audiences", json!(["https://kubernetes.default.svc"])),
            ("authenticated", json!(false)),
        ] {
            assert!(matches!(with(|status| status[field] = value.clone()), Verdict::Refused(_)), "{field}: {value}");
        }
        for (field, value) in [
            ("username", json!("")),
            ("username", json!("ann smith")),
            ("username", json!("a\nb")),
            ("username", json!("a".repeat(401))),
            ("uid", json!("1 2")),
            ("uid", json!("1".repeat(256))),
            ("groups", json!(vec!["g"; 501])),
        ] {
            let read = with(|status| status["user"][field] = value.clone());
            assert!(matches!(read, Verdict::Refused(_)), "{field}: {value}");
        }
    }

    #[test]
    fn an_answer_that_is_no_token_review_says_nothing() {
        for answer in ["", "<html>", "[]", "{}", r#"{"kind": "Status", "status": "Failure"}"#] {
            assert!(read(answer.as_bytes(), &rules(), 0, 0).is_err(), "{answer}");
        }
        let twice = GOOD.replace("\"authenticated\": true", "\"authenticated\": false, \"authenticated\": true");
        assert!(read(twice.as_bytes(), &rules(), 0, 0).is_err(), "two readers would read two answers");
    }

    #[test]
    fn system_groups_count_only_for_a_service_account_of_that_very_namespace() {
        let all = ["system:serviceaccounts", "system:serviceaccounts:a", "system:serviceaccounts:b", "system:nodes"];
        assert_eq!(
            groups_of("system:serviceaccount:a:x", &all),
            ["system:serviceaccounts", "system:serviceaccounts:a"]
        );
        for name in ["ann", "system:serviceaccount:a", "system:serviceaccount::x", "system:serviceaccount:a:x:y", "a:x"]
        {
            assert!(groups_of(name, &all).is_empty(), "{name}");
        }
        assert!(groups_of("system:serviceaccount:a:x", &["system:serviceaccounts:"]).is_empty());
    }

    #[test]
    fn administration_and_other_system_groups_come_from_the_map_alone() {
        assert!(groups_of("ann", &["millgate-admins", "Millgate-Admins", "system:x", "a b"]).is_empty());
        assert_eq!(groups_of("ann", &["ops", "staff", "system:masters"]), [ADMINS, "root", "staff"]);
    }

    #[test]
    fn a_user_without_an_id_is_their_name_and_one_with_an_id_is_never_taken_for_them() {
        let subject = |uid: &str| match with(|status| status["user"]["uid"] = uid.into()) {
            Verdict::Proven(login) => login.subject,
            Verdict::Refused(refused) => panic!("{refused}"),
        };
        assert_eq!(subject(""), "system:serviceaccount:default:caller");
        assert_ne!(subject("1"), subject("2"));
    }

    #[test]
    fn the_request_names_token_and_audiences_and_shows_itself_nowhere() {
        let asked = request(&Secret::new("a.b.c"), &["x".into(), "y".into()]);
        let json: Value = serde_json::from_str(asked.reveal()).expect("JSON");
        assert_eq!(json["spec"], json!({"token": "a.b.c", "audiences": ["x", "y"]}));
        assert!(!format!("{asked:?}").contains("a.b.c"));
    }
}
