//! `lighter save`: a guest's memory and state into a file.

use std::time::Duration;

use anyhow::{Context, Result};

use super::session::{block_on, guest_client};
use crate::api::types::{SaveRequest, Saved};
use crate::cli::guest::SaveArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::units::{format_duration, format_size};

/// Memory goes to a disk: that may take its time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Saves a guest.
///
/// # Errors
/// There is no such guest, it is being migrated, or the file cannot be written.
pub(crate) fn run(state: &StateDir, args: &SaveArgs) -> Result<Exit> {
    let client = guest_client(state, &args.name)?.with_patience(PATIENCE);
    let file = std::path::absolute(&args.file)
        .with_context(|| format!("cannot find {}", args.file.display()))?;
    let saved: Result<Saved> =
        block_on(async { Ok(client.post("/v1/guest/save", &SaveRequest { file }).await?) });
    let saved = saved.with_context(|| format!("cannot save {}", args.name))?;
    let stood = format_duration(Duration::from_millis(saved.paused_ms));
    output::print_line(format_args!(
        "{}: {} in {}, the guest stood still for {stood}",
        args.name,
        format_size(saved.file_bytes),
        args.file.display()
    ))?;
    Ok(Exit::Done)
}
