//! The log level of the running program, changed over HTTP.

use serde_json::{Value, json};

use super::server::ServerProcess;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_log_level_decides_what_the_running_server_writes() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &[]).await;
    let set = async |level: &str| {
        let wish = json!({"settings": {"log": {"level": level}}});
        let reply = server.put("/admin/v1/config", &wish).send().await.unwrap();
        let status = reply.status();
        (status, reply.json::<Value>().await.unwrap())
    };
    let ask = async |path: &str| assert_eq!(server.get(path).send().await.unwrap().status(), 200, "{path}");

    ask("/v1/me").await;
    let (status, shown) = set("off").await;
    assert_eq!((status.as_u16(), &shown["settings"]["log"]["level"]), (200, &json!("off")), "{shown}");
    ask("/v1/usage").await;
    let (status, refused) = set("debgu").await;
    assert_eq!((status.as_u16(), &refused["error"]["param"]), (400, &json!("settings.log.level")), "{refused}");
    assert_eq!(set("info").await.0, 200);
    ask("/v1/api-keys").await;
    server.signal("-TERM");
    assert!(server.ended().await.success());

    let printed = server.rest_of_output().await;
    for (path, is_written) in [("/v1/me", true), ("/v1/usage", false), ("/v1/api-keys", true)] {
        assert_eq!(printed.contains(&format!("GET {path} answered 200")), is_written, "{path}: {printed}");
    }
}
