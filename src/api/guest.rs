//! The routes of a guest process, from one table, so that the served document can be held against
//! them.

use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, post, put};
use axum::{Extension, Json, Router};
use memopt::hypervisor::SurveyRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::descriptor::Handed;
use super::error::{ApiError, Reason};
use super::memory::{GuestMemory, TreatedMemory, TreatmentRequest};
use super::migration::{
    MigrationRequest, MigrationStarted, MigrationStatus, Resolution, ResolveRequest,
};
use super::saving::{SaveId, SaveRequest, Saved};
use super::survey::{DOMAIN_BYTES_MAX, SurveyDomain, SurveyStatus, SurveyedMemory};
use super::types::{
    BalloonInfo, BalloonRequest, CONSOLE_FROM, CONSOLE_NEXT, ConsoleInput, ConsoleRead,
    ConsoleTaken, GuestInfo, RebootRequest, ResumeRequest, StateAnswer, WorkloadControl,
    WorkloadControlled, WorkloadInfo,
};

use crate::scrollback::Scrollback;

/// The document at `/v1/openapi.json`; the test below holds it against [`routes`].
const OPENAPI: &str = include_str!("openapi.json");

/// Where looks at a guest's pages are begun, and told of.
const SURVEY: &str = "/v1/guest/survey";

/// How long a reader of the console may wait for something to read.
const CONSOLE_WAIT_MAX: Duration = Duration::from_secs(30);

/// What a guest process can be asked. Calls may block, for as long as their work takes; they are
/// made on threads for that.
pub(crate) trait GuestControl: Send + Sync + 'static {
    /// How the guest stands.
    fn info(&self) -> GuestInfo;
    /// Stops the vCPUs; done already is fine.
    ///
    /// # Errors
    /// A migration is running, or the guest is not one that can be paused; the same for `resume`,
    /// `stop` and `save`.
    fn pause(&self) -> Result<StateAnswer, ApiError>;
    /// Lets the vCPUs run; done already is fine.
    fn resume(&self, request: &ResumeRequest) -> Result<StateAnswer, ApiError>;
    /// Presses the power button.
    ///
    /// # Errors
    /// As [`Self::pause`], or the guest does not listen to the button.
    fn shut_down(&self) -> Result<StateAnswer, ApiError>;
    /// Presses the power button, and boots the guest again once it has switched itself off.
    ///
    /// # Errors
    /// As [`Self::shut_down`].
    fn reboot(&self, request: &RebootRequest) -> Result<StateAnswer, ApiError>;
    /// Resets the guest, also while it is migrated.
    ///
    /// # Errors
    /// It does not run.
    fn reset(&self) -> Result<StateAnswer, ApiError>;
    /// Ends the guest, and with it the process, once the answer is on its way.
    fn stop(&self) -> Result<StateAnswer, ApiError>;
    /// Writes memory and state to a file: `handed`, or else the one of that name. `asker` is gone
    /// when nobody waits for the answer.
    ///
    /// # Errors
    /// As [`Self::pause`]; the guest is to go on, and writes disks; the file cannot be written.
    fn save(
        &self,
        request: &SaveRequest,
        handed: Option<File>,
        asker: &Weak<()>,
    ) -> Result<Saved, ApiError>;
    /// Lets the guest stand still for another minute.
    ///
    /// # Errors
    /// It does not stand still since this save; the same for `release_save` and `finish_save`.
    fn hold_save(&self, save: SaveId) -> Result<StateAnswer, ApiError>;
    /// Lets the guest go on as it was before it was saved.
    fn release_save(&self, save: SaveId) -> Result<StateAnswer, ApiError>;
    /// Ends the guest: its file has its name.
    fn finish_save(&self, save: SaveId) -> Result<StateAnswer, ApiError>;
    /// Starts a migration.
    ///
    /// # Errors
    /// One is running already, or the request makes no sense.
    fn migrate(&self, request: &MigrationRequest) -> Result<MigrationStarted, ApiError>;
    /// How the running migration stands, or how the last one ended.
    ///
    /// # Errors
    /// There was none.
    fn migration(&self) -> Result<MigrationStatus, ApiError>;
    /// Calls the running migration off; answered at once, done a little later.
    ///
    /// # Errors
    /// There is none, or the guest has been handed over.
    fn cancel(&self) -> Result<StateAnswer, ApiError>;
    /// An operator's decision about a guest in doubt.
    ///
    /// # Errors
    /// The guest is not in doubt.
    fn resolve(&self, request: &ResolveRequest) -> Result<StateAnswer, ApiError>;
    /// What the built-in workload says about itself.
    ///
    /// # Errors
    /// The guest is not the workload, or its report is damaged.
    fn workload(&self) -> Result<WorkloadInfo, ApiError>;
    /// Steers the built-in workload.
    ///
    /// # Errors
    /// As [`Self::workload`].
    fn control_workload(&self, control: &WorkloadControl) -> Result<WorkloadControlled, ApiError>;
    /// What there is to know for whoever shares out the host's memory; the guest is not waited for.
    ///
    /// # Errors
    /// It has not arrived yet.
    fn memory(&self) -> Result<GuestMemory, ApiError>;
    /// Has parts of the guest's memory merged, taken apart, or made of huge pages.
    ///
    /// # Errors
    /// As [`Self::pause`]; parts that are no memory of the guest's.
    fn treat_memory(&self, request: &TreatmentRequest) -> Result<TreatedMemory, ApiError>;
    /// Begins to look at the guest's pages.
    ///
    /// # Errors
    /// As [`Self::pause`]; somebody looks already; the request makes no sense.
    fn begin_survey(&self, request: &SurveyRequest) -> Result<SurveyStatus, ApiError>;
    /// How the last look stands.
    ///
    /// # Errors
    /// None so far.
    fn survey(&self) -> Result<SurveyStatus, ApiError>;
    /// What the last look found of each chunk.
    ///
    /// # Errors
    /// It is not over, or `domain` is of others.
    fn surveyed(&self, domain: &SurveyDomain<'_>) -> Result<SurveyedMemory, ApiError>;
    /// How the balloon stands, with new statistics if the guest gives some.
    ///
    /// # Errors
    /// There is none.
    fn balloon(&self) -> Result<BalloonInfo, ApiError>;
    /// Sets how much memory the guest shall keep.
    ///
    /// # Errors
    /// As [`Self::balloon`]; the guest cannot have so much or so little; it has been handed over.
    fn set_balloon(&self, request: &BalloonRequest) -> Result<BalloonInfo, ApiError>;
    /// Types on the serial console.
    ///
    /// # Errors
    /// The guest has not arrived yet.
    fn type_on_console(&self, input: &ConsoleInput) -> Result<ConsoleTaken, ApiError>;
    /// The last of what the guest wrote on its serial console.
    ///
    /// # Errors
    /// As [`Self::type_on_console`].
    fn scrollback(&self) -> Result<Arc<Scrollback>, ApiError>;
}

/// Longest request for a migration, bytes: each file of certificates may have a megabyte.
const IDENTITY_BYTES_MAX: usize = 4 << 20;

/// A guest process behind its API.
type Control = Arc<dyn GuestControl>;

/// One method on one path.
struct Route {
    method: Method,
    path: &'static str,
    handler: MethodRouter<Control>,
}

impl Route {
    /// Takes larger requests than others do.
    fn with_bodies_of(self, bytes_max: usize) -> Self {
        Self { handler: self.handler.layer(DefaultBodyLimit::max(bytes_max)), ..self }
    }
}

/// The router of a guest process.
pub(crate) fn router(control: Control) -> Router {
    let add = |router: Router<Control>, route: Route| {
        tracing::trace!(method = %route.method, path = route.path, "route");
        router.route(route.path, route.handler)
    };
    routes().into_iter().fold(Router::new(), add).with_state(control)
}

/// What those may ask who may only look. Not the console, which may show a secret, nor the balloon,
/// which makes the guest work.
const LOOKS: [&str; 4] =
    ["/v1/guest", "/v1/guest/migration", "/v1/guest/workload", "/v1/openapi.json"];

/// The router of a guest process for those who may only look.
pub(crate) fn readonly_router(control: Control) -> Router {
    let is_look = |route: &Route| route.method == Method::GET && LOOKS.contains(&route.path);
    let add = |router: Router<Control>, route: Route| router.route(route.path, route.handler);
    routes().into_iter().filter(is_look).fold(Router::new(), add).with_state(control)
}

/// Every route there is.
fn routes() -> Vec<Route> {
    let (done, begun) = (StatusCode::OK, StatusCode::ACCEPTED);
    vec![
        ask(Method::GET, "/v1/guest", done, |guest| Ok(guest.info())),
        ask(Method::PUT, "/v1/guest/pause", done, |guest| guest.pause()),
        Route { method: Method::PUT, path: "/v1/guest/resume", handler: put(resume) },
        ask(Method::PUT, "/v1/guest/shutdown", begun, |guest| guest.shut_down()),
        tell(Method::PUT, "/v1/guest/reboot", begun, |guest, request: RebootRequest| {
            guest.reboot(&request)
        }),
        ask(Method::PUT, "/v1/guest/reset", done, |guest| guest.reset()),
        ask(Method::PUT, "/v1/guest/stop", begun, |guest| guest.stop()),
        Route { method: Method::POST, path: "/v1/guest/save", handler: post(save) },
        tell(Method::PUT, "/v1/guest/save/hold", done, |guest, save: SaveId| guest.hold_save(save)),
        tell(Method::PUT, "/v1/guest/save/release", done, |guest, save: SaveId| {
            guest.release_save(save)
        }),
        tell(Method::PUT, "/v1/guest/save/finish", begun, |guest, save: SaveId| {
            guest.finish_save(save)
        }),
        ask(Method::GET, "/v1/guest/migration", done, |guest| guest.migration()),
        tell(Method::POST, "/v1/guest/migration", begun, |guest, request: MigrationRequest| {
            guest.migrate(&request)
        })
        .with_bodies_of(IDENTITY_BYTES_MAX),
        ask(Method::DELETE, "/v1/guest/migration", begun, |guest| guest.cancel()),
        tell(
            Method::PUT,
            "/v1/guest/migration/resolve",
            begun,
            |guest, request: ResolveRequest| {
                expect_asked(&request)?;
                guest.resolve(&request)
            },
        ),
        ask(Method::GET, "/v1/guest/workload", done, |guest| guest.workload()),
        tell(Method::PUT, "/v1/guest/workload", done, |guest, request: WorkloadControl| {
            guest.control_workload(&request)
        }),
        ask(Method::GET, "/v1/guest/memory", done, |guest| guest.memory()),
        tell(Method::PUT, "/v1/guest/memory", done, |guest, request: TreatmentRequest| {
            guest.treat_memory(&request)
        }),
        tell(Method::POST, SURVEY, begun, |guest, request: SurveyRequest| {
            guest.begin_survey(&request)
        }),
        ask(Method::GET, SURVEY, done, |guest| guest.survey()),
        tell(Method::PUT, SURVEY, done, |guest, domain: SurveyDomain<'_>| guest.surveyed(&domain))
            .with_bodies_of(DOMAIN_BYTES_MAX),
        ask(Method::GET, "/v1/guest/balloon", done, |guest| guest.balloon()),
        tell(Method::PUT, "/v1/guest/balloon", done, |guest, request: BalloonRequest| {
            guest.set_balloon(&request)
        }),
        tell(Method::PUT, "/v1/guest/console", done, |guest, input: ConsoleInput| {
            guest.type_on_console(&input)
        }),
        Route { method: Method::GET, path: "/v1/guest/console", handler: get(read_console) },
        Route { method: Method::GET, path: "/v1/openapi.json", handler: get(openapi) },
    ]
}

/// A route whose request has no body.
fn ask<T: Serialize + Send + 'static>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    call: fn(&dyn GuestControl) -> Result<T, ApiError>,
) -> Route {
    let handler =
        async move |State(control): State<Control>| answer(status, move || call(&*control)).await;
    Route { handler: on(&method, handler), method, path }
}

/// A route whose request has a JSON body.
fn tell<B, T>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    call: fn(&dyn GuestControl, B) -> Result<T, ApiError>,
) -> Route
where
    B: DeserializeOwned + Send + 'static,
    T: Serialize + Send + 'static,
{
    let handler = async move |State(control): State<Control>,
                              body: Result<Json<B>, JsonRejection>| match body {
        Ok(Json(body)) => answer(status, move || call(&*control, body)).await,
        Err(rejection) => ApiError::from(rejection).into_response(),
    };
    Route { handler: on(&method, handler), method, path }
}

fn on<H, X>(method: &Method, handler: H) -> MethodRouter<Control>
where
    H: Handler<X, Control>,
    X: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    axum::routing::on(filter, handler)
}

/// Makes a call that may block on a thread for that, and turns what it says into an answer.
async fn answer<T, F>(status: StatusCode, call: F) -> Response
where
    T: Serialize + Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => (status, Json(value)).into_response(),
        Ok(Err(refusal)) => refusal.into_response(),
        Err(lost) => ApiError::failed(anyhow::Error::from(lost).context("the request broke down"))
            .into_response(),
    }
}

/// The one call with which a file goes along.
async fn save(
    State(control): State<Control>,
    Extension(handed): Extension<Handed>,
    body: Result<Json<SaveRequest>, JsonRejection>,
) -> Response {
    match body {
        Ok(Json(request)) => {
            let here = Arc::new(());
            let asker = Arc::downgrade(&here);
            answer(StatusCode::OK, move || control.save(&request, handed.take(), &asker)).await
        }
        Err(rejection) => ApiError::from(rejection).into_response(),
    }
}

/// What the guest wrote on its serial console, as it is. Whoever asks to wait is no thread's
/// business meanwhile.
async fn read_console(
    State(control): State<Control>,
    query: Result<Query<ConsoleRead>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => {
            return ApiError::new(Reason::BadRequest, rejection.body_text()).into_response();
        }
    };
    let scrollback = match control.scrollback() {
        Ok(scrollback) => scrollback,
        Err(refusal) => return refusal.into_response(),
    };
    let patience = Duration::from_millis(query.wait_ms).min(CONSOLE_WAIT_MAX);
    // Nothing within that time is an answer too, and bytes go as `application/octet-stream`.
    let _waited = tokio::time::timeout(patience, scrollback.wait_beyond(query.from)).await;
    let excerpt = scrollback.read(query.from);
    let headers =
        [(CONSOLE_FROM, excerpt.from.to_string()), (CONSOLE_NEXT, excerpt.next().to_string())];
    (headers, excerpt.bytes).into_response()
}

/// A body may be left out.
async fn resume(State(control): State<Control>, body: Bytes) -> Response {
    let request = if body.is_empty() { Ok(Json::default()) } else { Json::from_bytes(&body) };
    match request {
        Ok(Json(request)) => answer(StatusCode::OK, move || control.resume(&request)).await,
        Err(rejection) => ApiError::from(rejection).into_response(),
    }
}

/// Refuses to let a copy run unless the other host has been asked: the guest's process cannot ask
/// it.
fn expect_asked(request: &ResolveRequest) -> Result<(), ApiError> {
    if request.decision == Resolution::Run && !request.other_host_has_none {
        let text = "ask the other host first whether it runs the guest, as `lighter migrate --resolve run` does; if it does not, say so \
                    by \"other_host_has_none\": true";
        return Err(ApiError::new(Reason::BadRequest, text));
    }
    Ok(())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[cfg(test)]
mod tests;
