//! The settings in effect over HTTP: shown without secrets, changed where that needs no restart, and in the audit log.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use serde_json::{Value, json};

use crate::support::TestApp;

const PATH: &str = "/admin/v1/config";

async fn noted(app: &TestApp) -> Vec<Value> {
    let rows = app.admin().get("/admin/v1/audit?target=config").await.json();
    rows["data"].as_array().unwrap().clone()
}

#[tokio::test]
async fn administrators_see_the_settings_in_effect_without_any_secret() {
    let app = TestApp::new().start().await;
    let reply = app.admin().get(PATH).await;
    assert_eq!(reply.status, 200);
    let shown = reply.json();
    assert_eq!(shown["settings"]["log"], json!({"level": "info", "format": "text"}));
    assert_eq!(shown["environment"], json!({"MILLGATE_ADMIN_KEY": "***", "HF_TOKEN": null}));
    assert_eq!((&shown["changeable"], &shown["changed_since_start"]), (&json!(["log.level"]), &json!([])));
    assert!(!reply.body.contains("hush-hush"), "{}", reply.body);
    assert!(shown["note"].as_str().unwrap().contains("until the server stops"), "{shown}");
    let user = app.key("free").await;
    assert_eq!((user.get(PATH).await.status, user.put(PATH, &json!({})).await.status), (403, 403));
    app.stop().await;
}

#[tokio::test]
async fn the_log_level_changes_at_run_time_and_the_audit_log_says_who_did_it() {
    let app = TestApp::new().start().await;
    let start = app.admin().get(PATH).await.json()["settings"].clone();
    app.governor.note_config(&start).await.unwrap();
    let wish = json!({"settings": {"log": {"level": "debug"}}});
    let changed = app.admin().put(PATH, &wish).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    assert_eq!(*app.log_filters.lock().unwrap(), ["debug"]);
    let shown = app.admin().get(PATH).await.json();
    assert_eq!(shown, changed.json());
    assert_eq!(
        (&shown["settings"]["log"]["level"], &shown["changed_since_start"]),
        (&json!("debug"), &json!(["log.level"]))
    );
    let rows = noted(&app).await;
    assert_eq!((&rows[0]["action"], &rows[0]["actor"]["name"]), (&json!("config.update"), &json!("admin")));
    assert_eq!(
        (&rows[0]["before"]["log"]["level"], &rows[0]["after"]["log"]["level"]),
        (&json!("info"), &json!("debug"))
    );
    assert!(!rows[0].to_string().contains("hush-hush"), "{}", rows[0]);

    for same in [wish, shown] {
        assert_eq!(app.admin().put(PATH, &same).await.status, 200);
    }
    assert_eq!(noted(&app).await.len(), rows.len(), "a change without effect leaves no row");
    assert_eq!(app.log_filters.lock().unwrap().len(), 1);

    let back = app.admin().put(PATH, &json!({"settings": {"log": {"level": "info"}}})).await.json();
    assert_eq!(back["changed_since_start"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn what_needs_a_restart_or_does_not_exist_is_refused_by_name_and_nothing_changes() {
    let app = TestApp::new().start().await;
    let level = json!({"level": "debug"});
    for (settings, status, param) in [
        (json!({"log": level, "server": {"listen": "0.0.0.0:80"}}), 409, "settings.server.listen"),
        (json!({"log": {"level": "debug", "format": "json"}}), 409, "settings.log.format"),
        (json!({"models": [{"name": "x"}]}), 409, "settings.models"),
        (json!({"models": 1}), 400, "settings.models"),
        (json!({"server": "x"}), 400, "settings.server"),
        (json!({"log": level, "sever": {}}), 400, "settings.sever"),
        (json!({"log": {"level": "debug", "colour": true}}), 400, "settings.log.colour"),
        (json!({"log": {"level": 1}}), 400, "settings.log.level"),
        (json!({"log": {"level": "wrong"}}), 400, "settings.log.level"),
    ] {
        let reply = app.admin().put(PATH, &json!({"settings": settings})).await;
        assert_eq!((reply.status, reply.param()), (status, json!(param)), "{settings}: {}", reply.body);
        assert!(reply.message().contains(param), "{}", reply.body);
        assert_eq!(status == 409, reply.message().contains("restart"), "{}", reply.body);
    }
    for (body, param) in [(json!({}), "settings"), (json!({"log": level}), "log")] {
        let reply = app.admin().put(PATH, &body).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)));
    }
    assert!(noted(&app).await.is_empty() && app.log_filters.lock().unwrap().is_empty());
    app.stop().await;
}
