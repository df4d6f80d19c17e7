//! The routes of a guest process.

use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use memopt::hypervisor::SurveyRequest;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::descriptor::Handed;
use super::error::{ApiError, Reason};
use super::memory::{GuestMemory, TreatedMemory, TreatmentRequest};
use super::migration::{
    MigrationRequest, MigrationStarted, MigrationStatus, Resolution, ResolveRequest,
};
use super::route::{self, About, Header, Operation, Parameter, Required, Route, Within};
use super::saving::{SaveId, SaveRequest, Saved};
use super::survey::{DOMAIN_BYTES_MAX, SurveyDomain, SurveyStatus, SurveyedMemory};
use super::types::{
    BalloonInfo, BalloonRequest, CONSOLE_FROM, CONSOLE_NEXT, ConsoleInput, ConsoleRead,
    ConsoleTaken, GuestInfo, RebootRequest, ResumeRequest, StateAnswer, WorkloadControl,
    WorkloadControlled, WorkloadInfo,
};

use crate::scrollback::Scrollback;

/// What the document says of the API.
const ABOUT: About = About {
    title: "lighter: a guest process",
    description: "HTTP/1.1 on the Unix socket guests/NAME/api.sock in the host's state folder \
        (mode 0600). Times are milliseconds unless named otherwise, sizes bytes. A refusal is \
        {error, reason}; 409 means that the guest's state or a running migration does not allow \
        it.",
};

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

/// The router of a guest process.
pub(crate) fn router(control: Control) -> Router {
    route::router(routes(), control).merge(document())
}

/// Serves what the API is.
fn document() -> Router {
    route::document_router(ABOUT, routes().iter().map(Route::operation).cloned().collect())
}

/// What those may ask who may only look. Not the console, which may show a secret, nor the balloon,
/// which makes the guest work.
const LOOKS: [&str; 3] = ["/v1/guest", "/v1/guest/migration", "/v1/guest/workload"];

/// The router of a guest process for those who may only look.
pub(crate) fn readonly_router(control: Control) -> Router {
    let looks = routes().into_iter().filter(|route| is_look(route.operation()));
    route::router(looks.collect(), control).merge(document())
}

fn is_look(operation: &Operation) -> bool {
    operation.method() == Method::GET && LOOKS.contains(&operation.path())
}

/// Every route there is, but for the document.
fn routes() -> Vec<Route<Control>> {
    let parts = [state_routes(), migration_routes(), memory_routes(), console_routes()];
    parts.into_iter().flatten().collect()
}

/// How the guest stands, runs and ends.
fn state_routes() -> Vec<Route<Control>> {
    vec![
        ask(Method::GET, "/v1/guest", DONE, "How the guest stands", |guest| Ok(guest.info())),
        ask(
            Method::PUT,
            "/v1/guest/pause",
            DONE,
            "Stop its vCPUs (409 while it is migrated)",
            |guest| guest.pause(),
        ),
        Route::new::<StateAnswer>(
            Method::PUT,
            "/v1/guest/resume",
            DONE,
            "Let its vCPUs run (409 while it is migrated)",
            put(resume),
        )
        .taking::<ResumeRequest>(Required::No),
        ask(
            Method::PUT,
            "/v1/guest/shutdown",
            BEGUN,
            "Press its power button; what it does is up to it (409 while it is migrated, or \
             when it does not listen)",
            |guest| guest.shut_down(),
        ),
        tell(
            Method::PUT,
            "/v1/guest/reboot",
            BEGUN,
            "Press its power button, and boot it again should it switch itself off in time \
             (409 as for shutdown)",
            |guest, request: RebootRequest| guest.reboot(&request),
        ),
        ask(
            Method::PUT,
            "/v1/guest/reset",
            DONE,
            "Reset it: its memory is lost and it boots again, also while it is migrated",
            |guest| guest.reset(),
        ),
        ask(
            Method::PUT,
            "/v1/guest/stop",
            BEGUN,
            "End the guest and its process (409 while it is migrated: cancel first)",
            |guest| guest.stop(),
        ),
        ask(
            Method::GET,
            "/v1/guest/workload",
            DONE,
            "What the built-in workload says about itself (404 for another guest)",
            |guest| guest.workload(),
        ),
        tell(
            Method::PUT,
            "/v1/guest/workload",
            DONE,
            "Steer the built-in workload",
            |guest, request: WorkloadControl| guest.control_workload(&request),
        ),
    ]
}

/// How it is saved and moved.
fn migration_routes() -> Vec<Route<Control>> {
    vec![
        Route::new::<Saved>(
            Method::POST,
            "/v1/guest/save",
            DONE,
            "Write memory and state to a file; the guest stands still meanwhile. Send the \
             file along, open for writing (SCM_RIGHTS): a process that is confined opens \
             none, and `file` is its name in messages",
            post(save),
        )
        .taking::<SaveRequest>(Required::Yes),
        tell(
            Method::PUT,
            "/v1/guest/save/hold",
            DONE,
            "Let the guest that stands still since this save do so for another minute (409 if \
             it does not any more)",
            |guest, save: SaveId| guest.hold_save(save),
        ),
        tell(
            Method::PUT,
            "/v1/guest/save/release",
            DONE,
            "Let the guest that stands still since this save go on as it was before (409 if \
             it does not stand still any more)",
            |guest, save: SaveId| guest.release_save(save),
        ),
        tell(
            Method::PUT,
            "/v1/guest/save/finish",
            BEGUN,
            "End the guest that stands still since this save (409 if it does not any more): \
             its file has its name",
            |guest, save: SaveId| guest.finish_save(save),
        ),
        ask(
            Method::GET,
            "/v1/guest/migration",
            DONE,
            "How the running migration stands, or how the last one ended",
            |guest| guest.migration(),
        ),
        tell(
            Method::POST,
            "/v1/guest/migration",
            BEGUN,
            "Start a migration (409 when one is running)",
            |guest, request: MigrationRequest| guest.migrate(&request),
        )
        .with_bodies_of(IDENTITY_BYTES_MAX),
        ask(
            Method::DELETE,
            "/v1/guest/migration",
            BEGUN,
            "Call the running migration off (409 too-late once the guest is handed over)",
            |guest| guest.cancel(),
        ),
        tell(
            Method::PUT,
            "/v1/guest/migration/resolve",
            BEGUN,
            "Decide by hand about a guest in doubt; `run` requires that the caller has asked \
             the other host, which the guest's process cannot",
            |guest, request: ResolveRequest| {
                expect_asked(&request)?;
                guest.resolve(&request)
            },
        ),
    ]
}

/// Its memory.
fn memory_routes() -> Vec<Route<Control>> {
    vec![
        ask(
            Method::GET,
            "/v1/guest/memory",
            DONE,
            "What there is to know for whoever shares out the host's memory; nobody waits for \
             the guest: statistics are its last ones",
            |guest| guest.memory(),
        ),
        tell(
            Method::PUT,
            "/v1/guest/memory",
            DONE,
            "Have parts of the guest's memory merged, taken apart, made of huge pages, or \
             shared with its template again (409 while it is migrated or saved)",
            |guest, request: TreatmentRequest| guest.treat_memory(&request),
        ),
        tell(
            Method::POST,
            SURVEY,
            BEGUN,
            "Begin to look at the guest's pages: what merging them would bring, and which are \
             written (409 while it is migrated or saved, or somebody looks already)",
            |guest, request: SurveyRequest| guest.begin_survey(&request),
        ),
        ask(
            Method::GET,
            SURVEY,
            DONE,
            "How the last look stands; once it is done, with its sample of contents",
            |guest| guest.survey(),
        ),
        tell(
            Method::PUT,
            SURVEY,
            DONE,
            "What the last look found of each chunk of 2 MiB, given the merged samples of all \
             guests of the merge domain (409 before it is done)",
            |guest, domain: SurveyDomain<'static>| guest.surveyed(&domain),
        )
        .with_bodies_of(DOMAIN_BYTES_MAX),
        ask(
            Method::GET,
            "/v1/guest/balloon",
            DONE,
            "What the guest keeps of its memory, with new statistics if it gives some within \
             500 ms (404 without a balloon)",
            |guest| guest.balloon(),
        ),
        tell(
            Method::PUT,
            "/v1/guest/balloon",
            DONE,
            "Set how much memory the guest shall keep (404 without a balloon, 409 once it is \
             handed over)",
            |guest, request: BalloonRequest| guest.set_balloon(&request),
        ),
    ]
}

/// Its serial console.
fn console_routes() -> Vec<Route<Control>> {
    vec![
        tell(
            Method::PUT,
            "/v1/guest/console",
            DONE,
            "Type on the serial console; what there is no room for is not taken",
            |guest, input: ConsoleInput| guest.type_on_console(&input),
        ),
        Route::new::<()>(
            Method::GET,
            "/v1/guest/console",
            DONE,
            "What the guest wrote on its serial console, at most the last 64 KiB; read on \
             from `console-next`",
            get(read_console),
        )
        .with(&CONSOLE_QUERY)
        .answering_bytes(&CONSOLE_HEADERS),
    ]
}

/// The query of [`read_console`].
const CONSOLE_QUERY: [Parameter; 2] = [
    Parameter {
        name: "from",
        within: Within::Query { default: 0 },
        description: "offset to read from, bytes since the process began; one that has not been reached is that of another \
            process, and all is sent",
    },
    Parameter {
        name: "wait_ms",
        within: Within::Query { default: 0 },
        description: "how long to wait when there is nothing to read yet; 30000 at most",
    },
];

/// The headers of what [`read_console`] answers.
const CONSOLE_HEADERS: [Header; 2] = [
    Header { name: CONSOLE_FROM, description: "offset of the first byte" },
    Header { name: CONSOLE_NEXT, description: "offset to read on from" },
];

const DONE: StatusCode = StatusCode::OK;
const BEGUN: StatusCode = StatusCode::ACCEPTED;

/// A route whose request has no body.
fn ask<T: Serialize + JsonSchema + Send + 'static>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    call: fn(&dyn GuestControl) -> Result<T, ApiError>,
) -> Route<Control> {
    let handler =
        async move |State(control): State<Control>| answer(status, move || call(&*control)).await;
    let handler = route::on(&method, handler);
    Route::new::<T>(method, path, status, summary, handler)
}

/// A route whose request has a JSON body.
fn tell<B, T>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    call: fn(&dyn GuestControl, B) -> Result<T, ApiError>,
) -> Route<Control>
where
    B: DeserializeOwned + JsonSchema + Send + 'static,
    T: Serialize + JsonSchema + Send + 'static,
{
    let handler = async move |State(control): State<Control>,
                              body: Result<Json<B>, JsonRejection>| match body {
        Ok(Json(body)) => answer(status, move || call(&*control, body)).await,
        Err(rejection) => ApiError::from(rejection).into_response(),
    };
    let handler = route::on(&method, handler);
    Route::new::<T>(method, path, status, summary, handler).taking::<B>(Required::Yes)
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

#[cfg(test)]
mod tests;
