//! The routes of a guest's process, with a guest that has not run yet.

use std::collections::BTreeSet;

use migrate::OnStall;
use tokio::runtime::Handle;
use uuid::Uuid;
use vmm_core::{VmOptions, VmShape};

use super::super::console::Console;
use super::super::machine::Machine;
use super::super::merging::Merging;
use super::super::process::{GuestProcess, Saving};
use super::*;
use crate::api::client::{ApiClient, AskError};
use crate::api::migration::{CopyDisks, MigrationStarted};
use crate::api::server::{Audience, Server};
use crate::api::survey::SurveyedMemory;
use crate::api::types::{GuestInfo, GuestState};
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// A guest that has not run yet, behind its API.
struct Scene {
    folder: tempfile::TempDir,
    control: ProcessControl,
    client: ApiClient,
    server: Server,
}

fn scene() -> Scene {
    let (folder, state) = StateDir::temporary();
    let name: GuestName = "web".parse().unwrap();
    let console = Console::log(folder.path().join("console.log"));
    let (uuid, shape) = (Uuid::from_u128(5), VmShape::for_host(64 << 20, 1).unwrap());
    let options = VmOptions::default();
    let machine = Machine::create(name.clone(), uuid, &shape, &options, &console).unwrap();
    let process = GuestProcess::new(&state, name, uuid, Handle::current());
    process.set_machine(Arc::new(machine), Merging::Off).unwrap();
    let control = ProcessControl(process);
    let path = folder.path().join("api.sock");
    let server = Server::start(&path, router(control.clone()), Audience::Owner).unwrap();
    Scene { folder, control, client: ApiClient::new(&path), server }
}

const PAUSED: StateAnswer = StateAnswer { state: GuestState::Paused };

fn refused<T: std::fmt::Debug>(answer: Result<T, AskError>) -> ApiError {
    match answer.unwrap_err() {
        AskError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_served_document_holds_every_route_and_the_types_that_it_speaks() {
    let Scene { control, client, folder: _folder, server: _server } = scene();
    let document: serde_json::Value = client.get(route::DOCUMENT).await.unwrap();
    let documented = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    let served = routes();
    let served = served.iter().map(Route::operation);
    let served = served.map(|it| format!("{} {}", it.method(), it.path()));
    let itself = format!("GET {}", route::DOCUMENT);
    let expected: BTreeSet<_> = served.chain([itself]).collect();
    assert_eq!(documented.collect::<BTreeSet<_>>(), expected);

    let schemas = &document["components"]["schemas"];
    let fields = |object: &serde_json::Value| -> BTreeSet<String> {
        object.as_object().unwrap().keys().cloned().collect()
    };
    let identity = migrate::quic::Identity {
        ca_pem: String::new(),
        cert_pem: String::new(),
        key_pem: String::new(),
        crl_pem: Some(String::new()),
    };
    let request = MigrationRequest {
        copy_disks: Some(CopyDisks { only: ["/d".into()].into(), ..CopyDisks::default() }),
        addresses: vec![([192, 0, 2, 7], 4950).into()],
        via: vec![[192, 0, 2, 7].into()],
        node_port: "4950".parse().ok(),
        on_stall: Some(OnStall::Force),
        raised_downtime_ms_max: Some(2000),
        ..MigrationRequest::to("host-b".to_owned(), identity)
    };
    let request = serde_json::to_value(request).unwrap();
    let info = serde_json::to_value(control.info()).unwrap();
    for (schema, sent) in [
        ("MigrationRequest", &request),
        ("Identity", &request["identity"]),
        ("CopyDisks", &request["copy_disks"]),
        ("GuestInfo", &info),
        ("BackingInfo", &info["backing"]),
    ] {
        assert_eq!(fields(&schemas[schema]["properties"]), fields(sent), "{schema}");
    }
    let described = schemas["GuestInfo"]["properties"]["vcpus"]["description"].as_str();
    assert_eq!(described, Some("Virtual CPUs."), "as the type has it");
}

#[tokio::test]
async fn answers_and_refusals_arrive_with_their_reason() {
    let Scene { control, client, folder: _folder, server: _server } = scene();
    assert_eq!(client.get::<GuestInfo>("/v1/guest").await.unwrap(), control.info());
    assert_eq!(client.put::<StateAnswer>("/v1/guest/pause").await.unwrap(), PAUSED);
    let process = control.process();
    let _saving = Saving::begin(process, &mut process.occupation());
    let identity = serde_json::json!({ "ca_pem": "", "cert_pem": "", "key_pem": "" });
    let request = serde_json::json!({ "destination": "host-b", "identity": identity });
    let refusal = refused(client.post::<MigrationStarted>("/v1/guest/migration", &request).await);
    assert_eq!(refusal.reason, Reason::WrongState);
    assert_eq!(refusal.reason.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn read_only_clients_change_nothing_and_see_no_console() {
    let Scene { folder, control, .. } = scene();
    let path = folder.path().join("api-ro.sock");
    let router = readonly_router(control.clone());
    let _server = Server::start(&path, router, Audience::AnyUser).unwrap();
    let client = ApiClient::new(&path);
    assert_eq!(client.get::<GuestInfo>("/v1/guest").await.unwrap(), control.info());
    let routes = routes();
    let operations = routes.iter().map(Route::operation);
    for operation in operations.filter(|operation| !READONLY_ROUTES.contains(&operation.path())) {
        let path = operation.path();
        let asked = match operation.method().as_str() {
            "GET" => client.get::<()>(path).await,
            "PUT" => client.put::<()>(path).await,
            "POST" => client.post::<()>(path, &()).await,
            _ => client.delete::<()>(path).await,
        };
        assert_eq!(refused(asked).reason, Reason::NotFound, "{path}");
    }
    let pause = refused(client.post::<()>("/v1/guest/migration", &()).await);
    assert_eq!(pause.reason, Reason::MethodNotAllowed);
}

#[tokio::test]
async fn the_console_is_read_verbatim_from_the_last_position() {
    let Scene { control, client, folder: _folder, server: _server } = scene();
    control.scrollback().unwrap().push(b"said \xff");
    let read = |from| ConsoleRead { from, wait_ms: 10 };
    let all = client.read_console(&read(0)).await.unwrap();
    assert_eq!((all.from, all.bytes.as_slice()), (0, &b"said \xff"[..]));
    assert_eq!(client.read_console(&read(5)).await.unwrap().bytes, b"\xff");
    // There is no more output, and the answer still comes in time.
    assert_eq!(client.read_console(&read(6)).await.unwrap().next(), 6);
    let refusal = refused(client.get::<()>("/v1/guest/console?from=x").await);
    assert_eq!(refusal.reason, Reason::BadRequest);
}

#[tokio::test]
async fn strange_requests_get_ordinary_refusals() {
    let Scene { client, folder: _folder, server: _server, .. } = scene();
    let unknown = serde_json::json!({ "destination": "b", "speed": "max" });
    assert_eq!(
        refused(client.post::<MigrationStarted>("/v1/guest/migration", &unknown).await).reason,
        Reason::BadRequest
    );
    let huge = serde_json::json!({ "decision": "b".repeat(1 << 20) });
    let resolved = client.put_json::<()>("/v1/guest/migration/resolve", &huge).await;
    assert_eq!(refused(resolved).reason, Reason::TooLarge);
    for (decision, said, reason) in [
        ("run", None, Reason::BadRequest),
        ("run", Some(false), Reason::BadRequest),
        ("run", Some(true), Reason::NotMigrating),
        ("discard", None, Reason::NotMigrating),
    ] {
        let mut request = serde_json::json!({ "decision": decision });
        if let Some(said) = said {
            request["other_host_has_none"] = said.into();
        }
        let resolved = client.put_json::<()>("/v1/guest/migration/resolve", &request).await;
        assert_eq!(refused(resolved).reason, reason, "{request}");
    }
    assert_eq!(refused(client.get::<()>("/v1/nothing").await).reason, Reason::NotFound);
    assert_eq!(refused(client.delete::<()>("/v1/guest").await).reason, Reason::MethodNotAllowed);
}

#[tokio::test]
async fn a_table_of_contents_may_be_larger_than_other_requests() {
    let Scene { client, folder: _folder, server: _server, .. } = scene();
    let entries: Vec<(u64, u32)> =
        (0..1 << 16).map(|index| (u64::MAX - (1 << 17) + index, 1)).collect();
    let table = serde_json::json!({
        "tag": u64::MAX, "bits": 0, "pages": 1 << 16, "zero_pages": 0, "entries": entries,
    });
    let body = serde_json::json!({ "domain": table });
    let refusal = refused(client.put_json::<SurveyedMemory>(SURVEY, &body).await);
    assert_eq!(refusal.reason, Reason::WrongState, "{refusal}");
}

#[tokio::test]
async fn a_panicking_call_is_a_refusal_too() {
    let Scene { folder, control, .. } = scene();
    let path = folder.path().join("broken.sock");
    let broken: fn(&ProcessControl) -> _ = |_| -> Result<StateAnswer, _> { panic!("on purpose") };
    let routes = vec![ask(Method::PUT, "/v1/broken", DONE, "Breaks down", broken)];
    let _server = Server::start(&path, route::router(routes, control), Audience::Owner).unwrap();
    let answer = ApiClient::new(&path).put::<StateAnswer>("/v1/broken").await;
    assert_eq!(refused(answer).reason, Reason::Failed);
}

#[tokio::test]
async fn a_socket_without_a_process_is_unreachable() {
    let Scene { folder, client, server, .. } = scene();
    let absent = ApiClient::new(&folder.path().join("nobody.sock"));
    assert!(absent.get::<GuestInfo>("/v1/guest").await.unwrap_err().is_gone());
    server.close().await;
    assert!(client.get::<GuestInfo>("/v1/guest").await.unwrap_err().is_gone());
}
