//! stub
use std::sync::Arc;
use migrate::MigrationId;
use migrate::error::OperatorChoice;
use super::process::GuestProcess;
use crate::api::{ApiError, Reason};
use crate::api::types::{MigrationRequest, MigrationStatus};
#[derive(Debug)]
pub(crate) struct Departure { id: MigrationId, destination: String }
impl Departure {
    pub(crate) fn start(_p: &Arc<GuestProcess>, _r: &MigrationRequest) -> Result<Self, ApiError> { Err(ApiError::new(Reason::Failed, "stub")) }
    pub(crate) fn id(&self) -> MigrationId { self.id }
    pub(crate) fn destination(&self) -> &str { &self.destination }
    pub(crate) fn detail(&self) -> Option<String> { None }
    pub(crate) fn status(&self) -> MigrationStatus { MigrationStatus::default() }
    pub(crate) fn cancel(&self, _by: &str) -> Result<(), ApiError> { Ok(()) }
    pub(crate) fn resolve(&self, _c: OperatorChoice) -> Result<(), ApiError> { Ok(()) }
    pub(crate) fn is_in_doubt(&self) -> bool { false }
    pub(crate) fn guest_stopped(&self, _r: &vmm_core::StopReason) { }
}
