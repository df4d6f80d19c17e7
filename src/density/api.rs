//! The routes of memory optimization on the node's sockets. Those who may only read see the same,
//! and begin nothing.

use std::fmt::Display;
use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use memopt::history::{Listing, Run, RunId};
use memopt::plan::Plan;
use memopt::service::{Agenda, DensityStatus, Pages, ServiceError, Settings};
use memopt::settings::FILE_BYTES_MAX;
use serde::Deserialize;

use super::Density;
use super::types::{PLAN_BYTES_MAX, PlanRequest, RunRequest, RunStarted};
use crate::api::{ApiError, Reason};
use crate::units::format_size;

/// Every path.
pub(crate) const PATHS: [&str; 5] = [
    "/v1/density",
    "/v1/density/plan",
    "/v1/density/runs",
    "/v1/density/runs/{id}",
    "/v1/density/next",
];

/// The most that a list holds.
const COUNT_MAX: usize = 1000;

/// The largest request for a run, in bytes: with such a plan, and what is around it.
const RUN_BYTES_MAX: usize = PLAN_BYTES_MAX + 1024;

/// The largest request for a plan, in bytes: with such a policy, each letter of which may be
/// written as `\u0000`, and what is around it.
const PLAN_REQUEST_BYTES_MAX: usize = 6 * FILE_BYTES_MAX + 1024;

type Shared = State<Arc<Density>>;

/// For the host's owner.
pub(crate) fn router(density: Arc<Density>) -> Router {
    let [status, plan, runs, run, next] = PATHS;
    Router::new()
        .route(status, get(show))
        .route(plan, post(make_plan).layer(DefaultBodyLimit::max(PLAN_REQUEST_BYTES_MAX)))
        .route(runs, get(list).merge(post(begin).layer(DefaultBodyLimit::max(RUN_BYTES_MAX))))
        .route(run, get(show_run).delete(cancel))
        .route(next, get(show_next))
        .with_state(density)
}

/// For everybody.
pub(crate) fn readonly_router(density: Arc<Density>) -> Router {
    let [status, _, runs, run, next] = PATHS;
    Router::new()
        .route(status, get(show))
        .route(runs, get(list))
        .route(run, get(show_run))
        .route(next, get(show_next))
        .with_state(density)
}

/// `?count=N`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    #[serde(default = "usual_count")]
    count: usize,
}

fn usual_count() -> usize {
    20
}

async fn show(State(density): Shared) -> Result<Json<DensityStatus>, ApiError> {
    Ok(Json(density.client.status().await?))
}

async fn make_plan(
    State(density): Shared,
    request: Result<Json<PlanRequest>, JsonRejection>,
) -> Result<Json<Plan>, ApiError> {
    let Json(request) = request?;
    let settings = request.policy.map(|text| Settings::parse(&text, "policy"));
    let policy = settings.transpose().map_err(bad_request)?.map(|settings| settings.policy);
    let pages = if request.survey { Pages::SurveyedFirst } else { Pages::AsKnown };
    Ok(Json(density.client.plan(request.goal, policy, pages).await?))
}

async fn begin(
    State(density): Shared,
    request: Result<Json<RunRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<RunStarted>), ApiError> {
    let Json(request) = request.map_err(not_begun)?;
    let run = density.client.begin(request.goal, request.plan).await?;
    Ok((StatusCode::ACCEPTED, Json(RunStarted { run })))
}

async fn list(
    State(density): Shared,
    count: Result<Query<Count>, QueryRejection>,
) -> Result<Json<Listing>, ApiError> {
    Ok(Json(density.client.runs(count_of(count)?).await?))
}

async fn show_run(
    State(density): Shared,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<Run>, ApiError> {
    Ok(Json(density.client.run(id_of(id)?).await?))
}

async fn cancel(
    State(density): Shared,
    id: Result<Path<u64>, PathRejection>,
) -> Result<(StatusCode, Json<RunStarted>), ApiError> {
    let run = id_of(id)?;
    density.client.cancel(run).await?;
    Ok((StatusCode::ACCEPTED, Json(RunStarted { run })))
}

async fn show_next(
    State(density): Shared,
    count: Result<Query<Count>, QueryRejection>,
) -> Result<Json<Agenda>, ApiError> {
    Ok(Json(density.client.agenda(count_of(count)?).await?))
}

fn count_of(count: Result<Query<Count>, QueryRejection>) -> Result<usize, ApiError> {
    let Query(Count { count }) = count.map_err(|rejection| bad_request(rejection.body_text()))?;
    Ok(count.min(COUNT_MAX))
}

fn id_of(id: Result<Path<u64>, PathRejection>) -> Result<RunId, ApiError> {
    let Path(id) = id.map_err(|rejection| bad_request(rejection.body_text()))?;
    Ok(RunId(id))
}

/// Why a request for a run is none.
fn not_begun(rejection: JsonRejection) -> ApiError {
    match ApiError::from(rejection) {
        ApiError { reason: Reason::TooLarge, .. } => {
            let most = format_size(PLAN_BYTES_MAX as u64);
            ApiError::new(
                Reason::TooLarge,
                format!("the plan is too large: at most {most} are taken"),
            )
        }
        other => other,
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let reason = match error {
            ServiceError::Busy { .. } | ServiceError::NotNow | ServiceError::NotUnderWay(_) => {
                Reason::WrongState
            }
            ServiceError::NoSuchRun(_) | ServiceError::NoHistory => Reason::NotFound,
            ServiceError::Inspect(_)
            | ServiceError::Settings(_)
            | ServiceError::Unremembered(_)
            | ServiceError::Unreadable(_)
            | ServiceError::Silent => Reason::Failed,
        };
        Self::new(reason, error.to_string())
    }
}

fn bad_request(error: impl Display) -> ApiError {
    ApiError::new(Reason::BadRequest, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use metrics::Exporter;

    use super::*;
    use crate::api::server::{Audience, Server};
    use crate::api::{ApiClient, AskError};
    use crate::cli::host::ForeignGuestsArg;
    use crate::state_dir::StateDir;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_plan_that_is_too_large_is_refused_in_words() {
        let (folder, state) = StateDir::temporary();
        let exporter = Exporter::new("1", "x", SystemTime::now()).unwrap();
        let counted = Arc::clone(exporter.density());
        let density = Arc::new(Density::start(&state, ForeignGuestsArg::Off, counted).unwrap());
        let socket = folder.path().join("socket");
        let _server = Server::start(&socket, router(density), Audience::Owner).unwrap();
        let client = ApiClient::new(&socket);
        for (bytes, reason) in
            [(PLAN_BYTES_MAX, Reason::BadRequest), (RUN_BYTES_MAX, Reason::TooLarge)]
        {
            let request = serde_json::json!({ "goal": "x".repeat(bytes) });
            let answer = client.post::<RunStarted>("/v1/density/runs", &request).await;
            let Err(AskError::Refused(refusal)) = answer else { panic!("{answer:?}") };
            assert_eq!(refusal.reason, reason, "{refusal}");
            assert_eq!(refusal.error.contains("at most 4 MiB"), reason == Reason::TooLarge);
        }
    }
}
