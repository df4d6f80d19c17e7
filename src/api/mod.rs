//! The HTTP/JSON interface of guest processes, on Unix sockets.
//!
//! [`types`] is what travels, [`migration`] what does about moving a guest, [`memory`] and
//! [`survey`] what does about a guest's memory and looks at its pages, [`saving`] about its file,
//! [`guest`] the routes of a guest process, [`server`] how a socket is served, [`client`] how one
//! is asked, [`descriptor`] how a file goes along, [`error`] how a refusal looks on both sides,
//! `openapi.json` what a stranger reads first. Nothing here knows how a guest does what it is
//! asked: [`guest::GuestControl`] does. Start at [`guest`].

pub(crate) mod client;
mod descriptor;
pub(crate) mod error;
pub(crate) mod guest;
pub(crate) mod memory;
pub(crate) mod migration;
pub(crate) mod saving;
pub(crate) mod server;
pub(crate) mod survey;
pub(crate) mod types;

pub(crate) use client::{ApiClient, AskError};
pub(crate) use error::{ApiError, Reason};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::migration::{CopyDisks, MigrationRequest};

    const DOCUMENT: &str = include_str!("openapi.json");

    fn fields(object: &Value) -> BTreeSet<&String> {
        object.as_object().unwrap().keys().collect()
    }

    #[test]
    fn the_served_document_holds_every_field_of_a_migrations_request() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let schemas = &document["components"]["schemas"];
        let identity = migrate::quic::Identity {
            ca_pem: String::new(),
            cert_pem: String::new(),
            key_pem: String::new(),
            crl_pem: Some(String::new()),
        };
        let request = MigrationRequest {
            copy_disks: Some(CopyDisks::default()),
            addresses: vec![([192, 0, 2, 7], 4950).into()],
            node_port: "4950".parse().ok(),
            ..MigrationRequest::to("host-b".to_owned(), identity)
        };
        let request = serde_json::to_value(request).unwrap();
        let sent = [
            ("MigrationRequest", &request),
            ("Identity", &request["identity"]),
            ("CopyDisks", &request["copy_disks"]),
        ];
        for (schema, sent) in sent {
            assert_eq!(fields(&schemas[schema]["properties"]), fields(sent), "{schema}");
        }
    }
}
