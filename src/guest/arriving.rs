//! stub
use std::sync::Arc;
use anyhow::{bail, Result};
use migrate::{MigrationId, Token};
use migrate::error::OperatorChoice;
use super::console::Console;
use super::process::GuestProcess;
use crate::api::ApiError;
use crate::api::types::MigrationStatus;
use crate::cli::host::IncomingArgs;
#[derive(Debug)]
pub(crate) struct Arrival { id: MigrationId }
impl Arrival {
    pub(crate) async fn start(_p: &Arc<GuestProcess>, _a: &IncomingArgs, _t: Token, _c: Console) -> Result<u16> { bail!("stub") }
    pub(crate) fn id(&self) -> MigrationId { self.id }
    pub(crate) fn detail(&self) -> Option<String> { None }
    pub(crate) fn status(&self) -> MigrationStatus { MigrationStatus::default() }
    pub(crate) fn cancel(&self, _by: &str) -> Result<(), ApiError> { Ok(()) }
    pub(crate) fn resolve(&self, _c: OperatorChoice) -> Result<(), ApiError> { Ok(()) }
    pub(crate) fn is_in_doubt(&self) -> bool { false }
}
pub(crate) fn read_token() -> Result<Token> { bail!("stub") }
pub(crate) fn tell_node_port(_p: u16) -> Result<()> { bail!("stub") }
pub(crate) fn tell_node_error(_e: &anyhow::Error) {}
