//! The routes of the node's sockets: the guests on this host, their migrations, and memory
//! optimization. Guests have their own sockets.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use migrate::record::{Record, Side};

use super::inventory;
use super::service::Node;
use super::types::{CostInfo, GuestEntry, MigrationEntry, NodeInfo, SideState};
use crate::api::ApiError;
use crate::api::events::Event;
use crate::api::route::{self, About, Operation, Route, read};
use crate::api::server::Audience;
use crate::density::{self, Density};

/// Title and description for the API document.
const ABOUT: About = About {
    title: "lighter: the node of a host",
    description: "HTTP/1.1 on the Unix socket node.sock in the host's state folder (mode 0600). \
        Times are milliseconds unless named otherwise, sizes bytes. A refusal is {error, reason}.",
};

/// Returns the node's router for this audience.
pub(crate) fn router(node: Arc<Node>, density: Arc<Density>, audience: Audience) -> Router {
    let of_density = match audience {
        Audience::Owner => density::api::routes(),
        Audience::AnyUser => density::api::readonly_routes(),
    };
    route::router(routes(), node)
        .merge(route::router(of_density, density))
        .merge(route::document_router(ABOUT, operations()))
}

/// Returns all operations, whatever audience may use them.
fn operations() -> Vec<Operation> {
    let own = routes().iter().map(Route::operation).cloned().collect::<Vec<_>>();
    let of_density = density::api::routes();
    own.into_iter().chain(of_density.iter().map(Route::operation).cloned()).collect()
}

/// The node's own routes, without those of memory optimization.
fn routes() -> Vec<Route<Arc<Node>>> {
    vec![
        read("/v1/node", "The node and its host", show_node),
        read(
            "/v1/guests",
            "The guests on this host, each asked for at most two seconds",
            list_guests,
        ),
        read(
            "/v1/migrations",
            "Records of migrations from and to this host, newest first",
            list_migrations,
        ),
        Route::new::<()>(
            Method::GET,
            "/v1/events",
            StatusCode::OK,
            "What happens to the guests on this host from now on, a line for each event; over \
             node-ro.sock for 30 seconds at a time",
            get(follow_events),
        )
        .answering_lines::<Event>(&[]),
    ]
}

async fn show_node(node: Arc<Node>) -> Result<NodeInfo, ApiError> {
    node.info().map_err(ApiError::failed)
}

async fn list_guests(node: Arc<Node>) -> Result<Vec<GuestEntry>, ApiError> {
    let sightings = inventory::query_guests(node.state()).await.map_err(ApiError::failed)?;
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
    Ok(entries.collect())
}

async fn list_migrations(node: Arc<Node>) -> Result<Vec<MigrationEntry>, ApiError> {
    let (records, _damaged) = node.records().list().map_err(ApiError::failed)?;
    Ok(records.into_iter().map(entry).collect())
}

async fn follow_events(State(node): State<Arc<Node>>) -> impl IntoResponse {
    route::lines(node.events().follow())
}

/// Converts a record, without its secret.
fn entry(record: Record) -> MigrationEntry {
    let (state, peer) = match &record.side {
        Side::Source { state, destination, .. } => (SideState::Source(*state), destination.clone()),
        Side::Destination { state, source_address, .. } => {
            (SideState::Destination(*state), source_address.to_string())
        }
    };
    MigrationEntry {
        id: record.migration.0,
        role: record.role(),
        state,
        is_settled: record.is_settled(),
        peer,
        started_unix_ms: record.started_unix_ms,
        updated_unix_ms: record.updated_unix_ms,
        guest: record.guest,
        report: record.report,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use migrate::record::SourceState;

    use super::super::liveness::tests::source_record;
    use super::*;

    #[test]
    fn every_type_that_the_document_speaks_of_is_in_it() {
        fn references<'a>(value: &'a Value, into: &mut BTreeSet<&'a str>) {
            match value {
                Value::Object(fields) => {
                    into.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|field| references(field, into));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, into)),
                _ => {}
            }
        }
        let document = route::document(ABOUT, &operations());
        let mut referred = BTreeSet::new();
        references(&document, &mut referred);
        let missing = |reference: &&&str| {
            let pointer = reference.strip_prefix('#').expect("in this document");
            document.pointer(pointer).is_none()
        };
        assert_eq!(referred.iter().find(missing), None);
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let doubled = schemas.keys().find(|name| name.ends_with(|last: char| last.is_numeric()));
        assert_eq!(doubled, None, "two types of one name");
        let text = document.to_string();
        assert!(!text.contains("[`") && !text.contains("\"items\":["), "{text}");
        assert!(referred.contains("#/components/schemas/Plan"), "{referred:?}");
        let paths = document["paths"].as_object().expect("paths");
        let owners = ["/v1/density/plan", "/v1/node", "/v1/migrations", "/v1/openapi.json"];
        assert!(owners.iter().all(|path| paths.contains_key(*path)), "{:?}", paths.keys());
        assert!(paths["/v1/density/runs/{id}"]["delete"].is_object());
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
