//! The routes of memory optimization on the node's sockets. Users with read-only access see the
//! same and start nothing.

use std::fmt::Display;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::{Method, StatusCode};
use memopt::history::{Listing, Run, RunId};
use memopt::plan::Plan;
use memopt::service::{Agenda, DensityStatus, Pages, ServiceError, Settings};
use memopt::settings::FILE_BYTES_MAX;
use serde::Deserialize;

use super::Density;
use super::types::{PLAN_BYTES_MAX, PlanRequest, RunRequest, RunStarted};
use crate::api::route::{Parameter, Route, Within, read, with_body, with_part};
use crate::api::{ApiError, Reason};
use crate::units::format_size;

/// Most entries in a list.
const COUNT_MAX: usize = 1000;

/// The largest request for a run, in bytes: a plan of the largest size, and the JSON around it.
const RUN_BYTES_MAX: usize = PLAN_BYTES_MAX + 1024;

/// The largest request for a plan, in bytes: a policy of the largest size, each character of which
/// may be written as `\u0000`, and the JSON around it.
const PLAN_REQUEST_BYTES_MAX: usize = 6 * FILE_BYTES_MAX + 1024;

/// Routes on the owner's socket.
pub(crate) fn routes() -> Vec<Route<Arc<Density>>> {
    let mut routes = readonly_routes();
    routes.extend([
        with_body(
            "/v1/density/plan",
            StatusCode::OK,
            "What would be done now; nothing is changed (node.sock only)",
            make_plan,
        )
        .with_bodies_of(PLAN_REQUEST_BYTES_MAX),
        with_body(
            "/v1/density/runs",
            StatusCode::ACCEPTED,
            "Begin a run; 409 while another is under way (node.sock only)",
            begin,
        )
        .with_bodies_of(RUN_BYTES_MAX),
        with_part(
            Method::DELETE,
            "/v1/density/runs/{id}",
            StatusCode::ACCEPTED,
            "Cancel a run; it ends after the step under way (node.sock only)",
            cancel,
        )
        .with(&ID),
    ]);
    routes
}

/// Routes on the socket for all users.
pub(crate) fn readonly_routes() -> Vec<Route<Arc<Density>>> {
    vec![
        read("/v1/density", "How the host's memory stands, and what each guest has of it", show),
        with_part(
            Method::GET,
            "/v1/density/runs",
            StatusCode::OK,
            "The last runs, the newest first",
            list,
        )
        .with(&COUNT),
        with_part(
            Method::GET,
            "/v1/density/runs/{id}",
            StatusCode::OK,
            "A run with its plan, its steps and what came of them (404 when there is none)",
            show_run,
        )
        .with(&ID),
        with_part(
            Method::GET,
            "/v1/density/next",
            StatusCode::OK,
            "What runs, and what lighter.toml schedules next",
            show_next,
        )
        .with(&COUNT),
    ]
}

const ID: [Parameter; 1] =
    [Parameter { name: "id", within: Within::Path, description: "number of the run" }];
const COUNT: [Parameter; 1] = [Parameter {
    name: "count",
    within: Within::Query { default: COUNT_USUAL as u64 },
    description: "how many, 1000 at most",
}];

/// The query `?count=N`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    #[serde(default = "usual_count")]
    count: usize,
}

/// Entries in a list unless the request says otherwise.
const COUNT_USUAL: usize = 20;

fn usual_count() -> usize {
    COUNT_USUAL
}

async fn show(density: Arc<Density>) -> Result<DensityStatus, ApiError> {
    Ok(density.client.status().await?)
}

async fn make_plan(
    density: Arc<Density>,
    request: Result<Json<PlanRequest>, JsonRejection>,
) -> Result<Plan, ApiError> {
    let Json(request) = request?;
    let settings = request.policy.map(|text| Settings::parse(&text, "policy"));
    let policy = settings.transpose().map_err(bad_request)?.map(|settings| settings.policy);
    let pages = if request.survey { Pages::SurveyedFirst } else { Pages::AsKnown };
    Ok(density.client.plan(request.goal, policy, pages).await?)
}

async fn begin(
    density: Arc<Density>,
    request: Result<Json<RunRequest>, JsonRejection>,
) -> Result<RunStarted, ApiError> {
    let Json(request) = request.map_err(not_begun)?;
    let run = density.client.begin(request.goal, request.plan).await?;
    Ok(RunStarted { run })
}

async fn list(
    density: Arc<Density>,
    count: Result<Query<Count>, QueryRejection>,
) -> Result<Listing, ApiError> {
    Ok(density.client.runs(count_of(count)?).await?)
}

async fn show_run(
    density: Arc<Density>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Run, ApiError> {
    Ok(density.client.run(id_of(id)?).await?)
}

async fn cancel(
    density: Arc<Density>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<RunStarted, ApiError> {
    let run = id_of(id)?;
    density.client.cancel(run).await?;
    Ok(RunStarted { run })
}

async fn show_next(
    density: Arc<Density>,
    count: Result<Query<Count>, QueryRejection>,
) -> Result<Agenda, ApiError> {
    Ok(density.client.agenda(count_of(count)?).await?)
}

fn count_of(count: Result<Query<Count>, QueryRejection>) -> Result<usize, ApiError> {
    let Query(Count { count }) = count?;
    Ok(count.min(COUNT_MAX))
}

fn id_of(id: Result<Path<u64>, PathRejection>) -> Result<RunId, ApiError> {
    let Path(id) = id?;
    Ok(RunId(id))
}

/// Returns why a request for a run is invalid.
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
    use crate::api::route;
    use crate::api::server::{Audience, Server};
    use crate::api::{ApiClient, AskError};
    use crate::cli::host::ForeignGuestsArg;
    use crate::state_dir::StateDir;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_oversized_plan_is_refused_with_a_message() {
        let (folder, state) = StateDir::temporary();
        let exporter = Exporter::new("1", "x", SystemTime::now()).unwrap();
        let counted = Arc::clone(exporter.density());
        let density = Arc::new(Density::start(&state, ForeignGuestsArg::Off, counted).unwrap());
        let socket = folder.path().join("socket");
        let _server =
            Server::start(&socket, route::router(routes(), density), Audience::Owner).unwrap();
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
