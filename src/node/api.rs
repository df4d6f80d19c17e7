//! The routes of the node on its sockets: what there is on this host, and what is done about its
//! memory. Guests have their own sockets.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use migrate::record::{DestinationState, Record, Side, SourceState};

use super::inventory;
use super::service::Node;
use super::types::{CostInfo, GuestEntry, MigrationEntry, NodeInfo};
use crate::api::ApiError;
use crate::api::server::Audience;
use crate::density::{self, Density};

/// The document at `/v1/openapi.json`; the test below holds it against [`router`].
const OPENAPI: &str = include_str!("openapi.json");

/// Every path of its own; all are read with GET. Those of memory optimization come on top.
const PATHS: [&str; 4] = ["/v1/node", "/v1/guests", "/v1/migrations", "/v1/openapi.json"];

/// The router of a node for this audience.
pub(crate) fn router(node: Arc<Node>, density: Arc<Density>, audience: Audience) -> Router {
    let density = match audience {
        Audience::Owner => density::api::router(density),
        Audience::Anybody => density::api::readonly_router(density),
    };
    let [info, guests, migrations, document] = PATHS;
    Router::new()
        .route(info, get(show_node))
        .route(guests, get(list_guests))
        .route(migrations, get(list_migrations))
        .route(document, get(openapi))
        .with_state(node)
        .merge(density)
}

async fn show_node(State(node): State<Arc<Node>>) -> Result<Json<NodeInfo>, ApiError> {
    node.info().map(Json).map_err(ApiError::failed)
}

async fn list_guests(State(node): State<Arc<Node>>) -> Result<Json<Vec<GuestEntry>>, ApiError> {
    let sightings = inventory::look(node.state()).await.map_err(ApiError::failed)?;
    let entries = sightings.into_iter().map(|sighting| match sighting.answer {
        Ok(view) => GuestEntry {
            name: sighting.name,
            info: Some(view.info),
            cost: view.cost.map(CostInfo::from),
            fault: None,
        },
        Err(fault) => {
            GuestEntry { name: sighting.name, info: None, cost: None, fault: Some(fault) }
        }
    });
    Ok(Json(entries.collect()))
}

async fn list_migrations(
    State(node): State<Arc<Node>>,
) -> Result<Json<Vec<MigrationEntry>>, ApiError> {
    let (records, _damaged) = node.records().list().map_err(ApiError::failed)?;
    Ok(Json(records.into_iter().map(entry).collect()))
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// A record without its secret.
fn entry(record: Record) -> MigrationEntry {
    let (state, peer) = match &record.side {
        Side::Source { state, destination, .. } => (source_word(*state), destination.clone()),
        Side::Destination { state, source_address, .. } => {
            (destination_word(*state), source_address.to_string())
        }
    };
    MigrationEntry {
        id: record.migration.0,
        role: record.role().name().to_owned(),
        state: state.to_owned(),
        is_settled: record.is_settled(),
        peer,
        started_unix_ms: record.started_unix_ms,
        updated_unix_ms: record.updated_unix_ms,
        guest: record.guest,
        report: record.report,
    }
}

fn source_word(state: SourceState) -> &'static str {
    match state {
        SourceState::Undecided => "undecided",
        SourceState::Committed => "committed",
        SourceState::Done => "done",
        SourceState::Aborted => "aborted",
    }
}

fn destination_word(state: DestinationState) -> &'static str {
    match state {
        DestinationState::Loading => "loading",
        DestinationState::Ready => "ready",
        DestinationState::Taking => "taking",
        DestinationState::Running => "running",
        DestinationState::Failed => "failed",
        DestinationState::Discarded => "discarded",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::liveness::tests::source_record;
    use super::*;

    #[test]
    fn the_served_document_holds_every_path_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let documented: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let served: BTreeSet<&str> = PATHS.into_iter().chain(density::api::PATHS).collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn a_migration_is_shown_without_its_secret() {
        let shown =
            serde_json::to_string(&entry(source_record(SourceState::Committed, 7))).unwrap();
        assert!(
            shown.contains("\"state\":\"committed\"") && shown.contains("host-b:4950"),
            "{shown}"
        );
        assert!(!shown.contains("token") && !shown.contains("0707"), "{shown}");
    }
}
