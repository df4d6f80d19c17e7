//! Refusals: `{"error": "for people", "reason": "for-programs"}` with a matching HTTP status.

use std::fmt;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a request was refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "RefusalReason")]
pub(crate) enum Reason {
    /// The request cannot be understood.
    BadRequest,
    /// There is no such route or thing.
    NotFound,
    /// The route exists, but not with this method.
    MethodNotAllowed,
    /// The request's body is too large.
    TooLarge,
    /// The guest is being migrated: cancel first, or wait.
    Migrating,
    /// There is no migration to cancel or to resolve.
    NotMigrating,
    /// The guest has been handed over: the migration can only be completed.
    TooLate,
    /// The guest's state does not allow it.
    WrongState,
    /// The guest is not the built-in workload.
    NoWorkload,
    /// The operation was tried, and failed.
    Failed,
}

impl Reason {
    /// The HTTP status of the reason.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound | Self::NoWorkload => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Migrating | Self::NotMigrating | Self::TooLate | Self::WrongState => {
                StatusCode::CONFLICT
            }
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ApiError {
    /// What happened and what to do, for people.
    pub(crate) error: String,
    /// Why the request was refused, for programs.
    pub(crate) reason: Reason,
}

impl ApiError {
    /// A refusal for `reason`, explained by `error`.
    pub(crate) fn new(reason: Reason, error: impl Into<String>) -> Self {
        Self { error: error.into(), reason }
    }

    /// An operation that was tried and failed; the text has the whole chain of causes.
    pub(crate) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Reason::Failed, format!("{:#}", error.into()))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.reason.status(), Json(self)).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let too_large = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
        Self::new(
            if too_large { Reason::TooLarge } else { Reason::BadRequest },
            rejection.body_text(),
        )
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Reason::BadRequest, rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Reason::BadRequest, rejection.body_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_travel_as_words() {
        let error = ApiError::new(Reason::TooLate, "handed over");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(text, r#"{"error":"handed over","reason":"too-late"}"#);
        assert_eq!(serde_json::from_str::<ApiError>(&text).unwrap(), error);
    }

    #[test]
    fn a_failure_names_its_causes() {
        let error = ApiError::failed(anyhow::anyhow!("disk full").context("cannot save"));
        assert_eq!(error.error, "cannot save: disk full");
        assert_eq!(error.reason.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
