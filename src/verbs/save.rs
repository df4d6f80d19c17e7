//! `lighter save` and `lighter template`: a guest's memory and state into a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use vmm_core::snapshot::PartialFile;

use super::session::{block_on, guest_client};
use crate::api::ApiClient;
use crate::api::types::{SaveFormat, SaveRequest, Saved};
use crate::cli::guest::{SaveArgs, TemplateArgs};
use crate::exit::Exit;
use crate::names::GuestName;
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
    write(state, &args.name, &args.file, SaveFormat::Guest)
}

/// Makes a template of a guest.
///
/// # Errors
/// As [`run`].
pub(crate) fn template(state: &StateDir, args: &TemplateArgs) -> Result<Exit> {
    write(state, &args.name, &args.file, SaveFormat::Template)
}

fn write(state: &StateDir, name: &GuestName, to: &Path, format: SaveFormat) -> Result<Exit> {
    let client = guest_client(state, name)?.with_patience(PATIENCE);
    let file = std::path::absolute(to).with_context(|| format!("cannot find {}", to.display()))?;
    let saved = save(&client, file, format).with_context(|| format!("cannot save {name}"))?;
    let stood = format_duration(Duration::from_millis(saved.paused_ms));
    output::print_line(format_args!(
        "{name}: {} in {}, the guest stood still for {stood}",
        format_size(saved.file_bytes),
        to.display()
    ))?;
    Ok(Exit::Done)
}

/// Has the guest written to a file without a name, which gets its name when all is there. It is opened here: the guest's process may
/// not, and the file becomes this user's.
fn save(client: &ApiClient, file: PathBuf, format: SaveFormat) -> Result<Saved> {
    let path = file.display().to_string();
    let partial = PartialFile::create(&file);
    let partial = partial.with_context(|| format!("cannot save the guest to {path}"))?;
    let request = SaveRequest { file, format };
    let asked = client.post_with_file("/v1/guest/save", &request, partial.file());
    let saved = block_on(async { Ok(asked.await?) })?;
    partial.publish(|| Ok(())).with_context(|| format!("cannot save the guest to {path}"))?;
    Ok(saved)
}
