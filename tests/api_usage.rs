//! Prices and usage over HTTP: who may see what, in which shape, and what is refused.

use insta::assert_snapshot;
use millgate::governance::NewKey;
use serde_json::{Value, json};

use crate::cli::printed;
use crate::support::{Actor, MODEL, TestApp};

/// Two dollars a million prompt tokens, half of it cached, eight dollars a million completion tokens.
async fn with_prices(app: &TestApp) {
    let price = json!({"model": MODEL, "prompt": "2000000", "cached": "1000000", "completion": "8000000"});
    let reply = app.admin().put("/admin/v1/prices", &json!({"prices": [price]})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

/// A prompt of two tokens and an answer of three: 28 micro-dollars.
async fn five_tokens(actor: &Actor) {
    let reply = actor.complete(json!([65, 66]), json!({"max_tokens": 3, "ignore_eos": true})).await;
    assert_eq!((reply.status, reply.total_tokens()), (200, 5), "{}", reply.body);
}

#[tokio::test]
async fn prices_are_versions_that_begin_some_time_and_are_never_changed() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    with_prices(&app).await;
    let later =
        json!({"prices": [{"model": MODEL, "completion": "9000000", "effective_from": "2030-01-01T00:00:00Z"}]});
    assert_eq!(admin.put("/admin/v1/prices", &later).await.status, 200);
    let list = admin.get("/admin/v1/prices").await.json();
    let shown: Vec<(u64, &str, bool)> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|price| {
            (price["version"].as_u64().unwrap(), price["completion"].as_str().unwrap(), price["in_force"] == true)
        })
        .collect();
    assert_eq!(shown, [(2, "9000000", false), (1, "8000000", true)]);
    assert_eq!(list["data"][0]["prompt"], "2000000", "what is left out keeps its price");
    with_prices(&app).await;
    assert_eq!(admin.get("/admin/v1/prices").await.json()["data"].as_array().unwrap().len(), 2);
    let history = admin.get("/admin/v1/prices?history=true&limit=2").await.json();
    assert_eq!((history["data"][0]["version"].as_u64(), history["has_more"].as_bool()), (Some(3), Some(true)));
    let cursor = history["next_cursor"].as_str().unwrap();
    let rest = admin.get(&format!("/admin/v1/prices?history=true&cursor={cursor}")).await.json();
    assert_eq!((rest["data"][0]["version"].as_u64(), rest["has_more"].as_bool()), (Some(1), Some(false)));
    assert_eq!(app.user("ann", &[]).await.get("/admin/v1/prices").await.status, 403);
}

#[tokio::test]
async fn a_wrong_price_is_named_by_field() {
    let app = TestApp::new().start().await;
    for (price, param) in [
        (json!({"model": MODEL, "prompt": 2, "completion": "1"}), "prices[0].prompt"),
        (json!({"model": MODEL, "prompt": "1.5", "completion": "1"}), "prices[0].prompt"),
        (json!({"model": MODEL, "prompt": "1"}), "completion"),
        (json!({"prompt": "1", "completion": "1"}), "prices[0].model"),
        (json!({"model": MODEL, "prompt": "1", "completion": "1", "tax": "1"}), "prices[0].tax"),
        (
            json!({"model": MODEL, "prompt": "1", "completion": "1", "effective_from": "soon"}),
            "prices[0].effective_from",
        ),
        (json!({"model": MODEL, "prompt": "1", "completion": "1", "effective_from": 1}), "effective_from"),
    ] {
        let reply = app.admin().put("/admin/v1/prices", &json!({"prices": [price]})).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{}", reply.body);
    }
    assert_eq!(app.admin().put("/admin/v1/prices", &json!({"prices": []})).await.param(), "prices");
}

#[tokio::test]
async fn a_budget_is_told_in_dollars_everywhere() {
    let app = TestApp::new().tier("thrifty", |tier| tier.limit("0.00003 usd / 1h")).start().await;
    with_prices(&app).await;
    let user = app.key("thrifty").await;
    five_tokens(&user).await;
    let refused = user.complete(json!([65, 66]), json!({"max_tokens": 3})).await;
    assert_snapshot!(refused.status_and_body(), @r#"429 {"error":{"message":"Money quota exceeded. You have consumed the maximum amount of money allowed per hour for your tier.","type":"quota_error","code":429,"param":null,"detail":{"limit":"thrifty: 0.00003 usd / 1h","reason":"cost_exceeded","requested":"0.000028","retry_after_ms":3640000,"scope":"user","used":"0.000028"}}}"#);
    assert_eq!((refused.header("x-ratelimit-limit"), refused.header("x-ratelimit-remaining")), ("0.00003", "0.000002"));
    assert_eq!(refused.header("x-ratelimit-limit-tokens"), "", "money is no token");
    let limit = user.get("/v1/me").await.json()["limits"][0].clone();
    let shown = [&limit["amount"], &limit["used"], &limit["held"], &limit["remaining"]];
    assert_eq!(shown, [&json!("0.00003"), &json!("0.000028"), &json!("0"), &json!("0.000002")]);
    let never = user.complete(json!([65]), json!({"max_tokens": 4})).await;
    assert!(
        never.message().ends_with("needs up to 0.000034 USD, more than the whole limit: it can never fit."),
        "{}",
        never.message()
    );
    let tier = app.admin().get("/admin/v1/tiers/thrifty").await.json();
    assert_eq!(
        tier["limits"][0],
        json!({"resource": "cost", "amount": "0.00003", "window": "1h", "scope": "user", "mode": "hard"})
    );
}

#[tokio::test]
async fn usage_is_told_by_user_key_label_and_group_and_to_oneself_only() {
    let app = TestApp::new().start().await;
    with_prices(&app).await;
    let ann = app.user("ann", &["blue", "red"]).await;
    let labelled = NewKey { labels: [("team".to_owned(), "=1+1".to_owned())].into(), ..NewKey::default() };
    let team = app.key_of("ann", labelled).await;
    let ben = app.user("ben", &["red"]).await;
    five_tokens(&ann).await;
    five_tokens(&team).await;
    five_tokens(&ben).await;
    let admin = app.admin();
    let report = async |query: &str| admin.get(&format!("/admin/v1/usage?start=0&{query}")).await.json();
    let by = |report: &Value, name: &str| -> Vec<(String, u64, String)> {
        let line = |line: &Value| {
            let group = line[name].as_str().unwrap_or_default().to_owned();
            (group, line["requests"].as_u64().unwrap(), line["cost"].as_str().unwrap().to_owned())
        };
        report["data"].as_array().unwrap().iter().map(line).collect()
    };
    let (once, twice) = ("0.000028".to_owned(), "0.000056".to_owned());
    let users = report("group_by=user").await;
    assert_eq!(by(&users, "user"), [("ann".into(), 2, twice.clone()), ("ben".into(), 1, once.clone())]);
    let groups = report("group_by=group").await;
    assert_eq!(by(&groups, "group"), [("blue".into(), 2, twice), ("red".into(), 3, "0.000084".into())]);
    assert_eq!((&groups["counts_once_per_group"], &users["counts_once_per_group"]), (&json!(true), &json!(false)));
    let teams = report("group_by=label:team").await;
    assert_eq!(by(&teams, "label:team")[1], ("=1+1".into(), 1, once));
    let csv =
        admin.get("/admin/v1/usage?start=2023-11-14T22:13:00Z&end=1700000100&group_by=label:team&format=csv").await;
    assert_eq!(csv.header("content-type"), "text/csv; charset=utf-8");
    assert_snapshot!(csv.body, @r"
    start,end,label:team,requests,failed_requests,prompt_tokens,cached_tokens,completion_tokens,cost_usd,refusals
    2023-11-14T22:13:00Z,2023-11-14T22:15:00Z,,2,0,4,0,6,0.000056,0
    2023-11-14T22:13:00Z,2023-11-14T22:15:00Z,'=1+1,1,0,2,0,3,0.000028,0
    ");
    let own = ben.get("/v1/usage?group_by=user,model").await.json();
    assert_eq!(own["data"].as_array().unwrap().len(), 1);
    assert_eq!((&own["data"][0]["user"], &own["data"][0]["prompt_tokens"]), (&json!("ben"), &json!(2)));
    assert_eq!(ben.get("/v1/usage?user=ann").await.param(), "user");
    assert_eq!(ben.get("/admin/v1/usage").await.status, 403);
    assert_eq!(admin.get("/admin/v1/usage?user=nobody").await.status, 404);
    let days = admin.get("/admin/v1/usage?start=2023-11-01T00:00:00Z&user=ann&bucket=1d&tz=Europe/Paris").await.json();
    assert_eq!(
        (&days["data"][0]["requests"], &days["data"][0]["start"]),
        (&json!(2), &json!("2023-11-14T00:00:00+01:00"))
    );
}

#[tokio::test]
async fn what_cannot_be_reported_is_refused_with_the_parameter_to_blame() {
    let app = TestApp::new().start().await;
    for (query, param) in [
        ("start=yesterday", "start"),
        ("start=10&end=10", "start"),
        ("start=0&bucket=1m", "bucket"),
        ("bucket=1w", "bucket"),
        ("tz=Nowhere", "tz"),
        ("group_by=colour", "group_by"),
        ("format=pdf", "format"),
        ("colour=red", "colour"),
    ] {
        let reply = app.admin().get(&format!("/admin/v1/usage?{query}")).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{query}");
    }
}

#[tokio::test]
async fn usage_and_costs_also_come_in_the_shape_of_openais_admin_api() {
    let app = TestApp::new().start().await;
    with_prices(&app).await;
    let ann = app.user("ann", &[]).await;
    five_tokens(&ann).await;
    let admin = app.admin();
    let path = "/v1/organization/usage/completions?start_time=1699920000&group_by[]=model&group_by[]=user_id&limit=1";
    let page = admin.get(path).await.json();
    assert_eq!((&page["object"], &page["has_more"], &page["next_page"]), (&json!("page"), &json!(false), &Value::Null));
    let result = &page["data"][0]["results"][0];
    assert_eq!(
        (&result["input_tokens"], &result["output_tokens"], &result["model"]),
        (&json!(2), &json!(3), &json!(MODEL))
    );
    assert_eq!((&result["num_model_requests"], &result["service_tier"]), (&json!(1), &Value::Null));
    assert_eq!(page["data"][0]["start_time"], 1_699_920_000);
    let costs = admin.get("/v1/organization/costs?start_time=1699833600&limit=1").await.json();
    assert_eq!((&costs["has_more"], &costs["data"][0]["results"]), (&json!(true), &json!([])), "a day without costs");
    let next = costs["next_page"].as_str().unwrap();
    let costs = admin.get(&format!("/v1/organization/costs?start_time=1699833600&page={next}")).await.json();
    assert_eq!(
        costs["data"][0]["results"][0]["amount"],
        json!({"value": 0.000028, "currency": "usd", "exact": "0.000028"})
    );
    for (query, param) in [
        ("", "start_time"),
        ("start_time=x", "start_time"),
        ("start_time=5&bucket_width=1w", "bucket_width"),
        ("start_time=5&limit=32", "limit"),
        ("start_time=5&group_by=project_id", "group_by"),
        ("start_time=5&page=page_4", "page"),
    ] {
        let reply = admin.get(&format!("/v1/organization/usage/completions?{query}")).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{query}");
    }
    assert_eq!(ann.get("/v1/organization/usage/completions?start_time=0").await.status, 403);
}

/// Runs the program against the test server as the administrator.
async fn as_admin(app: &TestApp, args: &[&str]) -> Result<String, String> {
    let (url, key) = (format!("http://{}", app.address), app.admin().key.expect("a key"));
    let args: Vec<String> = args.iter().copied().chain(["--url", &url, "--key", &key]).map(str::to_owned).collect();
    let run = move || printed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.expect("the program ran")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_sets_prices_and_reports_from_the_server_and_from_the_disk() {
    let app = TestApp::new().start().await;
    let set = as_admin(&app, &["price", "set", MODEL, "--prompt", "2", "--completion", "8"]).await.unwrap();
    assert!(set.contains(MODEL) && set.contains('8'), "{set}");
    let wrong = as_admin(&app, &["price", "set", MODEL, "--prompt", "two"]).await.unwrap_err();
    assert!(wrong.contains("--prompt two"), "{wrong}");
    let prices = as_admin(&app, &["price", "get", "--json"]).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&prices).unwrap()[0]["completion"], "8000000");
    let ann = app.user("ann", &[]).await;
    five_tokens(&ann).await;
    let since = ["usage", "--by", "user,model", "--since", "2023-11-01T00:00:00Z", "--until", "2023-12-01T00:00:00Z"];
    let served = as_admin(&app, &[&since[..], &["--json"]].concat()).await.unwrap();
    let line = serde_json::from_str::<Value>(&served).unwrap()["data"][0].clone();
    assert_eq!((&line["user"], &line["cost"], &line["requests"]), (&json!("ann"), &json!("0.000028"), &json!(1)));
    let csv = as_admin(&app, &[&since[..], &["--csv"]].concat()).await.unwrap();
    assert!(csv.contains(",ann,fake,1,0,2,0,3,0.000028,0"), "{csv}");
    let data_dir = app.data_dir().to_str().unwrap().to_owned();
    let offline = [&since[..], &["--data-dir", &data_dir]].concat();
    let from_disk = |more: &'static str| {
        let args: Vec<String> = offline.iter().copied().chain([more]).map(str::to_owned).collect();
        tokio::task::spawn_blocking(move || printed(&args.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    assert_eq!(from_disk("--json").await.unwrap().unwrap(), served, "both ways say the same");
    assert_eq!(from_disk("--csv").await.unwrap().unwrap(), csv);
    let key = ann.key.clone().unwrap();
    let url = format!("http://{}", app.address);
    let mine = [
        "usage",
        "--mine",
        "--since",
        "2023-11-01T00:00:00Z",
        "--until",
        "2023-12-01T00:00:00Z",
        "--url",
        &url,
        "--key",
        &key,
    ];
    let mine: Vec<String> = mine.iter().map(|word| (*word).to_owned()).collect();
    let mine = tokio::task::spawn_blocking(move || printed(&mine.iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(mine.await.unwrap().unwrap().contains("ann"));
}

#[tokio::test]
async fn a_price_is_for_one_model_or_for_all_that_have_none_and_not_for_a_pattern() {
    let app = TestApp::new().start().await;
    for (model, status) in [("**", 400), ("llama-*", 400), ("*", 200)] {
        let price = json!({"model": model, "prompt": "1", "completion": "1"});
        let reply = app.admin().put("/admin/v1/prices", &json!({"prices": [price]})).await;
        assert_eq!(reply.status, status, "{model}: {}", reply.body);
    }
}
