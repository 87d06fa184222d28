//! What tokens cost: versions of prices by model.
use axum::extract::{Extension, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::input::{Page, Query, read_fields};
use crate::api::json::{json_response, list, moment};
use crate::api::schema::{self, Listed, PageQuery};
use crate::api::state::Api;
use crate::governance::calendar::parse_moment;
use crate::governance::pricing::{PriceRecord, usd_per_million};
use crate::governance::{NewPrice, Principal};

/// What an answer shows and a change may send back without effect.
const READ_ONLY: &[&str] = &["object", "version", "unit", "created_at", "in_force", "usd_per_million_tokens"];
const PAGE: usize = 100;

/// `GET /admin/v1/prices`: those in force and those to come; `?history=true`: every version, newest first.
#[utoipa::path(
    get,
    path = "/admin/v1/prices",
    tag = "Administration",
    summary = "What tokens cost, now and later",
    params(
        PageQuery,
        ("model" = Option<String>, Query, description = "Only of this model"),
        ("history" = Option<bool>, Query, description = "Every version there ever was"),
    ),
    responses((status = 200, description = "Versions, newest first", body = Listed<schema::Price>)),
)]
pub(crate) async fn list_prices(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let (page, model, has_history) = (Page::take(&mut query)?, query.take("model"), query.take_switch("history")?);
    query.refuse_unknown()?;
    let before = match page.cursor.as_deref().map(str::parse::<u64>) {
        None => u64::MAX,
        Some(Ok(version)) => version,
        Some(Err(_)) => return Err(ApiError::invalid(Some("cursor"), "`cursor` is not one of this list")),
    };
    let prices = api.governor.prices(&principal).await?;
    let now_us = api.clock.now_us();
    let is_in_force = |record: &PriceRecord| prices.own_at(&record.model, now_us) == Some(record);
    let mut records: Vec<&PriceRecord> = prices
        .all()
        .filter(|record| model.as_ref().is_none_or(|model| *model == record.model) && record.version < before)
        .filter(|record| has_history || record.effective_from_us > now_us || is_in_force(record))
        .collect();
    records.sort_by_key(|record| std::cmp::Reverse(record.version));
    let wanted = page.limit.map_or(PAGE, |limit| limit as usize);
    let has_more = records.len() > wanted;
    records.truncate(wanted);
    let next = records.last().filter(|_| has_more).map(|record| record.version.to_string());
    let data = records.into_iter().map(|record| price_view(record, is_in_force(record))).collect();
    Ok(json_response(StatusCode::OK, &list(data, next)))
}

/// `PUT /admin/v1/prices` `{prices: [{model, prompt, cached, completion, effective_from?}]}`: adds a version of each.
#[utoipa::path(
    put,
    path = "/admin/v1/prices",
    tag = "Administration",
    summary = "Sets prices, all or none",
    request_body = schema::NewPrices,
    responses((status = 200, description = "The new versions", body = Listed<schema::Price>)),
)]
pub(crate) async fn put_prices(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let prices = body.objects("prices")?.ok_or_else(|| body.complain("prices", "is required"))?;
    body.refuse_unknown()?;
    let new = prices.into_iter().map(take_price).collect::<Result<Vec<_>, _>>()?;
    let records = api.governor.set_prices(&principal, &new).await?;
    let now_us = api.clock.now_us();
    let data = records.iter().map(|record| price_view(record, record.effective_from_us <= now_us)).collect();
    Ok(json_response(StatusCode::OK, &list(data, None)))
}

fn take_price(mut body: Fields) -> Result<NewPrice, ApiError> {
    let effective_from = body.take("effective_from");
    let effective_from_us = match effective_from {
        None => None,
        Some(value) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let wrong = || body.complain("effective_from", "must be RFC 3339 or seconds since the Unix epoch");
            Some(parse_moment(&text).ok_or_else(wrong)?)
        }
    };
    let price = NewPrice {
        model: body.required_string("model")?,
        prompt_pico_usd: take_pico(&mut body, "prompt")?,
        cached_pico_usd: take_pico(&mut body, "cached")?,
        completion_pico_usd: take_pico(&mut body, "completion")?,
        effective_from_us,
    };
    body.ignore(READ_ONLY);
    body.refuse_unknown()?;
    Ok(price)
}

/// Whole pico-dollars a token in a decimal string.
fn take_pico(body: &mut Fields, field: &str) -> Result<Option<u64>, ApiError> {
    let Some(text) = body.string(field)? else { return Ok(None) };
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(pico) if is_plain => Ok(Some(pico)),
        _ => {
            Err(body
                .complain(field, "must be whole pico-dollars a token in a string, like \"3000000\" for $3 a million"))
        }
    }
}

fn price_view(record: &PriceRecord, is_in_force: bool) -> Value {
    let price = &record.price;
    json!({
        "object": "price",
        "version": record.version,
        "model": record.model,
        "unit": "pico_usd_per_token",
        "prompt": price.prompt_pico_usd.to_string(),
        "cached": price.cached_pico_usd.to_string(),
        "completion": price.completion_pico_usd.to_string(),
        "usd_per_million_tokens": {
            "prompt": usd_per_million(price.prompt_pico_usd),
            "cached": usd_per_million(price.cached_pico_usd),
            "completion": usd_per_million(price.completion_pico_usd),
        },
        "effective_from": moment(record.effective_from_us),
        "created_at": moment(record.created_at_us),
        "in_force": is_in_force,
    })
}
