//! The routes of a guest process.

use std::sync::Arc;
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

use crate::api::descriptor::Handed;
use crate::api::devices::{AttachRequest, AttachedDevice, DetachRequest};
use crate::api::error::{ApiError, Reason};
use crate::api::events::{EVENTS, EVENTS_FROM, Event, EventsRead};
use crate::api::memory::TreatmentRequest;
use crate::api::migration::{
    LimitsRequest, MigrationRequest, RecoverRequest, Resolution, ResolveRequest,
};
use crate::api::route::{self, About, Header, Operation, Parameter, Required, Route, Within};
use crate::api::saving::{SaveId, SaveRequest, Saved};
use crate::api::survey::{DOMAIN_BYTES_MAX, SurveyDomain};
use crate::api::types::{
    BalloonRequest, CONSOLE_FROM, CONSOLE_NEXT, ConsoleInput, ConsoleRead, DiskSizeRequest,
    RebootRequest, ResumeRequest, StateAnswer, WorkloadControl,
};

use super::control::ProcessControl;

/// What the document says about the API.
const ABOUT: About = About {
    title: "lighter: a guest process",
    description: "HTTP/1.1 on the Unix socket guests/NAME/api.sock in the host's state folder \
        (mode 0600). Times are milliseconds unless named otherwise, sizes bytes. A refusal is \
        {error, reason}; 409 means that the guest's state or a running migration does not allow \
        it.",
};

/// The route on which surveys of a guest's pages are started and queried.
const SURVEY: &str = "/v1/guest/survey";

/// How long a reader of the console may wait for output.
const CONSOLE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest request for a migration, bytes: each certificate file may have a megabyte.
const IDENTITY_BYTES_MAX: usize = 4 << 20;

/// The router of a guest process.
pub(crate) fn router(control: ProcessControl) -> Router {
    route::router(routes(), control).merge(document())
}

/// Serves the document that describes the API.
fn document() -> Router {
    route::document_router(ABOUT, routes().iter().map(Route::operation).cloned().collect())
}

/// Routes of the read-only socket. The console is not among them because it may show a secret, nor
/// the balloon because it makes the guest work.
const READONLY_ROUTES: [&str; 4] =
    ["/v1/guest", EVENTS, "/v1/guest/migration", "/v1/guest/workload"];

/// The router of a guest process for read-only clients.
pub(crate) fn readonly_router(control: ProcessControl) -> Router {
    let readonly_routes = routes().into_iter().filter(|route| is_readonly(route.operation()));
    route::router(readonly_routes.collect(), control).merge(document())
}

fn is_readonly(operation: &Operation) -> bool {
    operation.method() == Method::GET && READONLY_ROUTES.contains(&operation.path())
}

/// All routes, except that of the document.
fn routes() -> Vec<Route<ProcessControl>> {
    let parts = [
        state_routes(),
        save_routes(),
        migration_routes(),
        memory_routes(),
        device_routes(),
        console_and_event_routes(),
    ];
    parts.into_iter().flatten().collect()
}

/// Routes about the guest's state, and to run and end it.
fn state_routes() -> Vec<Route<ProcessControl>> {
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
        ask_with_body(
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
        ask(
            Method::GET,
            "/v1/guest/boot-files",
            DONE,
            "The files from which it boots when it resets",
            |guest| guest.boot_files(),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/workload",
            DONE,
            "Steer the built-in workload",
            |guest, request: WorkloadControl| guest.control_workload(&request),
        ),
    ]
}

/// Routes to save the guest.
fn save_routes() -> Vec<Route<ProcessControl>> {
    vec![
        Route::new::<Saved>(
            Method::POST,
            "/v1/guest/save",
            DONE,
            "Write memory and state to a file; the guest is paused meanwhile. Send the \
             file along, open for writing (SCM_RIGHTS): a process that is confined opens \
             none, and `file` is its name in messages",
            post(save),
        )
        .taking::<SaveRequest>(Required::Yes),
        ask_with_body(
            Method::PUT,
            "/v1/guest/save/hold",
            DONE,
            "Keep the guest that is paused since this save paused for another minute (409 if \
             it is not any more)",
            |guest, save: SaveId| guest.hold_save(save),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/save/release",
            DONE,
            "Let the guest that is paused since this save continue as it was before (409 if \
             it is not any more)",
            |guest, save: SaveId| guest.release_save(save),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/save/finish",
            BEGUN,
            "End the guest that is paused since this save (409 if it is not any more): \
             error messages name its file",
            |guest, save: SaveId| guest.finish_save(save),
        ),
    ]
}

/// Routes to migrate the guest.
fn migration_routes() -> Vec<Route<ProcessControl>> {
    vec![
        ask(
            Method::GET,
            "/v1/guest/migration",
            DONE,
            "How the running migration stands, or how the last one ended",
            |guest| guest.migration(),
        ),
        ask_with_body(
            Method::POST,
            "/v1/guest/migration",
            BEGUN,
            "Start a migration (409 when one is running)",
            |guest, request: MigrationRequest| guest.migrate(&request),
        )
        .with_bodies_of(IDENTITY_BYTES_MAX),
        ask_with_body(
            Method::POST,
            "/v1/guest/migration/estimate",
            DONE,
            "Measure for some seconds how such a migration would go; the guest is paused once for \
             some milliseconds, and stays (409 when a migration is running)",
            |guest, request: MigrationRequest| guest.estimate(&request),
        )
        .with_bodies_of(IDENTITY_BYTES_MAX),
        ask(
            Method::DELETE,
            "/v1/guest/migration",
            BEGUN,
            "Cancel the running migration (409 too-late once the guest is handed over)",
            |guest| guest.cancel(),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/migration/limits",
            DONE,
            "Change the limits of the running migration (409 too-late once the guest is handed \
             over)",
            |guest, request: LimitsRequest| guest.change_limits(&request),
        ),
        ask(
            Method::PUT,
            "/v1/guest/migration/postcopy",
            BEGUN,
            "Hand the guest over before its memory, which follows it (409 once it is handed over, \
             or where one of the hosts cannot)",
            |guest| guest.postcopy(),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/migration/recover",
            DONE,
            "Look for the destination at another address (409 while it is in reach, unless the \
             guest has been handed over)",
            |guest, request: RecoverRequest| guest.recover(&request),
        ),
        ask_with_body(
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

/// Routes about the guest's memory.
fn memory_routes() -> Vec<Route<ProcessControl>> {
    vec![
        ask(
            Method::GET,
            "/v1/guest/memory",
            DONE,
            "The guest's memory, for programs that distribute the host's; the guest is not waited \
             for: statistics are its last ones",
            |guest| guest.memory(),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/memory",
            DONE,
            "Have parts of the guest's memory merged, unmerged, made of huge pages, or \
             shared with its template again (409 while it is migrated or saved)",
            |guest, request: TreatmentRequest| guest.treat_memory(&request),
        ),
        ask_with_body(
            Method::POST,
            SURVEY,
            BEGUN,
            "Begin a survey of the guest's pages: what merging them would save, and which are \
             written (409 while it is migrated or saved, or a survey is under way)",
            |guest, request: SurveyRequest| guest.begin_survey(&request),
        ),
        ask(
            Method::GET,
            SURVEY,
            DONE,
            "The state of the last survey; once it is done, with its sample of contents",
            |guest| guest.survey(),
        ),
        ask_with_body(
            Method::PUT,
            SURVEY,
            DONE,
            "What the last survey found of each chunk of 2 MiB, given the merged samples of all \
             guests of the merge domain (409 before it is done)",
            |guest, domain: SurveyDomain<'static>| guest.surveyed(&domain),
        )
        .with_bodies_of(DOMAIN_BYTES_MAX),
    ]
}

/// Routes of devices: the balloon, disks, and those that come and go.
fn device_routes() -> Vec<Route<ProcessControl>> {
    vec![
        ask(
            Method::GET,
            "/v1/guest/balloon",
            DONE,
            "What the guest keeps of its memory, with new statistics if it gives some within \
             500 ms (404 without a balloon)",
            |guest| guest.balloon(),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/balloon",
            DONE,
            "Set how much memory the guest shall keep (404 without a balloon, 409 once it is \
             handed over)",
            |guest, request: BalloonRequest| guest.set_balloon(&request),
        ),
        ask_with_body(
            Method::PUT,
            "/v1/guest/disk",
            DONE,
            "Grow a disk, or tell the guest that its block device has grown (404 without that \
             disk, 409 while it is migrated or saved)",
            |guest, request: DiskSizeRequest| guest.grow_disk(&request),
        ),
        Route::new::<AttachedDevice>(
            Method::POST,
            "/v1/guest/devices",
            DONE,
            "Attach a disk, a network device or a device of the host, and wait up to 5 s until the guest has noticed \
             it. Send its open files along (SCM_RIGHTS), each with a byte of the request, since a \
             process that is confined opens none (409 while the guest is migrated or saved, or \
             without a PCI bus)",
            post(attach),
        )
        .taking::<AttachRequest>(Required::Yes),
        ask_with_body(
            Method::PUT,
            "/v1/guest/devices/detach",
            DONE,
            "Ask the guest to let go of a device, and wait until it has, and what \
             it has written is durable (404 without that device; 409 while it is migrated, saved or paused, or when it does not \
             let go in time)",
            |guest, request: DetachRequest| guest.detach(request),
        ),
    ]
}

/// Routes of the serial console and the events.
fn console_and_event_routes() -> Vec<Route<ProcessControl>> {
    vec![
        Route::new::<()>(
            Method::GET,
            EVENTS,
            DONE,
            "What happens to the guest, a line for each event, until it is not here any more",
            get(follow_events),
        )
        .with(&EVENTS_QUERY)
        .answering_lines::<Event>(&EVENTS_HEADERS),
        ask_with_body(
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

/// The query of [`follow_events`].
const EVENTS_QUERY: [Parameter; 2] = [
    Parameter {
        name: "from",
        within: Within::Query { default: 0 },
        description: "number of the first event to send; the default is the next one to come",
    },
    Parameter {
        name: "pid",
        within: Within::Query { default: 0 },
        description: "the process whose events `from` counts: another one tells all that it has; \
            0 is any",
    },
];

/// The headers of the response of [`follow_events`].
const EVENTS_HEADERS: [Header; 1] =
    [Header { name: EVENTS_FROM, description: "number of the first event that is asked for" }];

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

/// The headers of the response of [`read_console`].
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
    call: fn(&ProcessControl) -> Result<T, ApiError>,
) -> Route<ProcessControl> {
    let handler = async move |State(control): State<ProcessControl>| {
        answer(status, move || call(&control)).await
    };
    let handler = route::on(&method, handler);
    Route::new::<T>(method, path, status, summary, handler)
}

/// A route whose request has a JSON body.
fn ask_with_body<B, T>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    call: fn(&ProcessControl, B) -> Result<T, ApiError>,
) -> Route<ProcessControl>
where
    B: DeserializeOwned + JsonSchema + Send + 'static,
    T: Serialize + JsonSchema + Send + 'static,
{
    let handler = async move |State(control): State<ProcessControl>,
                              body: Result<Json<B>, JsonRejection>| match body {
        Ok(Json(body)) => answer(status, move || call(&control, body)).await,
        Err(rejection) => ApiError::from(rejection).into_response(),
    };
    let handler = route::on(&method, handler);
    Route::new::<T>(method, path, status, summary, handler).taking::<B>(Required::Yes)
}

/// Runs a call that may block on a blocking thread, and turns its result into a response.
async fn answer<T, F>(status: StatusCode, call: F) -> Response
where
    T: Serialize + Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => (status, Json(value)).into_response(),
        Ok(Err(refusal)) => refusal.into_response(),
        Err(lost) => {
            let error = anyhow::Error::from(lost);
            ApiError::failed(error.context("cannot answer, by a bug in lighter; report it"))
                .into_response()
        }
    }
}

/// Attaches a device, whose open files come with the request.
async fn attach(
    State(control): State<ProcessControl>,
    Extension(handed): Extension<Handed>,
    body: Result<Json<AttachRequest>, JsonRejection>,
) -> Response {
    // Taken in any case: they do not belong to the next request on the connection.
    let files = handed.take();
    match body {
        Ok(Json(request)) => answer(StatusCode::OK, move || control.attach(request, files)).await,
        Err(rejection) => ApiError::from(rejection).into_response(),
    }
}

/// Saves the guest to an open file that comes with the request.
async fn save(
    State(control): State<ProcessControl>,
    Extension(handed): Extension<Handed>,
    body: Result<Json<SaveRequest>, JsonRejection>,
) -> Response {
    let file = handed.take().pop();
    match body {
        Ok(Json(request)) => {
            let here = Arc::new(());
            let asker = Arc::downgrade(&here);
            answer(StatusCode::OK, move || control.save(&request, file, &asker)).await
        }
        Err(rejection) => ApiError::from(rejection).into_response(),
    }
}

/// Returns the raw output of the serial console. A client that waits for output occupies no thread
/// meanwhile.
async fn read_console(
    State(control): State<ProcessControl>,
    query: Result<Query<ConsoleRead>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Query(query) = query?;
    let scrollback = control.scrollback()?;
    let patience = Duration::from_millis(query.wait_ms).min(CONSOLE_WAIT_MAX);
    // A timeout leads to an empty answer. Bytes are sent as `application/octet-stream`.
    let _waited = tokio::time::timeout(patience, scrollback.wait_beyond(query.from)).await;
    let excerpt = scrollback.read(query.from);
    let headers =
        [(CONSOLE_FROM, excerpt.from.to_string()), (CONSOLE_NEXT, excerpt.next().to_string())];
    Ok((headers, excerpt.bytes))
}

/// Streams the events of the guest as they happen.
async fn follow_events(
    State(control): State<ProcessControl>,
    query: Result<Query<EventsRead>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Query(query) = query?;
    let events = Arc::clone(control.process().events());
    let is_meant = [0, control.process().identity().pid].contains(&query.pid);
    let first = if is_meant { events.first(query.from) } else { 0 };
    let event_lines = futures_util::stream::unfold(first, move |number| {
        let events = Arc::clone(&events);
        async move {
            let event = events.wait_for(number).await?;
            let next = event.number + 1;
            Some((event, next))
        }
    });
    Ok(([(EVENTS_FROM, first.to_string())], route::lines(event_lines)))
}

/// Resumes the guest; the body may be absent.
async fn resume(State(control): State<ProcessControl>, body: Bytes) -> Response {
    let request = if body.is_empty() { Ok(Json::default()) } else { Json::from_bytes(&body) };
    match request {
        Ok(Json(request)) => answer(StatusCode::OK, move || control.resume(&request)).await,
        Err(rejection) => ApiError::from(rejection).into_response(),
    }
}

/// Refuses to run a copy unless the client says that the other host does not run the guest: the
/// guest's process cannot ask it.
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
